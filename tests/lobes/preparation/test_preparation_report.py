"""The report at the end of a preparation."""

import pytest

from lobes.preparation.report import reason_kind, report_table

FILES = {
    "train.csv": {"speakers": 3, "utterances": 20, "hours": 1.5, "skipped": 2},
    "trials.txt": {"trials": 5, "positives": 2, "negatives": 3},
}


def test_the_table_has_a_line_for_each_thing():
    official = {
        "files": "train.csv",
        "published": "LibriSpeech train-a",
        "counts": {"utterances": [281241, 281241], "speakers": [3, 2338]},
    }
    lines = report_table(
        {
            "files": FILES,
            "skipped": {"train": {"bad": 2}},
            "left_out": {"train": {"file(s) that end in .mp3": 1200}},
            "official": [official],
        }
    ).splitlines()
    assert lines[0].split() == ["file", "speakers", "utterances", "hours", "skipped"]
    assert lines[1].split() == ["train.csv", "3", "20", "1.50", "2"]
    assert lines[2].split()[:3] == ["trials.txt", "5", "trials"]
    assert lines[3:] == [
        "skipped of train: 2: bad",
        "left out of train: 1,200 file(s) that end in .mp3",
        "train.csv: 281,241 of 281,241 utterances, 3 of 2,338 speakers of LibriSpeech "
        "train-a",
    ]


@pytest.mark.parametrize(
    "reason, kind",
    [
        (
            "it is truncated: its header promises 5 samples but only 3 can be read; x",
            "it is truncated",
        ),
        (
            "it is not readable as audio (Error opening '': Format not "
            "recognised.); copy it",
            "it is not readable as audio",
        ),
        (
            "CTC needs 51 frames for its transcript but the audio has 49 of 20 ms",
            "CTC needs N frames for its transcript but the audio has N of N ms",
        ),
        ("no transcript", "no transcript"),
    ],
)
def test_reasons_are_grouped_without_what_differs(reason, kind):
    assert reason_kind(reason) == kind
