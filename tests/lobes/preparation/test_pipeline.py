"""The pipeline that every corpus shares: what is kept, dropped, built and told."""

import csv
import json

import numpy as np
import pytest
import soundfile

from lobes.data.audio import SAMPLE_RATE
from lobes.errors import UserError
from lobes.preparation.folders import LeftOut
from lobes.preparation.parts import Problem
from lobes.preparation.pipeline import Preparation, Utterances, utterances_csv

HEADER = ("ID", "duration", "wav", "stop", "spk_id", "mean", "std")


@pytest.fixture
def listed(tmp_path):
    """Four utterances of two speakers; the last file is broken."""
    rows = []
    for number, name in enumerate(["b", "a", "c", "d"]):
        path = tmp_path / f"{name}.wav"
        noise = np.random.RandomState(number).randint(-9000, 9000, 500 + number)
        soundfile.write(path, noise.astype(np.int16), SAMPLE_RATE)
        rows.append((name, str(path), "12"[number // 2], number // 2))
    path.write_text("<html>")
    return Utterances.of(rows)


def preparation(tmp_path, budget=1, header_only=False):
    run = Preparation("Corpus", tmp_path / "csv", None, budget, header_only, 1)
    run.make_folders()
    return run


def prepare(tmp_path, listed, problems=(), rule=None, **options):
    """The part ``one``: what ``build`` was called with, and all counts."""
    run, built = preparation(tmp_path, **options), []

    def build(part):
        usable, skipped = run.decode(part, tmp_path, listed, problems, rule)
        built.append(usable)
        return utterances_csv("one.csv", HEADER, usable, skipped), skipped

    with run.writing({"one": ["one.csv"]}):
        run.part("one", {}, "inputs", build, tmp_path)
        counts = run.report({}, {"one": LeftOut(tmp_path)})
    return built, counts


def test_what_can_be_used_is_written_by_id(tmp_path, listed):
    (usable,), counts = prepare(tmp_path, listed)
    assert usable.ids == ["b", "a", "c"] and usable.frames.tolist() == [500, 501, 502]
    with open(tmp_path / "csv" / "one.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["ID"], row["spk_id"]) for row in rows] == [
        ("a", "1"),
        ("b", "1"),
        ("c", "2"),
    ]
    samples = soundfile.read(rows[0]["wav"])[0]
    assert float(rows[0]["mean"]) == samples.mean() and rows[0]["stop"] == "501"
    assert counts["one.csv"] == {
        "path": str(tmp_path / "csv" / "one.csv"),
        "speakers": 2,
        "utterances": 3,
        "hours": 1503 / SAMPLE_RATE / 3600,
        "skipped": 1,
    }
    report = json.loads((tmp_path / "csv" / "prepare_report.json").read_text())
    assert sum(report["skipped"]["one"].values()) == 1


def test_what_fits_is_kept(tmp_path, listed):
    first, counts = prepare(tmp_path, listed)
    again, kept = prepare(tmp_path, listed)
    assert len(first) == 1 and not again and kept == counts


def test_a_rule_and_a_bad_name_count_as_bad_audio_does(tmp_path, listed):
    problems = [Problem("e f", "e f.wav", "its name holds a blank")]

    def rule(table):
        short = np.flatnonzero(table.frames == 501).tolist()
        return {row: "it is too short" for row in [*short, 3]}

    (usable,), counts = prepare(tmp_path, listed, problems, rule, budget=3)
    assert usable.ids == ["b", "c"] and counts["one.csv"]["skipped"] == 3
    told = (tmp_path / "csv" / "one.skipped.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in told] == ["ID", "a", "d", "e f"]
    assert "too short" in told[1] and "not readable" in told[2]


def test_too_many_problems_end_it_before_decoding(tmp_path, listed):
    problems = [Problem(str(n), "x", "is bad") for n in range(2)]
    listed = listed._replace(paths=None)
    with pytest.raises(UserError, match="one: 2 bad utterance"):
        prepare(tmp_path, listed, problems)
    assert not (tmp_path / "csv" / "one.csv").exists()


def test_nothing_usable_is_refused(tmp_path, listed):
    with pytest.raises(UserError, match="one: no usable utterance is left; .*skipped"):
        prepare(tmp_path, listed.rows([3]))


def test_headers_alone_give_no_statistics(tmp_path, listed):
    (usable,), _ = prepare(tmp_path, listed, header_only=True)
    assert usable.mean is None and usable.frames.tolist() == [500, 501, 502]
    header = (tmp_path / "csv" / "one.csv").read_text().splitlines()[0]
    assert header == ",".join(HEADER[:-2])


@pytest.mark.parametrize("budget, workers", [(-1, 1), (0, 0)])
def test_impossible_numbers_are_refused_before_a_folder_is_made(
    tmp_path, budget, workers
):
    with pytest.raises(UserError):
        Preparation("Corpus", tmp_path / "csv", None, budget, False, workers)
    assert not list(tmp_path.iterdir())


def test_a_part_of_files_follows_their_content(tmp_path):
    run, built = preparation(tmp_path), []
    source = tmp_path / "source.txt"

    def build(_):
        built.append(source.read_text())
        return {"two.txt": (built[-1], {"trials": 1}), "notes.txt": ("", None)}, 0

    for text in ("x", "x", "y"):
        source.write_text(text)
        run.part("two", {}, [source], build)
        assert run.counts == {"two.txt": {"trials": 1}}
    assert built == ["x", "y"]
    assert (tmp_path / "csv" / "two.txt").read_text() == "y"


def test_rows_of_a_table():
    table = Utterances.of([("a", "p", "s", 0, "X"), ("b", "q", "t", 1, "Y")])
    chosen = table._replace(frames=np.array([7, 8])).rows([1, 0, 1])
    assert chosen.ids == ["b", "a", "b"] and chosen.texts == ["Y", "X", "Y"]
    assert chosen.frames.tolist() == [8, 7, 8] and chosen.mean is None
    assert Utterances.of([]).rows([]).ids == []
