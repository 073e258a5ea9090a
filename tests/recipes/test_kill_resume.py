"""Trainings that are killed and resumed equal those left alone: F01-F03 and F09.

``tests/helpers/kill_resume.py`` with 50 points is a command of its own.
"""

import json
import subprocess
import sys

import pytest

from tests.helpers import kill_resume


@pytest.mark.slow
@pytest.mark.fault("F01", "SIGKILL while a checkpoint's files are written")
@pytest.mark.fault("F09", "SIGKILL at two random points, 0 reading processes")
def test_killed_trainings_equal_one_left_alone(tmp_path, repository):
    """The resumed run equals the uninterrupted one bit for bit."""
    kinds = resumed_runs(2, "0", tmp_path, repository)
    assert kinds == {"while a file is written", "around the unfreeze"}


@pytest.mark.slow
@pytest.mark.fault("F01", "SIGKILL while a checkpoint's files are written")
@pytest.mark.fault("F02", "SIGKILL before the rename of a complete checkpoint")
@pytest.mark.fault("F03", "SIGKILL while an old checkpoint is deleted")
@pytest.mark.fault("F09", "SIGKILL at every kind of point, some resumed runs again")
@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_kind_of_kill_point(workers, tmp_path, repository):
    """The resumed run equals the uninterrupted one bit for bit."""
    kinds = resumed_runs(9, workers, tmp_path, repository)
    assert kinds == set(kill_resume.KINDS)


def resumed_runs(points, workers, folder, repository):
    """Run the command; returns the kinds of its points."""
    folder = folder / "runs"
    command = [sys.executable, "-m", "tests.helpers.kill_resume", str(points), folder]
    done = subprocess.run(
        [*command, f"--workers={workers}"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads((folder / "kill_resume.json").read_text())
    assert found["equal"] == found["of"] == points
    return {point["kind"] for point in found["points"]}


def test_a_difference_is_found():
    """One bit in one value, a step too few, a step too many."""
    rows = {"1": {"lr": "0x1.0p-3", "ids": ["a"]}, "2": {"lr": "0x1.0p-3", "ids": []}}
    assert kill_resume.difference(rows, json.loads(json.dumps(rows))) is None
    other = {**rows, "2": {"lr": "0x1.0000000000001p-3", "ids": []}}
    assert kill_resume.difference(rows, other) == "2: lr"
    assert kill_resume.difference(rows, {"1": rows["1"]}) == "2 is only in the first"
    more = {**rows, "3": {}}
    assert kill_resume.difference(rows, more) == "3 is only in the resumed"
