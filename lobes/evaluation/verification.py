"""Speaker verification: trial lists, scores, and the metrics made from them."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lobes.errors import UserError
from lobes.system.files import write_atomically
from lobes.system.lazy import lazy

pandas = lazy("pandas")

#: A model whose metrics (percent) are all not below these has learnt nothing, as 8 of
#: the paper's 90 (WER 100 %, EER 49.9 to 50.4 %; Tables 4 to 6).
CHANCE = {"wer": 99.0, "eer": 45.0}

#: Priors of a same-speaker trial at which the detection cost is reported.
TARGET_PRIORS = (0.01, 0.05)

# Problems of one list that a message spells out; the rest are counted.
_SHOWN_PROBLEMS = 10

# Rows of embeddings multiplied at a time: two float64 blocks of [256, 768] stay in a
# core's cache, which makes more than twice the speed.
_ROWS_PER_CHUNK = 256


@dataclass(frozen=True)
class Trials:
    """A list of verification trials; trial ``i`` is line ``i + 1`` of ``path``.

    Attributes
    ----------
    labels : numpy.ndarray
        bool ``[trials]``, True for two utterances of the same speaker.
    enrol, test : list of str
        Utterance IDs of the two sides.
    path : str
        Where the list was read, for messages.
    """

    labels: np.ndarray
    enrol: list
    test: list
    path: str = "trials"

    def __len__(self):
        return len(self.enrol)

    def utterances(self):
        """IDs of all utterances in the list, each once, in order of appearance."""
        return list(dict.fromkeys([*self.enrol, *self.test]))


class DetectionErrors(NamedTuple):
    """Error rates at every threshold that changes a decision.

    A trial is accepted where its score is at or above the threshold. Arrays
    are float64 ``[points]`` by rising threshold: the first accepts everything,
    the last (the next number above the highest score) rejects everything.
    Rates are fractions, not percent.
    """

    thresholds: np.ndarray
    false_rejection: np.ndarray
    false_acceptance: np.ndarray


def read_trials(path, allow_repeats=False):
    """Read a trial list, one ``label enrol_ID test_ID`` a line (label 1 or 0).

    Windows line ends, a byte order mark and empty lines at the end are fine.

    Arguments
    ---------
    path : str or Path
    allow_repeats : bool
        Accept a pair that occurs again with the same label, as lists drawn
        with replacement may have. Every occurrence then counts as a trial, as
        in published results. Contradicting labels are refused in any case.

    Returns
    -------
    Trials

    Raises one ``UserError`` that lists the problems of the whole file with
    their line numbers: lines without exactly three fields, other labels,
    labels that contradict another line (of the mirrored pair, too), or 0 for an
    utterance and itself, repeated trials, a missing class, no trial at all, no such
    file.
    """
    trials, _ = _read_list(path, allow_repeats, scored=False)
    return trials


def check_trials(trials, known_ids, source, paths=None):
    """The trials by ID; raises ``UserError`` for an utterance that is not known.

    Arguments
    ---------
    trials : Trials
    known_ids : iterable of str
        IDs that can be scored.
    source : str or Path
        Where these IDs come from (say, the CSV's path), for the message.
    paths : sequence of str or None
        The audio file of each ID. An utterance may then also be named by the end of
        its file's path, with any or no ending, as VoxCeleb's lists do.

    Returns
    -------
    Trials
    """
    known_ids = list(known_ids)
    known = set(known_ids)
    unknown = [name for name in trials.utterances() if name not in known]
    if unknown and paths is not None:
        found = _ids_by_path(unknown, known_ids, paths)
        trials = replace(
            trials,
            enrol=[found.get(name, name) for name in trials.enrol],
            test=[found.get(name, name) for name in trials.test],
        )
        unknown = [name for name in unknown if name not in found]
    if not unknown:
        return trials
    missing = set(unknown)
    remedy = "prepare both from the same corpus"
    if "/" in unknown[0]:
        remedy = "name utterances by the column ID, or by a path that one file ends in"
    for line, pair in enumerate(zip(trials.enrol, trials.test, strict=True), start=1):
        first = next((name for name in pair if name in missing), None)
        if first is not None:
            raise UserError(
                f"{trials.path}, line {line}: {first} is not in {source} "
                f"({len(unknown)} of the list's {len(trials.utterances())} utterances "
                f"are not); {remedy}"
            )


def _ids_by_path(names, ids, paths):
    """``{name: ID}`` of the names that one path ends in; endings do not count."""
    wanted = {os.path.splitext(name)[0].removeprefix("./"): name for name in names}
    depths = {name.count("/") for name in wanted}
    found = {}
    for identity, path in zip(ids, paths, strict=True):
        parts = os.path.splitext(path)[0].split("/")
        for depth in depths:
            name = wanted.get("/".join(parts[-1 - depth :]))
            if name is not None:
                found.setdefault(name, set()).add(identity)
    return {name: i.pop() for name, i in found.items() if len(i) == 1}


def cosine_scores(trials, embeddings):
    """Cosine similarity of the two embeddings of every trial.

    Arguments
    ---------
    trials : Trials
    embeddings : dict or tuple
        ``{ID: numpy.ndarray [channel]}``, or ``(IDs, numpy.ndarray
        [utterance, channel])``. Utterances in no trial are ignored.

    Returns
    -------
    numpy.ndarray
        float64 ``[trials]`` in [-1, 1].

    Raises ``UserError``, naming the utterance, for an embedding that is
    missing, not finite or all zeros.
    """
    names, matrix = _stack(trials, embeddings)
    row = dict(zip(names, range(len(names)), strict=True))
    if len(row) != len(matrix):
        raise ValueError(f"{len(row)} distinct IDs for {len(matrix)} embeddings")
    sides = np.array([*trials.enrol, *trials.test], dtype=object)
    codes, used = pandas.factorize(sides)
    missing = [name for name in used if name not in row]
    if missing:
        raise UserError(
            f"{trials.path}: {_named(missing)} no embedding; extract the embeddings "
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
                f"{trials.path}: {_named([used[i] for i in np.flatnonzero(broken)])} "
                f"{fault}; check these recordings and the model's training log"
            )
    enrol, test = np.split(used_rows[codes], 2)
    scores = _row_products(matrix, enrol, test) / (norms[enrol] * norms[test])
    # Rounding can leave an utterance's cosine with itself just above 1.
    return np.clip(scores, -1.0, 1.0)


def _row_products(matrix, left, right):
    """Inner product of row ``left[i]`` with row ``right[i]``, in float64."""
    products = np.empty(len(left))
    for start in range(0, len(left), _ROWS_PER_CHUNK):
        part = slice(start, start + _ROWS_PER_CHUNK)
        pair = (matrix[rows[part]].astype(np.float64) for rows in (left, right))
        products[part] = np.einsum("td,td->t", *pair)
    return products


def detection_errors(scores, labels):
    """False-rejection and false-acceptance rates at all thresholds, by one sort.

    Trials with equal scores are accepted or rejected together.

    Arguments
    ---------
    scores : array_like
        ``[trials]``, higher = more alike.
    labels : array_like
        bool or 0/1 ``[trials]``, True for the same speaker.

    Returns
    -------
    DetectionErrors

    Raises ``UserError`` for scores that are not finite and unless both
    classes are present: neither error rate is defined without its class.
    """
    scores, labels = _checked(scores, labels)
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
        thresholds=np.r_[scores[first], np.nextafter(scores[-1], np.inf)],
        false_rejection=rejected_positives / positives,
        false_acceptance=(negatives - rejected_negatives) / negatives,
    )


def equal_error_rate(scores, labels):
    """Error rate at which false rejections and false acceptances are equal.

    The point where the linearly interpolated ROC crosses the diagonal.
    Arguments and errors as for ``detection_errors``.

    Returns
    -------
    tuple of float
        ``(percent, threshold)``, the threshold in units of the scores.

    Example
    -------
    >>> equal_error_rate([0.1, 0.4, 0.3, 0.8], [0, 0, 1, 1])
    (50.0, 0.4)
    """
    return _equal_error_rate(detection_errors(scores, labels))


def min_dcf(scores, labels, p_target, c_miss=1.0, c_fa=1.0):
    """Lowest normalised detection cost over all thresholds (NIST SRE plans).

    ``(p_target c_miss FRR + (1 - p_target) c_fa FAR)`` divided by the cost of
    the better of accepting everything and rejecting everything, so at most 1.
    Other arguments and errors as for ``detection_errors``.

    Arguments
    ---------
    p_target : float
        Prior probability of a same-speaker trial, between 0 and 1.
    c_miss, c_fa : float
        Costs of one false rejection and of one false acceptance.

    Returns
    -------
    tuple of float
        ``(cost, threshold)``, the threshold in units of the scores.
    """
    return _min_dcf(detection_errors(scores, labels), p_target, c_miss, c_fa)


def verification_metrics(scores, labels):
    """All reported metrics of one trial list, from one sort.

    Arguments and errors as for ``detection_errors``.

    Returns
    -------
    dict
        Plain numbers: ``eer`` (percent), ``threshold`` (at the EER),
        ``min_dcf_0.01`` and ``min_dcf_0.05`` (normalised, costs of 1),
        ``trials`` and ``positives`` (counts).
    """
    errors = detection_errors(scores, labels)
    eer, threshold = _equal_error_rate(errors)
    costs = {f"min_dcf_{p}": _min_dcf(errors, p, 1.0, 1.0)[0] for p in TARGET_PRIORS}
    labels = np.asarray(labels)
    return {
        "eer": eer,
        "threshold": threshold,
        **costs,
        "trials": len(labels),
        "positives": int(labels.sum()),
    }


def write_scores(path, trials, scores):
    """Write ``label enrol_ID test_ID score`` lines, complete or not at all.

    Scores are written with all their digits: metrics computed from the file
    are the metrics of ``scores``. Raises ``UserError`` for scores that are
    not finite.
    """
    scores, labels = _checked(scores, trials.labels)
    lines = [
        f"{label:d} {enrol} {test} {score!r}\n"
        for label, enrol, test, score in zip(
            labels.tolist(), trials.enrol, trials.test, scores.tolist(), strict=True
        )
    ]
    write_atomically(path, "".join(lines))


def read_scores(path):
    """Read what ``write_scores`` wrote.

    Returns
    -------
    tuple
        ``(Trials, numpy.ndarray)``: the trials, and float64 scores ``[trials]``.

    Raises ``UserError`` as ``read_trials`` does (repeats are fine), and for
    scores that are not finite numbers.
    """
    return _read_list(path, allow_repeats=True, scored=True)


def _read_list(path, allow_repeats, scored):
    """``(Trials, scores)`` of a trial list; the scores are None if it has none."""
    lines = _read_lines(path)
    layout = "label enrol_ID test_ID" + " score" * scored
    width = len(layout.split())
    problems = []
    labels, enrol, test, scores = [], [], [], []
    seen = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if len(fields) != width:
            problems.append(f"line {number}: {len(fields)} fields instead of {width}")
            continue
        label, left, right = fields[:3]
        if label != "1" and label != "0":
            problems.append(f"line {number}: label {label!r} is neither 0 nor 1")
            continue
        first = seen.setdefault(f"{left} {right}", number)
        if first != number:
            if lines[first - 1].split()[0] != label:
                problems.append(
                    f"line {number}: label {label} contradicts line {first} (same pair)"
                )
            elif not allow_repeats:
                problems.append(f"line {number}: the trial of line {first} again")
        # Scores are of trials that were accepted once, perhaps before this was asked.
        mirrored = None if scored else seen.get(f"{right} {left}")
        if left == right and label == "0" and not scored:
            problems.append(f"line {number}: label 0 for an utterance and itself")
        elif left != right and mirrored and lines[mirrored - 1].split()[0] != label:
            problems.append(
                f"line {number}: label {label} contradicts line {mirrored} (same pair)"
            )
        labels.append(label == "1")
        enrol.append(left)
        test.append(right)
        if scored:
            score = _number(fields[3])
            if not math.isfinite(score):
                problems.append(
                    f"line {number}: score {fields[3]!r} is not a finite number"
                )
            scores.append(score)
    if not lines:
        problems.append("the file is empty")
    elif labels and len(set(labels)) == 1:
        kinds = ("different-speaker (0)", "same-speaker (1)")
        problems.append(
            f"all {len(labels)} trials are {kinds[labels[0]]}; both kinds are needed"
        )
    if problems:
        rest = len(problems) - _SHOWN_PROBLEMS
        more = f"; and {rest} more" if rest > 0 else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(
            f"{path}: {count}: {'; '.join(problems[:_SHOWN_PROBLEMS])}{more}. "
            f"Each line must be `{layout}` with label 1 (same speaker) or 0"
        )
    trials = Trials(np.array(labels, dtype=bool), enrol, test, str(path))
    return trials, np.array(scores) if scored else None


def _read_lines(path):
    """Lines of a text file without the empty ones at its end."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: there is no such trial list; prepare it or correct its path"
        ) from error
    except OSError as error:
        raise UserError(
            f"{path}: the trial list cannot be read ({error.strerror}); check its path"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not a UTF-8 text file (byte {error.start}); a trial list has "
            f"lines of `label enrol_ID test_ID`"
        ) from error
    # Not str.splitlines, which would also split at form feeds and the like
    # and so count other lines than an editor does.
    text = text.rstrip()
    return text.split("\n") if text else []


