"""How far a result is chance: 95 % intervals and comparisons by bootstrap.

Utterances of one speaker are alike, and so are trials that share a speaker. The
bootstrap therefore draws speakers, each with all utterances and trials: an interval
tells what other test speakers would change. It tells nothing of another seed in
training.

A speaker of a trial list that is drawn twice counts as two speakers: its own
same-speaker trials count twice, and a trial between two speakers as often as the one
was drawn times the other. SciPy's bootstrap draws along one axis only, so the weighted
rates are computed here.
"""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lobes.data.trials import Trials, read_scores
from lobes.data.vocabulary import edit_distances
from lobes.errors import UserError
from lobes.evaluation.results import speakers_of
from lobes.evaluation.verification import equal_error_rate
from lobes.system.files import read_rows
from lobes.system.lazy import lazy

csgraph = lazy("scipy.sparse.csgraph")
sparse = lazy("scipy.sparse")

#: Replicates of every bootstrap, and the seed of its draws.
REPLICATES = 1000
SEED = 0

#: Fewer speakers cannot tell what other ones would change.
FEWEST = 5

#: This text stands beside intervals wherever they are shown.
MEANING = (
    f"95 % intervals: bootstrap, {REPLICATES:,} replicates; what other test speakers "
    "would change, not another seed in training"
)


@dataclasses.dataclass(frozen=True)
class Interval:
    """The middle 95 % of the replicates, ``low`` to ``high``, in percent.

    ``count`` units were drawn. ``over`` names them: ``speakers``; ``groups`` of the
    utterances that same-speaker trials link, where not all speakers are known; or
    ``utterances`` where there are fewer than ``FEWEST`` of these. An interval over
    utterances holds for these speakers only.
    """

    low: float
    high: float
    over: str
    count: int
    replicates: int = REPLICATES


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
    """Second minus first in percent points, and what a paired bootstrap says of it.

    ``p`` is two-sided: twice the share of the replicates on the other side of zero.
    """

    difference: float = 0.0
    p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Words:
    """Errors and lengths of every utterance of a set: int64 arrays ``[utterances]``.

    ``wer`` is a pair (errors, words); ``cer`` a pair (errors, letters), where the
    single spaces between words are letters, too.
    """

    ids: list[str]
    references: list[str]
    hypotheses: list[str]
    wer: tuple[np.ndarray, np.ndarray]
    cer: tuple[np.ndarray, np.ndarray]


def read_words(path: str | Path) -> Words:
    """``Words`` of a ``transcripts_<set>.csv``.

    Raises ``UserError`` when it cannot be read.
    """
    columns = ("reference", "hypothesis")
    rows = read_rows(path, ["ID", *columns], "evaluate again")
    ids = [row["ID"] for row in rows]
    texts = [[" ".join(row[name].split()) for row in rows] for name in columns]
    return Words(
        ids,
        *texts,
        wer=error_counts(*([t.split() for t in side] for side in texts)),
        cer=error_counts(*texts),
    )


def error_counts(
    references: Sequence[Sequence], hypotheses: Sequence[Sequence]
) -> tuple[np.ndarray, np.ndarray]:
    """Errors and lengths of the references, int64 ``[utterances]`` each."""
    lengths = np.array([len(text) for text in references], dtype=np.int64)
    return edit_distances(references, hypotheses), lengths


# Intervals --------------------------------------------------------------------


def rate_interval(
    counts: tuple[np.ndarray, np.ndarray],
    ids: Sequence[str],
    speakers: Mapping[str, str],
) -> Interval | None:
    """Interval of an error rate over all words or letters; None below two units.

    Arguments:
        counts: Errors and lengths, ``[utterances]`` each: ``Words.wer`` or
            ``Words.cer``.
        speakers: ID to speaker; where one is missing, utterances are drawn.
    """
    units, over = _units(ids, speakers)
    return _interval(_rates(*counts, units), over, units)


def eer_interval(
    trials: Trials, scores: np.ndarray, speakers: Mapping[str, str] | None = None
) -> Interval | None:
    """Interval of the EER of a trial list; None below two units.

    Arguments:
        scores: ``[trials]``.
        speakers: ID to speaker. Where one is missing, the utterances that same-speaker
            trials link are taken for those of one speaker.
    """
    units, over = _trial_units(trials, speakers or {})
    return _interval(_eers(trials, [scores], units)[0], over, units)


