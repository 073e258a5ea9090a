"""The progress log and the averages that go into it."""

import importlib.util
import json

import pytest
import torch

from lobes.evaluation.progress import ProgressLog, StepAverages


@pytest.fixture
def log(tmp_path):
    """A log with training rows at 1-3 and a validation row at 2."""
    log = ProgressLog(tmp_path)
    log.add("train", 1, {"loss": 3.0})
    log.add("train", 2, {"loss": 2.0})
    log.add("valid", 2, {"wer": 50.0})
    log.add("train", 3, {"loss": 1.0})
    return log


def test_rows_stand_one_a_line_as_json(log):
    lines = log.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[2]) == {"stage": "valid", "step": 2, "wer": 50.0}
    assert log.rows() == [json.loads(line) for line in lines]


def test_no_file_no_rows(tmp_path):
    log = ProgressLog(tmp_path / "new")
    assert log.rows() == []
    log.rewind(0)
    log.add("train", 1, {"loss": 1.0})
    assert len(log.rows()) == 1


@pytest.mark.parametrize("step, left", [(0, 0), (1, 1), (2, 3), (3, 4), (9, 4)])
def test_rewind_keeps_the_rows_up_to_its_step(log, step, left):
    rows = log.rows()
    log.rewind(step)
    assert log.rows() == rows[:left]


def test_every_step_stands_once_after_a_resume(log):
    log.rewind(2)
    log.add("train", 3, {"loss": 0.9})
    assert [r["step"] for r in log.rows() if r["stage"] == "train"] == [1, 2, 3]
    assert log.rows()[-1]["loss"] == 0.9


def test_a_line_cut_by_a_crash_is_left_out_and_repaired(log):
    text = log.path.read_text()
    log.path.write_text(text[:-9])
    assert [r["step"] for r in log.rows()] == [1, 2, 2]
    log.rewind(3)
    log.add("train", 3, {"loss": 1.0})
    assert log.path.read_text() == text


def test_tables_by_stage(log):
    train, valid = log.tables()
    assert train["step"].to_list() == [1, 2, 3]
    assert train["loss"].to_list() == [3.0, 2.0, 1.0]
    assert valid.to_dict("records") == [{"step": 2, "wer": 50.0}]


def test_tables_of_nothing_have_the_step_column(tmp_path):
    for table in ProgressLog(tmp_path).tables():
        assert list(table.columns) == ["step"] and table.empty


def test_tensorboard_gets_every_value(tmp_path):
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = ProgressLog(tmp_path, tensorboard=True)
    log.add("train", 7, {"loss": 2.5})
    log.writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(7, 2.5)]


def test_means_of_tensors_and_numbers():
    averages = StepAverages()
    averages.add({"loss": torch.tensor(1.0), "lr": 0.1}, seconds_of_audio=10.0)
    averages.add({"loss": torch.tensor(4.0), "lr": 0.3}, seconds_of_audio=20.0)
    means = averages.means()
    assert means["loss"] == 2.5 and means["lr"] == pytest.approx(0.2)
    assert all(type(value) is float for value in means.values())
    ratio = means["audio_per_second"] / means["steps_per_second"]
    assert ratio == pytest.approx(15.0)


def test_a_name_that_some_steps_lack_is_averaged_over_the_others():
    averages = StepAverages()
    averages.add({"loss": 1.0}, 1.0)
    averages.add({"loss": 3.0, "lr": 0.5}, 1.0)
    means = averages.means()
    assert means["loss"] == 2.0 and means["lr"] == 0.5


def test_means_are_taken_in_float64():
    averages = StepAverages()
    for value in (1e8, 1.0, 1.0, 1.0):
        averages.add({"loss": torch.tensor(value)}, 1.0)
    assert averages.means()["loss"] == (1e8 + 3) / 4


def test_reset_starts_a_new_interval():
    averages = StepAverages()
    averages.add({"loss": 1.0}, 1.0)
    averages.reset()
    assert averages.steps == 0
    averages.add({"loss": 5.0}, 1.0)
    assert averages.means()["loss"] == 5.0
