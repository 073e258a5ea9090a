"""Every YAML of the repository loads, and every key of it is used."""

import re
from pathlib import Path

import pytest
import ruamel.yaml
from speechbrain.utils.run_opts import RunOptions

from lobes.runs.command_line import parse_arguments
from lobes.runs.variants import BASE, load_variant, placeholders
from lobes.settings import yamls
from lobes.system.checkout import ROOT
from lobes.training.brain import SpeechSpeakerBrain
from recipes.LibriSpeech_VoxCeleb.MTL import train as mtl
from tests.helpers import tiny

YAMLS = sorted(ROOT.glob("recipes/*/*/hparams/*.yaml"))
#: Those of the recipes, which stand on the one full YAML.
BASES = [path for path in YAMLS if "hparams/base.yaml\n" in path.read_text()]

#: Names of the repository, so that a search that finds nothing cannot pass.
EXPECTED = {
    "LibriSpeech/ASR": "asr asr_as_published asr_regularised "
    "asr_regularised_as_published demo",
    "VoxCeleb/SpeakerRec": "speaker speaker_9s speaker_first_cls speaker_first_cls_9s "
    "demo",
    "LibriSpeech_VoxCeleb/MTL": "mtl mtl_3s mtl_100h demo demo_scratch demo_pretrain "
    "static_0.5_3s static_0.5_9s static_0.88_3s static_0.88_9s static_0.9 dynamic_max "
    "dwa pool_first_cls pool_ctc_blank pool_ctc_nonblank pool_first pool_max "
    "pool_mean_std pool_attentive split_192 split_384 split_576 branch_3 branch_6 "
    "branch_9 regularised regularised_notes as_published disjoint_2s disjoint_10s "
    "disjoint_ls_2s disjoint_ls_10s joint_ls speaker_ls joint asr_vox small_corpus",
}


def test_the_yamls_are_found():
    for recipe, names in EXPECTED.items():
        folder = ROOT / "recipes" / recipe / "hparams"
        found = {path.stem for path in YAMLS if path.parent == folder}
        assert found == set(names.split())
    assert len(YAMLS) == sum(len(names.split()) for names in EXPECTED.values())
    assert len(BASES) == 3


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_it_loads_and_builds_a_brain(path, tmp_path):
    """With the encoder shrunk: the size of wav2vec2-base is tested elsewhere."""
    # As wide and as deep as the base, for the variants that count on it.
    wide = {**tiny.ENCODER, "hidden_size": 768, "num_hidden_layers": 12}
    encoder = str(wide).replace("'", "")
    tree, _ = load_variant(path)
    folders = [key for key in tree if key.endswith("_folder") and "csv" not in key]
    # The preparation, which does not take place here, would look for the file.
    given = [f"--{key}={tmp_path}" for key in {*folders, *placeholders(tree)}]
    small = [] if tree["encoder"]["config"] else [f"--encoder.config={encoder}"]
    arguments = [str(path), *given, "--encoder.source=null", *small, "--device=cpu"]
    hparams, run_opts, _ = parse_arguments(arguments)
    brain = SpeechSpeakerBrain(hparams, run_opts, hparams["checkpointer"])
    assert set(brain.tasks) == set(hparams["train_streams"])
    assert set(brain.tasks) == set(hparams["valid_sets"]) == set(hparams["test_sets"])


#: Keys that code reads by name (``hparams["..."]``, ``self.hparams....``).
READ_BY_CODE = re.compile(
    r"hparams(?:\[\"|\.get\(\"|\.)(\w+)|tree(?:\[|\.get\()\"(\w+)\""
)


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.stem)
def test_every_key_is_used(path):
    """By a reference in the YAML, by our code, or as a SpeechBrain run option."""
    text = BASE.read_text() + path.read_text()
    sources = [*ROOT.glob("lobes/**/*.py"), *path.parent.parent.glob("*.py")]
    used = {
        name
        for source in sources
        for match in READ_BY_CODE.findall(source.read_text())
        for name in match
        if name
    }
    used |= set(RunOptions().keys())
    for key in load_variant(path)[0]:
        if key.startswith("__"):
            continue
        assert f"<{key}>" in text or key in used, f"{path.name}: {key} is not used"


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_no_key_is_a_prefix_of_a_run_option(path):
    """argparse would take `--steps_limit` for an abbreviation, and swallow it."""
    for key in load_variant(path)[0]:
        swallowed = [o for o in RunOptions().keys() if o.startswith(key) and o != key]
        assert not swallowed, f"{key} of {path.name} is a prefix of {swallowed}"


