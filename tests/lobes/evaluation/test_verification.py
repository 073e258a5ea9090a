"""Trial lists, scores and verification metrics."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from lobes.data.trials import (
    Trials,
    read_scores,
    write_scores,
)
from lobes.errors import UserError
from lobes.evaluation.verification import (
    cosine_scores,
    detection_errors,
    equal_error_rate,
    verification_metrics,
)


def random_scores(seed, trials=400, shift=1.0, decimals=None):
    """Normal scores, same-speaker trials ``shift`` higher; rounding makes ties."""
    generator = np.random.default_rng(seed)
    labels = generator.random(trials) < generator.uniform(0.05, 0.95)
    labels[:2] = True, False
    scores = generator.normal(size=trials) + shift * labels
    return (scores if decimals is None else scores.round(decimals)), labels


def reference_eer(scores, labels):
    """Percent where scikit-learn's ROC, joined by lines, meets FRR = FAR."""
    far, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    frr = 1 - tpr
    for i in range(1, len(far)):
        before, after = frr[i - 1] - far[i - 1], frr[i] - far[i]
        if after <= 0:
            return 100 * (
                frr[i - 1] + (frr[i] - frr[i - 1]) * before / (before - after)
            )
    raise AssertionError("no crossing")


def reference_min_dcf(scores, labels, p_target, c_miss, c_fa):
    """Normalised cost by trying every threshold."""
    costs = []
    for threshold in [*np.unique(scores), np.inf]:
        miss = np.mean(scores[labels] < threshold)
        false_alarm = np.mean(scores[~labels] >= threshold)
        costs.append(p_target * c_miss * miss + (1 - p_target) * c_fa * false_alarm)
    return min(costs) / min(p_target * c_miss, (1 - p_target) * c_fa)


@pytest.fixture
def embedded():
    """20,000 trials (several chunks) over 50 embeddings of 7 channels."""
    generator = np.random.default_rng(5)
    ids = [f"u{i}" for i in range(50)]
    matrix = generator.normal(size=(50, 7)).astype(np.float32)
    pairs = generator.integers(0, 50, size=(20000, 2))
    labels = pairs[:, 0] % 2 == 0
    return (
        Trials(labels, [ids[i] for i in pairs[:, 0]], [ids[i] for i in pairs[:, 1]]),
        ids,
        matrix,
        pairs,
    )


def test_cosine_scores_of_both_forms(embedded):
    trials, ids, matrix, pairs = embedded
    unit = matrix.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    expected = (unit @ unit.T)[pairs[:, 0], pairs[:, 1]]
    scores = cosine_scores(trials, (ids, matrix))
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    assert scores.max() <= 1
    table = {name: matrix[i] for i, name in reversed(list(enumerate(ids)))}
    np.testing.assert_array_equal(cosine_scores(trials, table), scores)
    np.testing.assert_allclose(cosine_scores(trials, (ids, matrix * 1024)), scores)


@pytest.mark.fault(
    "F17", "NaN, infinite and zero embeddings", "an error that names the utterance"
)
@pytest.mark.parametrize("form", ["matrix", "dict"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "utterance b has NaN or infinite"),
        (np.inf, "utterance b has NaN or infinite"),
        (0.0, "utterance b has an embedding of zeros"),
        (None, "utterance b has no embedding"),
    ],
)
def test_broken_embeddings_are_named(form, value, message):
    trials = Trials(np.array([True, False]), ["a", "a"], ["b", "c"])
    table = {name: np.array([1.0, 2.0]) for name in "abc"}
    if value is None:
        del table["b"]
    else:
        table["b"] = np.array([value, 0.0])
    # An utterance that no trial uses must not stand in the way.
    table["unused"] = np.array([np.nan, 0.0])
    if form == "matrix":
        table = (list(table), np.stack(list(table.values())))
    with pytest.raises(UserError, match=message):
        cosine_scores(trials, table)


