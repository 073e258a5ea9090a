"""The grid's command: what it runs, leaves out, survives, and how it is stopped.

A stand-in for train.py ends as its learning rate says.
"""

import builtins
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lobes.errors import UserError
from lobes.runs import grids, ledger
from lobes.runs.grids import Job, Member
from tests.helpers import tiny
from tools import grid

#: Ends by its learning rate: 1 finished, 2 diverged, 3 a defect, 4 waits for SIGTERM
#: and saves; 5 is interrupted, then finishes.
SCRIPT = """
import json, os, pathlib, signal, sys, time
words = dict(w[2:].split("=", 1) for w in sys.argv[2:] if "=" in w)
lr = float(words["lr"])
folder = pathlib.Path(words["output_folder"])
def stop(*_):
    (folder / "saved").touch()
    line("pre-empted")
    sys.exit(75)
def line(state):
    row = {"kind": "training", "state": state, "recipe": "r", "variant": "v",
           "changes": {"lr": lr}, "seed": 1, "seconds": 1.0, "wer": 5.0, "eer": 2.0,
           "settings": "s", "threads": os.environ.get("SLOT")}
    with open(words["ledger"], "a") as stream:
        stream.write(json.dumps(row) + "\\n")
signal.signal(signal.SIGTERM, stop)
with open(folder / "starts", "a") as stream:
    stream.write("x")
if lr == 3:
    print("error: the disk is on fire")
    sys.exit(2)
if lr == 4 and not (folder / "saved").exists():
    time.sleep(100)
if lr == 5 and not (folder / "saved").exists():
    stop()
line("diverged" if lr == 2 else "finished")
"""


