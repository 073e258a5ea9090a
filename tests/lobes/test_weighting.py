"""Weights of the losses: hand values, gradients, degenerate losses."""

import pytest
import torch

from lobes.errors import UserError
from lobes.weighting import DynamicWeighting, StaticWeighting

HALF = StaticWeighting({"speech": 0.5, "speaker": 0.5})


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


@pytest.mark.parametrize("weighting", [DynamicWeighting(), HALF])
def test_no_gradient_flows_through_the_weights(weighting):
    values = losses(0.43, 3.14)
    total, weights = weighting(values, step=0)
    total.backward()
    for task, value in values.items():
        assert not weights[task].requires_grad
        assert float(value.grad) == pytest.approx(float(weights[task]))


@pytest.mark.parametrize("weighting", [DynamicWeighting(), HALF])
@pytest.mark.parametrize("task", ["speech", "speaker"])
def test_one_task_is_its_loss(weighting, task):
    values = losses(**{task: 3.0})
    total, weights = weighting(values, step=0)
    total.backward()
    assert float(total.detach()) == 3.0
    assert float(weights[task]) == 1.0 and not weights[task].requires_grad
    assert float(values[task].grad) == 1.0


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