def test_wrong_shapes_are_a_defect():
    trials = Trials(np.array([True, False]), ["a", "a"], ["b", "b"])
    with pytest.raises(ValueError, match="one size"):
        cosine_scores(trials, {"a": np.ones(2), "b": np.ones(3)})
    with pytest.raises(ValueError, match="distinct"):
        cosine_scores(trials, (["a", "b", "a"], np.ones((3, 2))))
    with pytest.raises(ValueError, match=r"\[trials\]"):
        equal_error_rate([0.1, 0.2, 0.3], [0, 1])
    with pytest.raises(ValueError, match="0 or 1"):
        equal_error_rate([0.1, 0.2], [0, 2])
    with pytest.raises(ValueError, match="p_target"):
        detection_errors([0.1, 0.2], [0, 1]).min_dcf(1.0)


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("seed", range(12))
def test_eer_is_that_of_the_interpolated_roc(seed, decimals):
    scores, labels = random_scores(seed, shift=seed / 4, decimals=decimals)
    eer, threshold = equal_error_rate(scores, labels)
    assert eer == pytest.approx(reference_eer(scores, labels), abs=1e-9)
    assert type(eer) is float and type(threshold) is float
    order = np.random.default_rng(0).permutation(len(scores))
    assert equal_error_rate(scores[order], labels[order]) == (eer, threshold)


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("p_target", [0.001, 0.01, 0.05, 0.5, 0.9])
def test_min_dcf_is_the_lowest_over_all_thresholds(p_target, decimals):
    for seed in range(4):
        scores, labels = random_scores(seed, shift=seed / 2, decimals=decimals)
        errors = detection_errors(scores, labels)
        for c_miss, c_fa in ((1, 1), (10, 1), (1, 3.5)):
            cost, threshold = errors.min_dcf(p_target, c_miss, c_fa)
            reference = reference_min_dcf(scores, labels, p_target, c_miss, c_fa)
            assert cost == pytest.approx(reference, abs=1e-12)
            assert np.isfinite(threshold)
            # Deciding at the threshold costs what is claimed.
            miss = np.mean(scores[labels] < threshold) * p_target * c_miss
            alarm = np.mean(scores[~labels] >= threshold) * (1 - p_target) * c_fa
            worst = min(p_target * c_miss, (1 - p_target) * c_fa)
            assert (miss + alarm) / worst == pytest.approx(cost, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "labels", "eer", "cost"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.0, 0.0),
        ([0.8, 0.9, 0.1, 0.2], [0, 0, 1, 1], 100.0, 1.0),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1], 50.0, 1.0),
        # Thresholds 0.1 0.2 0.3 0.4 and none: FRR 0 1/2 1/2 1/2 1, FAR 1 1 1/2 0 0.
        ([0.2, 0.3, 0.1, 0.4], [0, 0, 1, 1], 50.0, 0.5),
        # One tie: the ROC is a diagonal from (FAR 0, FRR 1/2) to (1/2, 0).
        ([0.1, 0.5, 0.5, 0.9], [0, 0, 1, 1], 25.0, 0.5),
    ],
    ids=["perfect", "inverse", "constant", "by hand", "tie"],
)
def test_examples_by_hand(scores, labels, eer, cost):
    errors = detection_errors(scores, labels)
    assert errors.equal_error_rate()[0] == pytest.approx(eer, abs=1e-12)
    assert errors.min_dcf(0.01)[0] == pytest.approx(cost, abs=1e-12)


def test_detection_errors_by_hand():
    errors = detection_errors([0.5, 0.1, 0.5, 0.9], [0, 0, 1, 1])
    assert errors.thresholds[:3].tolist() == [0.1, 0.5, 0.9]
    assert 0.9 < errors.thresholds[3] < 0.9 + 1e-12
    assert errors.false_rejection.tolist() == [0, 0, 0.5, 1]
    assert errors.false_acceptance.tolist() == [1, 0.5, 0, 0]
    assert (errors.positives, errors.negatives) == (2, 2)


@pytest.mark.fault("F18", "scores that are not finite", "an error, no EER or minDCF")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_an_error(bad, tmp_path):
    scores, labels = [0.1, bad, 0.3], [0, 1, 1]
    with pytest.raises(UserError, match="1 of 3 scores"):
        equal_error_rate(scores, labels)
    with pytest.raises(UserError, match="1 of 3 scores"):
        verification_metrics(scores, labels)
    path = tmp_path / "scores.txt"
    with pytest.raises(UserError, match="1 of 3 scores"):
        write_scores(path, Trials(np.array(labels, bool), ["a"] * 3, ["b"] * 3), scores)
    assert not path.exists()


@pytest.mark.parametrize(
    ("labels", "counts"), [([1, 1], "2 and 0"), ([0, 0], "0 and 2"), ([], "0 and 0")]
)
def test_one_class_or_nothing_is_an_error(labels, counts):
    with pytest.raises(UserError, match=f"there are {counts}"):
        verification_metrics(np.linspace(0, 1, len(labels)), labels)


def test_metrics_are_plain_numbers_that_agree_with_the_single_functions():
    scores, labels = random_scores(3)
    metrics = verification_metrics(scores.astype(np.float32), labels.astype(int))
    eer, threshold = equal_error_rate(scores.astype(np.float32), labels)
    errors = detection_errors(scores, labels)
    assert metrics == {
        "eer": eer,
        "threshold": threshold,
        "min_dcf_0.01": errors.min_dcf(0.01)[0],
        "min_dcf_0.05": errors.min_dcf(0.05)[0],
        "trials": 400,
        "positives": int(labels.sum()),
    }
    assert {type(value) for value in metrics.values()} == {float, int}


def test_scores_survive_the_file_exactly(tmp_path, embedded):
    trials, ids, matrix, _ = embedded
    scores = cosine_scores(trials, (ids, matrix))
    path = tmp_path / "new" / "scores.txt"
    write_scores(path, trials, scores)
    assert path.read_text(encoding="utf-8").splitlines()[0] == (
        f"{int(trials.labels[0])} {trials.enrol[0]} {trials.test[0]} {scores[0]}"
    )
    loaded, again = read_scores(path)
    np.testing.assert_array_equal(again, scores)
    np.testing.assert_array_equal(loaded.labels, trials.labels)
    assert (loaded.enrol, loaded.test) == (trials.enrol, trials.test)
    assert verification_metrics(again, loaded.labels) == verification_metrics(
        scores, trials.labels
    )