def eer_difference(
    trials: Trials,
    first: np.ndarray,
    second: np.ndarray,
    speakers: Mapping[str, str] | None = None,
) -> Difference | None:
    """``Difference`` of the EERs of two systems' scores ``[trials]`` of one list."""
    units, over = _trial_units(trials, speakers or {})
    one, other = _eers(trials, [first, second], units)
    values = [equal_error_rate(s, trials.labels)[0] for s in (first, second)]
    return _difference(values[1] - values[0], other - one, over, units)


def compare_words(
    first: str | Path, second: str | Path, metric: str = "wer"
) -> Difference | None:
    """Paired bootstrap of a difference in WER (or CER).

    Arguments:
        first, second: ``transcripts_<set>.csv`` of two evaluations of the same set.
        metric: ``wer`` or ``cer``.

    None is returned below two units. Raises ``UserError`` unless both have the same
    utterances and references.
    """
    one, other = read_words(first), read_words(second)
    _check_same(first, second, set(one.ids), set(other.ids))
    place = {name: row for row, name in enumerate(other.ids)}
    rows = [place[name] for name in one.ids]
    if [other.references[row] for row in rows] != one.references:
        raise UserError(f"{first} and {second}: the references differ; evaluate again")
    units, over = _units(one.ids, _speakers_beside(first, second))
    (errors, lengths), others = getattr(one, metric), getattr(other, metric)[0][rows]
    drawn = [_rates(counts, lengths, units) for counts in (errors, others)]
    value = 100 * (others.sum() - errors.sum()) / lengths.sum()
    return _difference(value, drawn[1] - drawn[0], over, units)


def compare_eer(first: str | Path, second: str | Path) -> Difference | None:
    """Paired bootstrap of a difference in EER.

    Arguments:
        first, second: ``scores_<list>.txt`` of two evaluations of the same list.

    None is returned below two units. Raises ``UserError`` unless both have the same
    trials in the same order.
    """
    (one, first_scores), (other, second_scores) = map(read_scores, (first, second))
    if (
        one.enrol != other.enrol
        or one.test != other.test
        or not np.array_equal(one.labels, other.labels)
    ):
        raise UserError(f"{first} and {second}: the trials differ; use the same list")
    speakers = _speakers_beside(first, second)
    return eer_difference(one, first_scores, second_scores, speakers)


def _speakers_beside(*paths):
    """``{ID: speaker}`` of a set, by the paths ``<folder>/<what>_<set>.<ending>``."""
    for path in map(Path, paths):
        speakers = speakers_of(path.parent, path.stem.partition("_")[2])
        if speakers:
            return speakers
    return {}


# Drawing ----------------------------------------------------------------------


def _units(ids, speakers):
    """Number of the unit of every utterance ``[utterances]``, and what units are."""
    named = [speakers.get(name, "") for name in ids]
    if all(named):
        _, units = np.unique(named, return_inverse=True)
        if units.max(initial=-1) + 1 >= FEWEST:
            return units, "speakers"
    return np.arange(len(ids)), "utterances"


def _trial_units(trials, speakers):
    """Units of enrolment and test ``[2, trials]``, and what they are."""
    names, sides = trials.sides()
    known = all(speakers.get(name) for name in names)
    if not known:
        pairs = sides[:, trials.labels]
        links = sparse.coo_matrix((np.ones(pairs.shape[1]), pairs), 2 * [len(names)])
        _, parts = csgraph.connected_components(links, directed=False)
        speakers = dict(zip(names, map(str, parts), strict=True))
    units, over = _units(names, speakers)
    return units[sides], over if known else over.replace("speakers", "groups")


def _draws(units):
    """How often each unit is drawn, int64 ``[replicates, units]``."""
    count = int(units.max(initial=-1)) + 1
    if count < 2:
        return np.empty((0, count), np.int64)
    random = np.random.default_rng(SEED)
    return random.multinomial(count, np.full(count, 1 / count), size=REPLICATES)


