"""The text of what a preparation writes."""

import csv
import io

import numpy as np
import pytest

from lobes.preparation.outputs import csv_text


def test_csv_text_survives_reading():
    floats = np.array([1 / 3, 1e-17, -2.5e300, 0.1 + 0.2])
    ids = ["a", "with, comma", 'with "quotes"', "é"]
    text = csv_text(("ID", "mean", "start"), (ids, floats, np.arange(4)))
    assert "\r" not in text and text.startswith("ID,mean,start\n")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["ID"] for row in rows] == ids
    assert [float(row["mean"]) for row in rows] == floats.tolist()
    assert [row["start"] for row in rows] == ["0", "1", "2", "3"]


def test_csv_columns_must_be_equally_long():
    with pytest.raises(ValueError):
        csv_text(("a", "b"), ([1], [1, 2]))
