"""Held-out recordings and trials: counts by hand, rules, seeds."""

from collections import Counter

import numpy as np
import pytest

from lobes.errors import UserError
from lobes.preparation.outputs import trial_list
from lobes.preparation.splitting import (
    TrialRows,
    check_split_settings,
    draw_trials,
    hold_out,
    report_shortage,
)


def corpus(sizes):
    """Indices of recording and speaker of each utterance.

    ``sizes[speaker][recording]`` is the number of utterances.
    """
    flat = [(s, n) for s, recordings in enumerate(sizes) for n in recordings]
    counts = [n for _, n in flat]
    recording = np.repeat(np.arange(len(flat)), counts)
    return recording, np.repeat([s for s, _ in flat], counts)


def recordings_of(speaker, recording, rows):
    """How many recordings each speaker has among some rows."""
    pairs = {*zip(speaker[rows].tolist(), recording[rows].tolist(), strict=True)}
    return Counter(owner for owner, _ in pairs)


#: 40 speakers of 1 to 6 recordings of 5 to 14 utterances.
SIZES = [np.random.RandomState(s).randint(5, 15, 1 + s % 6).tolist() for s in range(40)]


def random(seed=1):
    return np.random.RandomState(seed)


# Holding out ------------------------------------------------------------------


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("fraction, per_speaker", [(0.05, 1), (0.05, 2), (0.3, 2)])
def test_recordings_are_taken_until_the_fraction_is_reached(
    together, fraction, per_speaker
):
    recording, speaker = corpus(SIZES)
    held_out = hold_out(speaker, recording, fraction, per_speaker, random(), together)
    total = len(recording)
    assert fraction * total <= held_out.sum() < fraction * total + 14
    assert not {*recording[held_out]} & {*recording[~held_out]}
    assert max(recordings_of(speaker, recording, held_out).values()) <= per_speaker


@pytest.mark.parametrize("together", [False, True])
def test_every_speaker_keeps_a_recording(together):
    recording, speaker = corpus(SIZES)
    held_out = hold_out(speaker, recording, 0.99, 10**6, random(), together)
    kept = recordings_of(speaker, recording, ~held_out)
    assert kept == Counter(range(40))


def test_recordings_of_a_speaker_are_taken_together():
    """Otherwise hardly any speaker has two, and positive trials need two."""
    recording, speaker = corpus(SIZES)
    for seed in range(5):
        held_out = hold_out(speaker, recording, 0.1, 2, random(seed), together=True)
        counts = recordings_of(speaker, recording, held_out)
        both = [s for s, n in counts.items() if n == 2]
        possible = [s for s in counts if len(SIZES[s]) > 2]
        # The last one may have been cut off by the fraction.
        assert len(both) >= len(possible) - 1 and len(both) >= 2


def test_another_seed_holds_out_others():
    recording, speaker = corpus(SIZES)
    for together in (False, True):
        chosen = [
            hold_out(speaker, recording, 0.1, 2, random(s), together).tolist()
            for s in (1, 1, 2)
        ]
        assert chosen[0] == chosen[1] != chosen[2]


# Trials -----------------------------------------------------------------------


def draw(sizes, positives=10**6, negatives=10**6, across=False, group=None, seed=1):
    recording, speaker = corpus(sizes)
    group = None if group is None else np.array(group)
    return (
        draw_trials(
            speaker, recording, positives, negatives, across, random(seed), group
        ),
        speaker,
        recording,
    )


def counts(trials):
    return {1: int(trials.label.sum()), 0: int((trials.label == 0).sum())}


def test_all_pairs_by_hand():
    # Speaker 0: recordings of 2 and 1 utterances; speaker 1: one of 2.
    assert counts(draw([[2, 1], [2]])[0]) == {1: 3 + 1, 0: 6}
    assert counts(draw([[2, 1], [2]], across=True)[0]) == {1: 2, 0: 6}


