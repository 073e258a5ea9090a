"""Values that are not finite, in training and in validation: F13, F14, F17, F18."""

import math

import pytest
import torch

from lobes.errors import UserError
from tests.helpers import tiny


@pytest.fixture
def make(tiny_corpus, tmp_path):
    def make(**settings):
        return tiny.brain(tiny_corpus, tmp_path / "run", freeze_steps=0, **settings)

    return make


def spoil(system, steps, where):
    """At these optimizer steps, put a value that is not finite there."""
    fit_batch, hooks = system.fit_batch, []
    weight = system.modules["encoder"].model.encoder.layers[0].attention.q_proj.weight

    def spoilt(batches):
        if system.optimizer_step in steps:
            if where == "gradient":
                bad = torch.zeros_like(weight)
                bad[0, 0] = math.inf
                hooks.append(weight.register_hook(lambda gradient: gradient + bad))
            else:
                for batch in batches.values():
                    batch.wavs[0, 0] = math.nan
        before = tiny.parameters(system), repr(system.optimizer.state_dict())
        bad_step = system.optimizer_step in steps
        loss = fit_batch(batches)
        while hooks:
            hooks.pop().remove()
        same = all(
            torch.equal(before[0][name], tensor)
            for name, tensor in tiny.parameters(system).items()
        )
        assert same == bad_step
        assert (before[1] == repr(system.optimizer.state_dict())) or not bad_step
        return loss

    system.fit_batch = spoilt


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("losses", marks=pytest.mark.fault("F13", "NaN in both losses")),
        pytest.param(
            "gradient",
            marks=pytest.mark.fault("F14", "inf in one element of a gradient"),
        ),
    ],
)
@pytest.mark.parametrize("clip", [[], ["--max_grad_norm=1.0"]], ids=["", "clipped"])
def test_skipped_steps_are_counted_over_the_whole_run(where, clip, make, tmp_path):
    """Skipped: weights and Adam untouched; counted across a resume, up to the limit."""
    options = ["--ckpt_interval_steps=1", *clip]
    system = make(options=[*options, "--optimizer_step_limit=3"], nonfinite_patience=2)
    spoil(system, {1, 2}, where)
    tiny.fit(system)
    assert system.guard.skipped_steps == 2
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "Step 1 skipped (1 so far)" in log and "Step 2 skipped (2 so far)" in log
    assert "'speech': ['s-" in log and "'speaker': ['id" in log
    resumed = make(options=options, nonfinite_patience=2)
    spoil(resumed, {4}, where)
    with pytest.raises(UserError, match="3 steps had gradients that are not finite"):
        tiny.fit(resumed)
    assert resumed.optimizer_step == 5


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("embedding", marks=pytest.mark.fault("F17", "a NaN embedding")),
        pytest.param(
            "metric", marks=pytest.mark.fault("F18", "a NaN WER at validation")
        ),
    ],
)
def test_a_validation_that_is_not_finite(what, make, monkeypatch):
    """An error in one line; no checkpoint of it is the best one."""
    system = make(valid_interval=3, options=["--ckpt_interval_steps=2"])
    spoilt_at = 6
    if what == "embedding":
        task = system.tasks["speaker"]

        def spoilt(output, batch, update=task.update):
            if system.optimizer_step == spoilt_at:
                output = output.clone()
                output[0, 0] = math.nan
            update(output, batch)

        monkeypatch.setattr(task, "update", spoilt)
        with pytest.raises(UserError, match="embedding"):
            tiny.fit(system)
    else:
        task = system.tasks["speech"]

        def spoilt(*args, results=task.results):
            found = results(*args)
            if system.optimizer_step == spoilt_at:
                next(iter(found.values()))["wer"] = math.nan
            return found

        monkeypatch.setattr(task, "results", spoilt)
        with pytest.raises(UserError, match="wer is nan"):
            tiny.fit(system)
    best = system.checkpointer.find_checkpoint(min_key="score")
    assert best.meta["step"] == 3 and math.isfinite(best.meta["score"])
