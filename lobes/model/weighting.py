"""Weights of the task losses.

A weighting is an ``nn.Module``. ``weighting(losses, step)`` takes the losses by task
(scalars with gradient) and the optimizer step; it returns their total and the weights
by task. A fixed rule detaches its weights. A learnt one may own parameters: they join
the optimizer. With one task the total is its loss.
"""

from collections.abc import Sequence

import torch
from torch import nn

from lobes.errors import UserError

#: Losses, or weights, by task.
Scalars = dict[str, torch.Tensor]


class StaticWeighting(nn.Module):
    """Constant weights (paper eq. 4: lambda and 1 - lambda).

    Arguments:
        weights: Weight of each task.

    Example:
        >>> weighting = StaticWeighting({"speech": 0.88, "speaker": 0.12})
        >>> losses = {"speech": torch.tensor(1.0), "speaker": torch.tensor(2.0)}
        >>> weighting(losses, step=0)[0]
        tensor(1.1200)
    """

    def __init__(self, weights: dict[str, float]):
        super().__init__()
        self.weights = dict(weights)

    def forward(self, losses: Scalars, step: int) -> tuple[torch.Tensor, Scalars]:
        """See the module's docstring. Raises ``UserError`` for an unknown task."""
        missing = set(losses) - set(self.weights)
        if missing:
            raise UserError(
                f"weighting: no weight for the task {', '.join(sorted(missing))}; "
                f"it has {', '.join(self.weights)}"
            )
        return weighted_sum(
            losses,
            # A kernel writes this tensor; the host would wait for a copy.
            {t: torch.full_like(loss, self.weights[t]) for t, loss in losses.items()},
        )


class DynamicWeighting(nn.Module):
    """Scale every loss to the smallest, or the largest, one (paper eqs. 6 and 7).

    lambda_p = min(L) / L_p, detached: the weighted losses are equal and one of
    the weights is 1. A loss of exactly 0 has weight 1.

    Arguments:
        reference: ``min``, or ``max`` for lambda_p = max(L) / L_p.

    Example:
        >>> losses = {"speech": torch.tensor(0.43), "speaker": torch.tensor(3.14)}
        >>> DynamicWeighting()(losses, step=0)[1]["speaker"]
        tensor(0.1369)
    """

    def __init__(self, reference: str = "min"):
        super().__init__()
        if reference not in ("min", "max"):
            raise UserError(f"weighting: reference is {reference!r}; it is min or max")
        self.reference = reference

    def forward(self, losses: Scalars, step: int) -> tuple[torch.Tensor, Scalars]:
        """See the module's docstring."""
        values = torch.stack([loss.detach() for loss in losses.values()])
        level = values.min() if self.reference == "min" else values.max()
        weights = torch.where(values > 0, level / values, torch.ones_like(values))
        return weighted_sum(losses, dict(zip(losses, weights, strict=True)))


class DynamicWeightAverage(nn.Module):
    """Weight a task by how slowly its loss falls (DWA).

    r_p is the mean of the newer half of task p's last losses over the mean of their
    older half; the weights are ``scale`` x softmax(r / ``temperature``). r_p is 1
    until there are two losses. Of an odd number of losses the newer half has one more.
    Checkpoints hold the losses seen. Losses that are not finite are not remembered.

    Arguments:
        temperature: A large one gives equal weights.
        scale: Sum of the weights.
        window: Losses remembered of each task.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        temperature: float = 2.0,
        scale: float = 1.0,
        window: int = 10,
    ):
        super().__init__()
        if temperature <= 0 or window < 2:
            raise UserError(
                f"weighting: temperature is {temperature} and window {window}; give a "
                "temperature above 0 and a window of at least 2"
            )
        self.tasks = list(tasks)
        self.temperature = temperature
        self.scale = scale
        self.register_buffer("history", torch.zeros(len(self.tasks), window))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Scalars, step: int) -> tuple[torch.Tensor, Scalars]:
        """See the module's docstring. Raises ``UserError`` for other tasks."""
        if set(losses) != set(self.tasks):
            raise UserError(
                f"weighting: it remembers the losses of {', '.join(self.tasks)}, the "
                f"batch has {', '.join(losses)}; correct its tasks"
            )
        # All of this stays on the device: nothing waits for it.
        window = self.history.shape[1]
        first = window - self.count
        middle = first + self.count // 2
        place = torch.arange(window, device=self.history.device)
        older = _mean_where(self.history, (place >= first) & (place < middle))
        newer = _mean_where(self.history, place >= middle)
        ratio = torch.where((self.count >= 2) & (older > 0), newer / older, 1.0)
        weights = self.scale * torch.softmax(ratio / self.temperature, dim=0)
        values = torch.stack([losses[task].detach().float() for task in self.tasks])
        finite = torch.isfinite(values).all()
        longer = torch.cat([self.history[:, 1:], values[:, None]], dim=1)
        self.history.copy_(torch.where(finite, longer, self.history))
        self.count.copy_((self.count + finite).clamp(max=window))
        return weighted_sum(losses, dict(zip(self.tasks, weights, strict=True)))


def _mean_where(values, chosen):
    """Mean over the chosen places of [task, place]; 0 if none is chosen."""
    return (values * chosen).sum(1) / chosen.sum().clamp(min=1)


def weighted_sum(losses: Scalars, weights: Scalars) -> tuple[torch.Tensor, Scalars]:
    """Total of the weighted losses, and the weights; a single task has weight 1."""
    if len(losses) == 1:
        weights = {t: torch.ones_like(loss).detach() for t, loss in losses.items()}
    return sum(weights[task] * loss for task, loss in losses.items()), weights
