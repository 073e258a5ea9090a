"""Bootstraps over speakers, against simulations and what is known of simple cases."""


import numpy as np
import pandas
import pytest

from lobes.data.trials import Trials, write_scores
from lobes.errors import UserError
from lobes.evaluation.significance import (
    FEWEST,
    SortedTrials,
    compare_eer,
    compare_words,
    eer_interval,
    rate_interval,
)
from lobes.evaluation.verification import equal_error_rate


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
    found = compare_words(first, second)
    assert found.difference == pytest.approx(-1.0) and found.count == 400
    # The 20 utterances that differ: a binomial of 400 and 0.05, in units of 0.05 %.
    deviation = 0.05 * np.sqrt(400 * 0.05 * 0.95)
    assert found.low == pytest.approx(-1 - 1.96 * deviation, abs=0.06)
    assert found.high == pytest.approx(-1 + 1.96 * deviation, abs=0.06)
    assert found.p < 0.003, "nothing is beyond zero"
    assert compare_words(first, second) == found, "another seed each time"
    other = transcripts(tmp_path / "c.csv", set(range(100, 141)))
    assert compare_words(first, other).p > 0.5
    same = compare_words(first, first)
    assert same.difference == same.low == same.high == 0 and same.p == 1


def test_pairs_count(tmp_path):
    """Errors on the same utterances leave less to chance than on different ones."""
    first = transcripts(tmp_path / "a.csv", set(range(100)))
    nested = compare_words(first, transcripts(tmp_path / "b.csv", set(range(90))))
    apart = compare_words(first, transcripts(tmp_path / "c.csv", set(range(200, 290))))
    assert nested.difference == pytest.approx(apart.difference)
    assert nested.p < 0.01 < 0.2 < apart.p


def scores(path, noise, seed=1, count=500):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2 == 0
    names, others = ([f"{side}{i}" for i in range(count)] for side in "uv")
    values = labels + noise * random.normal(size=count)
    write_scores(path, Trials(labels, names, others, "list"), values)
    return path, equal_error_rate(values, labels)[0]


def test_eer(tmp_path):
    """Without speakers, utterances linked by same-speaker trials are drawn."""
    first, one = scores(tmp_path / "a.txt", 1.0)
    second, other = scores(tmp_path / "b.txt", 0.4)
    found = compare_eer(first, second)
    assert found.difference == pytest.approx(other - one)
    assert (found.over, found.count) == ("groups", 750)
    assert found.low < found.difference < found.high < 0 and found.p <= 0.01
    assert compare_eer(first, second) == found, "another seed each time"
    third, _ = scores(tmp_path / "c.txt", 1.0, seed=3)
    assert compare_eer(first, third).p > 0.05
    same = compare_eer(first, first)
    assert same.difference == same.low == same.high == 0 and same.p == 1


# Speakers ---------------------------------------------------------------------

SPEAKERS, OWN = 20, 10


def voices(seed, spread=0.6):
    """Trials of 20 speakers, some of whom are known better: (trials, scores, IDs)."""
    random = np.random.default_rng(seed)
    names = [f"s{who}u{i}" for who in range(SPEAKERS) for i in range(OWN)]
    who = np.repeat(np.arange(SPEAKERS), OWN)
    pairs = np.array(np.triu_indices(len(names), 1))
    same = who[pairs[0]] == who[pairs[1]]
    kept = same | (random.random(len(same)) < same.mean())
    pairs, same = pairs[:, kept], same[kept]
    # Each speaker is a sheep or a goat: one value moves all of their trials.
    own, others = random.normal(0, spread, (2, SPEAKERS))
    shift = np.where(same, own[who[pairs[0]]], others[who[pairs]].sum(axis=0) / 2)
    values = 2.0 * same + shift + random.normal(size=len(same))
    enrol, test = ([names[i] for i in side] for side in pairs)
    speakers = {name: f"s{one}" for name, one in zip(names, who, strict=True)}
    return Trials(same, enrol, test), values, speakers


