"""What all corpora share: scanning in parallel, CSV text, markers, problems."""

import csv
import io
import json
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
from lobes.errors import UserError, enumeration
from lobes.preparation import parts
from lobes.preparation.parts import (
    Inputs,
    LeftOut,
    Part,
    Problem,
    best_audio,
    check_owner,
    children,
    csv_text,
    existing_folder,
    scan_audio,
    writable_folder,
)


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
        "from lobes.preparation.parts import scan_audio\n"
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
    monkeypatch.setattr(parts, "audio_statistics", lambda _: os._exit(9))
    with pytest.raises(UserError, match="process died.*--num_workers=2"):
        scan_audio(files, num_workers=2)


@needs_fork
def test_a_defect_in_a_worker_ends_the_scan_at_once(files, monkeypatch):
    def broken(path):
        time.sleep(0.01)
        raise ZeroDivisionError(path)

    monkeypatch.setattr(parts, "audio_statistics", broken)
    with pytest.raises(ZeroDivisionError):
        scan_audio(files * 100, num_workers=2)


@needs_fork
def test_workers_end_with_a_killed_parent(files, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\n"
        "import lobes.preparation.parts\n"
        "lobes.preparation.parts.audio_statistics = lambda path: time.sleep(0.2)\n"
        "lobes.preparation.parts.scan_audio(sys.argv[1:], num_workers=2)\n"
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


def test_csv_text_survives_reading():
    floats = np.array([1 / 3, 1e-17, -2.5e300, 0.1 + 0.2])
    ids = ["a", "with, comma", 'with "quotes"', "é"]
    text = csv_text(("ID", "mean", "start"), (ids, floats, np.arange(4)))
    assert "\r" not in text and text.startswith("ID,mean,start\n")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["ID"] for row in rows] == ids
    assert [float(row["mean"]) for row in rows] == floats.tolist()
    assert [row["start"] for row in rows] == ["0", "1", "2", "3"]


def test_csv_columns_must_be_equally_long():
    with pytest.raises(ValueError):
        csv_text(("a", "b"), ([1], [1, 2]))


def part(folder, options=None, inputs="inputs", corpus="Corpus"):
    """The part ``one`` with default options."""
    return Part(folder, "one", corpus, options or {"seed": 1}, inputs)


def test_a_written_part_is_kept(tmp_path, capsys):
    assert part(tmp_path).reusable(0) is None
    part(tmp_path).write({"one.csv": "ID\n1\n"}, {"one.csv": {"utterances": 1}})
    assert (tmp_path / "one.csv").read_text() == "ID\n1\n"
    assert part(tmp_path).reusable(0) == {"one.csv": {"utterances": 1}}
    assert "nothing changed; kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda f: part(f, options={"seed": 2}), "options changed"),
        (lambda f: part(f, inputs="others"), "input files changed"),
        (lambda f: (f / "one.csv").unlink(), "one.csv is missing"),
        (lambda f: (f / "one.csv").write_text("ID\n"), "edited or cut"),
        (lambda f: (f / "two.txt").write_text("trial 2\n"), "two.txt was edited"),
        (lambda f: (f / "one.prepared.json").write_text("{"), ""),
        (lambda f: (f / "one.prepared.json").write_text("[]"), ""),
        (lambda f: (f / "one.prepared.json").unlink(), ""),
        (
            lambda f: change_json(f / "one.prepared.json", format=0),
            "another version",
        ),
        (lambda f: change_json(f / "one.prepared.json", files=[]), ""),
    ],
)
def test_a_part_that_does_not_fit_is_not_trusted(tmp_path, capsys, change, said):
    part(tmp_path).write({"one.csv": "ID\n1\n", "two.txt": "trial\n"}, {"n": 1})
    changed = change(tmp_path)
    current = changed if isinstance(changed, Part) else part(tmp_path)
    assert current.reusable(0) is None
    assert said in capsys.readouterr().err


