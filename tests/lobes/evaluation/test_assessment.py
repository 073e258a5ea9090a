"""What is said of an evaluation: warnings where there is reason, and none where not."""

import numpy as np
import pandas
import pytest

from lobes.evaluation import assessment, groups
from lobes.evaluation.significance import Interval, Words, error_counts


def words(references, hypotheses):
    return Words(
        [f"u{i}" for i in range(len(references))],
        references,
        hypotheses,
        wer=error_counts(*([t.split() for t in s] for s in (references, hypotheses))),
        cer=error_counts(references, hypotheses),
    )


def said_of(references, hypotheses, blank=80.0, frames=None):
    """Warnings; by default there are five frames for a letter."""
    frames = frames or 5 * sum(map(len, references))
    found = words(references, hypotheses)
    wer = 100 * found.wer[0].sum() / found.wer[1].sum()
    metrics = {"wer": wer, "frames": frames, "blank_frames": blank}
    return list(assessment._of_words(found, metrics))


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
        return list(assessment._of_eer(eer, interval))

    (text,) = said(46.0, Interval(41.0, 51.0, "speakers", 20))
    assert text == (
        "EER 46.00 % is no better than chance (50 %): its 95 % interval is 41.00 to "
        "51.00 %"
    )
    assert said(30.0, Interval(25.0, 35.0, "speakers", 20)) == []
    assert said(60.0, Interval(55.0, 65.0, "speakers", 20)) != []
    assert said(44.0, None) == [] and said(46.0, None) != []


def test_groups_of_words():
    table = pandas.DataFrame(
        {
            "ID": [f"u{i}" for i in range(4)],
            "speaker": ["a", "a", "b", "c"],
            "sex": ["f", "f", "m", ""],
            "seconds": [1.0, 2.0, 3.0, 4.0],
        }
    )
    found = words(["A B"] * 4, ["A B", "A X", "X X", ""])
    rows = groups._word_groups(found, table)
    by = {(row["by"], row["name"]): row for row in rows}
    assert by["sex", "f"]["wer"] == 25 and by["sex", "m"]["wer"] == 100
    assert ("sex", "") not in by, "what is unknown is no group"
    assert by["length", "1.0 to 1.8 s"]["wer"] == 0
    assert by["length", "3.2 to 4.0 s"]["cer"] == 100
    assert [r["name"] for r in rows if r["by"] == "speaker"] == ["b", "c", "a"]
    assert by["speaker", "a"]["utterances"] == 2


def test_groups_of_trials():
    """False decisions at the threshold, counted for both speakers of a trial."""
    from lobes.data.trials import Trials

    labels = np.array([True, True, False, False, False])
    trials = Trials(
        labels, ["a1", "b1", "a1", "a1", "b1"], ["a2", "b2", "b1", "c1", "c1"]
    )
    scores = np.array([0.9, 0.1, 0.8, 0.2, 0.3])
    table = pandas.DataFrame(
        {
            "ID": ["a1", "a2", "b1", "b2", "c1"],
            "speaker": ["a", "a", "b", "b", "c"],
            "sex": ["f", "f", "m", "m", "f"],
            "seconds": [1.0, 2.0, 3.0, 4.0, 5.0],
        }
    )
    rows = groups._trial_groups(trials, scores, 0.5, table)
    by = {(row["by"], row["name"]): row for row in rows}
    assert by["sex", "f and m"]["false_acceptances"] == 50
    assert by["sex", "f and m"]["false_rejections"] is None
    assert by["sex", "m"]["false_rejections"] == 100
    assert by["speaker", "b"]["trials"] == 3 and by["speaker", "a"]["trials"] == 3
    assert by["speaker", "c"]["false_acceptances"] == 0
    # The shorter sides are 1 s or 3 s: with two lengths there is one stretch only.
    assert not [row for row in rows if row["by"] == "length"]
    table["seconds"] = [1.0, 2.0, 6.0, 5.0, 4.0]
    rows = groups._trial_groups(trials, scores, 0.5, table)
    assert sum(row["trials"] for row in rows if row["by"] == "length") == 5


def test_sexes_come_from_the_corpora_s_own_files(tmp_path):
    (tmp_path / "SPEAKERS.TXT").write_text(
        ";ID  |SEX| SUBSET\n14   | F | train-clean-360  | 25.03 | Kristin\nodd\n"
    )
    (tmp_path / "vox1_meta.csv").write_text(
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
        "id10001\tA.J.\tm\tIE\tdev\n"
    )
    folders = {"librispeech_folder": str(tmp_path), "voxceleb1_folder": str(tmp_path)}
    assert groups._sexes(folders) == {"14": "f", "id10001": "m"}
    assert groups._sexes({"librispeech_folder": None}) == {}
