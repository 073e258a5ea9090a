"""Errors by sex, length and speaker: rows of a table for every group."""

import re
from pathlib import Path

import numpy as np
import pandas

#: Speakers with the most errors that are listed.
WORST_SPEAKERS = 5


#: Groups by length, of about equally many utterances or trials.
LENGTHS = 4


# Files that tell the sex of a corpus' speakers, and where its folder is named.
_META = {
    "librispeech_folder": ("SPEAKERS.TXT", "../SPEAKERS.TXT"),
    "voxceleb1_folder": ("vox1_meta.csv", "../vox1_meta.csv"),
    "voxceleb2_folder": ("vox2_meta.csv", "../vox2_meta.csv"),
}


def _word_groups(words, table):
    """WER and CER by sex, length and speaker."""
    counts = pandas.DataFrame(
        {
            "utterances": 1,
            "word_errors": words.wer[0],
            "words": words.wer[1],
            "letter_errors": words.cer[0],
            "letters": words.cer[1],
        }
    )
    lengths = _by_length(table["seconds"].to_numpy())
    rows = []
    for by, names in (
        ("sex", table["sex"]),
        ("length", lengths),
        ("speaker", table["speaker"]),
    ):
        sums = _sums(counts, names)
        sums["wer"] = 100 * sums["word_errors"] / sums["words"].clip(lower=1)
        sums["cer"] = 100 * sums["letter_errors"] / sums["letters"].clip(lower=1)
        rows += _rows(by, sums, ["utterances", "words", "wer", "cer"], "wer")
    return rows


def _trial_groups(trials, scores, threshold, table):
    """Errors at the EER's threshold by sex, the shorter's length, and speaker.

    A trial between two speakers counts for both.
    """
    row = {name: place for place, name in enumerate(table["ID"])}
    sides = np.array([[row[n] for n in side] for side in (trials.enrol, trials.test)])
    accepted = scores >= threshold
    counts = pandas.DataFrame(
        {
            "trials": 1,
            "positives": trials.labels.astype(int),
            "rejected": (trials.labels & ~accepted).astype(int),
            "accepted": (~trials.labels & accepted).astype(int),
        }
    )
    sexes, speakers = (table[c].to_numpy(str)[sides] for c in ("sex", "speaker"))
    mixed = np.where((sexes == "").any(axis=0), "", "f and m")
    shorter = table["seconds"].to_numpy()[sides].min(axis=0)
    twice = pandas.concat([counts, counts[speakers[0] != speakers[1]]])
    both = np.r_[speakers[0], speakers[1][speakers[0] != speakers[1]]]
    rows = []
    for by, part, names in (
        ("sex", counts, np.where(sexes[0] == sexes[1], sexes[0], mixed)),
        ("length", counts, _by_length(shorter)),
        ("speaker", twice, both),
    ):
        sums = _sums(part, names)
        negatives = sums["trials"] - sums["positives"]
        # No rate without trials of its kind.
        sums["false_rejections"] = 100 * sums["rejected"] / sums["positives"]
        sums["false_acceptances"] = 100 * sums["accepted"] / negatives
        sums["wrong"] = (sums["rejected"] + sums["accepted"]) / sums["trials"]
        kept = ["trials", "false_rejections", "false_acceptances"]
        rows += _rows(by, sums, kept, "wrong")
    return rows


def _by_length(seconds):
    """The name of the group of every length, shortest first when sorted."""
    edges = np.unique(np.quantile(seconds, np.linspace(0, 1, LENGTHS + 1)))
    places = np.clip(np.searchsorted(edges, seconds, "right") - 1, 0, len(edges) - 2)
    names = [
        f"{low:.1f} to {high:.1f} s"
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    kinds = pandas.CategoricalDtype(list(dict.fromkeys(names)), ordered=True)
    return pandas.Series(np.array(names or [""], dtype=object)[places]).astype(kinds)


def _sums(counts, names):
    """Sums of the counts by name, without those that are unknown."""
    names = pandas.Series(names).reset_index(drop=True)
    sums = counts.reset_index(drop=True).groupby(names, observed=True).sum()
    return sums[sums.index.astype(str) != ""]


def _rows(by, sums, kept, order):
    """Rows for a table; of speakers those with the most errors."""
    if by == "speaker":
        sums = sums.sort_values(order, ascending=False, kind="stable")
        sums = sums.head(WORST_SPEAKERS)
    if len(sums) < 2:
        # One group is the whole set.
        return []
    return [
        {
            "by": by,
            "name": str(name),
            **{k: None if pandas.isna(v) else v for k, v in row.items()},
        }
        for name, row in zip(sums.index, sums[kept].to_dict("records"), strict=True)
    ]


def _sexes(hparams):
    """``{speaker: f or m}``, as far as the corpora's own files tell."""
    sexes = {}
    for key, names in _META.items():
        for name in names:
            path = Path(str(hparams.get(key) or "")) / name
            if hparams.get(key) and path.is_file():
                text = path.read_bytes().decode("utf-8-sig", errors="replace")
                sexes.update(_sexes_of(text))
                break
    return sexes


def _sexes_of(text):
    """The sexes in LibriSpeech's ``SPEAKERS.TXT`` or VoxCeleb's ``*_meta.csv``."""
    column = 1
    for line in text.split("\n"):
        fields = [field.strip().lower() for field in re.split(r"[|\t,]", line)]
        if "gender" in fields:
            column = fields.index("gender")
        elif len(fields) > column and fields[column] in ("f", "m"):
            yield re.split(r"[|\t,]", line)[0].strip(), fields[column]
