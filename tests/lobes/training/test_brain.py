"""The step, on a tiny model: what trains, what is skipped, what is resumed."""

import json
import math
import re

import pytest
import speechbrain as sb
import torch

from lobes.errors import UserError
from lobes.evaluation.ending import Ending
from lobes.model.weighting import StaticWeighting
from tests.helpers import tiny

GOLDEN = "tests/golden/mtl_losses.json"


@pytest.fixture
def make(tiny_corpus, tmp_path):
    def make(name="run", **settings):
        return tiny.brain(tiny_corpus, tmp_path / name, **settings)

    return make


def one_batch(system):
    return next(iter(system.prepare_training()))


def prepared(system):
    """The Brain as ``fit`` has it before its first step, and one batch."""
    batch = one_batch(system)
    system.on_fit_start()
    system.modules.train()
    return batch


def step(system, batch):
    system.step += 1
    return system.fit_batch(dict(batch))


def trained(system, before):
    after = tiny.parameters(system)
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_golden_losses(make, repository):
    """Six steps, the thaw after the second; a changed number needs a reason.

    Delete the file and run this test to store new values.
    """
    rows = tiny.fit(make())
    names = ("speech_loss", "speaker_loss", "speech_weight", "speaker_weight", "lr")
    found = [{n: r[n] for n in names} for r in rows if r["stage"] == "train"]
    path = repository / GOLDEN
    if not path.exists():
        path.write_text(json.dumps(found, indent=1) + "\n")
        pytest.fail(f"{GOLDEN} was missing and has been stored; run the test again")
    expected = json.loads(path.read_text())
    assert len(found) == len(expected) == 6
    for ours, golden in zip(found, expected, strict=True):
        assert ours == pytest.approx(golden, rel=2e-3)


def test_both_tasks_overfit_one_batch(make):
    system = make(steps=1000, freeze_steps=0, lr=3e-3, initial_lr=3e-3)
    # Dynamic weights would stop the speech task once the speakers are learnt.
    system.modules.weighting = StaticWeighting({"speech": 1.0, "speaker": 1.0})
    batch = prepared(system)
    assert len(batch["speech"]) >= 3 and len(set(batch["speaker"].ids)) >= 5
    for _ in range(300):
        step(system, batch)
    losses = {n: float(v) for n, v in system.step_values.items()}
    assert losses["speech_loss"] < 0.1, losses
    assert losses["speaker_loss"] < 0.5, losses
    system.modules.eval()
    speech = batch["speech"]
    system.tasks["speech"].start()
    system.evaluate_batch({"speech": speech}, sb.Stage.VALID)
    metrics = system.tasks["speech"].results("one", None)["one"]
    assert metrics["wer"] == 0.0


def test_single_task_equals_multi_task_with_one_task(tiny_corpus, tmp_path):
    """The baselines are the same program: same encoder, same batches, same steps."""
    multi = tiny.brain(tiny_corpus, tmp_path / "multi", crop_seconds=0.4)
    single = {
        "speech": tiny.brain(tiny_corpus, tmp_path / "asr", yaml=tiny.ASR),
        "speaker": tiny.brain(tiny_corpus, tmp_path / "skr", yaml=tiny.SPEAKER),
    }
    batches = one_batch(multi)
    start = multi.modules.encoder.state_dict()
    for task, system in single.items():
        batch = prepared(system)
        assert set(batch) == {task}
        assert batch[task].ids == batches[task].ids
        assert torch.equal(batch[task].wavs, batches[task].wavs)
        system.modules.encoder.load_state_dict(start)
        system.modules[task].load_state_dict(multi.modules[task].state_dict())
        outputs = system.compute_forward(dict(batch), sb.Stage.TRAIN)
        total = system.compute_objectives(outputs, dict(batch), sb.Stage.TRAIN)
        both = {task: batches[task]}
        outputs = multi.compute_forward(both, sb.Stage.TRAIN)
        expected = multi.compute_objectives(outputs, both, sb.Stage.TRAIN)
        assert torch.equal(total, expected)
        assert float(total.detach()) == float(system.step_values[f"{task}_loss"])