def _number(text):
    """``text`` as a float, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


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


def _named(names):
    """Subject of a sentence: the first utterance, and how many more."""
    if len(names) == 1:
        return f"utterance {names[0]} has"
    return f"utterance {names[0]} and {len(names) - 1} more have"


def _checked(scores, labels):
    """Scores as float64 and labels as bool, refused where no metric is defined."""
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must be [trials], not {scores.shape}, {labels.shape}"
        )
    flags = labels.astype(bool)
    if not np.array_equal(flags, labels):
        raise ValueError("labels must be 0 or 1")
    broken = len(scores) - int(np.isfinite(scores).sum())
    if broken:
        raise UserError(
            f"{broken} of {len(scores)} scores are NaN or infinite, so no error rate "
            f"can be computed; check the embeddings"
        )
    positives = int(flags.sum())
    if positives in (0, len(flags)):
        raise UserError(
            f"error rates need same- and different-speaker trials, but there are "
            f"{positives} and {len(flags) - positives}; use another trial list"
        )
    return scores, flags


def _equal_error_rate(errors):
    """``(percent, threshold)`` where the two error rates cross."""
    # Rises strictly from -1 (everything accepted) to 1 (everything rejected).
    difference = errors.false_rejection - errors.false_acceptance
    after = int(np.argmax(difference >= 0))
    before = after - 1
    share = difference[before] / (difference[before] - difference[after])

    def between(values):
        return float(values[before] + share * (values[after] - values[before]))

    return 100 * between(errors.false_rejection), between(errors.thresholds)


def _min_dcf(errors, p_target, c_miss, c_fa):
    """``(normalised cost, threshold)`` at the cheapest threshold."""
    if not 0 < p_target < 1:
        raise ValueError(f"p_target must lie between 0 and 1, not {p_target}")
    miss, false_alarm = p_target * c_miss, (1 - p_target) * c_fa
    costs = miss * errors.false_rejection + false_alarm * errors.false_acceptance
    best = int(np.argmin(costs))
    return (
        float(costs[best] / min(miss, false_alarm)),
        float(errors.thresholds[best]),
    )
