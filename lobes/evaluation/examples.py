"""Transcripts to show: utterances with their errors, from the worst to the best."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from lobes.errors import UserError
from lobes.system.files import read_rows
from lobes.system.lazy import lazy

edit_distance = lazy("speechbrain.utils.edit_distance")

logger = logging.getLogger(__name__)

# Utterances whose WER differs by less (percent points) are examples of one kind.
_ALIKE = 10


def aligned(folder: Path, name: str) -> list[dict]:
    """Every utterance of a set, aligned by SpeechBrain, the worst first.

    An empty list when the set has no transcripts that can be read; the log tells why.
    """
    path = folder / f"transcripts_{name}.csv"
    if not path.exists():
        return []
    try:
        texts = read_rows(path, ["ID", "reference", "hypothesis"], "evaluate again")
    except UserError as error:
        logger.warning("%s", error)
        return []
    rows = edit_distance.wer_details_for_batch(
        [row["ID"] for row in texts],
        [row["reference"].split() for row in texts],
        [row["hypothesis"].split() for row in texts],
        compute_alignments=True,
    )
    return sorted(rows, key=_worst_first)


def chosen(
    rows: list[dict], count: int, speakers: Mapping[str, str] | None = None
) -> list[dict]:
    """``count`` of the ``aligned`` utterances, evenly spread over the error rate.

    The worst is among them. Evenly spread over the utterances, a good system's
    examples would hardly have an error to see. Among about equal ones, those of
    the least shown speakers (``{ID: speaker}``) are taken.
    """
    speakers, shown = speakers or {}, Counter()
    left, picked = list(rows), []
    for rate in np.linspace(rows[0]["WER"], rows[-1]["WER"], min(count, len(rows))):

        def distance(row, rate=rate):
            off = abs(row["WER"] - rate)
            seen = shown[speakers.get(row["key"])] if speakers else 0
            return off // _ALIKE, seen, off

        nearest = min(left, key=distance)
        shown[speakers.get(nearest["key"])] += 1
        left.remove(nearest)
        picked.append(nearest)
    return sorted(picked, key=_worst_first)


def word_pairs(row: dict) -> Iterator[tuple[str | None, str | None]]:
    """Pairs (word said, word recognised) in order; None where there is none."""
    for _, i, j in row["alignment"]:
        yield (
            None if i is None else row["ref_tokens"][i],
            None if j is None else row["hyp_tokens"][j],
        )


def _worst_first(row):
    """By falling error rate, then by name."""
    return -row["WER"], row["key"]
