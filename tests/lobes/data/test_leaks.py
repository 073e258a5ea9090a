"""Leaks between training, validation and test are found when the sets are open."""

import csv

import pytest

from lobes.data.evaluation_sets import EvaluationSet, open_sets
from lobes.data.leaks import check_leaks
from lobes.data.streams import RandomCrops
from lobes.errors import UserError
from recipes.LibriSpeech_VoxCeleb.MTL import train
from tests.helpers import tiny
from tests.helpers.own_csvs import (
    rows_of,
    wave,
    write_csv,
    write_wav,
)
from tools.make_shards import make_shards


def sets_of(folder, train, valid, test, **settings):
    """Opened: a stream and two sets of one task, from rows."""
    for name, rows in (("train", train), ("valid", valid), ("test", test)):
        write_csv(folder / f"{name}.csv", rows)
    stream = RandomCrops(folder / "train.csv", {}, crop_seconds=0.1)
    one = EvaluationSet(str(folder / "valid.csv"))
    other = EvaluationSet(str(folder / "test.csv"), **settings)
    sets = {"a": stream}, {"a": one}, {"a": {"test": other}}
    open_sets(*sets)
    return sets


@pytest.fixture
def three(tmp_path):
    return [rows_of(tmp_path, name) for name in ("x", "y", "z")]


def test_sets_without_a_leak(tmp_path, three, caplog):
    check_leaks(*sets_of(tmp_path, *three))
    assert not caplog.records


@pytest.mark.fault(
    "C4",
    "a test or validation set of what is trained on, under the same or other names",
    "`test.csv: 4 of 4 utterances are trained on, too: x0 (test.csv, line 2) is x0 "
    "(train.csv, line 2); take them out of one of the two, or add --allow_leaks=True "
    "if this is what you want to measure`",
)
@pytest.mark.parametrize("place", ["valid", "test"])
@pytest.mark.parametrize("named", ["same", "renamed", "copied"])
def test_what_is_trained_on_is_not_tested_on(tmp_path, three, place, named, caplog):
    train, *others = three
    leak = [dict(row) for row in train]
    for row in leak:
        if named == "renamed":
            row["ID"] += "-again"
        if named == "copied":
            copy = tmp_path / "copies" / row["wav"]
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes((tmp_path / row["wav"]).read_bytes())
            row["wav"] = f"{copy.parent}/{row['wav']}"
    others[("valid", "test").index(place)] = leak
    for row in leak:
        row["spk_id"] = "z"
    sets = sets_of(tmp_path, train, *others)
    with pytest.raises(UserError) as caught:
        check_leaks(*sets)
    identity = leak[0]["ID"]
    assert str(caught.value) == (
        f"{tmp_path}/{place}.csv: 4 of 4 utterances are trained on, too: {identity} "
        f"({tmp_path}/{place}.csv, line 2) is x0 ({tmp_path}/train.csv, line 2); take "
        "them out of one of the two, or add --allow_leaks=True if this is what you "
        "want to measure"
    )
    check_leaks(*sets, allowed=True)
    assert caplog.records[0].message in str(caught.value)


def test_equal_names_of_other_utterances_are_no_leak(tmp_path, three):
    train, valid, test = three
    for ours, theirs in zip(train, reversed(test), strict=True):
        theirs["ID"] = ours["ID"]
    assert test[1]["duration"] != train[2]["duration"]
    check_leaks(*sets_of(tmp_path, train, valid, test))


def test_parts_of_one_recording_leak_where_they_overlap(tmp_path, three):
    train, valid, _ = three
    write_wav(tmp_path / "long.wav", wave(50000))

    def part(identity, start, stop):
        row = {"ID": identity, "wav": "long.wav", "start": start, "stop": stop}
        return [{**row, "spk_id": identity}]

    apart = part("a", 0, 20000), valid, part("b", 20000, 40000)
    check_leaks(*sets_of(tmp_path, *apart))
    with pytest.raises(UserError, match="1 of 1 utterances are trained on, too"):
        check_leaks(*sets_of(tmp_path, part("a", 0, 20001), valid, apart[2]))


def test_utterances_in_shards_are_told_apart_by_their_offsets(tmp_path, three):
    names = ("train", "valid", "test")
    for name, rows in zip(names, three, strict=True):
        write_csv(tmp_path / f"{name}.csv", rows)
    out = tmp_path / "shards"
    make_shards([tmp_path / f"{name}.csv" for name in names], out, num_workers=1)
    rows = [
        list(csv.DictReader((out / f"{n}.csv").open(encoding="utf-8"))) for n in names
    ]
    check_leaks(*sets_of(out, *rows))
    with pytest.raises(UserError, match="4 of 4 utterances are trained on, too"):
        check_leaks(*sets_of(out, *rows[:2], rows[0]))


def test_validation_and_test_may_be_one_but_it_is_said(tmp_path, three, caplog):
    train, valid, _ = three
    check_leaks(*sets_of(tmp_path, train, valid, valid))
    (record,) = caplog.records
    assert "test.csv: 4 of 4 utterances are validated on, too" in record.message


@pytest.mark.fault(
    "C4",
    "speakers of the test trials among those of the training",
    "`test.csv, column spk_id: 2 of 2 speakers are trained on in train.csv (x0; x1)`",
)
def test_trials_are_of_speakers_that_were_not_trained_on(tmp_path, three, caplog):
    train, valid, test = three
    for row in test:
        row["spk_id"] = row["spk_id"].replace("z", "x")
    trials = tmp_path / "list.txt"
    trials.write_text("1 z0 z2\n0 z0 z1\n", encoding="utf-8")
    sets = sets_of(tmp_path, train, valid, test, trial_paths=[trials])
    with pytest.raises(UserError) as caught:
        check_leaks(*sets)
    assert str(caught.value).startswith(
        f"{tmp_path}/test.csv, column spk_id: 2 of 2 speakers are trained on in "
        f"{tmp_path}/train.csv (x0; x1); "
    )
    # Words of known speakers may be tested.
    check_leaks(*sets_of(tmp_path, train, valid, test))
    assert "2 of 2 speakers are trained on" in caplog.records[0].message


@pytest.mark.slow
def test_training_begins_with_the_look_at_everything(tiny_corpus, tmp_path, capsys):
    argv = tiny.arguments(tiny_corpus, tmp_path / "run", allow_leaks=False)
    with pytest.raises(SystemExit):
        train.main([*argv, "--device=cpu"])
    assert "20 of 20 utterances are trained on, too" in capsys.readouterr().err
    assert not (tmp_path / "run" / "progress.jsonl").exists()
