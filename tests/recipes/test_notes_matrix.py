"""The follow-up's variants on LibriSpeech: what they read, train on and weigh."""

import itertools

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch

from lobes.errors import UserError
from lobes.runs.command_line import parse_arguments
from lobes.training.brain import SpeechSpeakerBrain
from recipes.LibriSpeech.librispeech_prepare import prepare_librispeech
from recipes.VoxCeleb.voxceleb_prepare import prepare_voxceleb
from tests.helpers import tiny

FOLDER = tiny.MTL.parent
ON_LIBRISPEECH = ["disjoint_ls_2s", "disjoint_ls_10s", "joint_ls", "speaker_ls"]
DISJOINT = ["disjoint_2s", "disjoint_10s"]


def make(tiny_corpus, tmp_path, name="joint_ls", **settings):
    return tiny.brain(tiny_corpus, tmp_path / name, FOLDER / f"{name}.yaml", **settings)


def step(system, batches):
    """Losses, weights and total of one training batch, and gradients by name."""
    system.modules.train()
    outputs = system.compute_forward(dict(batches), sb.Stage.TRAIN)
    total = system.compute_objectives(outputs, dict(batches), sb.Stage.TRAIN)
    system.modules.zero_grad()
    total.backward()
    gradients = {n: p.grad for n, p in system.modules.named_parameters()}
    return dict(system.step_values), total, gradients


# Joint training ---------------------------------------------------------------


def test_joint_training_runs_the_encoder_once_for_both_tasks(tiny_corpus, tmp_path):
    system = make(tiny_corpus, tmp_path)
    batches = next(iter(system.prepare_training()))
    assert batches["speech"] is batches["speaker"]
    calls = []
    system.modules.encoder.register_forward_hook(lambda *_: calls.append(1))
    outputs = system.compute_forward(dict(batches), sb.Stage.TRAIN)
    assert set(outputs) == {"speech", "speaker"} and len(calls) == 1


def test_joint_batches_hold_whole_utterances_with_both_labels(tiny_corpus, tmp_path):
    system = make(tiny_corpus, tmp_path)
    stream = system.prepare_training()
    utterances = system.hparams.train_streams["speech"].utterances
    lengths = dict(zip(utterances.ids, utterances.lengths, strict=True))
    for batches in itertools.islice(stream, 4):
        batch = batches["speech"]
        assert [lengths[i] for i in batch.ids] == batch.lengths.tolist()
        assert batch.wavs.numel() <= 64_000
        speakers = system.hparams.speakers.encode(batch.columns["spk_id"])
        assert torch.equal(batch.labels["speaker"], speakers)
        letters = system.hparams.letters.encode(batch.columns["wrd"])
        assert torch.equal(batch.labels["letters"][0], letters[0])


@pytest.mark.parametrize("speech, speaker", [(0.5, 0.5), (0.9, 0.1)])
def test_the_weights_apply_to_both_losses(tiny_corpus, tmp_path, speech, speaker):
    """The published joint code forgot them: total and gradients by hand."""
    system = make(tiny_corpus, tmp_path)
    batches = next(iter(system.prepare_training()))
    weighting = system.modules.weighting
    assert weighting.weights == {"speech": 0.5, "speaker": 0.5}
    alone = []
    for weights in ({"speech": 1, "speaker": 0}, {"speech": 0, "speaker": 1}):
        weighting.weights = weights
        alone.append(step(system, batches)[2])
    weighting.weights = {"speech": speech, "speaker": speaker}
    values, total, gradients = step(system, batches)
    losses = speech * values["speech_loss"] + speaker * values["speaker_loss"]
    assert float(total.detach()) == pytest.approx(float(losses), rel=1e-6)
    assert float(values["speech_weight"]) == pytest.approx(speech)
    assert float(values["speaker_weight"]) == pytest.approx(speaker)
    seen = 0
    for name, gradient in gradients.items():
        parts = [part[name] for part in alone]
        if gradient is None:
            assert parts == [None, None]
            continue
        zero = torch.zeros_like(gradient)
        one, other = (zero if part is None else part for part in parts)
        expected = speech * one + speaker * other
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        seen += bool(one.any()) and bool(other.any())
    # Parameters that both tasks train: those of the encoder.
    assert seen > 10


def test_a_joint_run_trains_both_heads_and_the_encoder(tiny_corpus, tmp_path):
    system = make(tiny_corpus, tmp_path)
    before = tiny.parameters(system)
    rows = tiny.fit(system)
    train = [row for row in rows if row["stage"] == "train"]
    assert len(train) == 6
    assert all(row["speech_weight"] == row["speaker_weight"] == 0.5 for row in train)
    after = tiny.parameters(system)
    changed = {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"encoder", "speech", "speaker"}
    valid = [row for row in rows if row["stage"] == "valid"]
    assert all({"wer", "eer"} <= set(row) for row in valid)


# Disjoint training ------------------------------------------------------------


def test_disjoint_batches_are_drawn_from_librispeech_independently(
    tiny_corpus, tmp_path
):
    system = make(tiny_corpus, tmp_path, "disjoint_ls_2s")
    drawn = {"speech": set(), "speaker": set()}
    for batches in itertools.islice(system.prepare_training(), 6):
        assert set(batches["speech"].labels) == {"letters"}
        assert set(batches["speaker"].labels) == {"speaker"}
        assert batches["speech"].ids != batches["speaker"].ids
        for task, batch in batches.items():
            drawn[task].update(batch.ids)
    assert drawn["speech"] == drawn["speaker"] and len(drawn["speech"]) == 12


