"""The ends of a run: steps, a stalled metric, divergence; and their checkpoints."""

import json
import math

import pytest
from speechbrain.utils.checkpoints import Checkpointer

from lobes.errors import UserError
from lobes.training.stopping import EarlyStopping, Epochs, selection_score


def feed(stopping, rows):
    """Update with (step, metrics); the first step with a reason, and the reason."""
    for step, metrics in rows:
        if stopping.update(step, metrics) is not None:
            return step, stopping.reason
    return None, None


def test_it_stops_after_four_validations_without_a_better_wer():
    rows = [(i * 5_000, {"wer": 20.0 if i > 1 else 10.0, "eer": 9.0 - i})
            for i in range(1, 9)]  # fmt: skip
    step, reason = feed(EarlyStopping(20_000), rows)
    assert step == 25_000 and "wer" in reason and "20000" in reason
    stopping = EarlyStopping(20_000)
    feed(stopping, rows)
    assert stopping.kind == "patience"


def test_either_metric_is_enough():
    rows = [(i * 5_000, {"wer": 9.0 - i, "eer": 5.0}) for i in range(1, 9)]
    step, reason = feed(EarlyStopping(20_000), rows)
    assert step == 25_000 and "eer" in reason


def test_an_improvement_starts_the_count_again():
    values = {5_000: 10.0, 10_000: 10.0, 20_000: 9.99, 35_000: 12.0, 40_000: 9.99}
    step, _ = feed(EarlyStopping(20_000, ("wer",)),
                   [(s, {"wer": v}) for s, v in values.items()])  # fmt: skip
    assert step == 40_000


def test_it_goes_on_while_both_improve():
    rows = [(i * 5_000, {"wer": 90.0 - i, "eer": 50.0 - i}) for i in range(1, 40)]
    assert feed(EarlyStopping(20_000), rows) == (None, None)


def test_metrics_of_absent_tasks_are_ignored():
    stopping = EarlyStopping(20_000, limits={"speech_loss": 10.0})
    rows = [(i * 5_000, {"eer": 50.0 - i}) for i in range(1, 20)]
    assert feed(stopping, rows) == (None, None)


@pytest.mark.fault(
    "A11", "patience_steps null or 0", "the run stops for divergence only"
)
@pytest.mark.parametrize("off", [None, 0])
def test_no_patience_never_stops(off):
    rows = [(i * 5_000, {"wer": 10.0}) for i in range(1, 40)]
    assert feed(EarlyStopping(off), rows) == (None, None)


@pytest.mark.parametrize("loss, stops", [(9.99, False), (10.0, False), (10.01, True)])
def test_divergence(loss, stops):
    stopping = EarlyStopping(limits={"speech_loss": 10.0})
    assert stopping.update(50, {"speech_loss": 3.0, "wer": 2.0}) is None
    reason = stopping.update(100, {"speech_loss": loss, "wer": 1.0})
    assert (reason is not None) == stops == (stopping.kind == "diverged")
    if stops:
        assert "speech_loss is 10.01, above 10.0" in reason


@pytest.mark.fault(
    "A9",
    "an untrained head on slow speech: 17.4 nats a letter, max_valid_loss 10",
    "goes on; a loss above the limit ends a run that was within it before",
)
def test_a_run_that_starts_above_the_limit_has_not_diverged(tmp_path):
    stopping = EarlyStopping(20_000, limits={"speech_loss": 10.0})
    for step, loss in enumerate((17.4, 12.0, 10.9, 2.9), start=1):
        assert stopping.update(step, {"speech_loss": loss, "wer": 100.0 - step}) is None
    stopping.save(tmp_path / "stopping")
    again = EarlyStopping(20_000, limits={"speech_loss": 10.0})
    again.load(tmp_path / "stopping", end_of_epoch=True)
    reason = again.update(5, {"speech_loss": 10.9, "wer": 90.0})
    assert reason == "diverged: speech_loss is 10.90, above 10.0"
    anew = again.anew()
    assert (anew.kind, anew.reason, anew.best) == (None, None, {})
    assert anew.update(1, {"speech_loss": 17.4, "wer": 100.0}) is None
    assert again.kind == "diverged", "the copy shares nothing with it"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_has_diverged(value):
    stopping = EarlyStopping(limits={"speech_loss": 10.0})
    assert str(value) in stopping.update(100, {"speech_loss": value})
    assert stopping.kind == "diverged"


