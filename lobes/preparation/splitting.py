"""Recordings held out of training, and verification trials drawn from utterances.

Everything is decided by the ``numpy.random.RandomState`` that is handed in: numpy
froze its numbers, so that a seed gives everybody the same split; those of its newer
generators may change.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lobes.errors import UserError
from lobes.system.terminal import say


class TrialRows(NamedTuple):
    """Trials of a table, ``[trial]``: label (1 = same speaker), rows of both sides."""

    label: np.ndarray
    enrol: np.ndarray
    test: np.ndarray


def check_split_settings(
    fractions: Mapping[str, float], counts: Mapping[str, int], seed: int
) -> None:
    """Raise ``UserError`` for numbers that cannot describe a split.

    ``fractions`` (of utterances) and ``counts`` (of trials or recordings) have the
    value of each argument by its name.
    """
    for argument, value in fractions.items():
        if not 0 < value < 1:
            raise UserError(
                f"{argument}={value}: it is the fraction of utterances held out for "
                f"validation; use a number between 0 and 1, such as 0.02"
            )
    for argument, value in counts.items():
        if value < 1:
            raise UserError(f"{argument}={value}: use at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: use a number from 0 to 4294967295")


def hold_out(
    speakers: Sequence[str],
    recordings: Sequence,
    fraction: float,
    per_speaker: int,
    random: np.random.RandomState,
    together: bool = False,
) -> np.ndarray:
    """Choose whole recordings, in random order, until enough utterances are in them.

    Arguments:
        speakers, recordings: Of each utterance: keys that can be sorted.
        fraction: Of the utterances; the last recording may exceed it.
        per_speaker: Recordings of one speaker at most; in any case one stays.
        together: Take a speaker's recordings one after another, so that a small
            fraction, too, has speakers with two of them.

    Returns:
        bool ``[utterance]``, true where one is held out.
    """
    keys, recording = ranks(recordings)
    speaker_of = dict(zip(recordings, speakers, strict=True))
    owner = [speaker_of[key] for key in keys]
    sizes = np.bincount(recording)
    owned, taken = Counter(owner), Counter()
    held_out = np.zeros(len(keys), dtype=bool)
    total = 0
    order = random.permutation(len(keys)).tolist()
    if together:
        first = {}
        for rank, index in enumerate(order):
            first.setdefault(owner[index], rank)
        order.sort(key=lambda index: first[owner[index]])
    for index in order:
        if total >= fraction * len(recording):
            break
        speaker = owner[index]
        if taken[speaker] < min(per_speaker, owned[speaker] - 1):
            taken[speaker] += 1
            held_out[index] = True
            total += int(sizes[index])
    return held_out[recording]


def report_few_held_out(
    name: str, held_out: np.ndarray, fraction: float, per_speaker: int, kind: str
) -> None:
    """Say where fewer utterances can be held out than were asked for.

    ``kind`` is what the corpus calls its recordings.
    """
    wanted = fraction * len(held_out)
    if held_out.sum() < wanted:
        say(
            f"{name}: only {held_out.sum()} utterances can be held out of the "
            f"{wanted:.0f} asked for (at most {per_speaker} {kind} of a speaker, and "
            f"one must stay)"
        )


def draw_trials(
    speakers: Sequence,
    recordings: Sequence,
    positives: int,
    negatives: int,
    across_recordings: bool,
    random: np.random.RandomState,
    groups: Mapping | None = None,
) -> TrialRows:
    """Pairs of utterances, none twice in either order.

    Arguments:
        speakers, recordings: Of each utterance: keys that can be sorted.
        positives, negatives: How many of each kind; all where there are fewer, if need
            be none.
        across_recordings: Take no positive trial within one recording (it is easy: same
            room, same microphone).
        groups: The group of each speaker: both speakers of a negative trial are of one
            group. None: any two speakers.

    Returns:
        The positive ones first, each kind sorted.
    """
    names, speaker = ranks(speakers)
    recording = ranks(recordings)[1]
    group = ranks([0 if groups is None else groups[name] for name in names])[1]
    same = _positive_pairs(speaker, recording, positives, across_recordings, random)
    different = _negative_pairs(speaker, negatives, random, group)
    pairs = np.concatenate([same, different])
    label = np.repeat([1, 0], [len(same), len(different)])
    return TrialRows(label, pairs[:, 0], pairs[:, 1])


def ranks(keys: Sequence) -> tuple[list, np.ndarray]:
    """The distinct keys, sorted, and the index among them of each key, int64."""
    distinct = sorted(set(keys))
    rank = {key: index for index, key in enumerate(distinct)}
    return distinct, np.array([rank[key] for key in keys], dtype=np.int64)


def report_shortage(
    name: str, trials: TrialRows, positives: int, negatives: int
) -> None:
    """Say where fewer trials exist than were asked for."""
    drawn = int(trials.label.sum())
    for kind, wanted, exist in (
        ("positives", positives, drawn),
        ("negatives", negatives, len(trials.label) - drawn),
    ):
        if exist < wanted:
            say(
                f"{name}: only {exist} {kind} exist of the {wanted} asked for; all are "
                f"taken"
            )


def _positive_pairs(speaker, recording, wanted, across_recordings, random):
    """Up to ``wanted`` pairs ``[pair, 2]`` of one speaker, sorted."""
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    ends = np.cumsum(np.bincount(speaker))
    for rows in np.split(np.argsort(speaker, kind="stable"), ends[:-1]):
        first, second = np.triu_indices(len(rows), 1)
        some = np.stack([rows[first], rows[second]], axis=1)
        if across_recordings:
            some = some[recording[some[:, 0]] != recording[some[:, 1]]]
        pairs.append(some)
    return _sample(np.concatenate(pairs), wanted, random)


def _negative_pairs(speaker, wanted, random, group):
    """Up to ``wanted`` pairs ``[pair, 2]`` of two speakers of a group, sorted."""
    count = len(speaker)
    own = np.bincount(speaker, minlength=len(group))
    together = np.bincount(group, weights=own).astype(np.int64)
    total = (int((together * together).sum()) - int((own * own).sum())) // 2

    def usable(pairs):
        one, other = speaker[pairs[:, 0]], speaker[pairs[:, 1]]
        return pairs[(one != other) & (group[one] == group[other])]

    if total <= 2 * wanted:
        pairs = np.stack(np.triu_indices(count, 1), axis=1)
        return _sample(usable(pairs), wanted, random)
    # There may be hundreds of millions: draw until enough are distinct. Pairs
    # are numbers i * count + j with i < j.
    chosen = np.zeros(0, dtype=np.int64)
    while len(chosen) < wanted:
        drawn = usable(np.sort(random.randint(0, count, size=(2 * wanted, 2)), axis=1))
        chosen = np.concatenate([chosen, drawn[:, 0] * count + drawn[:, 1]])
        first = np.unique(chosen, return_index=True)[1]
        chosen = chosen[np.sort(first)]
    chosen = np.sort(chosen[:wanted])
    return np.stack([chosen // count, chosen % count], axis=1)


def _sample(pairs, wanted, random):
    """``wanted`` of the pairs, or all, sorted."""
    if len(pairs) > wanted:
        pairs = pairs[random.permutation(len(pairs))[:wanted]]
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
