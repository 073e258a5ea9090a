"""What a CSV says of its files is checked: presence, lengths, statistics."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lobes.data import file_checks
from lobes.data.evaluation_sets import EvaluationSet, open_sets
from lobes.data.labels import Letters
from lobes.data.streams import LengthBuckets, RandomCrops
from lobes.errors import UserError
from lobes.preparation.parts import Part
from lobes.runs import evaluate as evaluation
from tests.helpers.own_csvs import (
    LENGTHS,
    opened,
    refused,
    rows_of,
    wave,
    write_csv,
    write_wav,
)
from tests.lobes.data.test_audio import write_m4a
from tools.make_shards import make_shards

# Files --------------------------------------------------------------------------

DAMAGES = {
    "absent": (lambda path: path.unlink(), "the file does not exist"),
    "0 bytes": (lambda path: path.write_bytes(b""), "the file is empty (0 bytes)"),
    "html": (
        lambda path: path.write_bytes(b"<html>not found</html>" * 9),
        "it is not readable as audio",
    ),
    "8 kHz": (
        lambda path: write_wav(path, wave(), 8000),
        "it has 8000 Hz and 1 channel(s), but 16000 Hz and 1 channel are needed",
    ),
    "stereo": (
        lambda path: write_wav(path, np.zeros((16000, 2))),
        "it has 16000 Hz and 2 channel(s)",
    ),
    "300 samples": (
        lambda path: write_wav(path, wave(300)),
        "it has 300 samples, fewer than the 400 that one wav2vec2 frame needs",
    ),
    "half of it": (
        lambda path: os.truncate(path, path.stat().st_size // 2),
        "it is truncated",
    ),
}


@pytest.mark.fault(
    "C4",
    "a test wav that is absent, empty, HTML, 8 kHz, stereo, too short or cut",
    "refused at opening with CSV, line, column and file",
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_file_is_named_with_its_row(tmp_path, damage):
    path = write_csv(tmp_path / "own.csv", rows_of(tmp_path))
    spoil, reason = DAMAGES[damage]
    spoil(tmp_path / "u2.wav")
    start = f"{path}: 1 of 4 rows cannot be used: line 4, column wav: "
    message = refused(path)
    assert message.startswith(f"{start}{tmp_path}/u2.wav: ") and reason in message


def test_all_bad_rows_are_counted_and_three_are_shown(tmp_path):
    rows = rows_of(tmp_path, lengths=[8000])
    # More than one chunk: with several cores in several processes.
    names = ["u0.wav"] * 100 + [f"none{number}.wav" for number in range(500)]
    rows = [{**rows[0], "ID": f"u{i}", "wav": wav} for i, wav in enumerate(names)]
    message = refused(write_csv(tmp_path / "own.csv", rows))
    assert "500 of 600 rows" in message and "; and 497 more; " in message
    assert re.findall(r"line (\d+)", message) == ["102", "103", "104"]


@pytest.mark.fault(
    "D7",
    "a clip of 300 samples in an own CSV",
    "`train.csv: 1 of 4 rows cannot be used: line 3, column duration: the utterance "
    "has 300 samples, fewer than the 400 that one wav2vec2 frame needs`",
)
@pytest.mark.parametrize("stream", [LengthBuckets, RandomCrops])
def test_a_clip_without_a_frame_is_found_at_opening(tmp_path, stream):
    rows = rows_of(tmp_path)
    rows[1]["duration"] = 300 / 16000
    path = write_csv(tmp_path / "train.csv", rows)
    line = "1 of 4 rows cannot be used: line 3, column duration: the utterance has 300"
    with pytest.raises(UserError, match=line):
        stream(path, {}).open()


def test_only_what_the_trials_name_is_looked_at(tmp_path):
    path = write_csv(tmp_path / "own.csv", rows_of(tmp_path))
    (tmp_path / "u3.wav").unlink()
    trials = tmp_path / "list.txt"
    trials.write_text("1 u0 u2\n0 u0 u1\n", encoding="utf-8")
    assert len(opened(path, trial_paths=[trials]).rows) == 3
    trials.write_text("1 u0 u2\n0 u0 u3\n", encoding="utf-8")
    assert "line 5, column wav" in refused(path, trial_paths=[trials])


def test_all_sets_are_opened_before_one_line_tells_what_is_wrong(tmp_path):
    good = write_csv(tmp_path / "good.csv", rows_of(tmp_path))
    for name in ("valid", "test"):
        rows = rows_of(tmp_path, name)
        (tmp_path / f"{name}1.wav").unlink()
        write_csv(tmp_path / f"{name}.csv", rows)
    sets = {n: EvaluationSet(str(tmp_path / f"{n}.csv")) for n in ("valid", "test")}
    streams = {"speech": LengthBuckets(good, {})}
    with pytest.raises(UserError) as caught:
        open_sets(streams, {"speech": sets["valid"]}, {"speech": {"a": sets["test"]}})
    assert all(f"{n}.csv: 1 of 4 rows" in str(caught.value) for n in sets)
    assert streams["speech"].utterances is not None


def test_windows_of_shards_are_looked_at(tmp_path):
    path = write_csv(tmp_path / "own.csv", rows_of(tmp_path))
    make_shards([path], tmp_path / "shards", num_workers=1)
    shards = tmp_path / "shards" / "own.csv"
    assert opened(shards).utterances.lengths.tolist() == list(LENGTHS)
    rows = list(csv.DictReader(shards.open(encoding="utf-8")))
    rows[2]["offset"] = 0
    write_csv(shards, rows)
    assert "line 4, column wav" in refused(shards)


# Lengths ------------------------------------------------------------------------


@pytest.mark.fault(
    "B1",
    "durations with three decimals, up to half a millisecond behind their files",
    "`2 of 4 utterances end up to 0.4 ms behind the end of their file, as rounded "
    "durations do; they are read to its end`",
)
def test_rounded_durations_are_clipped_and_counted(tmp_path, caplog):
    lengths = (16000, 12345, 12343, 8009)
    path = write_csv(tmp_path / "own.csv", rows_of(tmp_path, "u", lengths, decimals=3))
    found = opened(path)
    wanted = [round(float(f"{length / 16000:.3f}") * 16000) for length in lengths]
    assert max(np.subtract(wanted, lengths)) > 0 > min(np.subtract(wanted, lengths))
    assert found.utterances.lengths.tolist() == np.minimum(wanted, lengths).tolist()
    assert sorted(i for b in found.batches() for i in b.ids) == [
        f"u{i}" for i in range(4)
    ]
    (record,) = caplog.records
    assert record.message == (
        f"{path}: 2 of 4 utterances end up to 0.4 ms behind the end of their file, as "
        "rounded durations do; they are read to its end"
    )


@pytest.mark.parametrize("behind", [80, 81])
def test_a_cut_is_no_rounding(tmp_path, behind):
    rows = rows_of(tmp_path)
    rows[0]["duration"] = (LENGTHS[0] + behind) / 16000
    path = write_csv(tmp_path / "own.csv", rows)
    if behind == file_checks.ROUNDING:
        assert opened(path).utterances.lengths[0] == LENGTHS[0]
        return
    assert refused(path).endswith(
        f"line 2, column duration: the utterance ends at 1.005 s, but "
        f"{tmp_path}/u0.wav has 1.000 s; correct these rows or remove them"
    )


def test_what_is_clipped_is_the_same_with_and_without_a_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(file_checks, "_WORTH_REMEMBERING", 1)
    path = write_csv(tmp_path / "own.csv", rows_of(tmp_path, decimals=3))

    def state():
        stream = LengthBuckets(path, {"letters": Letters()}, max_batch_samples=30000)
        stream.open()
        return stream.utterances.digest(), stream.batches_of_pass(1)

    first = state()
    assert (tmp_path / "own.headers").is_file()
    assert state() == first
    (tmp_path / "own.headers").unlink()
    assert state() == first


def test_pieces_of_a_recording(tmp_path):
    write_wav(tmp_path / "long.wav", wave(50000))
    rows = [
        {"ID": f"u{i}", "wav": "long.wav", "start": 10000 * i, "stop": 10000 * i + 9000}
        for i in range(5)
    ]
    assert len(opened(write_csv(tmp_path / "own.csv", rows))) == 5
    rows[4]["stop"] = 50081
    message = refused(write_csv(tmp_path / "own.csv", rows))
    assert "line 6, column stop: the utterance ends at 3.130 s" in message
    rows[4].update(start=50000, stop=50050)
    assert "line 6, column stop" in refused(write_csv(tmp_path / "own.csv", rows))


@pytest.mark.fault(
    "C4",
    "a duration that contradicts start and stop",
    "`line 3, column duration: it is 9 s, but start and stop are 0.5 s apart`",
)
def test_a_duration_against_start_and_stop(tmp_path):
    rows = [{**row, "start": 0, "stop": 8000} for row in rows_of(tmp_path)]
    # SpeechBrain's CSVs of segments have the duration of the file: rows_of gives it.
    assert opened(write_csv(tmp_path / "own.csv", rows)).utterances.lengths[0] == 8000
    rows[0]["duration"] = 0.5
    rows[1]["duration"] = 9
    message = refused(write_csv(tmp_path / "own.csv", rows))
    assert ": 1 of 4 rows" in message
    assert "line 3, column duration: it is 9 s, but start and stop are 0.5" in message


# What is remembered -------------------------------------------------------------


@pytest.fixture
def looked_at(monkeypatch):
    """The files whose headers are read, in this process."""
    read, real = [], file_checks.audio.usable_frames
    monkeypatch.setattr(file_checks, "_WORTH_REMEMBERING", 1)

    def usable_frames(path, window):
        read.append(Path(path).name)
        return real(path, window)

    monkeypatch.setattr(file_checks.audio, "usable_frames", usable_frames)
    return read


def test_headers_are_read_once(tmp_path, looked_at):
    path = write_csv(tmp_path / "own.csv", rows_of(tmp_path))
    opened(path)
    assert looked_at == [f"u{i}.wav" for i in range(4)]
    looked_at.clear()
    opened(path)
    assert not looked_at
    write_wav(tmp_path / "u2.wav", wave(8006))
    assert opened(path).utterances.lengths[2] == 8006
    assert looked_at == ["u2.wav"]
    looked_at.clear()
    (tmp_path / "u1.wav").write_bytes(b"")
    assert "line 3" in refused(path)
    assert "line 3" in refused(path)
    assert looked_at == ["u1.wav"] * 2, "what is bad is not remembered"


def test_windows_are_remembered_one_by_one(tmp_path, looked_at):
    path = write_csv(tmp_path / "own.csv", rows_of(tmp_path))
    make_shards([path], tmp_path / "shards", num_workers=1)
    for _ in range(2):
        found = opened(tmp_path / "shards" / "own.csv")
        assert found.utterances.lengths.tolist() == list(LENGTHS)
    assert looked_at == ["own-000000.tar"] * 4


def test_it_works_where_nothing_can_be_remembered(tmp_path, looked_at):
    path = write_csv(tmp_path / "own.csv", rows_of(tmp_path))
    (tmp_path / "own.headers").mkdir()
    for _ in range(2):
        opened(path)
    assert len(looked_at) == 8


def test_m4a_files_are_decoded_once(tmp_path, looked_at, monkeypatch):
    monkeypatch.setattr(file_checks, "_WORTH_REMEMBERING", 1000)
    write_m4a(tmp_path / "a.m4a", wave(16384))
    row = {"ID": "a", "duration": 1.024, "wav": "a.m4a"}
    path = write_csv(tmp_path / "own.csv", [row])
    for _ in range(2):
        opened(path)
    assert looked_at == ["a.m4a"]


def test_what_a_preparation_vouches_for_was_decoded_by_it(tmp_path, looked_at):
    rows = rows_of(tmp_path)
    part = Part(tmp_path, "train", "corpus", {}, "inputs")
    text = write_csv(tmp_path / "train.csv", rows).read_text(encoding="utf-8")
    part.write({"train.csv": text}, {})
    opened(tmp_path / "train.csv")
    assert not looked_at
    later = part.marker.stat().st_mtime_ns + 10**9
    os.utime(tmp_path / "u1.wav", ns=(later, later))
    opened(tmp_path / "train.csv")
    assert looked_at == ["u1.wav"]
    (tmp_path / "u1.wav").unlink()
    assert "line 3, column wav" in refused(tmp_path / "train.csv")
    looked_at.clear()
    # Edited, it is the user's own.
    write_csv(tmp_path / "train.csv", rows[2:])
    opened(tmp_path / "train.csv")
    assert looked_at == ["u2.wav", "u3.wav"]


# Statistics ---------------------------------------------------------------------


def with_statistics(folder, level=0.1):
    rows = rows_of(folder)
    for row in rows:
        samples, _ = soundfile.read(folder / row["wav"])
        row |= {"mean": f"{samples.mean():.6f}", "std": f"{samples.std():.6f}"}
    return rows


def test_statistics_of_the_audio_pass(tmp_path):
    rows = with_statistics(tmp_path)
    write_wav(tmp_path / "u0.wav", np.zeros(16000))
    rows[0] |= {"mean": 0, "std": 0}
    assert len(opened(write_csv(tmp_path / "own.csv", rows))) == 4


@pytest.mark.fault(
    "C4",
    "std negative, in units of 16 bits, in thousandths, or 0 where there is sound",
    "`1 of 4 rows cannot be used: line 4, columns mean and std: they are ..., but "
    "those of the utterance in u2.wav are ...`",
)
@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("std", "-0.1", "line 4, column std: -0.1 is negative"),
        ("std", "3276.8", "line 4, columns mean and std: they are "),
        ("std", "0.0001", "line 4, columns mean and std: they are "),
        ("std", "0", "line 4, columns mean and std: they are "),
        ("mean", "5", "line 4, columns mean and std: they are 5 and "),
        ("mean", "0.5", "line 4, columns mean and std: they are 0.5 and "),
    ],
)
def test_implausible_statistics(tmp_path, column, value, words):
    rows = with_statistics(tmp_path)
    rows[2][column] = value
    message = refused(write_csv(tmp_path / "own.csv", rows))
    assert ": 1 of 4 rows" in message and words in message


def test_odd_statistics_are_found_among_many(tmp_path):
    write_wav(tmp_path / "a.wav", wave())
    row = {"duration": 1, "wav": "a.wav", "mean": 0, "std": 0.1}
    rows = [{"ID": f"u{number}", **row} for number in range(1000)]
    rows[777]["std"] = 100
    message = refused(write_csv(tmp_path / "own.csv", rows))
    assert "1 of 1,000 rows" in message and "line 779" in message


# evaluate.py --------------------------------------------------------------------


@pytest.mark.fault(
    "C4",
    "evaluate.py with a list or a CSV that cannot be used",
    "told before a model is loaded",
)
def test_own_sets_are_looked_at_before_a_model_is_loaded(tmp_path, capsys):
    path = write_csv(tmp_path / "own.csv", rows_of(tmp_path))
    trials = tmp_path / "list.txt"
    trials.write_text("1 u0 u2\n0 u0 u9\n", encoding="utf-8")
    own = [f"--speaker_csv={path}", "--trials", str(trials)]
    with pytest.raises(SystemExit):
        # There is no such run: that would be told next.
        evaluation.main([str(tmp_path / "run"), *own])
    assert "list.txt, line 2: u9 is not in" in capsys.readouterr().err
    (tmp_path / "u1.wav").unlink()
    with pytest.raises(SystemExit):
        evaluation.main([str(tmp_path / "run"), f"--speech_csv={path}"])
    assert "line 3, column wav" in capsys.readouterr().err


# Several processes --------------------------------------------------------------

PROGRAM = """
import json, sys
import torch.distributed as dist
from lobes.errors import UserError
from lobes.data.streams import LengthBuckets
dist.init_process_group("gloo")
found = []
for csv in sys.argv[1:]:
    stream = LengthBuckets(csv, {}, max_batch_samples=100_000)
    try:
        stream.open(dist.get_rank(), dist.get_world_size())
        found.append([stream.utterances.digest(), stream.utterances.lengths.tolist()])
    except UserError as error:
        found.append(str(error))
print(json.dumps(found) + "\\n", end="", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_share_the_look_and_find_the_same(tmp_path, torchrun):
    lengths = [8000 + 17 * i for i in range(7)]
    rows = rows_of(tmp_path, "u", lengths, decimals=3)
    good = write_csv(tmp_path / "good.csv", rows)
    bad = write_csv(tmp_path / "bad.csv", [*rows, {**rows[0], "ID": "v", "wav": "no"}])
    done = torchrun(PROGRAM, good, bad, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines() if line)
    assert first == second
    stream = LengthBuckets(good, {}, max_batch_samples=100_000)
    stream.open()
    utterances = stream.utterances
    assert first[0] == [utterances.digest(), utterances.lengths.tolist()]
    assert "1 of 8 rows" in first[1] and "line 9, column wav" in first[1]
