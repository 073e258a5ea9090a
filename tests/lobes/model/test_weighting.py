"""Weights of the losses: hand values, gradients, degenerate losses."""

import math

import pytest
import torch

from lobes.errors import UserError
from lobes.model.weighting import (
    DynamicWeightAverage,
    DynamicWeighting,
    StaticWeighting,
)
from tests.helpers import tiny

HALF = StaticWeighting({"speech": 0.5, "speaker": 0.5})
TASKS = ["speech", "speaker"]
EVERY = pytest.mark.parametrize(
    "weighting",
    [DynamicWeighting(), DynamicWeighting("max"), HALF, DynamicWeightAverage(TASKS)],
    ids=["min", "max", "static", "dwa"],
)


def losses(speech=None, speaker=None):
    """Scalar losses with gradient of the tasks given."""
    given = {"speech": speech, "speaker": speaker}
    return {
        task: torch.tensor(value, requires_grad=True)
        for task, value in given.items()
        if value is not None
    }


def test_dynamic_weights_of_the_papers_losses():
    """Eqs. 6 and 7 at the losses of section 4.5: 1 and 0.136943."""
    total, weights = DynamicWeighting()(losses(0.43, 3.14), step=0)
    assert float(weights["speech"]) == 1.0
    assert float(weights["speaker"]) == pytest.approx(0.136943, abs=5e-7)
    assert total.item() == pytest.approx(0.86, rel=1e-6)


def test_dynamic_weights_do_not_depend_on_the_order():
    _, weights = DynamicWeighting()(losses(3.14, 0.43), step=0)
    assert float(weights["speaker"]) == 1.0
    assert float(weights["speech"]) == pytest.approx(0.136943, abs=5e-7)


def test_dynamic_weighting_makes_the_weighted_losses_equal():
    numbers = {"a": 2.0, "b": 0.5, "c": 7.0}
    values = {name: torch.tensor(value) for name, value in numbers.items()}
    total, weights = DynamicWeighting()(values, step=3)
    for name, value in values.items():
        assert float(weights[name] * value) == pytest.approx(0.5)
    assert total.item() == pytest.approx(1.5)


def test_static_weights_of_equation_5_balance_the_papers_losses():
    share = 3.14 / (0.43 + 3.14)
    assert share == pytest.approx(0.87955, abs=5e-6)
    weighting = StaticWeighting({"speech": share, "speaker": 1 - share})
    values = losses(0.43, 3.14)
    total, weights = weighting(values, step=0)
    speech, speaker = ((weights[t] * values[t]).item() for t in ("speech", "speaker"))
    assert speech == pytest.approx(speaker, rel=1e-6)
    assert total.item() == pytest.approx(2 * speech, rel=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.88, 0.9])
def test_static_total(share):
    weighting = StaticWeighting({"speech": share, "speaker": 1 - share})
    total, weights = weighting(losses(2.0, 3.0), step=0)
    assert total.item() == pytest.approx(share * 2 + (1 - share) * 3)
    assert float(weights["speech"]) == pytest.approx(share)


def test_dynamic_weights_to_the_largest_loss():
    total, weights = DynamicWeighting("max")(losses(0.43, 3.14), step=0)
    assert float(weights["speaker"]) == 1.0
    assert float(weights["speech"]) == pytest.approx(7.302326, abs=5e-7)
    assert total.item() == pytest.approx(6.28, rel=1e-6)


def test_a_reference_that_is_neither():
    with pytest.raises(UserError, match="reference is 'mean'; it is min or max"):
        DynamicWeighting("mean")


@EVERY
def test_no_gradient_flows_through_the_weights(weighting):
    values = losses(0.43, 3.14)
    total, weights = weighting(values, step=0)
    total.backward()
    for task, value in values.items():
        assert not weights[task].requires_grad
        assert float(value.grad) == pytest.approx(float(weights[task]))


