"""Signals during a training: fault case F10."""

import json
import signal

import pytest

from lobes.system import preemption
from lobes.system.preemption import EXIT_CODE
from lobes.training import checkpoints
from tests.helpers import attempts, kill_resume

TERM, USR1, INT, HUP = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP


@pytest.fixture(scope="module")
def whole(tiny_corpus, tmp_path_factory):
    """The folder of a run that was left alone, and what came of it."""
    folder = tmp_path_factory.mktemp("whole")
    status, said = attempts.attempt(
        folder / "said", kill_resume.run, folder, tiny_corpus, 0
    )
    assert status == 0, said
    return folder, kill_resume.outcome(folder)


def number_of(folder, name, step):
    """The number of an event in a run."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    return 1 + [json.loads(line) for line in lines].index({"name": name, "step": step})


@pytest.mark.parametrize(
    "event, step, signals, saved",
    [
        pytest.param(
            event,
            step,
            signals,
            saved,
            id=f"{' '.join(s.name for s in signals)} {event} {step}",
            marks=pytest.mark.fault(
                "C7" if HUP in signals else "F10",
                f"{' and '.join(s.name for s in signals)} {event} {step}",
            ),
        )
        for event, step, signals, saved in [
            ("before step", 1, (TERM,), 1),
            ("before update", 5, (USR1,), 5),
            ("before update", 7, (TERM, TERM, USR1), 7),
            ("before step", 12, (USR1, TERM), 12),
            ("within validation", 5, (TERM, TERM), 5),
            ("before update", 3, (INT,), 3),
            ("before update", 4, (HUP,), 4),
        ]
    ],
)
def test_a_signal(event, step, signals, saved, whole, tiny_corpus, tmp_path):
    """One checkpoint within the step, exit status 75; resumed as if nothing was."""
    number = number_of(whole[0], event, step)
    arguments = (tmp_path, tiny_corpus, 0)
    status, said = attempts.attempt(
        tmp_path / "said", kill_resume.run, *arguments, number, signals
    )
    assert status == EXIT_CODE, said
    assert f"{signals[0].name}: stopped after step {saved}" in said
    assert "Traceback" not in said and "error: " not in said
    events = [json.loads(line) for line in open(tmp_path / "events.jsonl")]
    after = [event for event in events[number:] if event["name"] == "before step"]
    assert not after, "it went on with another step"
    save = tmp_path / "run" / "save"
    found = checkpoints.Checkpointer(save).list_checkpoints()
    newest = max(found, key=lambda one: one.meta["unixtime"])
    assert newest.meta["step"] == saved
    assert checkpoints.checkpoint_problem(newest.path) is None
    assert sum(one.meta["step"] == saved for one in found) == 1
    status, said = attempts.attempt(tmp_path / "said", kill_resume.run, *arguments)
    assert status == 0, said
    assert kill_resume.difference(whole[1], kill_resume.outcome(tmp_path)) is None


def test_what_nohup_ignores_stays_ignored():
    """And what is not ignored is handled."""
    for before in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(HUP, before)
        preemption.handle_signals()
        assert (signal.getsignal(HUP) == signal.SIG_IGN) == (before == signal.SIG_IGN)
        assert signal.getsignal(TERM) == preemption._handle


@pytest.mark.fault("F10", "SIGTERM before the training has begun")
def test_a_signal_before_training(tiny_corpus, tmp_path):
    """Exit status 75 at once, one line."""
    argv = kill_resume.argv(tmp_path, tiny_corpus, 0)
    status, said = attempts.attempt(
        tmp_path / "said", attempts.signalled_at_start, argv, TERM
    )
    assert status == EXIT_CODE, said
    assert "stopped by a signal; the same command continues" in said
    assert "Traceback" not in said


@pytest.mark.fault("F10", "SIGTERM, twice, to a training and its reading processes")
def test_signals_to_the_whole_group(tiny_corpus, tmp_path):
    """One checkpoint within the step, exit status 75."""
    argv = kill_resume.argv(tmp_path, tiny_corpus, 2)
    status, said = attempts.attempt(
        tmp_path / "said", attempts.signalled_with_its_group, argv, 3, (TERM, TERM)
    )
    assert status == EXIT_CODE, said
    assert "SIGTERM: stopped after step 4" in said and "Traceback" not in said


#: What each rank runs: at an event of the first all get the signals, as from a cluster.
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from tests.helpers import kill_resume
corpus, output, event, step = sys.argv[1:]
rank = int(os.environ["RANK"])
kill_resume.OPTIONS.append("--distributed_backend=gloo")
class Events(kill_resume.Events):
    def happen(self, name, at=None, last_act=None):
        if rank == 0 and (name, at) == (event, int(step)):
            for pid in Path(output).glob("pid*"):
                os.kill(int(pid.read_text()), signal.SIGTERM)
                os.kill(int(pid.read_text()), signal.SIGUSR1)
kill_resume.Events = Events
Path(output, f"pid{rank}").write_text(str(os.getpid()))
try:
    kill_resume.run(Path(output), Path(corpus), 0)
    status = 0
except SystemExit as end:
    status = end.code
Path(output, f"status{rank}-{step}").write_text(str(status))
"""


@pytest.mark.slow
@pytest.mark.parametrize("event", ["before update", "within validation"])
@pytest.mark.fault("F10", "SIGTERM and SIGUSR1 to both processes of torchrun")
def test_signals_under_torchrun(event, tiny_corpus, tmp_path, torchrun):
    """Both ranks end with 75 after one checkpoint; the resumed run is complete."""

    def run(step):
        arguments = tiny_corpus, tmp_path, event, step
        done = torchrun(PROGRAM, *arguments, timeout=140)
        statuses = [tmp_path / f"status{rank}-{step}" for rank in range(2)]
        assert all(path.exists() for path in statuses), done.stderr[-3000:]
        return [int(path.read_text()) for path in statuses]

    assert run(5) == [EXIT_CODE] * 2
    save = tmp_path / "run" / "save"
    found = checkpoints.Checkpointer(save).list_checkpoints()
    assert [one.meta["step"] for one in found].count(5) == 1
    assert all(checkpoints.checkpoint_problem(one.path) is None for one in found)
    assert run(-1) == [0, 0]
    rows = kill_resume.outcome(tmp_path)
    steps = [rows[f"log of train {step}"]["step"] for step in range(1, 13)]
    assert steps == list(range(1, 13)) and rows["end"]["steps"] == 12
