"""Checkpoints that are torn, damaged or cannot be written: F01 to F08, and F32."""

import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

from lobes.errors import UserError
from lobes.runs.command_line import parse_arguments
from lobes.runs.evaluate import main as evaluate
from lobes.system.files import file_hash
from lobes.training import checkpoints
from tests.helpers import attempts, tiny

OPTIONS = ["--device=cpu", "--noprogressbar"]
SETTINGS = {"steps": 6, "valid_interval": 3, "checkpoints_to_keep": 3}


@pytest.fixture(scope="module")
def finished(tiny_corpus, tmp_path_factory):
    """The folder of a run with three checkpoints, and its last parameters."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    system = tiny.brain(
        tiny_corpus, folder, options=["--ckpt_interval_steps=2"], **SETTINGS
    )
    tiny.fit(system)
    assert len(found(folder)) >= 3
    return folder, tiny.parameters(system)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of that folder, which a test may spoil."""
    return shutil.copytree(finished[0], tmp_path / "run")


def found(folder):
    """Its checkpoints, the newest first."""
    saved = checkpoints.Checkpointer(folder / "save").list_checkpoints()
    saved.sort(key=lambda one: -one.meta["unixtime"])
    return [one.path for one in saved]


def resumed(corpus, folder):
    """A Brain that has recovered, or the error that it raised instead."""
    system = tiny.brain(corpus, folder, options=["--ckpt_interval_steps=2"], **SETTINGS)
    tiny.fit(system)
    return system


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"\x00\xff{[: not yaml")


def numpy_number(path):
    text = path.read_text() + "score: !!python/object/apply:numpy.float64 [1.0]\n"
    path.write_text(text)


@pytest.mark.parametrize(
    "name, damage, problem",
    [
        pytest.param(
            name,
            damage,
            problem,
            id=f"{damage.__name__} {name}",
            marks=pytest.mark.fault(case, f"{told} in the newest checkpoint"),
        )
        for name, damage, problem, case, told in [
            ("encoder.ckpt", cut, "encoder.ckpt has", "F04", "truncated model file"),
            ("encoder.ckpt", flip, "content of encoder.ckpt", "F04", "bit flipped"),
            ("optimizer.ckpt", os.remove, "optimizer.ckpt: No", "F04", "absent file"),
            ("CKPT.yaml", empty, "CKPT.yaml", "F06", "empty metadata"),
            ("CKPT.yaml", garbage, "CKPT.yaml", "F06", "garbage as metadata"),
            ("CKPT.yaml", numpy_number, "CKPT.yaml", "F06", "a NumPy object"),
            ("MANIFEST.json", garbage, "MANIFEST.json", "F06", "garbage as manifest"),
            ("MANIFEST.json", os.remove, "MANIFEST.json", "F06", "no manifest"),
        ]
    ],
)
def test_a_damaged_newest_checkpoint(
    name, damage, problem, run, finished, tiny_corpus, caplog
):
    """Named in the log; the one before is taken, and the run ends as it had."""
    newest = found(run)[0]
    damage(newest / name)
    system = resumed(tiny_corpus, run)
    log = (run / "log.txt").read_text()
    told = [line for line in log.splitlines() if str(newest) in line]
    assert any("is damaged" in line and problem in line for line in told), log
    expected = finished[1]
    ours = tiny.parameters(system)
    assert all(torch.equal(ours[key], expected[key]) for key in expected)
    assert newest.with_name(f"damaged-{newest.name}").is_dir(), "it keeps its rank"


@pytest.mark.fault("F05", "all checkpoints damaged")
@pytest.mark.parametrize("name", ["encoder.ckpt", "CKPT.yaml"])
def test_nothing_goes_on_when_no_checkpoint_is_whole(name, run, tiny_corpus, capsys):
    """Training and evaluation end in one line, exit status 2: no random weights."""
    folders = found(run)
    for folder in folders:
        empty(folder / name)
    with pytest.raises(UserError, match="checkpoints is whole") as caught:
        resumed(tiny_corpus, run)
    assert "\n" not in str(caught.value)
    with pytest.raises(SystemExit) as ended:
        evaluate([str(run), *OPTIONS])
    assert ended.value.code == 2
    assert "checkpoints is whole" in capsys.readouterr().err
    assert not (run / "results.json").exists()
    assert set(folders) <= set((run / "save").iterdir())