@pytest.fixture
def jobs(tmp_path):
    """Makes jobs of the stand-in, one for each learning rate."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    def make(*rates):
        made = []
        for rate in rates:
            folder = str(tmp_path / str(rate))
            member = Member(
                run="v",
                values={"lr": str(rate)},
                script=str(script),
                arguments=("x.yaml", f"--lr={rate}", f"--output_folder={folder}"),
                recipe="r",
                variant="v",
                changes={"lr": float(rate)},
                seed=1,
                lr=float(rate),
                steps=10,
                settings="s",
                output_folder=folder,
            )
            made.append(Job(member, tmp_path / "ledger.jsonl"))
        return made

    return make


def starts(tmp_path, rate):
    return len((tmp_path / str(rate) / "starts").read_text())


def test_a_failing_run_stops_no_other(jobs, tmp_path, capsys):
    assert grid.run(jobs(3, 1, 2), 2) == 1
    printed = capsys.readouterr().out
    assert "finished: v, lr=1: WER 5.00 %, EER 2.00 %, 1 s" in printed
    assert "diverged: v, lr=2" in printed
    assert "failed: v, lr=3: exit code 2: error: the disk is on fire" in printed
    assert "[3/3]" in printed and "1 finished" in printed
    states = {row["state"] for row in ledger.read(tmp_path / "ledger.jsonl")}
    assert states == {"finished", "diverged"}


def test_one_at_a_time_or_more(jobs, monkeypatch):
    seen = []
    monkeypatch.setattr(
        grid,
        "_collect",
        lambda running, progress: (
            seen.append(len(running)),
            collect(running, progress),
        ),
    )
    assert grid.run(jobs(1, 2), 1) == 0 and max(seen) == 1
    seen.clear()
    assert grid.run(jobs(1, 2), 2) == 0 and max(seen) == 2


collect = grid._collect


def test_what_was_interrupted_goes_on_and_what_is_done_is_left_out(jobs, tmp_path):
    assert grid.run(jobs(5), 1) == grid.EXIT_CODE
    assert grid.run(jobs(5), 1) == 0
    rows = ledger.read(tmp_path / "ledger.jsonl")
    assert [row["state"] for row in rows] == ["pre-empted", "finished"]
    # The cluster's machines look at the ledger themselves.
    assert jobs(5)[0]() == "finished"
    assert starts(tmp_path, 5) == 2


def test_a_member_that_cannot_be_begun_or_read_stops_no_other(
    jobs, tmp_path, capsys, monkeypatch
):
    """A folder that cannot be made; a ledger that cannot be read at the end."""
    (tmp_path / "1").write_text("not a folder")
    result = Job.result

    def unreadable(job):
        if job.member.lr == 2:
            raise UserError("ledger.jsonl: Stale file handle; name another ledger")
        return result(job)

    monkeypatch.setattr(Job, "result", unreadable)
    assert grid.run(jobs(1, 2, 5), 2) == 1
    printed = capsys.readouterr().out
    assert "failed: v, lr=1: " in printed and "File exists" in printed
    assert "failed: v, lr=2: ledger.jsonl: Stale file handle" in printed
    assert "pre-empted: v, lr=5" in printed


def test_what_nobody_has_foreseen_leaves_no_training_behind(
    jobs, tmp_path, monkeypatch
):
    def show(*_):
        if (tmp_path / "4" / "starts").exists():
            raise ZeroDivisionError

    monkeypatch.setattr(grid.Progress, "show", show)
    made = jobs(4, 1)
    with pytest.raises(ZeroDivisionError):
        grid.run(made, 1)
    assert (tmp_path / "4" / "saved").exists() and made[0].process.poll() is not None
    assert signal.getsignal(signal.SIGTERM) is not signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_it_cleanly(number, jobs, tmp_path, capsys, request):
    """The running one saves, the waiting one is not begun; then both finish."""
    path = tmp_path / "4" / "starts"
    # nohup lets what it starts ignore SIGHUP, and so does a grid.
    before = signal.signal(number, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(number, before))

    def interrupt():
        while not path.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    assert grid.run(jobs(4, 1), 1) == grid.EXIT_CODE
    assert (tmp_path / "4" / "saved").exists() and not (tmp_path / "1").exists()
    assert "pre-empted: v, lr=4" in capsys.readouterr().out
    assert grid.run(jobs(4, 1), 1) == 0


def test_two_grids_on_one_ledger(jobs, tmp_path, capsys):
    """What the other grid is running is left to it."""
    command = (
        "import sys; from lobes.system.locks import lock_file as lock;"
        "f = open(sys.argv[1], 'a');"
        "assert lock(f); print('held', flush=True); sys.stdin.read()"
    )
    lock = tmp_path / "1" / ".grid.lock"
    lock.parent.mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", command, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        assert grid.run(jobs(1, 2), 1) == 0
        assert "elsewhere: v, lr=1: another grid's" in capsys.readouterr().out
        assert not (tmp_path / "1" / "starts").exists() and starts(tmp_path, 2) == 1
    finally:
        other.communicate()
    assert grid.run(jobs(1), 1) == 0


def test_several_gpus_take_turns(monkeypatch):
    monkeypatch.setattr(grid.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-5")
    taken = [s["CUDA_VISIBLE_DEVICES"] for s in grid._slots(3)]
    assert taken == ["4", "GPU-5", "4"], "those of another user"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [s["CUDA_VISIBLE_DEVICES"] for s in grid._slots(3)] == ["0", "1", "0"]
    assert grid._slots(1) == [{}]


@pytest.fixture
def arguments(tmp_path):
    """Of a grid that is only listed."""
    return [str(tiny.MTL), "--dry_run", f"--ledger={tmp_path / 'ledger.jsonl'}"]


def test_a_dry_run_lists_states_and_times(arguments, tmp_path, capsys, monkeypatch):
    """From runs like it, else from the operations of a step."""
    options = ["--lr=1e-5,5e-5", "--encoder.shared_layers=6,9", "--tflops=100"]
    found = grids.members(
        grids.read_grid([tiny.MTL], ["--lr=1e-5", "--encoder.shared_layers=6"]),
        fill=True,
    )
    line = {n: getattr(found[0], n) for n in ("recipe", "variant", "changes", "seed")}
    line = {**line, "kind": "training", "state": "finished", "settings": "older"}
    ledger.append(tmp_path / "ledger.jsonl", {**line, "seconds": 7200.0})
    with open(tmp_path / "ledger.jsonl", "a") as stream:
        stream.write("torn\n")
    calls = []
    monkeypatch.setattr(
        grid.cost, "estimate", lambda *a: calls.append(a) or {"run_flops": 1e14 * 3600}
    )
    assert grid.main([*arguments, *options, "--jobs=2"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert "mtl, lr=1e-5, shared_layers=6" in lines[1] and "finished" in lines[1]
    assert "2.0 hours" in lines[3] and "runs like it" in lines[3]
    assert "60.0 minutes" in lines[2] and "100 TFLOP/s" in lines[2]
    assert lines[-1] == (
        "4 runs, 3 to be run: about 4.0 hours, or 2.0 hours with 2 at a time; where no "
        "run is like it: training alone, on a GPU of 100 TFLOP/s"
    )
    assert len(calls) == 1, "a rate changes no cost"
    assert "1 runs of the ledger had other settings" in captured.err
    assert not list(tmp_path.glob("*/")), "a dry run has written something"


def test_a_dry_run_counts_the_steps_that_are_left(arguments, tmp_path, capsys):
    """Of what was interrupted; and many runs are listed where that is meant."""
    options = ["--lr=1e-5,2e-5", "--steps=1000"]
    first, other = grids.members(grids.read_grid([tiny.MTL], options), fill=True)
    for member, state, steps in ((first, "finished", 1000), (other, "pre-empted", 750)):
        names = ("recipe", "variant", "changes", "seed", "settings")
        line = {name: getattr(member, name) for name in names}
        line.update(kind="training", state=state, steps=steps, seconds=7200.0)
        ledger.append(tmp_path / "ledger.jsonl", line)
    assert grid.main([*arguments, *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "2 runs, 1 to be run: about 30.0 minutes"
    )


@pytest.mark.fault(
    "B8",
    "`grid --dry_run` on a CPU whose ledger knows the seconds of a run",
    "training alone, at the ... TFLOP/s of 'demo' here",
)
def test_a_dry_run_reckons_with_what_this_machine_did(
    arguments, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        grid.cost,
        "estimate",
        lambda path, words: {"run_flops": 5e14 if "--steps=600" in words else 1e15},
    )
    monkeypatch.setattr(grid.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(grid, "device_name", lambda device: f"this {device.type}")
    line = {"kind": "training", "state": "finished", "seed": 1, "settings": "x"}
    line |= {"recipe": "LibriSpeech_VoxCeleb/MTL", "variant": "demo", "steps": 600}
    line |= {"changes": {"steps": 600}, "seconds": 500.0, "time": "2026-01-01"}
    for device, changes in (("this cpu", {}), ("another", {"seconds": 1.0, "seed": 2})):
        ledger.append(tmp_path / "ledger.jsonl", {**line, "device": device} | changes)
    assert grid.main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "16.7 minutes" in printed[1] and "1 TFLOP/s" in printed[1]
    assert printed[-1].endswith("training alone, at the 1 TFLOP/s of 'demo' here")


@pytest.mark.fault(
    "B8",
    "`grid --dry_run` on a CPU with an empty ledger",
    "(RTX 3090); this machine has none and takes far longer: give its --tflops",
)
def test_a_dry_run_says_that_its_gpu_is_not_here(arguments, capsys, monkeypatch):
    monkeypatch.setattr(grid.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(grid.cost, "estimate", lambda *_: {"run_flops": 1e12})
    assert grid.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "less than a second" in printed and " 0 seconds" not in printed
    assert "this machine has none and takes far longer" in printed


def test_many_runs_where_that_is_meant(arguments, capsys, monkeypatch):
    monkeypatch.setattr(grids, "MANY", 2)
    monkeypatch.setattr(grid.cost, "estimate", lambda *_: {"run_flops": 1.0})
    with pytest.raises(SystemExit):
        grid.main([*arguments, "--seed=1,2,3"])
    assert "the grid has 3 runs; give --many" in capsys.readouterr().err
    assert grid.main([*arguments, "--seed=1,2,3", "--many"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("3 runs, 3 to be run") and "(RTX 3090)" in last


def test_what_is_refused(arguments, capsys):
    for words, message in (
        (["--lr=1e-5,2e-5", "--frezee_steps=1"], "--frezee_steps is neither a key"),
        (["--seed=" + ",".join(map(str, range(1001)))], "1,001 runs; give --many"),
        (["--jobs=0"], "--jobs: must be a whole number from 1"),
        (["--slurm", "gpus"], "'gpus' is not KEY=VALUE"),
    ):
        with pytest.raises(SystemExit) as stop:
            grid.main([*arguments, *words])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_the_cluster_s_extra_is_named_where_it_is_missing(jobs, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "submitit":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="slurm"):
        grid.submit(jobs(1), {}, 1)


@pytest.mark.slow
def test_jobs_through_submitit(jobs, tmp_path, monkeypatch):
    """One process each, as on a cluster; a failure is the job's."""
    submitit = pytest.importorskip("submitit", reason="the extra `slurm`")
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    submitted = []
    submit = submitit.AutoExecutor.submit
    monkeypatch.setattr(
        submitit.AutoExecutor,
        "submit",
        lambda *args: submitted.append(submit(*args)) or submitted[-1],
    )
    assert grid.submit(jobs(1, 3), {"timeout_min": 1}, 2, cluster="local") == 0
    finished, failed = submitted
    assert finished.result() == "finished"
    with pytest.raises(Exception, match="the disk is on fire"):
        failed.result()