def test_one_summed_backward_gives_the_weighted_gradients(make):
    """Paper eq. 3: the encoder gets lambda_s grad L_s + lambda_k grad L_k."""
    system = make(freeze_steps=0)
    batch = prepared(system)
    weight = system.modules.encoder.model.encoder.layers[0].attention.q_proj.weight
    gradients, losses = {}, {}
    for task in batch:
        system.modules.zero_grad()
        outputs = system.compute_forward({task: batch[task]}, sb.Stage.TRAIN)
        losses[task] = system.tasks[task].loss(outputs[task], batch[task])
        losses[task].backward()
        gradients[task] = weight.grad.clone()
    system.modules.zero_grad()
    outputs = system.compute_forward(dict(batch), sb.Stage.TRAIN)
    system.compute_objectives(outputs, batch, sb.Stage.TRAIN).backward()
    smallest = min(losses.values()).detach()
    expected = sum(smallest / losses[t].detach() * gradients[t] for t in losses)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-8)
    heads = system.modules["speaker"].weight.grad
    assert heads is not None and torch.isfinite(heads).all()


@pytest.mark.fault(
    "F34",
    "parameters compared through warm-up and unfreeze",
    "encoder unchanged until the unfreeze step, then changed; the CNN never",
)
def test_the_encoder_is_frozen_first_and_the_cnn_always(make):
    """Fault case F34: hashes through the warm-up, and one step later."""
    system = make(freeze_steps=2)
    batch = prepared(system)
    start = tiny.parameters(system)
    for _ in range(2):
        step(system, batch)
        heads = {"speech.linear.weight", "speech.linear.bias", "speaker.weight"}
        assert trained(system, start) == heads
        state = system.optimizer.state
        encoder = list(system.modules.encoder.parameters())
        assert not any(p in state or p.grad is not None for p in encoder)
    step(system, batch)
    changed = trained(system, start)
    assert any(name.startswith("encoder.model.encoder") for name in changed)
    assert any(name.startswith("encoder.model.feature_projection") for name in changed)
    assert not any("feature_extractor" in name for name in changed)


