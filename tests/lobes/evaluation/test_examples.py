"""Which transcripts are shown."""

import pytest

from lobes.evaluation import examples
from tests.helpers.shown import write_transcripts


def test_examples_cover_the_error_rates_and_hold_the_worst(tmp_path):
    pairs = [("A B C D", "A B C D")] * 50
    pairs[20] = ("A B C D", "A B C X")
    pairs[31] = ("A B C D", "A B X X")
    pairs[43] = ("A B C D", "X")
    write_transcripts(tmp_path, *pairs)
    rows = examples.aligned(tmp_path, "test-other")
    chosen = examples.chosen(rows, 5)
    assert [round(row["WER"]) for row in chosen] == [100, 50, 25, 0, 0]
    assert len({row["key"] for row in chosen}) == 5
    assert len(examples.chosen(rows, 99)) == 50


@pytest.mark.fault(
    "B10",
    "24 utterances of 8 speakers, all with WER 100",
    "five examples of five speakers",
)
def test_examples_are_of_many_speakers(tmp_path):
    write_transcripts(tmp_path, *[("A B", "")] * 24)
    rows = examples.aligned(tmp_path, "test-other")
    speakers = {f"u{n}": f"s{n // 3}" for n in range(24)}
    chosen = examples.chosen(rows, 5, speakers)
    assert len({speakers[row["key"]] for row in chosen}) == 5