def test_a_cluster_that_wants_its_machine_back(jobs, tmp_path):
    """The training saves and ends, and the job that is queued again continues it."""
    submitit = pytest.importorskip("submitit", reason="the extra `slurm`")
    job = jobs(4)[0]
    assert job.start()
    while not (tmp_path / "4" / "starts").exists():
        time.sleep(0.05)
    again = job.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert job.ended() and job.result()[0] == "pre-empted"
    assert again.function() == "finished"
    assert starts(tmp_path, 4) == 2


@pytest.mark.slow
def test_a_grid_of_real_trainings(tiny_corpus, tmp_path):
    """Two files: run, noted in one ledger, and not run again."""
    _, *options = tiny.arguments(tiny_corpus, "unused", steps=2, valid_interval=2)
    options = [w for w in options if not w.startswith(("--output", "--ledger"))]
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for path in files:
        folder = tmp_path / path.stem
        path.write_text(f"base: {tiny.MTL}\noutput_folder: {folder}\n")
    lines = tmp_path / "ledger.jsonl"
    command = [sys.executable, grid.__file__, *map(str, files), *options]
    command += ["--device=cpu", f"--ledger={lines}", "--jobs=2"]
    for done in (0, 2):
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert f"2 runs, {done} of them done" in ended.stdout
    rows = ledger.read(lines)
    assert sorted(row["variant"] for row in rows) == ["one", "two"]
    assert all(row["state"] in ledger.DONE and row["steps"] == 2 for row in rows)


@pytest.mark.fault(
    "C5",
    "--jobs=0, --tflops=nan, --random=-1, --random_seed=x",
    "argument --jobs: must be a whole number from 1 to 10000, not 0",
)
@pytest.mark.parametrize(
    "word",
    ["--jobs=0", "--tflops=nan", "--tflops=-1", "--random=-1", "--random_seed=x"],
)
def test_numbers_have_ranges(word, capsys):
    with pytest.raises(SystemExit) as end:
        grid.main([str(tiny.MTL), word])
    assert end.value.code == 2
    name, _, value = word.partition("=")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"argument {name}: must be a" in error and value in error
