"""What is said of an evaluation: warnings where there is reason, and none where not."""

import json

import pandas
import pytest

from lobes.data.evaluation_sets import EvaluationSet, open_sets
from lobes.evaluation import assessment
from lobes.evaluation.significance import Interval
from tests.helpers.shown import words


def said_of(references, hypotheses, blank=80.0, frames=None):
    """Warnings; by default there are five frames for a letter."""
    frames = frames or 5 * sum(map(len, references))
    found = words(references, hypotheses)
    wer = 100 * found.wer[0].sum() / found.wer[1].sum()
    metrics = {"wer": wer, "frames": frames, "blank_frames": blank}
    return list(assessment.word_doubts(found, metrics))


SENTENCES = ["A CAT SAT", "NO DOG", "IT RAINS", "GO ON", "TWO BIRDS", "SEE IT"]


@pytest.mark.fault(
    "B5", "hypotheses that are empty, or all alike", "a warning with their number"
)
def test_what_is_suspicious_about_transcripts():
    assert said_of(SENTENCES, SENTENCES) == []
    (empty, silent) = said_of(SENTENCES, [""] * 6)
    assert empty == "6 of 6 hypotheses are empty"
    assert silent == "WER 100.00 % is no better than saying nothing (100 %)"
    assert said_of(SENTENCES, SENTENCES[:4] + ["", ""]) == []
    alike, *_ = said_of(SENTENCES, ["THE", "THE", "IT RAINS", "THE", "THE", "SEE IT"])
    assert alike == "4 of 6 hypotheses are 'THE'"
    # Where people say the same, hypotheses may be alike.
    assert said_of(["YES"] * 5 + ["NO"], ["YES"] * 6) == []


@pytest.mark.fault(
    "B5",
    "99 % of the frames are blank; 80 %, as of a good model",
    "99.0 % of the frames are blank: letters stand in 1.0 % of them, and the "
    "references need 20.0 %; no warning",
)
def test_blank_frames_are_judged_by_what_the_words_need():
    (text,) = said_of(SENTENCES, SENTENCES, blank=99.0)
    assert text == (
        "99.0 % of the frames are blank: letters stand in 1.0 % of them, and the "
        "references need 20.0 %"
    )
    assert said_of(SENTENCES, SENTENCES, blank=80.0) == []
    # Slow speech: 2 letters in 100 frames are all there is to say.
    frames = 50 * sum(map(len, SENTENCES))
    assert said_of(SENTENCES, SENTENCES, blank=98.0, frames=frames) == []


@pytest.mark.fault(
    "B5",
    "an EER whose 95 % interval holds 50 %",
    "EER 46.00 % is no better than chance (50 %): its 95 % interval is 41.00 to "
    "51.00 %",
)
def test_chance_is_named():
    def said(eer, interval):
        return list(assessment.eer_doubts(eer, interval))

    (text,) = said(46.0, Interval(41.0, 51.0, "speakers", 20))
    assert text == (
        "EER 46.00 % is no better than chance (50 %): its 95 % interval is 41.00 to "
        "51.00 %"
    )
    assert said(30.0, Interval(25.0, 35.0, "speakers", 20)) == []
    assert said(60.0, Interval(55.0, 65.0, "speakers", 20)) != []
    assert said(44.0, None) == [] and said(46.0, None) != []


def test_tasks_that_share_a_set_are_assessed_each(run, tiny_corpus):
    results = json.loads((run / "results.json").read_text())
    csvs = [tiny_corpus / "LibriSpeech" / f"{n}.csv" for n in ("test-other", "train")]
    for same, csv in zip((True, False), csvs, strict=True):
        sets = {
            "speech": {"test-other": EvaluationSet(csvs[0])},
            "gender": {"test-other": EvaluationSet(csv)},
        }
        open_sets({}, {}, sets)
        measured = {**results["sets"], "gender": {"test-other": {"accuracy": 97.5}}}
        found = assessment.assess(run, measured, sets, {})
        for key in ("intervals", "groups"):
            assert found[key]["test-other"] == results[key]["test-other"]
        assert found["data"]["test-other"] == results["data"]["test-other"]
        names = ["test-other", *["test-other (gender)"] * (not same)]
        assert list(found["data"]) == names
        for name in names:
            table = pandas.read_csv(run / f"utterances_{name}.csv")
            assert len(table) == found["data"][name]["utterances"]
