"""Speaker verification: the scores of trials, and the metrics made from them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lobes.data.trials import Trials, checked_scores
from lobes.errors import UserError

#: Priors of a same-speaker trial at which the detection cost is reported.
TARGET_PRIORS = (0.01, 0.05)

# Rows of embeddings multiplied at a time: two float64 blocks of [256, 768] stay in a
# core's cache, which makes more than twice the speed.
_ROWS_PER_CHUNK = 256


def cosine_scores(
    trials: Trials,
    embeddings: Mapping[str, np.ndarray] | tuple[list[str], np.ndarray],
) -> np.ndarray:
    """Cosine similarity of the two embeddings of every trial.

    Arguments:
        embeddings: ``{ID: numpy.ndarray [channel]}``, or ``(IDs, numpy.ndarray
            [utterance, channel])``. Utterances in no trial are ignored.

    Returns:
        float64 ``[trials]`` in [-1, 1].

    Raises ``UserError``, naming the utterance, for an embedding that is
    missing, not finite or all zeros.
    """
    names, matrix = _stack(trials, embeddings)
    row = dict(zip(names, range(len(names)), strict=True))
    if len(row) != len(matrix):
        raise ValueError(f"{len(row)} distinct IDs for {len(matrix)} embeddings")
    used, sides = trials.sides()
    missing = [name for name in used if name not in row]
    if missing:
        raise UserError(
            f"{trials.path}: {_subject(missing)} no embedding; extract the embeddings "
            f"of every utterance in the list"
        )
    used_rows = np.fromiter(map(row.__getitem__, used), np.intp, len(used))
    norms = np.ones(len(matrix))
    norms[used_rows] = np.sqrt(_row_products(matrix, used_rows, used_rows))
    used_norms = norms[used_rows]
    for broken, fault in (
        (~np.isfinite(used_norms), "NaN or infinite values in their embedding"),
        (used_norms == 0, "an embedding of zeros only, whose cosine is undefined"),
    ):
        if broken.any():
            raise UserError(
                f"{trials.path}: {_subject([used[i] for i in np.flatnonzero(broken)])} "
                f"{fault}; check these recordings and the model's training log"
            )
    enrol, test = used_rows[sides]
    scores = _row_products(matrix, enrol, test) / (norms[enrol] * norms[test])
    # Rounding can leave an utterance's cosine with itself just above 1.
    return np.clip(scores, -1.0, 1.0)


def _stack(trials, embeddings):
    """IDs and matrix ``[utterance, channel]`` of either form of embeddings."""
    if isinstance(embeddings, Mapping):
        names = [name for name in trials.utterances() if name in embeddings]
        vectors = [np.asarray(embeddings[name]) for name in names]
        sizes = {vector.shape for vector in vectors}
        if any(len(size) != 1 for size in sizes) or len(sizes) > 1:
            raise ValueError(f"embeddings must be vectors of one size, not {sizes}")
        return names, np.stack(vectors) if vectors else np.empty((0, 0))
    names, matrix = embeddings
    matrix = np.asarray(matrix)
    if matrix.ndim != 2:
        raise ValueError(f"embeddings must be [utterance, channel], not {matrix.shape}")
    return list(names), matrix


def _row_products(matrix, left, right):
    """Inner product of row ``left[i]`` with row ``right[i]``, in float64."""
    products = np.empty(len(left))
    for start in range(0, len(left), _ROWS_PER_CHUNK):
        part = slice(start, start + _ROWS_PER_CHUNK)
        pair = (matrix[rows[part]].astype(np.float64) for rows in (left, right))
        products[part] = np.einsum("td,td->t", *pair)
    return products


def _subject(names):
    """The subject of a sentence: one utterance, and how many more."""
    if len(names) == 1:
        return f"utterance {names[0]} has"
    return f"utterance {names[0]} and {len(names) - 1} more have"


class DetectionErrors(NamedTuple):
    """Error rates at every threshold that changes a decision.

    A trial is accepted where its score is at or above the threshold. Arrays
    are float64 ``[points]`` by rising threshold: the first accepts everything,
    the last (the next number above the highest score) rejects everything.
    Rates are fractions, not percent. ``positives`` and ``negatives`` are the numbers
    of same- and of different-speaker trials.
    """

    thresholds: np.ndarray
    false_rejection: np.ndarray
    false_acceptance: np.ndarray
    positives: int
    negatives: int

    def equal_error_rate(self) -> tuple[float, float]:
        """``(percent, threshold)``; see the function ``equal_error_rate``."""
        # Rises strictly from -1 (everything accepted) to 1 (everything rejected).
        difference = self.false_rejection - self.false_acceptance
        after = int(np.argmax(difference >= 0))
        before = after - 1
        share = difference[before] / (difference[before] - difference[after])

        def between(values):
            return float(values[before] + share * (values[after] - values[before]))

        return 100 * between(self.false_rejection), between(self.thresholds)

    def min_dcf(
        self, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0
    ) -> tuple[float, float]:
        """Lowest normalised detection cost over all thresholds (NIST SRE plans).

        ``(p_target c_miss FRR + (1 - p_target) c_fa FAR)`` divided by the cost of
        the better of accepting everything and rejecting everything, so at most 1.

        Arguments:
            p_target: Prior probability of a same-speaker trial, between 0 and 1.
            c_miss, c_fa: Costs of one false rejection and of one false acceptance.

        Returns:
            ``(cost, threshold)``, the threshold in units of the scores.
        """
        if not 0 < p_target < 1:
            raise ValueError(f"p_target must lie between 0 and 1, not {p_target}")
        miss, false_alarm = p_target * c_miss, (1 - p_target) * c_fa
        costs = miss * self.false_rejection + false_alarm * self.false_acceptance
        best = int(np.argmin(costs))
        lowest = float(costs[best] / min(miss, false_alarm))
        return lowest, float(self.thresholds[best])


def detection_errors(scores, labels) -> DetectionErrors:
    """False-rejection and false-acceptance rates at all thresholds, by one sort.

    Trials with equal scores are accepted or rejected together.

    Arguments:
        scores (array_like): ``[trials]``, higher = more alike.
        labels (array_like): bool or 0/1 ``[trials]``, True for the same speaker.

    Returns:

    Raises ``UserError`` for scores that are not finite and unless both
    classes are present: neither error rate is defined without its class.
    """
    scores, labels = checked_scores(scores, labels)
    order = np.argsort(scores)
    scores, labels = scores[order], labels[order]
    # The first trial of every group of equal scores: its rank is the number
    # of trials rejected when its score is the threshold.
    first = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    rejected = np.r_[first, len(scores)]
    rejected_positives = np.r_[0, np.cumsum(labels)][rejected]
    rejected_negatives = rejected - rejected_positives
    positives = int(labels.sum())
    negatives = len(labels) - positives
    return DetectionErrors(
        np.r_[scores[first], np.nextafter(scores[-1], np.inf)],
        rejected_positives / positives,
        (negatives - rejected_negatives) / negatives,
        positives,
        negatives,
    )


def equal_error_rate(scores, labels) -> tuple[float, float]:
    """Error rate at which false rejections and false acceptances are equal.

    The point where the linearly interpolated ROC crosses the diagonal.
    Arguments and errors as for ``detection_errors``.

    Returns:
        ``(percent, threshold)``, the threshold in units of the scores.

    Example:
        >>> equal_error_rate([0.1, 0.4, 0.3, 0.8], [0, 0, 1, 1])
        (50.0, 0.4)
    """
    return detection_errors(scores, labels).equal_error_rate()


def verification_metrics(scores, labels) -> dict[str, float | int]:
    """All reported metrics of one trial list, from one sort.

    Arguments and errors as for ``detection_errors``.

    Returns:
        Plain numbers: ``eer`` (percent), ``threshold`` (at the EER), ``min_dcf_0.01``
        and ``min_dcf_0.05`` (normalised, costs of 1), ``trials`` and ``positives``
        (counts).
    """
    errors = detection_errors(scores, labels)
    eer, threshold = errors.equal_error_rate()
    return {
        "eer": eer,
        "threshold": threshold,
        **{f"min_dcf_{prior}": errors.min_dcf(prior)[0] for prior in TARGET_PRIORS},
        "trials": errors.positives + errors.negatives,
        "positives": errors.positives,
    }