def test_the_state_survives_json(tmp_path):
    first = EarlyStopping(20_000)
    first.update(5_000, {"wer": 10.0, "eer": 3.0})
    first.update(10_000, {"wer": 11.0, "eer": 2.0})
    first.save(tmp_path / "stopping")
    assert json.loads((tmp_path / "stopping").read_text())["best"]["eer"] == [10_000, 2]
    second = EarlyStopping(20_000)
    second.load(tmp_path / "stopping", end_of_epoch=True)
    assert second.reason is None
    assert second.update(20_000, {"wer": 11.0, "eer": 1.0}) is None
    assert "wer" in second.update(25_000, {"wer": 11.0, "eer": 0.5})


def test_a_stopped_run_stays_stopped(tmp_path):
    first = EarlyStopping(limits={"speech_loss": 1.0})
    first.update(4, {"speech_loss": 0.5})
    first.update(5, {"speech_loss": 2.0})
    first.save(tmp_path / "stopping")
    second = EarlyStopping(limits={"speech_loss": 1.0})
    second.load(tmp_path / "stopping", end_of_epoch=True)
    assert second.reason == first.reason
    assert list(Epochs(10, 5, second)) == []


@pytest.mark.parametrize("steps, interval, epochs", [(9, 3, 3), (10, 3, 4), (2, 5, 1)])
def test_epochs_cover_all_steps(steps, interval, epochs):
    assert list(Epochs(steps, interval, EarlyStopping())) == list(range(1, epochs + 1))


def test_epochs_end_when_there_is_a_reason():
    stopping = EarlyStopping(limits={"loss": 1.0})
    seen = []
    for epoch in Epochs(100, 10, stopping):
        seen.append(epoch)
        stopping.update(epoch * 10, {"loss": 0.5 if epoch < 3 else 2.0})
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("steps, interval", [(0, 5), (5, 0), (5, -1)])
def test_no_steps_are_refused(steps, interval):
    with pytest.raises(UserError, match="at least 1"):
        Epochs(steps, interval, EarlyStopping())


@pytest.mark.parametrize("end_of_epoch, rest", [(True, [3, 4]), (False, [2, 3, 4])])
def test_both_continue_from_a_checkpoint(tmp_path, end_of_epoch, rest):
    """Saved within its second epoch, that epoch goes on; after it, the third comes."""

    def make():
        stopping = EarlyStopping(20)
        epochs = Epochs(8, 2, stopping)
        recoverables = {"epochs": epochs, "stopping": stopping}
        return stopping, epochs, Checkpointer(tmp_path, recoverables)

    stopping, epochs, checkpointer = make()
    next(epochs), next(epochs)
    stopping.update(4, {"wer": 5.0})
    checkpointer.save_checkpoint(end_of_epoch=end_of_epoch)
    stopping, epochs, checkpointer = make()
    checkpointer.recover_if_possible()
    assert list(epochs) == rest
    assert stopping.best == {"wer": [4, 5.0]}


@pytest.mark.fault(
    "F18", "NaN as a validation metric", "an error, never the best checkpoint"
)
def test_the_selection_score_takes_finite_values_only():
    selection = {"wer": 0.25, "eer": 1.0}
    assert selection_score({"wer": 10.0, "eer": 4.0}, selection) == 6.5
    assert selection_score({"eer": 4.0}, selection) == 4.0
    with pytest.raises(UserError, match="wer is nan"):
        selection_score({"wer": math.nan, "eer": 4.0}, selection)
