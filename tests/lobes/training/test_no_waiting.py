"""Nothing of ours in a training step waits for the device that it runs on.

Torch's meta device stands in for the accelerator. It has shapes and no numbers:
whatever asks for one fails, and a copy that the host would wait for is seen. torch's
own CTC loss, which waits on a GPU, is left out.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lobes.runs.variants import load_variant
from tests.helpers import tiny
from tests.recipes.test_reference_step import kind

aten = torch.ops.aten

#: Variant, and what fits it to the tiny encoder and corpus.
VARIANTS = {
    "mtl": {},
    "mtl_3s": {},
    "static_0.88_9s": {},
    "dynamic_max": {},
    "dwa": {},
    "pool_first_cls": {},
    "pool_ctc_blank": {},
    "pool_ctc_nonblank": {},
    "pool_first": {},
    "pool_max": {},
    "pool_mean_std": {},
    "pool_attentive": {},
    "split_192": {"speaker_dims": 8},
    "branch_3": {"shared_layers": 1},
    "joint": {"n_speakers": 6},
    "small_corpus": {"n_speakers": 6},
    "regularised": {"mask_time_length": 2, "mask_feature_length": 4},
}


class Constants(TorchFunctionMode):
    """Numbers of the host that are made tensors of the device: it waits for these."""

    functions = torch.tensor, torch.as_tensor, torch.Tensor.new_tensor

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in self.functions and result.is_meta:
            source = args[function is torch.Tensor.new_tensor]
            if not (torch.is_tensor(source) and source.is_meta):
                self.made.append(function)
        return result


class Device(TorchDispatchMode):
    """Watches what the meta device is asked for, and does what it cannot.

    ``waits`` holds the operations that the host would have waited for, ``updates``
    one number for each change of the weights, that of the tensors changed.
    """

    def __init__(self):
        super().__init__()
        self.waits, self.updates = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)]
        there = [x for x in tensors if x.is_meta]
        if function is aten._ctc_loss.Tensor and there:
            logits, letters, frames = args[:3]
            states = logits.new_empty(logits.shape[1], 1)
            return logits.new_empty(len(frames)), states
        if function is aten._ctc_loss_backward.Tensor and there:
            return torch.empty_like(args[1])
        adam = aten._fused_adam_.default, aten._fused_adamw_.default
        if function in adam and there:
            # One kernel, which looks at found_inf itself.
            assert kwargs["found_inf"].is_meta
            self.updates.append(len(args[0]))
            return None
        result = function(*args, **kwargs)
        arrived = [x for x in tree_leaves(result) if torch.is_tensor(x) and x.is_meta]
        if arrived and len(there) < len(tensors):
            asynchronous = kwargs.get("non_blocking", False)
            if function is aten.copy_.default:
                asynchronous = len(args) > 2 and args[2]
            if not asynchronous:
                self.waits.append(function)
        # A bool mask as an index: a GPU counts what it chooses, and the host asks.
        indexing = function.overloadpacket in (aten.index, aten.index_put_)
        if indexing and any(x is not None and x.dtype == torch.bool for x in args[1]):
            self.waits.append(function)
        return result


def on_the_device(system, monkeypatch):
    """Move a Brain that is ready to train; returns the mode that watches it."""
    # Not by its dotted name: torch.optim hides the module from its own attributes.
    module = sys.modules["torch.optim.optimizer"]
    devices = ["cpu", "cuda", "meta"]
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: devices)
    system.modules.to("meta")
    system.device = "meta"
    return Device()


def steps(system, device):
    """Three steps, in the first of which the encoder is frozen."""
    batches = iter(system.prepare_training())
    system.on_fit_start()
    system.modules.train()
    system.device_type = "cuda"
    with device, Constants() as constants:
        for _ in range(3):
            system.step += 1
            system.fit_batch(next(batches))
    assert len(device.updates) == 3
    assert not device.waits and not constants.made


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_step_waits(variant, tiny_corpus, tmp_path, monkeypatch):
    yaml = tiny.MTL.with_name(f"{variant}.yaml")
    changes = {"freeze_steps": 1, "log_interval": 50, **VARIANTS[variant]}
    system = tiny.brain(tiny_corpus, tmp_path, yaml, **changes)
    steps(system, on_the_device(system, monkeypatch))


def test_no_variant_is_left_out():
    trees = {p.stem: load_variant(p)[0] for p in tiny.MTL.parent.glob("*.yaml")}
    trees = {name: tree for name, tree in trees.items() if "pooling" in tree}
    here = {kind(trees[variant]) for variant in VARIANTS}
    assert [name for name, tree in trees.items() if kind(tree) not in here] == []


@pytest.mark.parametrize("indices", ["mask", "constant"])
def test_waiting_is_seen(indices):
    """What a step did before, and would fail the tests above for."""
    there, mask = torch.zeros(3, device="meta"), torch.ones(3, device="meta") > 0
    with Device() as device, Constants() as constants:
        if indices == "mask":
            there[mask] = torch.ones(3, device="meta")
        else:
            there.new_tensor(0.5)
            there + torch.ones(3).to("meta")
    assert len(device.waits) == 1 and len(constants.made) == (indices == "constant")


def test_no_step_of_several_processes_waits(tiny_corpus, tmp_path, monkeypatch):
    """What they exchange is another matter: test_distributed.py."""
    exchanged, host_group = [], object()

    def all_reduce(tensor, op=None, group=None, async_op=False):
        assert (group is host_group) == (not tensor.is_meta)
        exchanged.append((tensor.is_meta, async_op))
        return SimpleNamespace(wait=lambda: None)

    system = tiny.brain(tiny_corpus, tmp_path, freeze_steps=1, log_interval=50)
    device = on_the_device(system, monkeypatch)
    monkeypatch.setattr("lobes.system.distributed.rank_and_world_size", lambda: (0, 2))
    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    monkeypatch.setattr("torch.distributed.broadcast", lambda tensor, src: None)
    # Before the first step, each process looks at a part of the files.
    checked_stops = "lobes.data.utterances.checked_stops"
    monkeypatch.setattr(checked_stops, lambda _, table, __: table["stop"])
    monkeypatch.setattr("lobes.system.distributed._host_group", host_group)
    monkeypatch.setattr("lobes.system.distributed.SMALL", 1000)
    steps(system, device)
    # The losses; which gradients there are, on the host; large and small ones.
    assert {(True, False), (False, False), (True, True)} == set(exchanged)
