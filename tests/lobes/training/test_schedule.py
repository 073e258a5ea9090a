"""The tri-stage learning rate against the paper's reference values."""

import pytest

from lobes.training.schedule import TriStage


@pytest.mark.parametrize(
    "step, rate",
    [
        (0, 5.000e-6),
        (5_000, 3.0603e-5),
        (9_999, 5.62e-5),
        (10_000, 5.62e-5),
        (50_000, 5.62e-5),
        (75_000, 1.67635e-5),
        (100_000, 5.0002e-6),
    ],
)
def test_reference_values(step, rate):
    assert TriStage(5.62e-5, 100_000)(step) == pytest.approx(rate, rel=2e-5)


def test_formula_of_every_stage():
    schedule = TriStage(1e-4, 100_000)
    for i in (1, 9_998):
        rate = 5e-6 + (1e-4 - 5e-6) * i / 9_999
        assert schedule(i) == pytest.approx(rate, rel=1e-12)
    for i in (50_001, 99_999):
        rate = 1e-4 * (5e-6 / 1e-4) ** ((i - 50_000) / 50_001)
        assert schedule(i) == pytest.approx(rate, rel=1e-12)


def test_it_is_constant_between_the_ramps_only():
    schedule = TriStage(1e-4, 1000)
    constant = [i for i in range(1000) if schedule(i) == 1e-4]
    assert constant == list(range(99, 501))


@pytest.mark.fault(
    "E4",
    "learning rates below 5e-6, where the published schedule leaves the peak upwards",
    "no rate above the peak; docs/reproduce.md names all six differences",
)
@pytest.mark.parametrize("lr", [5e-6, 1e-6, 1e-7])
def test_a_peak_below_both_ends_never_falls_while_it_should_rise(lr):
    schedule = TriStage(lr, 1000)
    assert {schedule(i) for i in range(1000)} == {lr}


def test_each_end_has_its_own_guard():
    schedule = TriStage(1e-4, 1000, initial_lr=1e-6, final_lr=1e-3)
    assert schedule(0) == 1e-6 and schedule(999) == 1e-4
    schedule = TriStage(1e-4, 1000, initial_lr=1e-3, final_lr=1e-6)
    assert schedule(0) == 1e-4
    assert schedule(1000) == pytest.approx(1e-6, rel=0.02)


@pytest.mark.parametrize("lr", [1e-3, 5.62e-5, 1e-6])
def test_the_follow_ups_relative_ends(lr):
    """LR / 100 at the start and LR / 20 at the end, whatever LR is."""
    relative = {"initial_lr": 0.01, "final_lr": 0.05, "relative_ends": True}
    schedule = TriStage(lr, 10_000, **relative)
    assert schedule(0) == pytest.approx(lr / 100, rel=1e-12)
    assert schedule(500) == pytest.approx(lr * (0.01 + 0.99 * 500 / 999), rel=1e-12)
    assert schedule(999) == schedule(5_000) == lr
    assert schedule(7_500) == pytest.approx(lr * 0.05 ** (2_500 / 5_001), rel=1e-12)
    assert schedule(10_000) == pytest.approx(lr / 20, rel=1e-3)
    absolute = TriStage(lr, 10_000, initial_lr=lr / 100, final_lr=lr / 20)
    for step in range(0, 10_001, 250):
        assert schedule(step) == pytest.approx(absolute(step), rel=1e-12)


def test_a_share_above_one_is_guarded_too():
    schedule = TriStage(1e-4, 1000, initial_lr=2.0, final_lr=3.0, relative_ends=True)
    assert {schedule(i) for i in range(1000)} == {1e-4}


def test_other_shares():
    schedule = TriStage(1e-4, 100, warmup=0.2, hold=0.3)
    assert schedule(18) < 1e-4 == schedule(19)
    assert schedule(50) == 1e-4 > schedule(51)


def test_no_decay_and_no_warm_up():
    assert {TriStage(1e-4, 100, warmup=0, hold=1)(i) for i in range(100)} == {1e-4}


@pytest.mark.parametrize("steps", range(1, 21))
def test_short_runs_rise_then_fall(steps):
    schedule = TriStage(1e-4, steps)
    rates = [schedule(i) for i in range(steps)]
    peak = rates.index(1e-4)
    assert peak <= steps / 10
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) >= 5e-6
