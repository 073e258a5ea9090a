"""The paired bootstrap against what is known of simple cases."""

import numpy as np
import pandas
import pytest

from lobes.errors import UserError
from lobes.scoring import Trials, equal_error_rate, write_scores
from lobes.significance import compare_eer, compare_wer


def transcripts(path, wrong, count=400, words=5):
    """``wrong`` of the utterances have one word of five wrong."""
    rows = [
        {
            "ID": f"u{i}",
            "reference": " ".join(["A"] * words),
            "hypothesis": " ".join(["B" if i in wrong else "A"] + ["A"] * (words - 1)),
        }
        for i in range(count)
    ]
    pandas.DataFrame(rows).to_csv(path, index=False)
    return path


def test_wer_of_a_clear_and_of_no_difference(tmp_path):
    first = transcripts(tmp_path / "a.csv", set(range(40)))
    second = transcripts(tmp_path / "b.csv", set(range(20)))
    found = compare_wer(first, second)
    assert found.difference == pytest.approx(-1.0) and found.count == 400
    # The 20 utterances that differ: a binomial of 400 and 0.05, in units of 0.05 %.
    deviation = 0.05 * np.sqrt(400 * 0.05 * 0.95)
    assert found.low == pytest.approx(-1 - 1.96 * deviation, abs=0.06)
    assert found.high == pytest.approx(-1 + 1.96 * deviation, abs=0.06)
    assert found.p < 0.001
    assert compare_wer(first, second) == found, "another seed each time"
    other = transcripts(tmp_path / "c.csv", set(range(100, 141)))
    assert compare_wer(first, other).p > 0.5
    same = compare_wer(first, first)
    assert same.difference == same.low == same.high == 0 and same.p == 1


def test_pairs_count(tmp_path):
    """Errors on the same utterances leave less to chance than on different ones."""
    first = transcripts(tmp_path / "a.csv", set(range(100)))
    nested = compare_wer(first, transcripts(tmp_path / "b.csv", set(range(90))))
    apart = compare_wer(first, transcripts(tmp_path / "c.csv", set(range(200, 290))))
    assert nested.difference == pytest.approx(apart.difference)
    assert nested.p < 0.01 < 0.2 < apart.p


def scores(path, noise, seed=1, count=500):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2 == 0
    names = [f"u{i}" for i in range(count)]
    values = labels + noise * random.normal(size=count)
    write_scores(path, Trials(labels, names, names[::-1], "list"), values)
    return path, equal_error_rate(values, labels)[0]


def test_eer(tmp_path):
    first, one = scores(tmp_path / "a.txt", 1.0)
    second, other = scores(tmp_path / "b.txt", 0.4)
    found = compare_eer(first, second, resamples=199)
    assert found.difference == pytest.approx(other - one) and found.count == 500
    assert found.low < found.difference < found.high < 0 and found.p <= 0.01
    third, _ = scores(tmp_path / "c.txt", 1.0, seed=3)
    assert compare_eer(first, third, resamples=199).p > 0.05


def test_other_sets_are_refused(tmp_path):
    first = transcripts(tmp_path / "a.csv", {1})
    fewer = transcripts(tmp_path / "b.csv", {1}, count=398)
    with pytest.raises(UserError, match="u398 and 1 more utterances"):
        compare_wer(first, fewer)
    with pytest.raises(UserError, match="the references differ"):
        compare_wer(first, transcripts(tmp_path / "c.csv", {1}, words=4))
    with pytest.raises(UserError, match="none.csv cannot be read"):
        compare_wer(first, tmp_path / "none.csv")
    with pytest.raises(UserError, match="the trials differ"):
        one, other = scores(tmp_path / "a.txt", 1), scores(tmp_path / "b.txt", 1, 1, 98)
        compare_eer(one[0], other[0])
