"""Trial lists and score files: reading, checking, and their utterances."""

import pytest

from lobes.data.trials import (
    check_trials,
    read_scores,
    read_trials,
)
from lobes.errors import UserError
from tests.helpers.own_csvs import (
    opened,
    rows_of,
    write_csv,
)

GOOD = "1 a b\n0 a c\n1 c d\n"


def with_trials(tmp_path, text, **settings):
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    csv_path = write_csv(tmp_path / "own.csv", rows_of(tmp_path))
    return opened(csv_path, trial_paths=[path], **settings).trials["list"]


@pytest.mark.fault(
    "C7",
    "trials of an utterance and itself",
    "counted: `list.txt: 1 of 3 trials (line 2) are of an utterance and itself, which "
    "no system can fail`; refused where all same-speaker trials are such",
)
def test_trials_of_an_utterance_and_itself(tmp_path, caplog):
    with_trials(tmp_path, "1 u0 u2\n1 u1 u1\n0 u0 u1\n")
    assert caplog.messages == [
        f"{tmp_path}/list.txt: 1 of 3 trials (line 2) are of an utterance and itself, "
        "which no system can fail"
    ]
    with pytest.raises(UserError, match="each of its 2 same-speaker trials is of an"):
        with_trials(tmp_path, "1 u0 u0\n1 u1 u1\n0 u0 u1\n")
    with pytest.raises(UserError, match="line 2: label 0 for an utterance and itself"):
        with_trials(tmp_path, "1 u0 u2\n0 u1 u1\n")


def test_labels_against_the_speakers_of_the_csv(tmp_path, caplog):
    with_trials(tmp_path, "1 u0 u2\n1 u1 u2\n0 u0 u1\n0 u1 u3\n")
    assert caplog.messages == [
        f"{tmp_path}/list.txt: the labels of 2 of 4 trials (line 2, 4) contradict the "
        f"column spk_id of {tmp_path}/own.csv"
    ]


@pytest.mark.fault(
    "B9",
    "trials that name files as VoxCeleb's do, with a CSV of other IDs",
    "each path that one file ends in stands for its ID",
)
def test_trials_by_path(tmp_path):
    rows = []
    for number, row in enumerate(rows_of(tmp_path)):
        place = tmp_path / "wav" / f"id{number % 2}" / "video" / f"{number:05}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / row["wav"]).rename(place)
        rows.append({**row, "wav": str(place)})
    path = write_csv(tmp_path / "own.csv", rows)
    trials = tmp_path / "list.txt"

    def read(text):
        trials.write_text(text, encoding="utf-8")
        found = opened(path, trial_paths=[trials]).trials["list"]
        return list(zip(found.enrol, found.test, strict=True))

    same = "1 id0/video/00000.wav id0/video/00002.flac\n"
    assert read(f"{same}0 u0 {rows[1]['wav']}\n") == [("u0", "u2"), ("u0", "u1")]
    for unclear in ("0 u0 id7/video/00001.wav", "0 u0 u9"):
        with pytest.raises(UserError, match="line 2: .* is not in") as caught:
            read(f"{same}{unclear}\n")
        assert ("by the column ID" in str(caught.value)) == ("/" in unclear)


def write(tmp_path, content):
    """A trial list holding ``content`` (str or bytes)."""
    path = tmp_path / "trials.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace(" ", "\t") + "\n\n",
        GOOD.rstrip(),
    ],
    ids=["plain", "crlf", "bom", "tabs and empty end", "no last newline"],
)
def test_trials_are_read(tmp_path, content):
    path = write(tmp_path, content)
    trials = read_trials(path)
    assert trials.labels.tolist() == [True, False, True]
    assert trials.labels.dtype == bool
    assert (trials.enrol, trials.test) == (["a", "a", "c"], ["b", "c", "d"])
    assert (trials.path, len(trials)) == (str(path), 3)
    assert trials.utterances() == ["a", "c", "b", "d"]


def test_all_problems_are_listed_with_their_lines(tmp_path):
    path = write(tmp_path, "1 a b\n1 a\n2 a c\n0 a c d\n\n1 a b\n0 a b\n0 x y\n")
    with pytest.raises(UserError) as error:
        read_trials(path)
    message = str(error.value)
    assert message.startswith(f"{path}: 6 problems: ")
    for problem in (
        "line 2: 2 fields instead of 3",
        "line 3: label '2' is neither 0 nor 1",
        "line 4: 4 fields instead of 3",
        "line 5: 0 fields instead of 3",
        "line 6: the trial of line 1 again",
        "line 7: label 0 contradicts line 1",
    ):
        assert problem in message
    assert "\n" not in message and "line 8" not in message


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path):
    path = write(tmp_path, GOOD + "broken\n" * 25)
    with pytest.raises(UserError, match="25 problems") as error:
        read_trials(path)
    assert "line 13:" in str(error.value) and "line 14:" not in str(error.value)
    assert "and 15 more" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        ("1 a b\n1 a c\n", r"all 2 trials are same-speaker \(1\)"),
        ("0 a b\n", r"all 1 trials are different-speaker \(0\)"),
        (b"1 a b\n0 \xff\xfe c\n", "line 2: not UTF-8; give a trial list"),
        ("1,a,b\n0,a,c\n", "2 problems: line 1: 1 fields"),
    ],
)
def test_unusable_lists_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_trials(write(tmp_path, content))


def test_a_missing_list_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read .*; give a trial list"):
        read_trials(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_trials(tmp_path)


def test_repeats_count_where_allowed_but_never_contradict(tmp_path):
    path = write(tmp_path, GOOD + "1 a b\n")
    assert len(read_trials(path, allow_repeats=True)) == 4
    path = write(tmp_path, GOOD + "0 a b\n")
    with pytest.raises(UserError, match="line 4: label 0 contradicts line 1"):
        read_trials(path, allow_repeats=True)


def test_the_mirrored_pair_is_another_trial(tmp_path):
    assert len(read_trials(write(tmp_path, GOOD + "1 b a\n"))) == 4


@pytest.mark.fault(
    "C7",
    "`1 a b` and `0 b a` in one trial list",
    "refused: `line 4: label 0 contradicts line 1 (same pair)`",
)
def test_a_mirrored_pair_contradicts_itself(tmp_path):
    path = write(tmp_path, GOOD + "0 b a\n")
    with pytest.raises(UserError, match="line 4: label 0 contradicts line 1"):
        read_trials(path, allow_repeats=True)
    path = write(tmp_path, "1 a b 0.5\n0 b a 0.5\n0 a a 1.0\n")
    assert len(read_scores(path)[0]) == 3, "what was scored before stays readable"


def test_unknown_utterances_are_named(tmp_path):
    trials = read_trials(write(tmp_path, GOOD))
    check_trials(trials, ["a", "b", "c", "d", "unused"], "test.csv")
    with pytest.raises(UserError) as error:
        check_trials(trials, iter(["a", "b"]), "test.csv")
    assert str(error.value).startswith(
        f"{trials.path}, line 2: c is not in test.csv (2 of the list's 4 utterances"
    )


def test_problems_of_a_score_file_are_listed(tmp_path):
    path = write(tmp_path, "1 a b 0.5\n0 a c nan\n0 a d high\n1 a e\n0 a f 1e-3\n")
    with pytest.raises(UserError, match="3 problems") as error:
        read_scores(path)
    for problem in (
        "line 2: score 'nan' is not a finite number",
        "line 3: score 'high'",
        "line 4: 3 fields instead of 4",
    ):
        assert problem in str(error.value)
