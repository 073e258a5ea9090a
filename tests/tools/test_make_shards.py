"""Shards: what other tools find in them, resuming after a kill, stale outputs."""

import csv
import json
import os
import signal
import tarfile

import numpy as np
import pytest
import soundfile

from lobes.data.audio import SAMPLE_RATE, read_audio
from lobes.data.utterance_tables import read_table
from lobes.errors import UserError
from lobes.evaluation.mfcc_baseline import mfcc_baseline
from tests.lobes.data.test_audio import write_m4a
from tools import make_shards as module
from tools.make_shards import main, make_shards

HEADER = ["ID", "duration", "wav", "spk_id", "wrd", "mean", "std"]

#: Three of the files below fit, also as audio alone.
SHARD_SIZE = 8000


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([HEADER, *rows])


def read_rows(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def contents(folder):
    """Bytes of the outputs by name."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"}


@pytest.fixture
def corpus(tmp_path):
    """Folder with train.csv of eight wav and flac files, and some.csv of three."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(8):
        path = tmp_path / f"{number}.{('wav', 'flac')[number % 2]}"
        wave = random.integers(-3000, 3000, 1100 + 50 * number, dtype=np.int16)
        soundfile.write(path, wave, SAMPLE_RATE)
        name = path.name if number == 3 else str(path)
        mean, std = random.normal(size=2).tolist()
        text = 'IT\'S, "A"' if number == 2 else "ÉTÉ"
        seconds = len(wave) / SAMPLE_RATE
        rows.append([f"id{number % 2}--v--{number}", seconds, name, "007", text])
        rows[-1] += [mean, abs(std)]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "some.csv", rows[2:5])
    return tmp_path


def make(corpus, out="out", **settings):
    """Shards of both CSVs; returns their folder and the counts."""
    csvs = [corpus / "train.csv", corpus / "some.csv"]
    settings = {"shard_size": SHARD_SIZE, "num_workers": 1, **settings}
    return corpus / out, make_shards(csvs, corpus / out, **settings)


def test_rows_are_those_of_the_csv_and_point_at_the_files_bytes(corpus):
    out, counts = make(corpus)
    assert counts["utterances"] == {"train": 8, "some": 3}
    assert counts["shards"] == len(list(out.glob("*.tar"))) > 2
    for name in ("train", "some"):
        ours, theirs = (read_rows(d / f"{name}.csv") for d in (out, corpus))
        for row, source in zip(ours, theirs, strict=True):
            shard = (out / row.pop("wav")).read_bytes()
            first, size = int(row.pop("offset")), int(row.pop("size"))
            file = corpus / source.pop("wav")
            assert shard[first : first + size] == file.read_bytes()
            assert row == source
    table = read_table(out / "train.csv")
    for path, *window in table[["wav", "offset", "size"]].itertuples(index=False):
        assert os.path.isabs(path)
        assert len(read_audio(path, window=window)) >= 1100


def test_shards_are_webdataset_s(corpus):
    """Keys end at the first dot; the members of one follow one another."""
    out, _ = make(corpus)
    found = []
    for path in sorted(out.glob("train-*.tar")):
        assert len(path.name) == len("train-000000.tar")
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert sum(m.size for m in members[::2]) <= SHARD_SIZE
            for audio, row in zip(members[::2], members[1::2], strict=True):
                key, ending = audio.name.split(".", 1)
                assert row.name == f"{key}.json"
                found.append((key, ending, json.load(tar.extractfile(row))))
                assert (row.mtime, row.uid, row.uname, row.mode) == (0, 0, "", 0o644)
    rows = read_rows(corpus / "train.csv")
    assert [key for key, _, _ in found] == [row["ID"] for row in rows]
    assert {ending for _, ending, _ in found} == {"wav", "flac"}
    for (_, _, stored), row in zip(found, rows, strict=True):
        assert set(stored) == set(row) - {"wav"}
        assert all(str(value) == row[name] for name, value in stored.items())
    assert isinstance(found[0][2]["duration"], float)


def test_a_file_in_two_csvs_is_stored_once(corpus):
    out, _ = make(corpus)
    assert not list(out.glob("some-*.tar"))
    wanted = {row["ID"]: row for row in read_rows(out / "train.csv")}
    assert all(row == wanted[row["ID"]] for row in read_rows(out / "some.csv"))


