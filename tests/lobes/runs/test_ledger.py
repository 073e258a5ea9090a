"""The ledger: what a line holds, how runs end, several writers, damaged lines."""

import errno
import itertools
import json
import multiprocessing
import os

import pandas
import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from lobes.errors import DivergedError, UserError
from lobes.evaluation.progress import ProgressLog
from lobes.runs import evaluate as evaluation
from lobes.runs import ledger
from lobes.runs.command_line import ExperimentOptions, resolve
from lobes.runs.variants import load_variant
from lobes.system import locks
from lobes.training import brain
from lobes.training.stopping import EarlyStopping
from recipes.LibriSpeech_VoxCeleb.MTL import train as mtl
from tests.helpers import tiny

RESULTS = {
    "wer": 12.0,
    "eer": 3.0,
    "validation": {"wer": 8.0, "eer": 2.0},
    "sets": {"speech": {"test-other": {"wer": 12.0}}},
    "checkpoint": "/somewhere/save/CKPT+1",
    "step": 50,
    "parameters": 7,
}


@pytest.fixture
def hparams(tmp_path):
    """What a line is made of, without a model."""
    (tmp_path / "hyperparams.yaml").write_text("seed: 1\nlr: 0.1\n")
    return {
        "output_folder": str(tmp_path),
        "ledger": str(tmp_path / "ledger.jsonl"),
        "stopping": EarlyStopping(patience_steps=40, limits={"speech_loss": 10}),
        "encoder": torch.nn.Linear(1, 1),
        "selection": {"wer": 0.25, "eer": 1.0},
        "headline_sets": {"wer": "test-other", "eer": "veri_test2"},
        "seed": 1,
        "lr": 0.1,
        "steps": 100,
        "checkpointer": Checkpointer(tmp_path / "save"),
        "train_streams": {},
        "valid_sets": {},
        "test_sets": {},
    }


ORIGIN = {"recipe": "MTL", "variant": "mtl", "changes": {"lr": 0.1}}
OPTIONS = ExperimentOptions(origin=ORIGIN)


def row(**changes):
    return {"kind": "training", "state": "finished", **ORIGIN, "seed": 1, **changes}


def test_a_training_and_its_evaluation_are_noted(tiny_corpus, tmp_path):
    """One line each, of the same run, with what results.json holds."""
    output, lines = tmp_path / "run", tmp_path / "run" / "ledger.jsonl"
    arguments = tiny.arguments(tiny_corpus, output, steps=2, valid_interval=2)
    mtl.main([*arguments, "--device=cpu", "--noprogressbar"])
    results = json.loads((output / "results.json").read_text())
    evaluation.main([str(output), "--device=cpu", "--noprogressbar"])
    training, tested = ledger.read(lines)
    assert [training["kind"], tested["kind"]] == ["training", "evaluation"]
    assert training["recipe"] == "LibriSpeech_VoxCeleb/MTL"
    assert training["variant"] == "mtl" and training["seed"] == 42133724
    # Neither places and seeds, nor what is as in the YAML.
    assert training["changes"]["steps"] == 2
    assert not {"output_folder", "seed", "max_grad_norm"} & set(training["changes"])
    assert training["steps"] == 2 and tested["steps"] is None
    assert training["sets"] == tested["sets"] == results["sets"]
    assert training["wer"] == results["wer"] and training["eer"] == results["eer"]
    validation = results["validation"]
    score = validation["wer"] / 4 + validation["eer"]
    assert training["score"] == pytest.approx(score)
    assert training["checkpoint"] == os.path.basename(results["checkpoint"])
    for name in ("settings", "data", "versions", "commit", "device"):
        assert training[name] == tested[name] and training[name], name
    assert ledger.key(training) == ledger.key(tested)
    assert set(training["data"]) == {
        "train speech",
        "train speaker",
        "valid speech",
        "valid speaker",
        "valid speaker valid_trials",
        "test speech test-other",
        "test speaker voxceleb1",
        "test speaker voxceleb1 veri_test2",
    }
    assert training["data"]["train speech"].startswith("12:")
    assert training["data"]["valid speaker"] == training["data"]["train speaker"]
    assert training["memory"]["host"] > 5e7 and training["seconds"] > 0.1
    table = pandas.read_json(lines, lines=True)
    assert list(table["eer"]) == [results["eer"]] * 2