@EVERY
@pytest.mark.parametrize("task", ["speech", "speaker"])
def test_one_task_is_its_loss(weighting, task):
    if isinstance(weighting, DynamicWeightAverage):
        weighting = DynamicWeightAverage([task], scale=3.0)
    values = losses(**{task: 3.0})
    total, weights = weighting(values, step=0)
    total.backward()
    assert float(total.detach()) == 3.0
    assert float(weights[task]) == 1.0 and not weights[task].requires_grad
    assert float(values[task].grad) == 1.0


@pytest.mark.fault("F15", "a loss of exactly 0", "finite weights and gradients")
@pytest.mark.parametrize("pair", [(0.0, 3.0), (3.0, 0.0), (0.0, 0.0)])
def test_a_loss_of_exactly_zero_gives_finite_weights(pair):
    values = losses(*pair)
    total, weights = DynamicWeighting()(values, step=0)
    total.backward()
    assert float(total.detach()) == 0.0
    for task, value in values.items():
        assert torch.isfinite(weights[task]) and torch.isfinite(value.grad)
        if float(value.detach()) == 0:
            assert float(weights[task]) == 1.0


def test_a_loss_of_zero_to_the_largest():
    values = losses(0.0, 3.0)
    total, weights = DynamicWeighting("max")(values, step=0)
    total.backward()
    assert [float(weights[task]) for task in values] == [1.0, 1.0]
    assert float(total.detach()) == 3.0 and float(values["speech"].grad) == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stays_visible(bad):
    total, _ = DynamicWeighting()(losses(bad, 3.0), step=0)
    assert not torch.isfinite(total)


@pytest.mark.parametrize("tasks", [{"gender": 1.0}, {"speech": 1.0, "gender": 1.0}])
def test_an_unknown_task_is_named(tasks):
    values = {task: torch.tensor(v) for task, v in tasks.items()}
    with pytest.raises(UserError, match="gender.*speech, speaker"):
        HALF(values, step=0)


def test_weights_follow_the_type_of_the_losses():
    values = {t: v.double() for t, v in losses(1.0, 2.0).items()}
    for weighting in (DynamicWeighting(), HALF):
        total, weights = weighting(values, step=0)
        assert total.dtype == weights["speech"].dtype == torch.float64


def test_fixed_rules_have_no_state():
    assert not HALF.state_dict() and not DynamicWeighting().state_dict()


# Dynamic weight average -------------------------------------------------------


def after(pairs, **settings):
    """A weighting that has seen these losses."""
    weighting = DynamicWeightAverage(TASKS, **settings)
    for step, pair in enumerate(pairs):
        weighting(losses(*pair), step)
    return weighting


def weights_of(weighting):
    """The weights of the next step."""
    return [float(w) for w in weighting(losses(1.0, 1.0), 0)[1].values()]


def softmax(a, b, temperature=2.0):
    first, second = math.exp(a / temperature), math.exp(b / temperature)
    return pytest.approx([first / (first + second), second / (first + second)])


#: More than the ten that are remembered.
TWELVE = [(99.0, 0.01)] * 2 + [(4.0 - 0.1 * i, 15.0 + i) for i in range(10)]


@pytest.mark.parametrize(
    "seen, ratios",
    [
        ([], (1, 1)),
        ([(4.0, 15.0)], (1, 1)),
        ([(4.0, 15.0), (2.0, 15.0)], (2 / 4, 15 / 15)),
        # Of three the newer half has two.
        ([(4.0, 10.0), (2.0, 20.0), (1.0, 30.0)], (1.5 / 4, 25 / 10)),
        # 4.0 .. 3.6 and 3.5 .. 3.1; 15 .. 19 and 20 .. 24.
        (TWELVE, (3.3 / 3.8, 22 / 17)),
    ],
    ids=["none", "one", "two", "three", "twelve"],
)
def test_dwa_by_hand(seen, ratios):
    assert weights_of(after(seen)) == softmax(*ratios)


def test_dwa_weighs_the_loss_that_falls_more_slowly():
    speech, speaker = weights_of(after([(4.0, 15.0), (2.0, 15.0)]))
    assert speaker > speech


