"""Errors by sex, length and speaker: rows of a table for every group."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas

from lobes.data.trials import Trials
from lobes.evaluation.significance import Words

#: Speakers with the most errors that are listed.
WORST_SPEAKERS = 5

#: Groups by length, of about equally many utterances or trials.
LENGTHS = 4

# Files that tell the sex of a corpus' speakers, by the setting of its folder.
_SEX_FILES = {
    "librispeech_folder": "SPEAKERS.TXT",
    "voxceleb1_folder": "vox1_meta.csv",
    "voxceleb2_folder": "vox2_meta.csv",
}


def word_groups(words: Words, table: pandas.DataFrame) -> list[dict]:
    """WER and CER by sex, length and speaker.

    ``table`` is that of ``lobes.evaluation.assessment.utterance_table``, with a row
    for each of the words' utterances. A row that is returned has ``by`` (sex, length
    or speaker), ``name``, and metrics.
    """
    counts = pandas.DataFrame(
        {
            "utterances": 1,
            "word_errors": words.wer[0],
            "words": words.wer[1],
            "letter_errors": words.cer[0],
            "letters": words.cer[1],
        }
    )
    rows = []
    for by, names in (
        ("sex", table["sex"]),
        ("length", _by_length(table["seconds"].to_numpy())),
        ("speaker", table["speaker"]),
    ):
        sums = _sums(counts, names)
        sums["wer"] = 100 * sums["word_errors"] / sums["words"].clip(lower=1)
        sums["cer"] = 100 * sums["letter_errors"] / sums["letters"].clip(lower=1)
        rows += _rows(by, sums, ["utterances", "words", "wer", "cer"], "wer")
    return rows


def trial_groups(
    trials: Trials, scores: np.ndarray, threshold: float, table: pandas.DataFrame
) -> list[dict]:
    """Errors at the EER's threshold by sex, the shorter's length, and speaker.

    A trial between two speakers counts for both. Otherwise as ``word_groups``.
    """
    names, sides = trials.sides()
    table = table.set_index("ID").loc[names]
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
    two = speakers[0] != speakers[1]
    rows = []
    for by, part, names in (
        ("sex", counts, np.where(sexes[0] == sexes[1], sexes[0], mixed)),
        ("length", counts, _by_length(shorter)),
        (
            "speaker",
            pandas.concat([counts, counts[two]]),
            np.r_[speakers[0], speakers[1][two]],
        ),
    ):
        sums = _sums(part, names)
        negatives = sums["trials"] - sums["positives"]
        # A rate is NaN where there is no trial of its kind.
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
    """The rows of a table; of the speakers only those with the most errors."""
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


# What is known of speakers -------------------------------------------------------


def speaker_sexes(hparams: Mapping) -> dict[str, str]:
    """``{speaker: f or m}``, as far as the corpora's own files tell.

    A file may lie in the corpus' folder, or in the folder above it.
    """
    sexes = {}
    for key, name in _SEX_FILES.items():
        folder = hparams.get(key)
        paths = [Path(folder) / name, Path(folder) / ".." / name] if folder else []
        for path in filter(Path.is_file, paths):
            text = path.read_bytes().decode("utf-8-sig", errors="replace")
            sexes.update(_sexes_of(text))
            break
    return sexes


def _sexes_of(text: str) -> Iterator[tuple[str, str]]:
    """Speakers and sexes in ``SPEAKERS.TXT`` or ``*_meta.csv``, two formats."""
    column = 1
    for line in text.split("\n"):
        first, *others = [field.strip() for field in re.split(r"[|\t,]", line)]
        fields = [first, *(field.lower() for field in others)]
        if "gender" in fields:
            column = fields.index("gender")
        elif len(fields) > column and fields[column] in ("f", "m"):
            yield first, fields[column]