def test_a_file_larger_than_a_shard_has_one_for_itself(corpus):
    _, counts = make(corpus, shard_size=1)
    assert counts["shards"] == 8


def test_workers_do_not_change_a_byte_and_a_second_run_writes_nothing(corpus):
    out, _ = make(corpus)
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.[tc]*")}
    assert make(corpus)[1]["kept"] == make(corpus)[1]["shards"] == len(before) - 4
    assert {path: path.stat().st_mtime_ns for path in times} == times
    other, _ = make(corpus, "other", num_workers=2)
    assert contents(other) == before


@pytest.mark.parametrize(
    "function, call",
    [("_content", n) for n in (1, 5, 8)]
    # Markers of both CSVs; then a CSV and its final marker, twice.
    + [("write_atomically", n) for n in (1, 2, 3, 4, 6)]
    + [("_write_csv", 2)],
)
def test_a_killed_run_goes_on_where_it_stopped(corpus, monkeypatch, function, call):
    whole = contents(make(corpus, "whole")[0])
    child = os.fork()
    if not child:
        try:
            kill_before(function, call, monkeypatch)
            make(corpus)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    killed = contents(corpus / "out")
    assert killed != whole
    _, counts = make(corpus)
    assert counts["kept"] == sum(name.endswith(".tar") for name in killed)
    assert contents(corpus / "out") == whole


def kill_before(function, call, monkeypatch):
    """SIGKILL for this process when it would call a function the n-th time."""
    original, calls = getattr(module, function), []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    monkeypatch.setattr(module, function, counted)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: os.truncate(path, 3000),
        lambda path: os.truncate(path, path.stat().st_size - 512),
        lambda path: path.write_bytes(b"no tar"),
        lambda path: path.write_bytes(path.read_bytes().replace(b"--v--", b"--w--")),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_shard_is_written_again(corpus, spoil):
    out, _ = make(corpus)
    before = contents(out)
    spoil(out / "train-000001.tar")
    # Of a complete set only the sizes are looked at again.
    (out / "train.csv").unlink()
    _, counts = make(corpus)
    assert counts["kept"] == counts["shards"] - 1
    assert contents(out) == before


def test_changed_files_or_options_start_anew(corpus, capsys):
    out, first = make(corpus)
    _, again = make(corpus, shard_size=4000)
    assert again["kept"] == 0 and again["shards"] > first["shards"]
    assert "train: the CSV, its files or the options changed" in capsys.readouterr().err
    os.utime(corpus / "0.wav", ns=(0, 0))
    assert make(corpus)[1]["kept"] == 0
    assert contents(out) == contents(make(corpus, "fresh")[0])


def test_a_csv_that_refers_to_replaced_shards_is_removed(corpus, capsys):
    """Its windows would hold other utterances, without any error."""
    out, _ = make(corpus)
    make_shards([corpus / "train.csv"], out, shard_size=4000, num_workers=1)
    assert "some.csv: it refers to the old shards" in capsys.readouterr().err
    assert not (out / "some.csv").exists() and (out / "train.csv").exists()
    make(corpus, shard_size=4000)
    assert (out / "some.csv").exists()


