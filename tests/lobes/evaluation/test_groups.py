"""Errors by sex, length and speaker."""

import numpy as np
import pandas

from lobes.data.trials import Trials
from lobes.evaluation import groups
from tests.helpers.shown import words


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
    rows = groups.word_groups(found, table)
    by = {(row["by"], row["name"]): row for row in rows}
    assert by["sex", "f"]["wer"] == 25 and by["sex", "m"]["wer"] == 100
    assert ("sex", "") not in by, "what is unknown is no group"
    assert by["length", "1.0 to 1.8 s"]["wer"] == 0
    assert by["length", "3.2 to 4.0 s"]["cer"] == 100
    assert [r["name"] for r in rows if r["by"] == "speaker"] == ["b", "c", "a"]
    assert by["speaker", "a"]["utterances"] == 2


def test_groups_of_trials():
    """False decisions at the threshold, counted for both speakers of a trial."""
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
    rows = groups.trial_groups(trials, scores, 0.5, table)
    by = {(row["by"], row["name"]): row for row in rows}
    assert by["sex", "f and m"]["false_acceptances"] == 50
    assert by["sex", "f and m"]["false_rejections"] is None
    assert by["sex", "m"]["false_rejections"] == 100
    assert by["speaker", "b"]["trials"] == 3 and by["speaker", "a"]["trials"] == 3
    assert by["speaker", "c"]["false_acceptances"] == 0
    # The shorter sides are 1 s or 3 s: with two lengths there is one stretch only.
    assert not [row for row in rows if row["by"] == "length"]
    table["seconds"] = [1.0, 2.0, 6.0, 5.0, 4.0]
    rows = groups.trial_groups(trials, scores, 0.5, table)
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
    assert groups.speaker_sexes(folders) == {"14": "f", "id10001": "m"}
    assert groups.speaker_sexes({"librispeech_folder": None}) == {}