def test_no_loading_process_is_waited_for_for_ever():
    for path in [BASE, *YAMLS]:
        text = path.read_text(encoding="utf-8")
        workers = len(re.findall(r"num_workers: !ref", text))
        assert workers == text.count("timeout: !ref <loader_timeout>"), path.name


def test_every_training_stream_takes_the_grid_of_lengths():
    for path in [BASE, *YAMLS]:
        text = path.read_text(encoding="utf-8")
        streams = len(re.findall(r"streams\.(LengthBuckets|RandomCrops)\n", text))
        grids = text.count("length_grid_seconds: !ref <length_grid_seconds>")
        assert grids == streams, path.name


def test_variants_are_short():
    for path in set(YAMLS) - set(BASES):
        assert len(load_variant(path)[0]) and path.read_text().count("\n") <= 33


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.stem)
def test_the_paper_s_numbers(path):
    tree, _ = load_variant(path)
    assert tree["seed"] == 42133724
    assert tree["encoder"]["source"] == "facebook/wav2vec2-base"
    assert (tree["steps"], tree["freeze_steps"]) == (100_000, 10_000)
    assert tree["valid_interval"] == 5_000
    assert tree["stopping"]["patience_steps"] == 20_000
    assert tree["max_batch_samples"] == 3_200_000
    assert tree["schedule"]["initial_lr"] == tree["schedule"]["final_lr"] == 5e-6
    rate = {"mtl": 1e-4, "asr": 5.62e-5, "speaker": 3.16e-5}
    assert tree["lr"] == rate[path.stem]
    if path.stem != "asr":
        crop = {"mtl": 9.0, "speaker": 3.0}
        assert tree["crop_seconds"] == crop[path.stem]
        speaker = tree["speaker"]
        assert (speaker["scale"], speaker["margin"]) == (30.0, 0.2)
        assert speaker["n_speakers"] == 5994


def test_there_is_one_full_yaml():
    assert set(Path(ROOT / "hparams").glob("*.yaml")) == {BASE}
    for path in BASES:
        assert (path.parent / yamls.read(path)["base"]).resolve() == BASE


MTL = ROOT / "recipes" / "LibriSpeech_VoxCeleb" / "MTL" / "hparams"


@pytest.mark.parametrize("name", ["joint", "asr_vox"])
def test_training_on_transcripts_asks_for_them(name, tmp_path, monkeypatch, capsys):
    """Before any data is read; and for a file that is there."""
    monkeypatch.setattr(mtl, "prepare_librispeech", None)
    encoder = str(tiny.ENCODER).replace("'", "")
    tree, _ = load_variant(MTL / f"{name}.yaml")
    folders = [key for key in tree if key.endswith("_folder") and "csv" not in key]
    arguments = [str(MTL / f"{name}.yaml"), *(f"--{k}={tmp_path}" for k in folders)]
    arguments += ["--encoder.source=null", f"--encoder.config={encoder}"]
    arguments += ["--device=cpu"]
    with pytest.raises(SystemExit):
        mtl.main(arguments)
    told = capsys.readouterr().err
    assert "needs voxceleb.transcripts; give --voxceleb.transcripts=..." in told
    with pytest.raises(SystemExit):
        mtl.main([*arguments, f"--voxceleb.transcripts={tmp_path}/absent.jsonl"])
    told = capsys.readouterr().err
    assert f"transcripts: the file {tmp_path}/absent.jsonl does not exist" in told
    assert not list(tmp_path.rglob("*.csv"))