@pytest.mark.parametrize("name", ["train.csv", "train-000000.tar"])
def test_nobody_else_s_files_are_overwritten(corpus, name):
    (corpus / "out").mkdir()
    (corpus / "out" / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is there and was not made by this"):
        make(corpus)
    assert (corpus / "out" / name).read_text() == "mine"
    with pytest.raises(UserError, match="is a folder of audio that .*train.csv lists"):
        make(corpus, out=".")


def test_unreadable_files_are_named_with_their_row(corpus, monkeypatch):
    (corpus / "4.wav").rename(corpus / "gone")
    with pytest.raises(UserError, match=r"train.csv, line 6: .*/4.wav cannot be read"):
        make(corpus)
    (corpus / "4.wav").write_bytes(b"")
    with pytest.raises(UserError, match="line 6: .*4.wav .*the file is empty"):
        make(corpus)
    (corpus / "4.wav").unlink()
    (corpus / "4.wav").mkdir()
    with pytest.raises(UserError, match="line 6: .*4.wav cannot be read .Is a dir"):
        make(corpus, num_workers=2)
    (corpus / "4.wav").rmdir()
    (corpus / "gone").rename(corpus / "4.wav")
    status = module._status

    def larger(path, *where):
        found = status(path, *where)
        if path.endswith("4.wav"):
            with open(path, "ab") as stream:
                stream.write(b"more")
        return found

    monkeypatch.setattr(module, "_status", larger)
    with pytest.raises(UserError, match="line 6: .*4.wav .*its size changes"):
        make(corpus)


@pytest.mark.parametrize("identity", ["a.b", "a/b", "x" * 97])
def test_ids_that_are_no_keys(corpus, identity):
    write_csv(corpus / "some.csv", [[identity, 0.05, "1.flac", "s", "A", 0, 1]])
    with pytest.raises(UserError, match="some.csv, line 2: .* is no name for a member"):
        make_shards([corpus / "some.csv"], corpus / "out")


def test_commands_that_cannot_be(corpus, capsys, monkeypatch):
    def error(*arguments):
        with pytest.raises(SystemExit):
            main([str(argument) for argument in arguments])
        return capsys.readouterr().err

    train, out = corpus / "train.csv", corpus / "out"
    assert "two CSVs are called train.csv" in error(train, train, out)
    assert "--shard_size" in error(train, out, "--shard_size=0")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Disk)
    assert "0.0 GB free" in error(train, out)
    monkeypatch.undo()
    main([str(train), str(out), "--num_workers=1"])
    assert "train.csv: 8 utterances" in capsys.readouterr().out
    assert "lists shards already" in error(out / "train.csv", corpus / "more")


class Disk:
    free = 0


def test_m4a_is_stored_as_it_is_or_converted(corpus):
    wave = read_audio(corpus / "0.wav")
    write_m4a(corpus / "a.m4a", wave)
    write_csv(corpus / "some.csv", [["a", 0.05, "a.m4a", "s", "A", 0, 1]])
    for to, name in ((None, "a.m4a"), ("flac", "a.flac")):
        out = corpus / str(to)
        make_shards([corpus / "some.csv"], out, to=to, num_workers=1)
        row = read_table(out / "some.csv").iloc[0]
        with tarfile.open(row.wav) as tar:
            assert tar.getnames() == [name, "a.json"]
        samples = read_audio(row.wav, window=(row.offset, row["size"]))
        exact = read_audio(corpus / "a.m4a")
        assert samples.shape == exact.shape
        assert abs(samples - exact).max() <= (2**-16 if to else 0)
        assert make_shards([corpus / "some.csv"], out, to=to)["kept"] == 1


def test_the_baseline_reads_shards(corpus):
    trials = corpus / "trials.txt"
    ids = [row["ID"] for row in read_rows(corpus / "train.csv")]
    trials.write_text(
        "".join(f"{i % 2} {ids[0]} {name}\n" for i, name in enumerate(ids[1:]))
    )
    out, _ = make(corpus)
    expected = mfcc_baseline(corpus / "train.csv", trials)
    assert mfcc_baseline(out / "train.csv", trials) == expected


@pytest.mark.fault(
    "C7",
    "--shard_size=inf, nan, 0; --num_workers=0",
    "one line before anything is made",
)
@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1e9", "1e30"])
def test_sizes_that_are_none(corpus, capsys, value):
    with pytest.raises(SystemExit) as stop:
        main([str(corpus / "train.csv"), str(corpus / "o"), f"--shard_size={value}"])
    assert stop.value.code == 2
    assert "must be a number above 0" in capsys.readouterr().err
    with pytest.raises(UserError, match="num_workers=0: at least 1 process"):
        make(corpus, num_workers=0)
    assert not (corpus / "o").exists() and not (corpus / "out").exists()


@pytest.mark.fault(
    "C6", "shards of utterances called NA and null", "IDs and texts stay as they are"
)
def test_ids_that_pandas_takes_for_nothing(corpus):
    rows = read_rows(corpus / "some.csv")
    for row, name in zip(rows, ("NA", "null", "nan"), strict=True):
        row |= {"ID": name, "spk_id": name, "wrd": name}
    write_csv(corpus / "some.csv", [list(row.values()) for row in rows])
    make_shards([corpus / "some.csv"], corpus / "out", num_workers=1)
    table = read_table(corpus / "out" / "some.csv", ["spk_id", "wrd"])
    for column in ("ID", "spk_id", "wrd"):
        assert list(table[column]) == ["NA", "null", "nan"]
    with tarfile.open(corpus / "out" / "some-000000.tar") as tar:
        assert json.load(tar.extractfile("null.json"))["ID"] == "null"