def _rates(errors, lengths, units):
    """Error rate in percent of every replicate ``[replicates]``."""
    sums = [np.bincount(units, counts) for counts in (errors, lengths)]
    drawn = _draws(units)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * (drawn @ sums[0]) / (drawn @ sums[1])


def _eers(trials, systems, units):
    """EER in percent of every replicate, ``[systems, replicates]``.

    It is NaN where a replicate lacks a kind of trials.
    """
    # A trial within one unit counts as often as the unit is drawn, not the square of
    # that: its second factor is the number 1 behind the units' draws.
    count = int(units.max(initial=-1)) + 1
    first, second = units
    second = np.where(first == second, count, second)
    systems = [SortedTrials(trials.labels, s, first, second) for s in systems]
    eers = []
    for drawn in _draws(units):
        weights = np.append(drawn, 1).astype(np.int32)
        eers.append([system.eer(weights) for system in systems])
    return np.array(eers, dtype=np.float64).reshape(-1, len(systems)).T


class SortedTrials:
    """Trials by rising score, to find the EER under many weights of their speakers.

    Arguments:
        labels, scores (numpy.ndarray): ``[trials]``.
        first, second (numpy.ndarray): Places of the two factors of each trial's weight,
            ``[trials]``.
    """

    def __init__(self, labels, scores, first, second):
        order = np.argsort(scores, kind="stable")
        scores, labels = scores[order], labels[order]
        # Trials of equal scores are accepted or rejected together.
        ends = np.r_[np.flatnonzero(scores[1:] != scores[:-1]) + 1, len(scores)]
        # Trials of each kind that are rejected before and with every group.
        self.rejected = [
            np.r_[0, np.cumsum(kind)[ends - 1]] for kind in (labels, ~labels)
        ]
        self.factors = [
            [side[order][kind] for side in (first, second)]
            for kind in (labels, ~labels)
        ]

    def eer(self, weights: np.ndarray) -> float:
        """EER in percent under whole weights of the places; NaN without both kinds.

        With equal weights it is that of
        ``lobes.evaluation.verification.equal_error_rate``.
        """
        shares = []
        for first, second in self.factors:
            drawn = weights.take(first)
            drawn *= weights.take(second)
            # In int32 it is several times faster; the sum is about the trials' number.
            rising = np.cumsum(drawn, dtype=np.int32)
            if not len(rising) or rising[-1] == 0:
                return np.nan
            shares.append(rising)

        def rejected(kind, groups):
            count = self.rejected[kind][groups]
            return shares[kind][count - 1] / shares[kind][-1] if count else 0.0

        # False rejections and acceptances are equal where both shares sum to 1.
        def both(groups):
            return rejected(0, groups) + rejected(1, groups)

        after = bisect.bisect_left(
            range(len(self.rejected[0]) - 1), 1.0 - 1e-12, lo=1, key=both
        )
        below, above = both(after - 1), both(after)
        share = min(1.0, (1.0 - below) / (above - below))
        low, high = rejected(0, after - 1), rejected(0, after)
        return float(100 * (low + share * (high - low)))


def _interval(replicates, over, units):
    """The middle 95 % of the replicates that are defined."""
    replicates = replicates[np.isfinite(replicates)]
    if not len(replicates):
        return None
    low, high = np.quantile(replicates, [0.025, 0.975])
    count = int(units.max()) + 1
    return Interval(float(low), float(high), over, count, len(replicates))


def _difference(value, replicates, over, units):
    """A paired bootstrap's outcome, None below two units."""
    interval = _interval(replicates, over, units)
    if interval is None:
        return None
    replicates = replicates[np.isfinite(replicates)]
    # The p-value is two-sided, and never quite zero.
    beyond = min(np.sum(replicates <= 0), np.sum(replicates >= 0))
    return Difference(
        **vars(interval),
        difference=float(value),
        p=float(min(1.0, 2 * (beyond + 1) / (len(replicates) + 1))),
    )


def _check_same(first, second, one, other):
    """Refuse two lists of utterances that are not the same."""
    if one != other:
        odd = sorted(one ^ other)
        raise UserError(
            f"{first} and {second}: {odd[0]} and {len(odd) - 1} more utterances are in "
            "one of them only; compare evaluations of the same set"
        )
