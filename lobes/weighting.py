"""Weights of the task losses.

A weighting is an ``nn.Module`` called as ``weighting(losses, step)`` with the
losses by task (scalars with gradient) and the optimizer step; it returns the
total and the weights by task. A fixed rule detaches its weights; a learnt one may
own parameters, which join the optimizer. With one task the total is its loss.
"""

import torch
from torch import nn

from lobes.errors import UserError


class StaticWeighting(nn.Module):
    """Constant weights (paper eq. 4: lambda and 1 - lambda).

    Arguments
    ---------
    weights : dict
        Weight of each task.

    Example
    -------
    >>> weighting = StaticWeighting({"speech": 0.88, "speaker": 0.12})
    >>> losses = {"speech": torch.tensor(1.0), "speaker": torch.tensor(2.0)}
    >>> weighting(losses, step=0)[0]
    tensor(1.1200)
    """

    def __init__(self, weights):
        super().__init__()
        self.weights = dict(weights)

    def forward(self, losses, step):
        """See the module's docstring. Raises ``UserError`` for an unknown task."""
        missing = set(losses) - set(self.weights)
        if missing:
            raise UserError(
                f"weighting: no weight for the task {', '.join(sorted(missing))}; "
                f"it has {', '.join(self.weights)}"
            )
        return weighted_sum(
            losses, {t: loss.new_tensor(self.weights[t]) for t, loss in losses.items()}
        )


class DynamicWeighting(nn.Module):
    """Scale every loss to the smallest one (paper eqs. 6 and 7).

    lambda_p = min(L) / L_p, detached: the weighted losses are equal and one of
    the weights is 1. A loss of exactly 0 has weight 1, as the smallest one.

    Example
    -------
    >>> losses = {"speech": torch.tensor(0.43), "speaker": torch.tensor(3.14)}
    >>> DynamicWeighting()(losses, step=0)[1]["speaker"]
    tensor(0.1369)
    """

    def forward(self, losses, step):
        """See the module's docstring."""
        values = torch.stack([loss.detach() for loss in losses.values()])
        smallest = values.min()
        weights = torch.where(values > 0, smallest / values, torch.ones_like(values))
        return weighted_sum(losses, dict(zip(losses, weights, strict=True)))


def weighted_sum(losses, weights):
    """Total of the losses under their weights, and the weights; one task counts 1."""
    if len(losses) == 1:
        weights = {t: torch.ones_like(loss).detach() for t, loss in losses.items()}
    return sum(weights[task] * loss for task, loss in losses.items()), weights
