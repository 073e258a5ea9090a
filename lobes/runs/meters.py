"""Operations and bytes of tensors on torch's meta device, for ``lobes.runs.cost``."""

import weakref

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class AsOnCUDA(TorchFunctionMode):
    """Lets the meta device take CUDA's kernels, and its autocast to ``low``."""

    low = None
    lowered = {functional.linear, functional.conv1d}
    raised = {functional.layer_norm, functional.group_norm}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        if function is functional.dropout and kwargs["training"] and kwargs["p"] > 0:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]
        if self.low is not None and function in self.lowered | self.raised:
            dtype = self.low if function in self.lowered else torch.float32
            args, kwargs = tree_map_only(
                torch.Tensor, lambda tensor: tensor.to(dtype), (args, kwargs)
            )
        return function(*args, **kwargs)


class Allocations(TorchDispatchMode):
    """Counts the bytes alive of tensors made under it; ``peak`` is the most."""

    live = peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for storage in _storages((args, kwargs)):
            storage.known = True  # It was there before.
        made = function(*args, **(kwargs or {}))
        for storage in _storages(made):
            if not getattr(storage, "known", False):
                storage.known = True
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return made

    def _add(self, size):
        self.live += size
        self.peak = max(self.peak, self.live)


def _storages(tree):
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if tensor.is_meta]


def convolution_backward(gradient, inputs, weight, *args, **_):
    """Operations of a convolution's gradients, by shapes; torch forgets the groups."""
    return 2 * gradient.numel() * weight[1:].numel() * sum(args[-1][:2])