def test_the_first_gradient_after_the_thaw_is_a_fresh_one(make):
    system = make(freeze_steps=1)
    batch = prepared(system)
    step(system, batch)
    system.on_fit_batch_start(batch, True)
    fresh = make("other", freeze_steps=0)
    other = prepared(fresh)
    for name, module in system.modules.items():
        fresh.modules[name].load_state_dict(module.state_dict())
    gradients = []
    for brain, batches in ((system, batch), (fresh, other)):
        outputs = brain.compute_forward(dict(batches), sb.Stage.TRAIN)
        brain.compute_objectives(outputs, dict(batches), sb.Stage.TRAIN).backward()
        weight = brain.modules.encoder.model.encoder.layers[1].attention.v_proj.weight
        gradients.append(weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.fault(
    "F13",
    "NaN samples in a batch of one task",
    "skipped: weights and Adam untouched, utterances logged; stops at the limit",
)
@pytest.mark.parametrize("task", ["speech", "speaker"])
def test_a_non_finite_loss_skips_the_whole_step(make, task, tmp_path):
    """Fault case F13: weights and Adam's state untouched, utterances named."""
    system = make(freeze_steps=0, nonfinite_patience=1)
    batch = prepared(system)
    step(system, batch)
    weights = tiny.parameters(system)
    state = json.dumps(str(system.optimizer.state_dict()))
    broken = dict(batch)
    wavs = batch[task].wavs.clone()
    wavs[0, 10] = math.nan
    broken[task] = type(batch[task])(**{**vars(batch[task]), "wavs": wavs})
    step(system, broken)
    assert trained(system, weights) == set()
    assert json.dumps(str(system.optimizer.state_dict())) == state
    assert system.guard.skipped_steps == 1 and system.optimizer_step == 2
    log = (tmp_path / "run" / "log.txt").read_text()
    assert batch[task].ids[0] in log and "Step 1 skipped" in log
    with pytest.raises(UserError, match="2 steps had gradients"):
        step(system, broken)
    step(system, batch)
    assert trained(system, weights)


@pytest.mark.fault(
    "A10",
    "pool_attentive.yaml and dwa.yaml: one batch, or one gradient, that is not finite",
    "the step is skipped with its buffers: running statistics and losses seen",
)
@pytest.mark.parametrize("variant", ["pool_attentive", "dwa"])
@pytest.mark.parametrize("where", ["samples", "gradient"])
def test_a_skipped_step_leaves_no_trace_in_the_buffers(make, variant, where):
    system = make(yaml=tiny.MTL.with_name(f"{variant}.yaml"), freeze_steps=0)
    batch = prepared(system)
    step(system, batch)
    buffers = dict(system.modules.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    assert len(before) >= 2
    wavs = batch["speaker"].wavs
    if where == "samples":
        whole = wavs.clone()
        wavs[0, 10] = math.nan
    else:
        hook = system.modules["speaker"].weight.register_hook(lambda g: g * math.inf)
    step(system, batch)
    assert system.guard.skipped_steps == 1
    assert all(torch.equal(buffers[name], before[name]) for name in before)
    if where == "samples":
        wavs.copy_(whole)
    else:
        hook.remove()
    step(system, batch)
    assert not any(torch.equal(buffers[name], before[name]) for name in before)
    assert all(torch.isfinite(buffer).all() for buffer in buffers.values())


@pytest.mark.fault(
    "A11",
    "out of memory in the first update after the thaw, in a validation",
    "out of memory at step 1 with the waveforms speech [",
)
@pytest.mark.parametrize("where", ["update", "validation", "collecting"])
def test_out_of_memory_anywhere_is_one_line(make, where, monkeypatch):
    system = make(freeze_steps=1)
    batch = prepared(system)
    step(system, batch)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    target = {
        "update": (system.optimizer, "step"),
        "validation": (system, "compute_forward"),
        "collecting": (system.tasks["speech"], "update"),
    }[where]
    monkeypatch.setattr(*target, full)
    with pytest.raises(UserError, match=r"^out of memory at step 1 .*speech \["):
        if where == "update":
            step(system, batch)
        else:
            system.evaluate_batch({"speech": batch["speech"]}, sb.Stage.VALID)


def test_clipping_is_off_by_default_and_covers_all_parameters(make):
    norms = {}
    for clip in (None, 0.0, 1e-4):
        options = [] if clip is None else [f"--max_grad_norm={clip}"]
        system = make(f"clip{clip}", freeze_steps=0, options=options)
        batch = prepared(system)

        def record(*_, system=system, clip=clip):
            gradients = [p.grad for p in system.parameters if p.grad is not None]
            norms[clip] = torch.nn.utils.get_total_norm(gradients)

        system.optimizer.register_step_pre_hook(record)
        step(system, batch)
    assert norms[None] == norms[0.0] > 0.01
    assert float(norms[1e-4]) == pytest.approx(1e-4, rel=0.01)


def test_learning_rate_follows_the_schedule(make):
    system = make(steps=10, valid_interval=5)
    rows = [r for r in tiny.fit(system) if r["stage"] == "train"]
    schedule = system.hparams.schedule
    assert [r["lr"] for r in rows] == pytest.approx([schedule(i) for i in range(10)])


def test_best_and_last_checkpoint_are_kept(make):
    system = make(steps=9, valid_interval=3)
    rows = [r for r in tiny.fit(system) if r["stage"] == "valid"]
    assert len(rows) == 3
    for row in rows:
        assert row["score"] == pytest.approx(row["wer"] / 4 + row["eer"])
    best = system.checkpointer.find_checkpoint(min_key="score")
    last = system.checkpointer.find_checkpoint()
    assert best.meta["score"] == min(row["score"] for row in rows)
    assert last.meta["step"] == 9
    assert len(system.checkpointer.list_checkpoints()) <= 2


@pytest.mark.parametrize(
    "crash_at, accumulation",
    # More of them by real kills: tests/recipes/test_kill_resume.py.
    [(2, 1), (5, 2), *(pytest.param(n, 1, marks=pytest.mark.slow) for n in (1, 3, 6))],
)
def test_a_resumed_run_equals_an_uninterrupted_one(make, crash_at, accumulation):
    """Bit for bit: utterances, weights, learning rate, losses, parameters."""
    settings = {"steps": 8, "valid_interval": 3, "hidden_dropout": 0.1}
    accumulate = f"--grad_accumulation_factor={accumulation}"
    whole = make("whole", options=[accumulate], **settings)
    rows = [r for r in tiny.fit(whole) if r["stage"] == "train"]

    class Crash(Exception):
        pass

    options = [accumulate, "--ckpt_interval_steps=1"]
    first = make("resumed", options=options, **settings)

    def crash(*_):
        if first.optimizer_step == crash_at:
            raise Crash

    save = first._save_intra_epoch_ckpt
    first._save_intra_epoch_ckpt = lambda: (save(), crash())
    with pytest.raises(Crash):
        tiny.fit(first)
    second = make("resumed", options=options, **settings)
    resumed = [r for r in tiny.fit(second) if r["stage"] == "train"]
    speeds = ("steps_per_second", "audio_per_second")
    for expected, found in zip(rows, resumed, strict=True):
        assert {k: v for k, v in found.items() if k not in speeds} == {
            k: v for k, v in expected.items() if k not in speeds
        }
    ours, theirs = tiny.parameters(second), tiny.parameters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_accumulation_takes_the_same_number_of_optimizer_steps(make):
    system = make(options=["--grad_accumulation_factor=2"], steps=4, valid_interval=2)
    rows = tiny.fit(system)
    assert system.optimizer_step == 4
    assert [r["step"] for r in rows if r["stage"] == "train"] == [1, 2, 3, 4]
    stream = system.checkpointer.recoverables["train_stream"]
    assert stream.total_steps == 8


STATIC = tiny.MTL.with_name("static_0.88_9s.yaml")


@pytest.mark.fault(
    "A5",
    "a factor of 2 or 5 that does not divide the batch",
    "the update and the logged losses of one batch",
)
@pytest.mark.parametrize("factor", [2, 5])
def test_an_accumulated_step_is_that_of_one_batch(make, factor):
    """Parts of different sizes: a mean of their means would be wrong."""
    settings = {"yaml": STATIC, "freeze_steps": 1, "steps": 3, "valid_interval": 3}
    budget = 250_000  # 12 utterances, 39 crops
    whole = make("whole", max_batch_samples=budget, **settings)
    expected = [r for r in tiny.fit(whole) if r["stage"] == "train"]
    options = [f"--grad_accumulation_factor={factor}"]
    parts = make(
        "parts", options=options, max_batch_samples=budget // factor, **settings
    )
    sizes, fit_batch = [], parts.fit_batch

    def record(batches):
        sizes.append(len(batches["speaker"]))
        return fit_batch(batches)

    parts.fit_batch = record
    found = [r for r in tiny.fit(parts) if r["stage"] == "train"]
    assert len(sizes) == 3 * factor and len(set(sizes)) > 1
    names = ("speech_loss", "speaker_loss", "speech_weight", "lr")
    for ours, theirs in zip(found, expected, strict=True):
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    ours, theirs = tiny.flat(parts), tiny.flat(whole)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.fault(
    "A8",
    "after 3 steps half of max_batch_samples, factor 2, --allow_changes",
    "every update has both of its parts, and no part is left over",
)
def test_a_resumed_run_may_divide_its_steps(make):
    settings = {"yaml": STATIC, "steps": 8, "valid_interval": 5}
    whole = make("whole", **settings)
    expected = [r for r in tiny.fit(whole) if r["stage"] == "train"]
    options = ["--optimizer_step_limit=3", "--ckpt_interval_steps=1"]
    # A limit ends in a validation, a signal between two of them.
    first = make(options=options, **settings)
    first._save_checkpoint = lambda metrics: None
    tiny.fit(first)
    assert [c.meta["step"] for c in first.checkpointer.list_checkpoints()] == [3]
    options = ["--grad_accumulation_factor=2", "--allow_changes"]
    second = make(options=options, max_batch_samples=32_000, **settings)
    calls, fit_batch = [], second.fit_batch

    def record(batches):
        loss = fit_batch(batches)
        calls.append((second.optimizer_step, batches["speech"].share))
        return loss

    second.fit_batch = record
    found = [r for r in tiny.fit(second) if r["stage"] == "train"]
    # The number of updates after each part, from the fourth on.
    assert [c[0] for c in calls] == [3, 4, 4, 5, 5, 6, 6, 7, 7, 8]
    for (_, share), (_, other) in zip(calls[::2], calls[1::2], strict=True):
        assert share + other == pytest.approx(1)
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("speech_loss", "speaker_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


def test_checkpoints_by_steps_count_optimizer_steps(make):
    options = ["--grad_accumulation_factor=2", "--ckpt_interval_steps=2"]
    system = make(options=options, steps=6, valid_interval=6)
    saved = []
    system._save_intra_epoch_ckpt = lambda: saved.append(system.optimizer_step)
    tiny.fit(system)
    assert saved == [2, 4, 6]


def test_a_shared_batch_is_encoded_once(make):
    """Joint training: the same batch under both tasks, one encoder pass."""
    system = make(freeze_steps=0)
    batch = prepared(system)
    joint = batch["speech"]
    joint.labels["speaker"] = torch.zeros(len(joint), dtype=torch.long)
    calls = []
    handle = system.modules.encoder.register_forward_hook(lambda *_: calls.append(1))
    system.compute_forward({"speech": joint, "speaker": joint}, sb.Stage.TRAIN)
    handle.remove()
    assert len(calls) == 1


def test_wrong_number_of_speakers_is_named(make):
    with pytest.raises(UserError, match="--speaker.n_speakers=5"):
        make(n_speakers=7).prepare_training()


def test_bf16_trains_with_float32_losses(make):
    system = make(freeze_steps=0, options=["--precision=bf16"])
    batch = prepared(system)
    step(system, batch)
    assert system.step_values["speech_loss"].dtype == torch.float32
    assert all(math.isfinite(float(v)) for v in system.step_values.values())


def test_early_stopping_ends_the_run(make):
    system = make(steps=30, valid_interval=3, patience_steps=3, lr=1e-12)
    rows = tiny.fit(system)
    assert system.optimizer_step == 6
    assert len([r for r in rows if r["stage"] == "valid"]) == 2
    assert system.ending.kind == "patience"
    told = "6 of 30 steps, stopped: .* has not improved for 3 steps"
    assert re.fullmatch(told, str(system.ending))


@pytest.mark.fault(
    "B2",
    "--optimizer_step_limit=2 before a fresh head is within max_valid_loss",
    "2 of 3 steps: --optimizer_step_limit; the same command without it goes on",
)
def test_a_limit_of_steps_is_not_the_end_of_a_run(make):
    settings = {"steps": 3, "valid_interval": 3, "max_valid_loss": 0.01}
    first = make(options=["--optimizer_step_limit=2"], **settings)
    tiny.fit(first)
    assert first.hparams.stopping.reason is None
    assert (first.ending.kind, first.ending.steps) == ("step limit", 2)
    assert str(first.ending).startswith("2 of 3 steps: --optimizer_step_limit;")
    for _ in range(2):
        second = make(**settings)
        tiny.fit(second)
        assert second.ending == Ending("complete", 3, 3)


def test_debug_mode_runs(make):
    system = make(options=["--debug"], valid_interval=4)
    tiny.fit(system)
    assert system.optimizer_step == 4 and system.ending.kind == "debug"


@pytest.mark.fault(
    "F14",
    "infinite gradients and a NaN loss under a loss scale",
    "no step is taken; the NaN is counted, the overflow lowers the scale",
)
def test_a_broken_batch_counts_under_a_loss_scale_too(make):
    """fp16: an overflow lowers the scale; a loss that is not finite is skipped."""
    system = make(freeze_steps=0, nonfinite_patience=1)
    batch = prepared(system)
    system.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    weights = tiny.parameters(system)
    weight = system.modules["speaker"].weight
    handle = weight.register_hook(lambda grad: torch.full_like(grad, math.inf))
    step(system, batch)
    handle.remove()
    assert trained(system, weights) == set()
    assert (system.guard.skipped_steps, system.scaler.get_scale()) == (0, 2.0**9)
    batch["speech"].wavs[0, 10] = math.nan
    step(system, batch)
    assert trained(system, weights) == set() and system.guard.skipped_steps == 1
    with pytest.raises(UserError, match="not finite"):
        step(system, batch)