def test_joint_training_takes_one_batch_for_both_tasks(tiny_corpus, tmp_path):
    """Of both corpora, with one label space, at the follow-up's steps."""
    tree, _ = load_variant(MTL / "joint.yaml")
    # LibriSpeech's 2338 training readers, VoxCeleb2's 5994 speakers.
    assert tree["speaker"]["n_speakers"] == 2338 + 5994
    assert (tree["steps"], tree["freeze_steps"]) == (200_000, 3_000)
    assert dict(tree["weighting"]["weights"]) == {"speech": 0.5, "speaker": 0.5}
    system = tiny.brain(
        tiny_corpus,
        tmp_path / "run",
        yaml=MTL / "joint.yaml",
        transcripts="unused",
        n_speakers=tiny.SPEAKERS + 1,
    )
    batches = [
        batch for _, batch in zip(range(40), system.prepare_training(), strict=False)
    ]
    seen = set()
    for batch in batches:
        assert batch["speech"] is batch["speaker"]
        assert set(batch["speech"].labels) == {"letters", "speaker"}
        seen.update(batch["speech"].ids)
    assert {identity[:2] for identity in seen} == {"s-", "id"}
    speakers = system.hparams.speakers.index
    assert list(speakers) == [*(f"id{i}" for i in range(tiny.SPEAKERS)), "s"]


NOTES = ROOT / "grids" / "notes.yaml"


@pytest.mark.fault(
    "A6",
    "the notes' runs selected by the paper's rule",
    "checkpoint by WER / 4 + EER / 4, learning rate by WER / 4 + EER",
)
@pytest.mark.fault(
    "A11", "early stopping in the notes' 200 k runs", "none of them stops early"
)
def test_the_notes_select_and_stop_by_their_own_rules():
    for recipe, runs in ruamel.yaml.YAML(typ="safe").load(NOTES)["runs"].items():
        for name, words in runs.items():
            path, *options = words.split()
            given = dict(option[2:].split("=") for option in options)
            folder = ROOT / "recipes" / recipe
            base = given.get("base")
            tree, _ = load_variant(folder / path, base and folder / base)
            patience = tree["stopping"]["patience_steps"]
            assert given.get("stopping.patience_steps", patience) in (None, "null")
            assert int(given.get("steps", tree["steps"])) == 200_000, name
            if "MTL" in recipe:
                assert tree["selection"] == {"wer": 0.25, "eer": 0.25}
                assert tree["rate_selection"] == {"wer": 0.25, "eer": 1.0}
    paper, _ = load_variant(MTL / "mtl.yaml")
    assert paper["selection"] == {"wer": 0.25, "eer": 1.0}
    assert paper["rate_selection"] is None


PUBLISHED = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "mask_time_prob": 0.05}
PUBLISHED |= {"activation_dropout": 0.0, "mask_time_length": 10}


@pytest.mark.fault(
    "E1",
    "asr_regularised_as_published.yaml",
    "channel masks 0.1 x 64, projection dropout 0.1, none after activations",
)
@pytest.mark.fault("E2", "as_published.yaml", "activation_dropout 0.0")
@pytest.mark.fault("E3", "as_published.yaml", "input_dropout 0.0, 0.1 in the layers")
def test_the_published_regularisation():
    asr = ROOT / "recipes" / "LibriSpeech" / "ASR" / "hparams"
    for path in (MTL / "as_published.yaml", asr / "asr_as_published.yaml"):
        tree, _ = load_variant(path)
        encoder = tree["encoder"]
        assert {key: encoder[key] for key in PUBLISHED} == PUBLISHED, path.name
        others = ("layerdrop", "feat_proj_dropout", "input_dropout")
        assert [encoder[key] for key in others] == [0.0] * 3
        assert tree["speech"]["dropout"] == encoder["mask_feature_prob"] == 0.0
    tree, _ = load_variant(asr / "asr_regularised_as_published.yaml")
    encoder = tree["encoder"]
    assert {key: encoder[key] for key in PUBLISHED} == PUBLISHED
    assert (encoder["mask_feature_prob"], encoder["mask_feature_length"]) == (0.1, 64)
    assert (encoder["feat_proj_dropout"], encoder["input_dropout"]) == (0.1, None)
    assert (encoder["layerdrop"], tree["speech"]["dropout"]) == (0.1, 0.05)
