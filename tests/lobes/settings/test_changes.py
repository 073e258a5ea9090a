"""Resuming with something changed: fault case F11."""

import json
import shutil

import pandas
import pytest

from lobes.errors import UserError
from tests.helpers import tiny


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A corpus, and the folder of a run on it that has not ended."""
    folder = tmp_path_factory.mktemp("begun")
    corpus = folder / "corpus"
    corpus.mkdir()
    tiny.write_corpus(corpus)
    tiny.fit(tiny.brain(corpus, folder / "run", options=["--optimizer_step_limit=3"]))
    return folder


@pytest.fixture
def copy(begun, tmp_path):
    """The same, to be changed; where the corpus lies does not count."""
    shutil.copytree(begun / "run", tmp_path / "run")
    shutil.copytree(begun / "corpus", tmp_path / "corpus")
    return tmp_path


def resume(copy, options=(), yaml=tiny.MTL, **changes):
    system = tiny.brain(copy / "corpus", copy / "run", yaml, options=options, **changes)
    tiny.fit(system)
    return system.optimizer_step


def another_vocabulary(copy):
    yaml = copy / "swapped.yaml"
    yaml.write_text(
        f"base: {tiny.MTL}\n"
        "letters: !new:lobes.data.labels.Letters\n"
        "    vocabulary: !new:lobes.data.vocabulary.Vocabulary\n"
        "        symbols: [<pad>, <s>, </s>, <unk>, '|', T, E, A, O, N, I, H, S, R, D,"
        " L, U, M, W, C, F, G, 'Y', P, B, V, K, \"'\", X, J, Q, Z]\n"
    )
    return {"yaml": yaml}


def edit(name, **values):
    def change(copy):
        path = copy / "corpus" / f"{name}.csv"
        table = pandas.read_csv(path, keep_default_na=False)
        for column, (old, new) in values.items():
            table[column] = table[column].replace(old, new)
        table.to_csv(path, index=False)
        return {}

    return change


def without_the_last(copy):
    path = copy / "corpus" / "LibriSpeech" / "train.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return {}


def without_a_trial(copy):
    path = copy / "corpus" / "VoxCeleb" / "valid_trials.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return {}


CHANGES = {
    "another learning rate": (lambda _: {"lr": 2e-3}, "lr: 0.001 -> 0.002"),
    "another seed": (lambda _: {"seed": 7}, "seed: 42133724 -> 7"),
    "another vocabulary": (another_vocabulary, "letters"),
    "another set of speakers": (
        edit("VoxCeleb/train", spk_id=("id0", "id9")),
        "speaker.labels.speaker: 5 (",
    ),
    "another transcript": (
        edit("LibriSpeech/train", wrd=("NO DOG", "A DOG")),
        "speech.corpus: ",
    ),
    "an utterance less": (without_the_last, "speech.utterances: 12 -> 11"),
    "a validation trial less": (without_a_trial, "validation of speaker: "),
    "more batches a step": (
        lambda _: {"grad_accumulation_factor": 2},
        "grad_accumulation_factor: 1 -> 2",
    ),
}


@pytest.mark.parametrize(
    "change, told",
    [
        pytest.param(*case, id=name, marks=pytest.mark.fault("F11", name))
        for name, case in CHANGES.items()
    ],
)
def test_a_change_is_refused_and_may_be_allowed(change, told, copy):
    """Refused with a diff in one line; --allow_changes goes on and records it."""
    settings = change(copy)
    with pytest.raises(UserError) as caught:
        resume(copy, **settings)
    line = str(caught.value)
    assert told in line and "--allow_changes" in line and "\n" not in line
    assert not (copy / "run" / "changes.jsonl").exists()
    assert resume(copy, ["--allow_changes"], **settings) == 6
    rows = (copy / "run" / "changes.jsonl").read_text().splitlines()
    assert any(told in change for row in rows for change in json.loads(row)["changes"])


def test_an_allowed_change_of_the_optimizer_acts(copy):
    """Although the checkpoint brings the old one's settings."""
    yaml = copy / "decay.yaml"
    yaml.write_text(f"base: {tiny.MTL}\nopt_class.weight_decay: 0.1\n")
    system = tiny.brain(
        copy / "corpus", copy / "run", yaml, options=["--allow_changes"]
    )
    tiny.fit(system)
    assert system.optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.fault("F11", "other folders, workers, threads, device and intervals")
def test_ways_of_running_never_count(copy):
    """The run goes on without a word."""
    settings = {
        "num_workers": 1,
        "threads": 2,
        "log_interval": 2,
        "voxceleb1_folder": "elsewhere",
        "checkpoints_to_keep": 2,
        "ledger": copy / "other.jsonl",
        "loader_timeout": 60,
        "valid_batch_samples": 90_000,
        "nonfinite_patience": 3,
        "gradient_checkpointing": True,
    }
    moved = copy.with_name("moved")
    shutil.move(copy, moved)
    assert resume(moved, ["--ckpt_interval_steps=2"], **settings) == 6
    assert not (moved / "run" / "changes.jsonl").exists()


@pytest.mark.fault(
    "C7",
    "a resume without the run's hyperparams.yaml",
    "refused: other settings (unknown ones, as hyperparams.yaml is missing there)",
)
def test_what_cannot_be_compared_is_refused(copy):
    (copy / "run" / "hyperparams.yaml").unlink()
    with pytest.raises(UserError, match="unknown ones, as hyperparams.yaml is missing"):
        resume(copy, lr=0.5)
    assert resume(copy, ["--allow_changes"]) == 6
