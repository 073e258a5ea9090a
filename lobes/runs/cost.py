"""Estimate what a training costs, from its YAML alone: no data, weights or GPU needed.

One step of the YAML's own encoder and heads goes forward and back on torch's meta
device, where tensors have shapes but no values: its operations are counted, and the
bytes of its tensors from when they are made until they are freed.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from lobes.data.audio import SAMPLE_RATE
from lobes.model.source_check import check_source
from lobes.preparation.published import TRIALS
from lobes.runs.command_line import parse_arguments, resolve
from lobes.runs.variants import keys_of, load_variant, placeholders, value_of
from lobes.settings.checks import parse
from lobes.system.lazy import lazy

meters = lazy("lobes.runs.meters")
streams = lazy("lobes.data.streams")
torch = lazy("torch")
transformers = lazy("transformers")

#: Sustained TFLOP/s. The paper's GPU did 0.8 steps/s over its whole budget, and its
#: code takes 21.1 TFLOP a step (back through the CNN, forward twice); an H200 is
#: expected to do 13 steps/s of ours, 13.25 TFLOP on average, without compilation.
MACHINES = {"RTX 3090": 17.0, "H200": 172.0}

CARDS = (12, 24, 80)  # GB of GPU memory; a GB is 10^9 bytes
CONTEXT = 1e9  # bytes that CUDA and its libraries take for themselves
FRAGMENTATION = 1.1  # memory that the allocator holds over what it hands out
SCORE_BYTES = 90  # of a trial: 77 a line of scores, the rest for utterances' tables
UTTERANCE_SECONDS = 12.5  # of a speech batch; LibriSpeech's mean is 12.3 (section 4.1)
ACCUMULATIONS = (1, 2, 4, 8)  # 16 would leave no room for the longest utterance


class Estimate(TypedDict):
    """What a training costs."""

    parameters: int
    trained: int
    #: Operations of an optimizer step, of one with a frozen encoder, and of all steps.
    flops: int
    frozen_flops: int
    run_flops: int
    #: Bytes of a checkpoint, and of the test's files.
    checkpoint: int
    results: int
    #: Accumulation factor to bytes of GPU memory.
    needed: dict[int, float]
    #: GB of a card to the first factor that fits with its bytes, or None.
    cards: dict[int, tuple[int, float] | None]


def estimate(path: str | Path, overrides: Sequence[str] = ()) -> Estimate:
    """What the training of a YAML with these ``--key=value`` costs."""
    hparams = load(path, overrides)
    factor, steps = hparams["grad_accumulation_factor"], hparams["steps"]
    if factor > 1:  # The whole step as one batch, to see what it needs divided anew.
        samples = hparams["max_batch_samples"] * factor
        hparams = load(path, [*overrides, f"--max_batch_samples={samples}"])
    modules = torch.nn.ModuleList([hparams["encoder"], *hparams["tasks"].values()])
    sizes = [(p.numel(), p.requires_grad) for p in modules.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, grad in sizes if grad)
    state = 4 * total + 12 * trained  # Weights; gradients and Adam's two moments.
    flops, peak = trace(hparams)
    frozen_flops, _ = trace(hparams, frozen=True)
    frozen_steps = min(hparams["freeze_steps"], steps)
    counts = sorted({*ACCUMULATIONS, factor})
    needed = {n: FRAGMENTATION * (state + peak / n) + CONTEXT for n in counts}
    fits = {c: [n for n in needed.items() if n[1] <= c * 1e9] for c in CARDS}
    return {
        "parameters": total,
        "trained": trained,
        "flops": flops,
        "frozen_flops": frozen_flops,
        "run_flops": frozen_steps * frozen_flops + (steps - frozen_steps) * flops,
        "checkpoint": 4 * total + 8 * trained,
        "results": _test_files(hparams),
        "needed": needed,
        "cards": {card: fit[0] if fit else None for card, fit in fits.items()},
    }


def _test_files(hparams):
    """Bytes of the scores of the official trial lists that are tested."""
    paths = [
        path.name
        for sets in hparams["test_sets"].values()
        for one in sets.values()
        for path in getattr(one, "trial_paths", ())
    ]
    return SCORE_BYTES * sum(sum(TRIALS[name]) for name in paths if name in TRIALS)


def load(path: str | Path, overrides: Sequence[str] = ()) -> dict:
    """The hyper-parameters of a YAML, its modules on the meta device.

    Of another ``source`` than wav2vec2-base the configuration is read.
    """
    changes = check(path, overrides)
    source = source_of(path, overrides)
    if source == "facebook/wav2vec2-base":
        changes["encoder.source"] = None
    elif source is not None:
        source = check_source(source, weights=False)
        config = transformers.Wav2Vec2Config.from_pretrained(source).to_dict()
        changes |= {"encoder.source": None, "encoder.config": config}
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        changes["output_folder"] = folder
        return parse_arguments([str(path), *overrides], changes)[0]


def check(path: str | Path, overrides: Sequence[str] = ()) -> dict:
    """Raise ``UserError`` for a wrong option, before torch is imported.

    Returns the settings that an estimate changes: what is still to be given is filled.
    """
    given = _given(overrides)
    tree, _ = load_variant(path, given.get("base"))
    changes = dict.fromkeys(set(placeholders(tree)) - given.keys(), "unused")
    # Masks need values; LayerDrop would make a step smaller by chance.
    unwanted = ("mask_time_prob", "mask_feature_prob", "layerdrop")
    keys = {f"encoder.{key}" for key in unwanted} & set(keys_of(tree))
    changes |= dict.fromkeys(keys, 0.0)
    resolve([str(path), *overrides], {**changes, "output_folder": "unused"})
    return changes


def _given(overrides):
    """``--key=value`` words as a dict."""
    return dict(word[2:].partition("=")[::2] for word in overrides)


def source_of(path: str | Path, overrides: Sequence[str] = ()) -> str | None:
    """What the setting ``encoder.source`` of a YAML is, or None."""
    given = _given(overrides)
    if "encoder.source" in given:
        return parse("encoder.source", given["encoder.source"])
    return value_of(load_variant(path, given.get("base"))[0], "encoder.source")


def trace(hparams: dict, frozen: bool = False) -> tuple[int, int]:
    """Operations, and bytes at the worst moment, of one forward and backward pass."""
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    encoder, tasks = hparams["encoder"].train(), hparams["tasks"]
    encoder.freeze(frozen)
    for p in torch.nn.ModuleList([encoder, *tasks.values()]).parameters():
        p.grad = torch.empty_like(p) if p.requires_grad else None
    feeding = hparams["train_streams"]
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}
    on_cuda, memory, outputs = meters.AsOnCUDA(), meters.Allocations(), []
    on_cuda.low = low.get(hparams["precision"])
    counts = {torch.ops.aten.convolution_backward: meters.convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=counts) as flops, memory:
        for stream in {id(stream): stream for stream in feeding.values()}.values():
            fed = [tasks[name] for name in feeding if feeding[name] is stream]
            need = {view for task in fed for view in task.need}
            with on_cuda:
                frames = encoder(*_batch(stream), need)
            outputs += [task(frames) for task in fed]
        # In place of the losses, which cost next to nothing.
        sums = tuple(v.sum() for v in tree_leaves(outputs) if v.requires_grad)
        ones = tuple(map(torch.ones_like, sums))
        # Gradient checkpointing goes forward again on the way back, where
        # torch.autograd.backward would leave the mode.
        back = torch.autograd.Variable._execution_engine.run_backward
        if sums:
            with on_cuda:
                back(sums, ones, False, False, (), accumulate_grad=True)
    return flops.get_total_flops(), memory.peak


def _batch(stream):
    """Waveforms [batch, samples] without values, and lengths, as a stream gives."""
    if isinstance(stream, streams.RandomCrops):
        count, samples = stream.batch_size, stream.crop
    else:
        samples = round(UTTERANCE_SECONDS * SAMPLE_RATE)
        count = max(stream.max_batch_samples // samples, 1)
    lengths = torch.full((count,), samples)
    if not isinstance(stream, streams.RandomCrops):
        lengths[-1] -= samples // 50  # Padded batches take another way.
    return torch.empty(count, samples, device="meta"), lengths