ENDS = {
    "finished": ([(100, 9, 2)], None, None),
    "early-stopped": ([(10, 9, 2), (60, 9, 2)], None, "has not improved"),
    "diverged": ([(100, 100, 50.37)], None, "chance: wer is 100.00, eer is 50.37"),
    "failed": ([(10, 9, 2)], KeyError("x"), "KeyError: 'x'"),
    "pre-empted": ([(10, 9, 2)], SystemExit(75), "SystemExit: 75"),
}


@pytest.mark.parametrize("state", ENDS)
def test_how_a_training_ends(state, hparams):
    validations, error, reason = ENDS[state]
    for step, wer, eer in validations:
        validated(hparams, step, wer=wer, eer=eer, speech_loss=1)
    found = end(hparams, error)
    assert found["state"] == state
    assert (reason is None and found["reason"] is None) or reason in found["reason"]
    assert found["steps"] == validations[-1][0]


def validated(hparams, step, **metrics):
    """As the Brain notes a validation."""
    log = ProgressLog(hparams["output_folder"])
    log.rewind(step - 1)
    log.add("valid", step, metrics)


def end(hparams, error=None, options=OPTIONS):
    """The line of a run that ends so."""
    if error is None:
        with ledger.entry(hparams, options) as results:
            results.update(RESULTS)
    else:
        with pytest.raises(type(error)), ledger.entry(hparams, options):
            raise error
    return ledger.read(hparams["ledger"])[-1]


def test_an_early_stop_is_known_after_the_evaluation(
    tiny_corpus, tmp_path, monkeypatch
):
    """Which goes back to the best checkpoint, of before there was a reason to stop."""
    monkeypatch.setattr(ledger, "CHANCE", {})
    scores = itertools.count()
    monkeypatch.setattr(brain, "selection_score", lambda *_: float(next(scores)))
    changes = {"steps": 6, "valid_interval": 1, "freeze_steps": 6, "lr": 1e-12}
    arguments = tiny.arguments(tiny_corpus, tmp_path, **changes)
    arguments += ["--schedule.initial_lr=1e-12", "--stopping.patience_steps=2"]
    mtl.main([*arguments, "--device=cpu", "--noprogressbar"])
    (row,) = ledger.read(tmp_path / "ledger.jsonl")
    assert row["state"] == "early-stopped" and row["steps"] == 3
    assert row["checkpoint_step"] == 1
    assert row["reason"].endswith("has not improved for 2 steps")


def test_further_ways_to_diverge_and_to_be_stopped(hparams):
    assert end(hparams, DivergedError("nan"))["state"] == "diverged"
    assert end(hparams, KeyboardInterrupt())["state"] == "pre-empted"
    assert end(hparams, UserError("no such file"))["reason"] == "no such file"
    assert end(hparams)["state"] == "pre-empted", "no step was taken"
    # A single task is judged by its own metric; a bad one is better than chance.
    for state, metrics in (
        ("diverged", {"eer": 48.0}),
        ("finished", {"eer": 44.0}),
        ("finished", {"wer": 100.0, "eer": 30.0}),
        ("diverged", {"eer": 30.0, "speech_loss": float("nan")}),
    ):
        validated(hparams, 100, **metrics)
        assert end(hparams)["state"] == state, metrics
    assert end(hparams, options=None)["state"] == "finished", "an evaluation"


