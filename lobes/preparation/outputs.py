"""What a preparation writes: the text of CSVs and trial lists, and their counts."""

import csv
import io
import os

import numpy as np

from lobes.data.audio import (
    SAMPLE_RATE,
)
from lobes.system.terminal import say

# Rows turned into text at once.
_ROWS = 1 << 14


def csv_text(header, columns):
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


def csv_counts(name, speakers, frames, skipped):
    """What one CSV holds; also said on standard error.

    Arguments
    ---------
    name : str
    speakers : list of str ``[utterance]``
    frames : numpy.ndarray ``[utterance]``, in samples
    skipped : int

    Returns
    -------
    dict
        ``{speakers, utterances, hours, skipped}``
    """
    counts = {
        "speakers": len(set(speakers)),
        "utterances": len(frames),
        "hours": int(np.sum(frames)) / SAMPLE_RATE / 3600,
        "skipped": skipped,
    }
    say(
        f"{name}: {counts['speakers']} speakers, {counts['utterances']} utterances, "
        f"{counts['hours']:.2f} hours, {counts['skipped']} skipped"
    )
    return counts


def with_paths(save_folder, counts):
    """``counts`` by file name, each with the file's ``path`` added."""
    return {
        name: {"path": os.path.join(save_folder, name), **count}
        for name, count in counts.items()
    }


def trial_text(name, ids, trials):
    """Lines ``label enrol_ID test_ID``, and counts ``{trials, positives, negatives}``.

    The counts are also said on standard error.
    """
    columns = (column.tolist() for column in trials)
    lines = [f"{x} {ids[i]} {ids[j]}\n" for x, i, j in zip(*columns, strict=True)]
    positives = int(trials.label.sum())
    counts = {
        "trials": len(lines),
        "positives": positives,
        "negatives": len(lines) - positives,
    }
    say(f"{name}: {positives} positive, {counts['negatives']} negative trials")
    return "".join(lines), counts