def change_json(path, **changes):
    """Change entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.fault(
    "F25",
    "an output that is missing at the end of preparation",
    "never taken for complete",
)
def test_a_part_without_all_outputs_has_no_marker(tmp_path, monkeypatch):
    part(tmp_path).write({"one.csv": "old\n"}, {"n": 1})

    def full(path, content):
        if Path(path).name == "one.csv":
            raise OSError("disk full")
        write(path, content)

    write = parts.write_atomically
    monkeypatch.setattr(parts, "write_atomically", full)
    with pytest.raises(OSError):
        part(tmp_path).write({"one.csv": "new\n"}, {"n": 2})
    monkeypatch.undo()
    assert (tmp_path / "one.csv").read_text() == "old\n"
    assert part(tmp_path).reusable(0) is None


def test_the_marker_is_the_last_file_written(tmp_path, monkeypatch):
    order = []
    write = parts.write_atomically

    def record(path, content):
        order.append(Path(path).name)
        write(path, content)

    monkeypatch.setattr(parts, "write_atomically", record)
    part(tmp_path).write({"b.csv": "", "a.csv": ""}, {"n": 1})
    # The first one says only whose files these are: see check_owner.
    assert order == ["one.prepared.json", "b.csv", "a.csv", "one.prepared.json"]


def test_two_corpora_do_not_share_a_part(tmp_path):
    part(tmp_path).write({"one.csv": ""}, {"n": 1})
    check_owner(tmp_path, "one", "Corpus", ["one.csv"])
    check_owner(tmp_path, "two", "Other", ["two.csv"])
    with pytest.raises(UserError, match="one.csv.*from Corpus, not from Other"):
        check_owner(tmp_path, "one", "Other", ["one.csv"])


@pytest.mark.fault(
    "C6",
    "the user's own train.csv in save_folder",
    "refused: `no preparation wrote it; it is not overwritten`",
)
def test_what_no_preparation_wrote_is_not_overwritten(tmp_path, monkeypatch):
    (tmp_path / "one.csv").write_text("mine\n")
    with pytest.raises(UserError, match="one.csv is there and no preparation wrote it"):
        check_owner(tmp_path, "one", "Corpus", ["one.csv"])
    (tmp_path / "one.csv").unlink()
    # But what a killed one left may be written again.
    write = parts.write_atomically

    def killed(path, content):
        write(path, content)
        if Path(path).name == "one.csv":
            raise KeyboardInterrupt

    monkeypatch.setattr(parts, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        part(tmp_path).write({"one.csv": ""}, {"n": 1})
    check_owner(tmp_path, "one", "Corpus", ["one.csv"])
    assert part(tmp_path).reusable(0) is None


PROBLEMS = [Problem(f"u{n}", f"/p/{n}.wav", "is broken") for n in (4, 1, 3, 2)]


@pytest.mark.fault(
    "F20", "more bad files than the budget", "an error that lists all of them"
)
def test_too_many_problems_are_all_listed(tmp_path):
    with pytest.raises(UserError) as caught:
        part(tmp_path).skip(PROBLEMS, skip_budget=3)
    message = str(caught.value)
    assert "one: 4 bad utterance(s): u1: /p/1.wav: is broken; u2" in message
    assert "and 1 more" in message and "--skip_budget=4" in message
    lines = [f"u{n},/p/{n}.wav,is broken" for n in (1, 2, 3, 4)]
    listed = (tmp_path / "one.skipped.csv").read_text().splitlines()
    assert listed == ["ID,path,reason", *lines]


@pytest.mark.fault(
    "F20", "bad files within the stated budget", "left out, counted and listed"
)
def test_problems_within_the_budget_are_counted_and_listed(tmp_path, capsys):
    first = part(tmp_path)
    first.skip(PROBLEMS, skip_budget=4)
    assert "left out 4 bad utterance(s)" in capsys.readouterr().err
    first.write({"one.csv": ""}, {"n": 1}, skipped=4)
    assert part(tmp_path).reusable(4) == {"n": 1}
    assert part(tmp_path).reusable(3) is None
    assert "skip_budget=3" in capsys.readouterr().err
    (tmp_path / "one.skipped.csv").write_text("ID,path,reason\n")
    assert part(tmp_path).reusable(4) is None


def test_no_problems_remove_an_older_list(tmp_path):
    part(tmp_path).skip(PROBLEMS, skip_budget=4)
    part(tmp_path).skip([], skip_budget=0)
    assert not list(tmp_path.iterdir())


def test_inputs_notice_name_size_and_time(tmp_path):
    path = tmp_path / "a"
    path.write_text("12")
    os.utime(path, ns=(1, 1))

    def digest(name="a"):
        inputs = Inputs()
        inputs.add(name, path)
        return inputs.digest()

    first = digest()
    assert digest() == first != digest("b")
    os.utime(path, ns=(1, 2))
    later = digest()
    path.write_text("123")
    os.utime(path, ns=(1, 2))
    longer = digest()
    path.unlink()
    assert len({first, later, longer, digest()}) == 4


def test_children_are_sorted_and_never_hidden(tmp_path):
    for name in ("b.wav", "a.wav", "._a.wav"):
        (tmp_path / name).touch()
    (tmp_path / "z").mkdir()
    (tmp_path / "y").mkdir()
    assert [e.name for e in children(tmp_path)] == ["a.wav", "b.wav"]
    assert [e.name for e in children(tmp_path, folders=True)] == ["y", "z"]
    with pytest.raises(UserError, match="cannot be listed"):
        children(tmp_path / "absent")


def test_best_audio_takes_one_file_of_each_stem(tmp_path):
    for name in ("b.m4a", "b.wav", "a.flac", "a.m4a", "c.M4A", "c.txt", "d.txt"):
        (tmp_path / name).touch()
    left_out = LeftOut(tmp_path)
    best = best_audio(children(tmp_path), (".wav", ".flac", ".m4a"), left_out)
    assert {stem: entry.name for stem, entry in best.items()} == {
        "a": "a.flac",
        "b": "b.wav",
        "c": "c.M4A",
    }
    assert list(best) == ["a", "b", "c"]
    assert left_out.counts() == {"file(s) that end in .txt": 2}


def test_enumeration_is_short():
    assert enumeration(["a"]) == "a"
    assert enumeration(list("abc")) == "a; b; c"
    assert enumeration(list("abcde")) == "a; b; c; and 2 more"


def test_folders_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="data_folder: the folder .*absent"):
        existing_folder("absent", "data_folder")
    with pytest.raises(UserError, match="does not exist"):
        existing_folder("file", "data_folder")
    with pytest.raises(UserError, match="save_folder: .* cannot be written"):
        writable_folder("file/inside")
    assert writable_folder("new/inside") == tmp_path / "new" / "inside"
    assert not list((tmp_path / "new" / "inside").iterdir())