def test_what_diverges_before_its_test_has_its_last_validation(hparams):
    """Of what that has not, chance: it is a row of the tables."""
    row = end(hparams, DivergedError("nan"))
    assert row["validation"] == {"wer": 100, "eer": 50} and row["score"] == 75
    assert "wer" not in row, "nothing was tested"
    hparams["rate_selection"] = {"wer": 1.0, "eer": 0.5}
    assert end(hparams, DivergedError("nan"))["score"] == 125
    hparams["rate_selection"] = None
    assert end(hparams, DivergedError("nan"))["score"] == 75
    validated(hparams, 10, wer=8.0, eer=2.0, speech_loss=1.0)
    assert end(hparams, DivergedError("nan"))["score"] == 4
    validated(hparams, 20, wer=80.0, eer=float("nan"), speech_loss=9.0)
    row = end(hparams, DivergedError("nan"))
    assert row["validation"] == {"wer": 80, "eer": 50} and row["score"] == 70
    hparams["headline_sets"] = {"wer": "test-other"}
    assert end(hparams, DivergedError("nan"))["validation"] == {"wer": 80}
    assert "score" not in end(hparams, KeyError("x"))


def test_what_cannot_be_noted_hides_no_error(hparams, tmp_path, caplog):
    (tmp_path / "hyperparams.yaml").write_text("[")
    with pytest.raises(ValueError, match="the run's own"):
        with ledger.entry(hparams, OPTIONS):
            raise ValueError("the run's own")
    assert "the run could not be noted" in caplog.text


