"""What a preparation writes: the text of CSVs and trial lists, and their counts."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from lobes.data.audio import SAMPLE_RATE
from lobes.preparation.splitting import TrialRows
from lobes.system.terminal import say

# Rows turned into text at once.
_ROWS = 1 << 14

#: Text and counts of files by their names.
Outputs = dict[str, tuple[str, Mapping | None]]


class CsvCounts(TypedDict):
    """What one CSV holds, and how many utterances were left out of it."""

    speakers: int
    utterances: int
    hours: float
    skipped: int


class TrialCounts(TypedDict):
    """What one trial list holds."""

    trials: int
    positives: int
    negatives: int


def csv_text(header: Sequence[str], columns: Sequence[Sequence]) -> str:
    """CSV text with a header line; ``columns`` are equally long sequences.

    Floats are written so that reading them gives the same float64 again.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    # A million rows of Python's own numbers take more room than the text.
    for start in range(0, max(map(len, columns), default=0), _ROWS):
        block = [column[start : start + _ROWS] for column in columns]
        block = [c.tolist() if isinstance(c, np.ndarray) else c for c in block]
        writer.writerows(zip(*block, strict=True))
    return stream.getvalue()


def csv_counts(
    name: str, speakers: Sequence[str], frames: np.ndarray, skipped: int
) -> CsvCounts:
    """Count what one CSV holds, and say it on standard error.

    ``speakers`` and ``frames`` (samples) are columns ``[utterance]``.
    """
    counts = CsvCounts(
        speakers=len(set(speakers)),
        utterances=len(frames),
        hours=int(np.sum(frames)) / SAMPLE_RATE / 3600,
        skipped=skipped,
    )
    say(
        f"{name}: {counts['speakers']} speakers, {counts['utterances']} utterances, "
        f"{counts['hours']:.2f} hours, {counts['skipped']} skipped"
    )
    return counts


def read_prepared(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a CSV that a preparation wrote and vouches for."""
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        return list(reader.fieldnames), list(reader)


def rows_csv(
    name: str, header: Sequence[str], rows: Sequence[Mapping[str, str]], skipped: int
) -> Outputs:
    """The CSV ``name`` with some rows of ``read_prepared``."""
    speakers = [row["spk_id"] for row in rows]
    frames = np.array([round(float(row["duration"]) * SAMPLE_RATE) for row in rows])
    counts = csv_counts(name, speakers, frames, skipped)
    text = csv_text(header, [[row[column] for row in rows] for column in header])
    return {name: (text, counts)}


def trial_list(name: str, ids: Sequence[str], trials: TrialRows) -> Outputs:
    """Lines ``label enrol_ID test_ID``; their counts also go to standard error."""
    columns = (column.tolist() for column in trials)
    lines = [f"{x} {ids[i]} {ids[j]}\n" for x, i, j in zip(*columns, strict=True)]
    positives = int(trials.label.sum())
    counts = TrialCounts(
        trials=len(lines), positives=positives, negatives=len(lines) - positives
    )
    say(f"{name}: {positives} positive, {counts['negatives']} negative trials")
    return {name: ("".join(lines), counts)}