def test_dwa_s_temperature_scale_and_window():
    seen = [(9.0, 9.0), (4.0, 15.0), (2.0, 15.0)]
    weighting = after(seen, temperature=0.5, scale=3.0, window=2)
    found = weights_of(weighting)
    assert [w / 3 for w in found] == softmax(2 / 4, 15 / 15, 0.5)
    weighting = after(seen, temperature=1e6)
    assert weights_of(weighting) == pytest.approx([0.5, 0.5], abs=1e-5)


def test_dwa_does_not_count_the_loss_that_it_weighs():
    total, weights = after([(4.0, 15.0)])(losses(1.0, 15.0), 1)
    assert [float(w) for w in weights.values()] == [0.5, 0.5]
    assert total.item() == pytest.approx(8.0)


def test_dwa_goes_by_name():
    """A batch's order of the tasks is not the weighting's."""
    weighting = after([(4.0, 15.0), (2.0, 15.0)])
    given = dict(reversed(losses(1.0, 3.0).items()))
    total, weights = weighting(given, 2)
    assert [float(weights[task]) for task in TASKS] == softmax(0.5, 1.0)
    by_hand = float(weights["speech"]) * 1.0 + float(weights["speaker"]) * 3.0
    assert total.item() == pytest.approx(by_hand)
    assert weighting.history[:, -1].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("count", [0, 1, 3, 12])
def test_dwa_resumes_from_its_state(count):
    seen = [(4.0 / (i + 1), 15.0 - i / 2) for i in range(count + 3)]
    first = after(seen[:count])
    second = DynamicWeightAverage(TASKS)
    second.load_state_dict(first.state_dict())
    for pair in seen[count:]:
        found = [weighting(losses(*pair), 0) for weighting in (first, second)]
        assert found[0][1] == found[1][1] and torch.equal(found[0][0], found[1][0])


def test_dwa_in_a_run(tiny_corpus, tmp_path):
    """What the log shows is what it remembers, and it stands in the checkpoint."""
    settings = {"yaml": tiny.MTL.with_name("dwa.yaml")}
    first = tiny.brain(tiny_corpus, tmp_path / "run", **settings)
    rows = [row for row in tiny.fit(first) if row["stage"] == "train"]
    assert rows[0]["speech_weight"] == rows[1]["speech_weight"] == 0.5
    assert rows[2]["speech_weight"] != 0.5
    second = tiny.brain(tiny_corpus, tmp_path / "run", **settings)
    second.prepare_training()
    second.on_fit_start()
    state = second.modules.weighting.state_dict()
    assert int(state["count"]) == 6
    for task, history in zip(TASKS, state["history"], strict=True):
        seen = [row[f"{task}_loss"] for row in rows]
        assert history[4:].tolist() == pytest.approx(seen, rel=1e-6)


@pytest.mark.parametrize("bad", [(math.nan, 15.0), (4.0, math.inf)])
def test_dwa_does_not_remember_what_is_not_finite(bad):
    seen = [(4.0, 15.0), (2.0, 15.0)]
    weighting = after([seen[0], bad, seen[1], bad])
    assert weights_of(weighting) == weights_of(after(seen))
    total, _ = weighting(losses(*bad), 0)
    assert not torch.isfinite(total)


@pytest.mark.fault("F15", "losses of exactly 0 in the history of DWA", "finite weights")
def test_dwa_of_losses_of_zero():
    for seen in ([(0.0, 15.0)] * 2, [(0.0, 15.0), (4.0, 15.0)]):
        assert all(map(math.isfinite, weights_of(after(seen))))
    assert weights_of(after([(4.0, 15.0), (0.0, 15.0)])) == softmax(0.0, 1.0)


def test_dwa_keeps_no_graph():
    weighting = after([(4.0, 15.0)] * 3)
    assert not list(weighting.parameters())
    assert not any(t.requires_grad for t in weighting.state_dict().values())


def test_dwa_of_other_tasks():
    with pytest.raises(UserError, match="losses of speech, speaker, the batch has"):
        after([])(losses(speech=1.0), 0)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": -1.0}, {"window": 1}]
)
def test_dwa_s_settings_are_checked(settings):
    with pytest.raises(UserError, match="temperature above 0 and a window of at least"):
        DynamicWeightAverage(TASKS, **settings)