def test_pairs_of_one_group_by_hand():
    # Speakers 0 and 2 are of one group, 1 is alone in its own.
    trials, speaker, _ = draw([[2], [3], [4]], group=[0, 1, 0])
    assert counts(trials) == {1: 1 + 3 + 6, 0: 8}
    negatives = trials.label == 0
    assert set(speaker[trials.enrol[negatives]]) == {0}
    assert set(speaker[trials.test[negatives]]) == {2}


def test_nothing_gives_no_trials():
    empty = np.zeros(0, dtype=np.int64)
    for group in (None, empty):
        trials = draw_trials(empty, empty, 5, 5, True, random(), group)
        assert counts(trials) == {1: 0, 0: 0}


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("wanted", [1, 200, 3000])
def test_drawn_trials_follow_every_rule(across, wanted):
    """200 negatives are drawn, 3,000 are chosen from the list of all."""
    group = np.arange(12) % 2
    sizes = SIZES[:12]
    trials, speaker, recording = draw(sizes, wanted, wanted, across, group)
    positives = len(draw(sizes, across=across, group=group)[0].label)
    assert len(trials.label) <= positives
    pairs = np.sort(np.stack([trials.enrol, trials.test]), axis=0)
    assert len(np.unique(pairs, axis=1).T) == len(trials.label)
    same = speaker[trials.enrol] == speaker[trials.test]
    assert (same == (trials.label == 1)).all()
    assert (group[speaker[trials.enrol]] == group[speaker[trials.test]]).all()
    if across:
        rooms = recording[trials.enrol] != recording[trials.test]
        assert rooms.all()
    assert counts(trials)[0] == wanted
    assert counts(trials)[1] <= wanted


def test_trials_follow_the_seed():
    first, again, other = (
        draw(SIZES, 50, 50, group=np.arange(40) % 2, seed=s)[0] for s in (1, 1, 2)
    )
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first.enrol != other.enrol).any()


def test_a_speaker_without_utterances_is_no_obstacle():
    """The groups are of all speakers, of whom some may have been left out."""
    speaker = np.array([1, 1, 3])
    trials = draw_trials(
        speaker, speaker, 9, 9, False, random(), np.zeros(6, dtype=int)
    )
    assert counts(trials) == {1: 1, 0: 2}


# Texts ------------------------------------------------------------------------


def test_lines_and_counts(capsys):
    trials = TrialRows(np.array([1, 0, 0]), np.array([0, 0, 1]), np.array([1, 2, 2]))
    text, found = trial_list("list.txt", ["a", "b", "c"], trials)["list.txt"]
    assert text == "1 a b\n0 a c\n0 b c\n"
    assert found == {"trials": 3, "positives": 1, "negatives": 2}
    assert "list.txt: 1 positive, 2 negative trials" in capsys.readouterr().err


def test_a_shortage_is_told(capsys):
    trials = TrialRows(np.array([1, 0, 0]), np.zeros(3), np.ones(3))
    report_shortage("list.txt", trials, 1, 2)
    assert capsys.readouterr().err == ""
    report_shortage("list.txt", trials, 4, 5)
    told = capsys.readouterr().err
    assert "list.txt: only 1 positives exist of the 4 asked for" in told
    assert "only 2 negatives exist of the 5 asked for" in told


@pytest.mark.parametrize(
    "fractions, numbers, seed, problem",
    [
        ({"f": 0}, {}, 1, "f=0: .* between 0 and 1"),
        ({"f": 1.0}, {}, 1, "f=1.0: "),
        ({"f": 0.5}, {"n": 0}, 1, "n=0: use at least 1"),
        ({}, {}, -1, "seed=-1: "),
        ({}, {}, 2**32, "seed=4294967296: "),
    ],
)
def test_impossible_numbers_are_refused(fractions, numbers, seed, problem):
    check_split_settings({"f": 0.05}, {"n": 1}, 2**32 - 1)
    with pytest.raises(UserError, match=problem):
        check_split_settings(fractions, numbers, seed)