@pytest.mark.parametrize("name", ["disjoint_2s", "disjoint_ls_2s", "speaker_ls"])
def test_crops_of_two_seconds(name):
    assert loaded(name)["train_streams"]["speaker"].batch_size == 100


@pytest.mark.parametrize("name", ["disjoint_10s", "disjoint_ls_10s"])
def test_crops_of_ten_seconds(name):
    assert loaded(name)["train_streams"]["speaker"].batch_size == 20


# Settings ---------------------------------------------------------------------


def loaded(name, voxceleb2=None, folder="/unused", **settings):
    """The loaded YAML, with a tiny encoder and no folder but those it asks for."""
    given = {
        "librispeech_folder": f"{folder}/LibriSpeech",
        "voxceleb1_folder": f"{folder}/VoxCeleb1",
        "encoder.source": "null",
        "encoder.config": str(tiny.ENCODER).replace("'", ""),
        "output_folder": f"{folder}/out",
        **settings,
    }
    if name in DISJOINT:
        given["voxceleb2_folder"] = f"{folder}/VoxCeleb2"
    arguments = [f"--{key}={value}" for key, value in given.items()]
    return parse_arguments([str(FOLDER / f"{name}.yaml"), *arguments])[0]


@pytest.mark.parametrize("name", [*DISJOINT, *ON_LIBRISPEECH])
def test_the_protocol(name):
    hparams = loaded(name)
    assert (hparams["steps"], hparams["freeze_steps"]) == (200_000, 3_000)
    if name != "speaker_ls":
        assert hparams["speech"].letter_prior == "log"
    assert hparams["weighting"].weights == {"speech": 0.5, "speaker": 0.5}
    assert len(hparams["speaker"].weight) == (2338 if name in ON_LIBRISPEECH else 5994)
    fraction = hparams["librispeech"]["speaker_valid_fraction"]
    assert fraction == (0.05 if name in ON_LIBRISPEECH else None)


@pytest.mark.parametrize("name", DISJOINT)
def test_voxceleb2_is_asked_for_where_it_is_trained_on(name):
    with pytest.raises(UserError, match="needs librispeech_folder, voxceleb2_folder"):
        parse_arguments([str(FOLDER / f"{name}.yaml")])


# From the corpora -------------------------------------------------------------


def write(path, seed, samples=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(seed).randint(-9000, 9000, samples)
    soundfile.write(path, noise.astype(np.int16), 16000)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """LibriSpeech (4 readers x 4 chapters x 2) and VoxCeleb1, as they come."""
    folder = tmp_path_factory.mktemp("corpora")
    libri = folder / "LibriSpeech"
    lines = []
    splits = {"train-clean-100": (1, 2, 3, 4), "dev-other": (8,), "test-other": (9,)}
    for split, speakers in splits.items():
        for speaker, chapter in itertools.product(speakers, range(4)):
            place = libri / split / str(speaker) / f"{chapter}"
            for number in range(2):
                name = f"{speaker}-{chapter}-000{number}"
                write(place / f"{name}.flac", 100 * speaker + 10 * chapter + number)
                with open(place / f"{speaker}-{chapter}.trans.txt", "a") as stream:
                    stream.write(f"{name} A CAT\n")
        lines += [f"{s} | {'FM'[s % 2]} | {split} | 1 | N" for s in speakers]
    (libri / "SPEAKERS.TXT").write_text("\n".join(lines) + "\n")
    for number in (1, 2):
        for video in ("a", "b"):
            write(folder / f"VoxCeleb1/wav/id1000{number}/{video}/00001.wav", number)
    (folder / "VoxCeleb1" / "veri_test2.txt").write_text(
        "1 id10001/a/00001.wav id10001/b/00001.wav\n"
        "0 id10001/a/00001.wav id10002/b/00001.wav\n"
    )
    return folder


@pytest.mark.parametrize("name", ON_LIBRISPEECH)
def test_preparation_writes_what_the_variant_reads(corpora, tmp_path, name):
    """Without VoxCeleb2; speaker_ls without dev and test splits of LibriSpeech."""
    if name == "speaker_ls":
        libri = tmp_path / "LibriSpeech"
        libri.mkdir()
        for path in ("train-clean-100", "SPEAKERS.TXT"):
            (libri / path).symlink_to(corpora / "LibriSpeech" / path)
    hparams = loaded(
        name,
        folder=corpora,
        prepared_folder=tmp_path / "prepared",
        voxceleb_trial_lists="[veri_test2.txt]",
        num_workers=0,
        crop_seconds=0.3,
        **{"librispeech.tr_splits": "[train-clean-100]", "speaker.n_speakers": 4},
        **(
            {"librispeech_folder": libri}
            if name == "speaker_ls"
            else {"librispeech_test_splits": "[test-other]"}
        ),
    )
    # At this size 5 % is one chapter.
    splitting = {"speaker_valid_fraction": 0.5, "num_workers": 1}
    prepare_librispeech(**{**hparams["librispeech"], **splitting})
    prepare_voxceleb(**{**hparams["voxceleb"], "num_workers": 1})
    system = SpeechSpeakerBrain(hparams, {"device": "cpu"})
    trained = set()
    for batches in itertools.islice(system.prepare_training(), 3):
        for batch in batches.values():
            trained.update(batch.ids)
    system.open_sets()
    system.prepare_validation()
    valid = hparams["valid_sets"]["speaker"]
    assert len(trained) == 16 and len(valid.utterances) == 16
    assert not trained & set(valid.utterances.ids)
    trials = valid.trials["valid_speakers_trials"]
    assert 0 < trials.labels.sum() < len(trials)
    voxceleb = hparams["test_sets"]["speaker"]["voxceleb1"]
    assert len(voxceleb.utterances) == 3
