"""The guard that keeps gradients which are not finite out of the weights."""

import logging
from pathlib import Path
from typing import NamedTuple

import torch

from lobes.errors import DivergedError

logger = logging.getLogger(__name__)

#: Steps between two looks at the flags of an accelerator. The host waits for each
#: look; the weights are safe in between.
INTERVAL = 20


class NonFiniteGuard:
    """Skips the steps whose gradients are not finite, and counts them.

    A skipped step leaves weights, buffers and the optimizer's state as they were. The
    log names its losses and its utterances.

    Arguments:
        patience: Skipped steps that a run may have.
        folder: The run's output folder, for the error message.

    Attributes:
        skipped_steps (int): Those of the whole run, as far as their flags were read.
        buffers (list of torch.Tensor): The buffers that a forward pass may change.
    """

    def __init__(self, patience: int, folder: str | Path):
        self.patience = patience
        self.folder = folder
        self.skipped_steps = 0
        self.buffers = []
        self._buffers_before = []
        self._unread = []

    def remember_buffers(self) -> None:
        """Keep the buffers as they are before the first forward pass of a step."""
        self._buffers_before = [buffer.clone() for buffer in self.buffers]

    def update(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        norm: torch.Tensor,
        losses: dict[str, torch.Tensor],
        step: int,
        ids: dict[str, list[str]],
    ) -> None:
        """Take one step of the optimizer, unless ``norm`` is not finite.

        ``norm`` is that of all gradients, which are unscaled. The log may need the
        losses by name, the number of the ``step``, and its utterances by task.
        """
        skipped = ~torch.isfinite(norm)
        for buffer, before in zip(self.buffers, self._buffers_before, strict=True):
            buffer.copy_(torch.where(skipped, before, buffer))
        if optimizer.param_groups[0].get("fused") and not scaler.is_enabled():
            # The fused kernels read this flag themselves: the host does not wait.
            optimizer.found_inf = skipped.float()
            optimizer.step()
        elif not skipped:
            scaler.step(optimizer)
        elif _scale_was_too_high(scaler, losses):
            # The scaler takes no step and lowers its scale.
            scaler.step(optimizer)
            skipped = torch.zeros_like(skipped)
        scaler.update()
        self._unread.append(_Step(step, skipped, losses, ids))

    def count_if_due(self) -> None:
        """Count at once where that is free, else after every ``INTERVAL`` steps."""
        if self._unread[-1].skipped.is_cpu or len(self._unread) >= INTERVAL:
            self.count()

    def count(self) -> None:
        """Count and log the steps that were skipped since the last count.

        Raises ``DivergedError`` when there were more than ``patience`` in all.
        """
        steps, self._unread = self._unread, []
        flags = torch.stack([s.skipped for s in steps]).tolist() if steps else []
        for (step, _, losses, ids), skipped in zip(steps, flags, strict=True):
            if not skipped:
                continue
            self.skipped_steps += 1
            logger.warning(
                "Step %d skipped (%d so far): a gradient is not finite; losses %s; "
                "utterances %s",
                step,
                self.skipped_steps,
                {name: float(loss) for name, loss in losses.items()},
                ids,
            )
        if any(flags) and self.skipped_steps > self.patience:
            raise DivergedError(
                f"{self.skipped_steps} steps had gradients that are not finite (see "
                f"{self.folder}/log.txt for the utterances); lower --lr for a new "
                "run, or go on from the last checkpoint with a higher "
                "--nonfinite_patience"
            )


class _Step(NamedTuple):
    """A step whose flag the host has not read yet."""

    number: int
    skipped: torch.Tensor
    losses: dict
    ids: dict


def _scale_was_too_high(scaler, losses):
    """Whether a gradient overflowed in fp16 although the losses are finite."""
    finite = all(bool(torch.isfinite(loss)) for loss in losses.values())
    return finite and scaler.is_enabled() and scaler.get_scale() >= 1.0