def by_trials(trials, values, replicates=100):
    """The interval of a bootstrap that takes trials for independent."""
    random = np.random.default_rng(0)
    groups = [np.flatnonzero(trials.labels == kind) for kind in (True, False)]
    found = []
    for _ in range(replicates):
        rows = np.concatenate([random.choice(g, len(g)) for g in groups])
        found.append(equal_error_rate(values[rows], trials.labels[rows])[0])
    return np.quantile(found, [0.025, 0.975])


@pytest.mark.fault(
    "B4",
    "40 simulated systems whose trials share 20 speakers",
    "the 95 % interval over speakers holds the true EER of at least 34 of them; one "
    "over trials that of fewer than 27",
)
def test_speakers_make_intervals_wider_than_trials_do(monkeypatch):
    monkeypatch.setattr("lobes.evaluation.significance.REPLICATES", 200)
    many = [voices(seed) for seed in range(1000, 1040)]
    labels = np.concatenate([trials.labels for trials, _, _ in many])
    truth = equal_error_rate(np.concatenate([v for _, v, _ in many]), labels)[0]
    covered, naive = 0, 0
    for trials, values, speakers in many:
        found = eer_interval(trials, values, speakers)
        assert (found.over, found.count) == ("speakers", SPEAKERS)
        covered += found.low <= truth <= found.high
        low, high = by_trials(trials, values)
        naive += low <= truth <= high
    assert covered >= 34 and naive < 27, (covered, naive)


def test_words_of_few_speakers_leave_more_to_chance():
    """A speaker is drawn with all utterances; where none are known, these are."""
    random = np.random.default_rng(2)
    rate = np.repeat(random.uniform(0, 0.6, 10), 20)
    errors = random.binomial(10, rate)
    counts = errors, np.full(200, 10)
    names = [f"u{i}" for i in range(200)]
    by_name = {name: f"s{i // 20}" for i, name in enumerate(names)}
    speakers = rate_interval(counts, names, by_name)
    utterances = rate_interval(counts, names, {})
    assert (speakers.over, speakers.count) == ("speakers", 10)
    assert (utterances.over, utterances.count) == ("utterances", 200)
    value = 100 * errors.sum() / 2000
    assert speakers.low < utterances.low < value < utterances.high < speakers.high
    few = {name: f"s{i % (FEWEST - 1)}" for i, name in enumerate(names)}
    assert rate_interval(counts, names, few) == utterances
    assert rate_interval(([1], [2]), ["u"], {}) is None


def test_weights_are_repetitions():
    """A speaker drawn twice is two speakers: checked on trials written out."""
    trials, values, speakers = voices(5)
    who = sorted(set(speakers.values()))
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(who), np.full(len(who), 1 / len(who)))
    times = dict(zip(who, drawn, strict=True))
    repeated = [
        times[speakers[a]] * (1 if same else times[speakers[b]])
        for a, b, same in zip(trials.enrol, trials.test, trials.labels, strict=True)
    ]
    place = [who.index(speakers[name]) for name in trials.enrol]
    other = [
        len(who) if same else who.index(speakers[name])
        for name, same in zip(trials.test, trials.labels, strict=True)
    ]
    values = np.round(values, 1)
    found = SortedTrials(trials.labels, values, np.array(place), np.array(other))
    expected = equal_error_rate(
        np.repeat(values, repeated), np.repeat(trials.labels, repeated)
    )[0]
    weights = np.append(drawn, 1).astype(np.int32)
    assert found.eer(weights) == pytest.approx(expected)
    assert np.isnan(found.eer(np.zeros_like(weights)))


def test_other_sets_are_refused(tmp_path):
    first = transcripts(tmp_path / "a.csv", {1})
    fewer = transcripts(tmp_path / "b.csv", {1}, count=398)
    with pytest.raises(UserError, match="u398 and 1 more utterances"):
        compare_words(first, fewer)
    with pytest.raises(UserError, match="the references differ"):
        compare_words(first, transcripts(tmp_path / "c.csv", {1}, words=4))
    with pytest.raises(UserError, match="none.csv cannot be read"):
        compare_words(first, tmp_path / "none.csv")
    with pytest.raises(UserError, match="the trials differ"):
        one, other = scores(tmp_path / "a.txt", 1), scores(tmp_path / "b.txt", 1, 1, 98)
        compare_eer(one[0], other[0])