@pytest.mark.fault("F01", "what a killed save and a killed deletion left behind")
@pytest.mark.fault("F03", "what a killed save and a killed deletion left behind")
def test_torn_folders_are_reported_and_removed(run, tiny_corpus):
    """Reported in the log, removed, never loaded."""
    save = run / "save"
    torn = save / ".CKPT+2030-01-01+00-00-00+00"
    half = save / ".deleted-CKPT+2020-01-01+00-00-00+00"
    for folder in (torn, half):
        shutil.copytree(found(run)[0], folder)
        os.remove(folder / "MANIFEST.json")
    resumed(tiny_corpus, run)
    log = (run / "log.txt").read_text()
    assert f"Removing {torn}: an unfinished checkpoint" in log
    assert f"Removing {half}: a checkpoint that was being deleted" in log
    assert not torn.exists() and not half.exists()


class Evil:
    """Unpickled, it would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.fault("F32", "a malicious pickle in a checkpoint, its manifest fitting")
@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", ["encoder", "optimizer"])
def test_a_malicious_pickle_is_never_run(form, name, run, tiny_corpus, tmp_path):
    """Refused in one line; nothing of it is run."""
    newest = found(run)[0]
    path, target = newest / f"{name}.ckpt", tmp_path / "outside"
    if form == "zip":
        torch.save({"weight": Evil(str(target))}, path)
        assert zipfile.is_zipfile(path)
    else:
        path.write_bytes(pickle.dumps(Evil(str(target)), 2))
    manifest = newest / "MANIFEST.json"
    contents = json.loads(manifest.read_text())
    contents[path.name] = [path.stat().st_size, file_hash(path)]
    manifest.write_text(json.dumps(contents))
    with pytest.raises(UserError, match=re.escape(str(newest))) as caught:
        resumed(tiny_corpus, run)
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.fault("F07", "the disk is full when a checkpoint is written")
# The encoder has more bytes than the first, the log more than the second.
@pytest.mark.parametrize("size", [100_000, 5000])
def test_a_full_disk(size, tiny_corpus, tmp_path):
    """One line, exit status 2; the checkpoint before is whole and the run goes on."""
    run = tmp_path / "run"
    argv = [*tiny.arguments(tiny_corpus, run, **SETTINGS), *OPTIONS]
    error = only_error(tmp_path / "said", attempts.with_limited_files, argv, 4, size)
    assert f"{run / 'save'}: a checkpoint could not be written (" in error
    assert "free space there" in error
    (left,) = found(run)
    assert checkpoints.checkpoint_problem(left) is None
    assert os.listdir(run / "save") == [left.name]
    status, said = attempts.attempt(tmp_path / "said", attempts.training, argv)
    assert status == 0, said
    assert "Resuming after optimizer step 3" in said


def test_nothing_is_made_before_the_first_checkpoint(tiny_corpus, tmp_path):
    """A refused command leaves no empty folder; a new run has no checkpoint."""
    run = tmp_path / "run"
    checkpointer = parse_arguments(tiny.arguments(tiny_corpus, run))[0]["checkpointer"]
    assert not run.exists()
    assert checkpointer.list_checkpoints() == []
    assert checkpointer.recover_if_possible() is None
    assert not run.exists()
    checkpointer.add_recoverable("state", torch.nn.Linear(1, 1))
    checkpointer.save_checkpoint()
    assert len(found(run)) == 1


def only_error(output, *attempt):
    """The one line in which an attempt ends."""
    status, said = attempts.attempt(output, *attempt)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in said, said
    return errors[0]


@pytest.mark.fault("F08", "an output folder that the user may not write to")
@pytest.mark.parametrize("name", ["run", "."])
def test_a_folder_that_cannot_be_written(name, tiny_corpus, tmp_path):
    """One line at the start, exit status 2."""
    # Not below tmp_path, where another user may not even look.
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o555)
        run = Path(parent) / name
        argv = tiny.arguments(tiny_corpus, run, ledger=tmp_path / "ledger.jsonl")
        error = only_error(
            tmp_path / "said", attempts.without_rights, [*argv, *OPTIONS]
        )
        assert str(run) in error and "(Permission denied); " in error
        assert os.listdir(parent) == []
