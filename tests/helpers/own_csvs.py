"""CSVs and audio as a user's own script writes them, and what opening them comes to."""

import csv

import numpy as np
import pytest
import soundfile

from lobes.data.evaluation_sets import EvaluationSet
from lobes.errors import UserError

LENGTHS = (16000, 12345, 8007, 20000)


def wave(samples=16000, seed=0, level=0.1):
    return np.random.default_rng(seed).normal(0, level, samples).astype(np.float32)


def write_wav(path, samples, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def write_csv(path, rows):
    """A CSV of dicts, written as a user's own script would."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(folder, name="u", lengths=LENGTHS, decimals=9):
    """CSV rows of new wavs below ``folder``; two speakers."""
    rows = []
    for number, length in enumerate(lengths):
        identity = f"{name}{number}"
        path = write_wav(folder / f"{identity}.wav", wave(length, hash_of(identity)))
        rows.append(
            {
                "ID": identity,
                "duration": f"{length / 16000:.{decimals}f}",
                "wav": path.name,
                "spk_id": f"{name}{number % 2}",
                "wrd": "A CAT",
            }
        )
    return rows


def hash_of(text):
    return sum(map(ord, text))


def opened(path, **settings):
    """The set of a CSV, opened."""
    found = EvaluationSet(str(path), **settings)
    found.open()
    return found


def refused(path, **settings):
    """The line that opening a CSV ends in."""
    with pytest.raises(UserError) as caught:
        opened(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message
