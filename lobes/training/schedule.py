"""Learning rate as a function of the optimizer step."""

from dataclasses import dataclass


@dataclass(eq=False)
class TriStage:
    """Linear warm-up, constant, exponential decay (paper section 4.2).

    A run has N steps; step 0 is the first update. Over the first ``warmup`` N steps
    the rate rises linearly from ``initial_lr`` to the peak ``lr``. It stays there to
    step ``(warmup + hold)`` N. Then it falls exponentially: step N would come one step
    before ``final_lr``. A smaller ``lr`` lowers both ends to itself, so that the rate
    never falls while it should rise.

    Arguments:
        lr: Peak.
        steps: Optimizer steps N of the whole run.
        initial_lr, final_lr: Rates at both ends.
        relative_ends: Whether these two are shares of ``lr`` (as the follow-up's LR /
            100 at the start and LR / 20 at the end) or absolute rates.
        warmup, hold: Shares of N; the rest decays.

    Example:
        >>> schedule = TriStage(lr=5.62e-5, steps=100_000)
        >>> [f"{schedule(i):.4e}" for i in (0, 5_000, 50_000, 75_000)]
        ['5.0000e-06', '3.0603e-05', '5.6200e-05', '1.6764e-05']
    """

    lr: float
    steps: int
    initial_lr: float = 5e-6
    final_lr: float = 5e-6
    warmup: float = 0.1
    hold: float = 0.4
    relative_ends: bool = False

    def __post_init__(self):
        unit = self.lr if self.relative_ends else 1.0
        self.initial_lr = min(unit * self.initial_lr, self.lr)
        self.final_lr = min(unit * self.final_lr, self.lr)
        self.warmup_end = round(self.warmup * self.steps)
        self.hold_end = round((self.warmup + self.hold) * self.steps)

    def __call__(self, step: int) -> float:
        """Learning rate of the update number ``step``, counted from 0."""
        if step < self.warmup_end - 1:
            rise = step / (self.warmup_end - 1)
            return self.initial_lr + (self.lr - self.initial_lr) * rise
        if step <= self.hold_end:
            return self.lr
        fall = (step - self.hold_end) / (self.steps - self.hold_end + 1)
        return self.lr * (self.final_lr / self.lr) ** fall
