"""Several training processes that behave like one.

Modules are not wrapped in DistributedDataParallel: it synchronises nothing that
was frozen when it was wrapped, and a step here runs the encoder more than once.
Instead the losses are made global before they are weighted, and the gradients
are averaged before the optimizer sees them.
"""

import atexit
import functools
import logging
import os
import random
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from speechbrain.utils.distributed import ddp_init_group
from speechbrain.utils.run_opts import RunOptions

from lobes.errors import UserError

logger = logging.getLogger(__name__)

#: Gradients of fewer elements are exchanged together.
SMALL = 2**18

#: The group that exchanges what lies on the host; None is the default one, then gloo.
_host_group = None

#: What torchrun tells its processes: first what they are.
LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: SpeechBrain's for the default group: as long as a preparation may take.
TIMEOUT = timedelta(hours=2)


def join_processes(run_opts: RunOptions) -> None:
    """Join torchrun's process group, if there is one, and leave it at exit.

    A process that ends while its group stands can abort the others' last exchange.
    Raises ``UserError`` for a device that all processes would share, for more
    processes than GPUs, and for what only a part of torchrun's environment is.
    """
    global _host_group
    _check_launch(run_opts)
    try:
        ddp_init_group(run_opts)
    except (ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the processes cannot join each other ({lines[0]}); start them with "
            "torchrun --standalone, and with --distributed_backend=nccl or gloo"
        ) from error
    if dist.is_available() and dist.is_initialized():
        atexit.register(dist.destroy_process_group)
        if dist.get_backend() != "gloo":
            # nccl exchanges what lies on a GPU only, and reading it back from there
            # would wait for all that the GPU has to do.
            _host_group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    if rank_and_world_size()[1] > 1 and dict(run_opts).get("device") == "cuda":
        raise UserError(
            "--device=cuda is the first GPU in every process; leave --device out, and "
            "torchrun gives each its own"
        )


def _check_launch(run_opts):
    """Refuse a start that no group of processes can come of."""
    given = {name: os.environ[name] for name in LAUNCH if os.environ.get(name)}
    ranks = {name: given[name] for name in LAUNCH[:3] if name in given}
    if not ranks or ranks == {"WORLD_SIZE": "1"}:
        return
    missing = [name for name in LAUNCH if name not in given]
    odd = [name for name, text in ranks.items() if not text.isdecimal()]
    problem = ", ".join(missing) or ", ".join(odd)
    if problem:
        kind = "without" if missing else "which is no number:"
        raise UserError(
            f"{', '.join(f'{n}={v}' for n, v in ranks.items())} in the environment, "
            f"{kind} {problem}: start several processes with torchrun, or one after "
            f"unset {' '.join(ranks)}"
        )
    here = os.environ.get("LOCAL_WORLD_SIZE", ranks["WORLD_SIZE"])
    count, gpus = int(here), torch.cuda.device_count()
    options = dict(run_opts)
    on_gpus = options["distributed_backend"] != "gloo" or gpus
    if options.get("device") != "cpu" and on_gpus and count > gpus:
        fewer = f"--nproc_per_node={gpus}, or " if gpus else ""
        raise UserError(
            f"{count} processes, {gpus or 'no'} GPU{'s' if gpus > 1 else ''}: "
            f"{fewer}--distributed_backend=gloo --device=cpu"
        )


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without torchrun."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@functools.cache
def warn_once(text):
    """Log a warning in the first process, however many processes or sets say it."""
    if rank_and_world_size()[0] == 0:
        logger.warning("%s", text)


def gather(items: dict) -> dict:
    """Union of every process's dict, on every process."""
    if rank_and_world_size()[1] == 1:
        return items
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items, group=_host_group)
    return {key: value for part in parts for key, value in part.items()}


def of_first_process(decision: bool) -> bool:
    """The decision (bool) of rank 0, on every process."""
    if rank_and_world_size()[1] == 1:
        return decision
    shared = torch.tensor(decision)
    dist.broadcast(shared, src=0, group=_host_group)
    return bool(shared)


def spread_random_state() -> None:
    """Give every rank above 0 random generators of its own, from its present ones.

    Otherwise all ranks would drop the same units and mask the same frames.
    """
    rank, _ = rank_and_world_size()
    if rank:
        seed = int(torch.randint(2**31, ())) + rank
        torch.manual_seed(seed)  # of all devices
        np.random.seed(seed % 2**32)
        random.seed(seed)


def broadcast_parameters(module: torch.nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    if rank_and_world_size()[1] > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def global_losses(
    losses: dict[str, torch.Tensor], counts: dict[str, int]
) -> dict[str, torch.Tensor]:
    """Mean losses over the utterances of all processes.

    Arguments:
        losses: Task name to this process's mean loss (scalar with gradient).
        counts: Task name to the number of utterances in that mean.

    Returns:
        Losses with the value of the global mean; the gradients of all processes,
        averaged, are the gradient of that mean.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return losses
    tasks = list(losses)
    values = torch.stack([losses[task].detach().double() for task in tasks])
    local = torch.tensor([counts[task] for task in tasks], dtype=values.dtype)
    local = local.to(values.device, non_blocking=True)
    sums = torch.stack([values * local, local])
    dist.all_reduce(sums)
    means, shares = sums[0] / sums[1], local * world_size / sums[1]
    result = {}
    for task, mean, share in zip(tasks, means, shares, strict=True):
        scaled = losses[task] * share.to(losses[task].dtype)
        result[task] = scaled + (mean.to(scaled.dtype) - scaled).detach()
    return result


class _Summed(torch.autograd.Function):
    """A sum over all processes whose gradient is summed over them, too."""

    @staticmethod
    def forward(ctx, tensor):
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of every process's tensor, on every process; gradients pass through.

    All processes must call it the same number of times, and go back through it.
    """
    return tensor if rank_and_world_size()[1] == 1 else _Summed.apply(tensor)


def average_gradients(
    parameters: Sequence[torch.nn.Parameter], request: int = 0
) -> int:
    """Average the gradients over all processes.

    A parameter without a gradient here but with one elsewhere (LayerDrop leaves
    out other layers on other ranks) counts as a gradient of zeros. Returns the
    largest ``request`` (0 to 255) of all processes, so that they stop at the same
    step.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return request
    present = [p.grad is not None for p in parameters]
    present = torch.tensor([*present, request], dtype=torch.uint8)
    dist.all_reduce(present, op=dist.ReduceOp.MAX, group=_host_group)
    *flags, request = present.tolist()
    used = [p for p, flag in zip(parameters, flags, strict=True) if flag]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    # Large ones where they are, copied nowhere; the many small ones in one exchange.
    gradients = [parameter.grad for parameter in used]
    small = [gradient for gradient in gradients if gradient.numel() < SMALL]
    whole = [gradient for gradient in gradients if gradient.numel() >= SMALL]
    if small:
        whole.append(torch.cat([gradient.flatten() for gradient in small]))
    exchanges = [dist.all_reduce(gradient, async_op=True) for gradient in whole]
    for exchange in exchanges:
        exchange.wait()
    if whole:
        torch._foreach_div_(whole, world_size)
    if small:
        pieces = whole[-1].split([gradient.numel() for gradient in small])
        for gradient, piece in zip(small, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))
    return request
