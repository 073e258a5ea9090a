"""Scanning audio in parallel: order, defects, and workers that die."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lobes.data.audio import SAMPLE_RATE
from lobes.errors import UserError
from lobes.preparation import scan as scanning
from lobes.preparation.scan import scan_audio


@pytest.fixture
def files(tmp_path):
    """100 short files; number 10 is too short and number 70 is not audio."""
    folder = tmp_path / "audio"
    folder.mkdir()
    paths = []
    for number in range(100):
        random = np.random.RandomState(number)
        samples = random.randint(-9000, 9000, 399 if number == 10 else 500 + number)
        path = folder / f"{number:03d}.wav"
        soundfile.write(path, samples.astype(np.int16), SAMPLE_RATE)
        paths.append(str(path))
    Path(paths[70]).write_text("<html>")
    return paths


def test_scan_keeps_the_order_and_says_what_is_wrong(files):
    scan = scan_audio(files, num_workers=1)
    assert scan.frames.dtype == np.int64
    for number in (0, 69, 99):
        samples = soundfile.read(files[number])[0]
        assert scan.frames[number] == 500 + number
        assert scan.mean[number] == samples.mean()
        assert scan.std[number] == samples.std()
    assert set(scan.reasons) == {10, 70}
    assert scan.reasons[10].startswith("it has 399 samples")
    assert "not readable" in scan.reasons[70]
    assert scan.frames[10] == scan.mean[70] == 0


def test_scan_does_not_depend_on_the_number_of_processes(files):
    one, two = scan_audio(files, num_workers=1), scan_audio(files, num_workers=2)
    for column in ("frames", "mean", "std"):
        np.testing.assert_array_equal(getattr(one, column), getattr(two, column))
    assert one.reasons == two.reasons


def test_scan_of_nothing():
    assert len(scan_audio([]).frames) == 0


def test_scan_works_with_spawned_processes(files, tmp_path):
    script = tmp_path / "scan.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from lobes.preparation.scan import scan_audio\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    print(scan_audio(sys.argv[1:], num_workers=2).frames.sum())\n"
    )
    done = subprocess.run(
        [sys.executable, script, *files], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == scan_audio(files, num_workers=1).frames.sum()


def test_missing_pyav_is_told_once_and_before_decoding(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"b.m4a.*pip install"):
        scan_audio([*files, "b.m4a"], num_workers=1)


@pytest.mark.parametrize("workers", [0, -3])
def test_impossible_numbers_of_workers(files, workers):
    with pytest.raises(UserError, match=f"num_workers={workers}"):
        scan_audio(files, num_workers=workers)


needs_fork = pytest.mark.skipif(
    sys.platform != "linux" or multiprocessing.get_start_method() != "fork",
    reason="the broken decoder reaches the workers by fork only",
)


@needs_fork
def test_a_worker_that_dies_ends_the_scan(files, monkeypatch):
    monkeypatch.setattr(scanning, "audio_statistics", lambda _: os._exit(9))
    with pytest.raises(UserError, match="process died.*--num_workers=2"):
        scan_audio(files, num_workers=2)


@needs_fork
def test_a_defect_in_a_worker_ends_the_scan_at_once(files, monkeypatch):
    def broken(path):
        time.sleep(0.01)
        raise ZeroDivisionError(path)

    monkeypatch.setattr(scanning, "audio_statistics", broken)
    with pytest.raises(ZeroDivisionError):
        scan_audio(files * 100, num_workers=2)


@needs_fork
def test_workers_end_with_a_killed_parent(files, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\n"
        "import lobes.preparation.scan\n"
        "lobes.preparation.scan.audio_statistics = lambda path: time.sleep(0.2)\n"
        "lobes.preparation.scan.scan_audio(sys.argv[1:], num_workers=2)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, script, *files], stderr=subprocess.DEVNULL
    )
    listing = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    workers = []
    try:
        wait_for(lambda: len(listing.read_text().split()) == 2)
        workers = [int(pid) for pid in listing.read_text().split()]
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not any(alive(pid) for pid in workers))


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition, seconds=20):
    """Wait until a condition holds, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