def test_a_file_system_without_locks(hparams, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    validated(hparams, 100, wer=9, eer=2)
    assert end(hparams)["state"] == "finished"


def test_the_debug_mode_is_not_noted(hparams):
    with ledger.entry(hparams, ExperimentOptions(debug=True)) as results:
        results.update(RESULTS)
    with ledger.entry(hparams):
        pass
    assert ledger.read(hparams["ledger"]) == []


def test_a_ledger_that_cannot_be_written_is_refused_at_once(hparams, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    hparams["ledger"] = str(tmp_path / "file" / "ledger.jsonl")
    with pytest.raises(UserError, match="file/ledger.jsonl cannot be written"):
        with ledger.entry(hparams, OPTIONS):
            pytest.fail("the training had begun")


def write_lines(path, writer):
    for number in range(50):
        ledger.append(path, row(seed=[writer, number], text="x" * 5000))


def test_several_processes_write_at_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_lines, args=(path, i)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    rows = ledger.read(path)
    found = sorted(tuple(row["seed"]) for row in rows)
    assert found == [(i, number) for i in range(4) for number in range(50)]


def test_a_torn_line_spoils_no_other(tmp_path, caplog):
    """What a killed writer leaves is ended by the next one, named and counted."""
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, row(seed=1))
    with open(path, "ab") as stream:
        stream.write(json.dumps(row(seed=2)).encode()[:30])
    ledger.append(path, row(seed=3))
    with open(path, "ab") as stream:
        stream.write(b'[1]\n{"kind": "training"}\n\n\xff\n')
        stream.write(json.dumps(row(state="lost")).encode() + b"\n")
    assert [row["seed"] for row in ledger.read(path)] == [1, 3]
    for line in (2, 4, 5, 7, 8):
        assert f"ledger.jsonl, line {line}: " in caplog.text
    assert "5 of its lines skipped" in caplog.text


def test_the_line_that_counts(tmp_path):
    """The last that is done; a later failure does not undo it; hours add up."""
    rows = [
        row(state="pre-empted", seconds=10),
        row(state="finished", seconds=5, wer=1),
        row(state="failed", seconds=1),
        row(state="failed", seconds=2, seed=2),
        row(state="pre-empted", seconds=2, seed=2),
        row(kind="evaluation", wer=9),
    ]
    first, second = ledger.trainings(rows).values()
    assert (first["state"], first["wer"], first["total_seconds"]) == ("finished", 1, 16)
    assert (second["state"], second["total_seconds"]) == ("pre-empted", 4)


def test_the_key_knows_equal_settings():
    """However a number is written, and whether it is the YAML's own."""
    given = [f"--{name}_folder=x" for name in ("librispeech", "voxceleb1")]
    given = [str(tiny.MTL), *given, "--voxceleb2_folder=x"]

    def origin(*arguments):
        return resolve([*given, *arguments])[3]

    assert origin("--lr=1e-4", "--seed=3", "--num_workers=1")["changes"] == {}
    assert origin("--lr=5e-5") == origin("--lr=0.00005")
    assert origin("--lr=5e-5")["changes"] == {"lr": 5e-5}
    assert origin("--steps=1e5")["changes"] == {}


def test_the_hash_changes_with_what_is_computed():
    def found(changes=None):
        tree, _ = load_variant(tiny.MTL)
        tree.update(changes or {})
        return ledger.settings_hash(tree)

    assert found() == found({"seed": 5, "output_folder": "x", "num_workers": 9})
    assert found({"lr": 1e-4}) == found() != found({"lr": 2e-4})
    blank = load_variant(tiny.MTL.with_name("pool_ctc_blank.yaml"))[0]
    letters = load_variant(tiny.MTL.with_name("pool_ctc_nonblank.yaml"))[0]
    assert len({ledger.settings_hash(t) for t in (blank, letters)} | {found()}) == 3


# Found by trying -----------------------------------------------------------------


@pytest.mark.fault(
    "C5",
    "ledger lines with null, text and lists where numbers stand",
    "line 2: lr is null; skipped; the others are read",
)
def test_lines_with_wrong_values_are_named(tmp_path, caplog):
    wrong = [
        {"lr": None},
        {"seconds": "5"},
        {"wer": True},
        {"sets": []},
        {"sets": {"speech": {"test": {"wer": None}}}},
        {"sets": {"speech": [1]}},
        {"validation": {"wer": "x"}},
        {"output_folder": None},
        {"changes": None},
        {"score": "low"},
    ]
    path = tmp_path / "ledger.jsonl"
    for number, change in enumerate(wrong):
        ledger.append(path, {**row(seed=number), **change})
    ledger.append(path, row(seed=99, score=None, steps=None, reason=None))
    rows = ledger.read(path)
    assert [row["seed"] for row in rows] == [99]
    for line, change in enumerate(wrong, start=1):
        assert f"ledger.jsonl, line {line}: " in caplog.text, change
    assert ledger.trainings(rows)


@pytest.mark.fault(
    "C5", "an utterance with the ID NA, null or nan", "the run is in the ledger"
)
def test_an_id_may_be_na(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("ID,wav,duration\nNA,a.wav,1\nnull,b.wav,1\nnan,c.wav,1\n")
    assert ledger._hash(ledger._utterances, [path]).startswith("3:")


@pytest.mark.fault(
    "B9", "SIGTERM at step 7, before a row was written", "the ledger has steps: 7"
)
def test_steps_that_only_a_checkpoint_has(hparams):
    saver = hparams["checkpointer"]
    saver.save_checkpoint(meta={"step": 7})
    assert end(hparams, SystemExit(75))["steps"] == 7
    validated(hparams, 9, wer=50, eer=20)
    assert end(hparams, SystemExit(75))["steps"] == 9


@pytest.mark.fault(
    "B2",
    "--optimizer_step_limit=20 of 100 with a WER of 100 % and an EER of 50 %",
    "state pre-empted: 20 of 100 steps; no verdict",
)
def test_a_limit_is_no_verdict(hparams):
    validated(hparams, 20, wer=100.0, eer=50.0, speech_loss=10.9)
    found = end(hparams)
    assert (found["state"], found["steps"]) == ("pre-empted", 20)
    assert found["reason"].startswith("20 of 100 steps")
    validated(hparams, 100, wer=100.0, eer=50.0, speech_loss=10.9)
    assert end(hparams)["state"] == "diverged"
