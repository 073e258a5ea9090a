"""Whether two systems differ by more than the choice of test utterances explains."""

import dataclasses

import numpy as np

from lobes.errors import UserError
from lobes.files import read_rows
from lobes.lazy import lazy
from lobes.scoring import equal_error_rate, read_scores

edit_distance = lazy("speechbrain.utils.edit_distance")
stats = lazy("scipy.stats")

#: Resamples held in memory at once.
_BATCH = 50


@dataclasses.dataclass(frozen=True)
class Difference:
    """Second minus first in percent points, and what a paired bootstrap says of it.

    ``low`` to ``high`` is the 95 % interval; ``p`` is two-sided; ``count`` is the
    number of utterances or trials.
    """

    difference: float
    low: float
    high: float
    p: float
    count: int


def compare_wer(first, second, resamples=9999, seed=0):
    """Paired bootstrap over utterances of a difference in WER.

    Arguments
    ---------
    first, second : str or Path
        ``transcripts_<set>.csv`` of two evaluations of the same set.
    resamples, seed : int

    Returns
    -------
    Difference

    Raises ``UserError`` unless both have the same utterances and references.
    """
    one, other = _errors(first), _errors(second)
    _check_same(first, second, one.keys(), other.keys())
    errors = np.array([[one[name][0], other[name][0]] for name in one]).T
    words = np.array([one[name][1] for name in one])
    if any(one[name][1:] != other[name][1:] for name in one):
        raise UserError(f"{first} and {second}: the references differ; evaluate again")

    def statistic(a, b, total, axis=-1):
        return 100 * (b.sum(axis) - a.sum(axis)) / total.sum(axis)

    return _bootstrap(
        (*errors, words), statistic, resamples, seed, paired=True, vectorized=True
    )


def compare_eer(first, second, resamples=999, seed=0):
    """Paired bootstrap over trials of a difference in EER.

    Same-speaker and different-speaker trials are drawn apart, so that their numbers
    stay. Trials that share a speaker are taken as independent, which makes the interval
    somewhat too narrow.

    Arguments
    ---------
    first, second : str or Path
        ``scores_<list>.txt`` of two evaluations of the same list.
    resamples, seed : int

    Returns
    -------
    Difference

    Raises ``UserError`` unless both have the same trials in the same order.
    """
    (one, first_scores), (other, second_scores) = map(read_scores, (first, second))
    pairs = [list(zip(t.labels, t.enrol, t.test, strict=True)) for t in (one, other)]
    if pairs[0] != pairs[1]:
        raise UserError(f"{first} and {second}: the trials differ; use the same list")
    scores = np.stack([first_scores, second_scores])

    def statistic(positives, negatives):
        chosen = np.r_[positives, negatives]
        labels = one.labels[chosen]
        a, b = (equal_error_rate(s[chosen], labels)[0] for s in scores)
        return b - a

    drawn = np.flatnonzero(one.labels), np.flatnonzero(~one.labels)
    return _bootstrap(drawn, statistic, resamples, seed, vectorized=False)


def _bootstrap(data, statistic, resamples, seed, paired=False, **options):
    """SciPy's bootstrap by percentiles as a ``Difference``."""
    result = stats.bootstrap(
        data,
        statistic,
        n_resamples=resamples,
        batch=_BATCH,
        method="percentile",
        paired=paired,
        rng=np.random.default_rng(seed),
        **options,
    )
    drawn = result.bootstrap_distribution
    # As often on the other side of zero, on either side; never quite zero.
    beyond = min(np.sum(drawn <= 0), np.sum(drawn >= 0))
    return Difference(
        difference=float(statistic(*data)),
        low=float(result.confidence_interval.low),
        high=float(result.confidence_interval.high),
        p=float(min(1.0, 2 * (beyond + 1) / (resamples + 1))),
        count=len(data[0]) if paired else sum(map(len, data)),
    )


def _errors(path):
    """``{ID: (errors, words, reference)}`` of a CSV of transcripts."""
    columns = ("reference", "hypothesis")
    rows = read_rows(path, ["ID", *columns], "evaluate again")
    names = [row["ID"] for row in rows]
    texts = [[row[name].split() for row in rows] for name in columns]
    details = edit_distance.wer_details_for_batch(names, *texts)
    return {
        row["key"]: (
            row["insertions"] + row["deletions"] + row["substitutions"],
            row["num_ref_tokens"],
            tuple(reference),
        )
        for row, reference in zip(details, texts[0], strict=True)
    }


def _check_same(first, second, one, other):
    """Refuse two lists of utterances that are not the same."""
    if one != other:
        odd = sorted(one ^ other)
        raise UserError(
            f"{first} and {second}: {odd[0]} and {len(odd) - 1} more utterances are in "
            "one of them only; compare evaluations of the same set"
        )
