"""What the validations decide: which checkpoint is best, and when training ends."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from speechbrain.utils import checkpoints
from speechbrain.utils.epoch_loop import EpochCounter

from lobes.errors import DivergedError, UserError
from lobes.evaluation.ending import DIVERGED, PATIENCE


@checkpoints.register_checkpoint_hooks
@dataclass(eq=False)
class EarlyStopping:
    """Stop when any watched metric stalls, or when one rises above its limit.

    Paper section 4.2: stop when either WER or EER has not decreased for 20 k
    steps; the published runs also stop when the dev CTC loss exceeds 10.

    A limit counts from the first validation within it. A run on slow speech may start
    above it: 32 equal outputs cost 9 nats a letter at LibriSpeech's rate of speech, but
    17 at 8 letters a second. A value that is not finite is beyond any limit.

    Arguments:
        patience_steps: Optimizer steps without an improvement of one metric; None or 0
            never stops.
        metrics: Watched metrics, lower is better; those of an absent task are ignored.
        limits: By metric the value above which a run has diverged, once it was within
            it.

    Attributes:
        kind, reason (str or None): ``PATIENCE`` or ``DIVERGED`` once the run shall
            stop, and the same in words.
    """

    patience_steps: int | None = 20_000
    metrics: Sequence[str] = ("wer", "eer")
    limits: dict[str, float] | None = None

    def __post_init__(self):
        self.limits = self.limits or {}
        self.best = {}
        self.within = set()
        self.last = self.kind = self.reason = None

    def anew(self) -> "EarlyStopping":
        """The same rules for another run's validations."""
        return replace(self)

    def update(self, step: int, metrics: dict[str, float]) -> str | None:
        """Judge the metrics of one validation; sets and returns ``reason``."""
        known = {*self.limits, *self.metrics}
        self.last = [step, {n: float(v) for n, v in metrics.items() if n in known}]
        self.reason = self._judge()
        return self.reason

    def _judge(self):
        """The reason to stop after the last validation, or None; sets ``kind``."""
        step, metrics = self.last
        self.kind = reason = None
        limits = {n: limit for n, limit in self.limits.items() if n in metrics}
        for name, limit in limits.items():
            if metrics[name] <= limit:
                self.within.add(name)
            elif name in self.within:
                reason = f"diverged: {name} is {metrics[name]:.2f}, above {limit}"
            elif not math.isfinite(metrics[name]):
                reason = f"diverged: {name} is {metrics[name]}"
        if reason is not None:
            self.kind = DIVERGED
        for name in filter(metrics.__contains__, self.metrics):
            if name not in self.best or metrics[name] < self.best[name][1]:
                self.best[name] = [step, metrics[name]]
            since = step - self.best[name][0]
            stalled = self.patience_steps and since >= self.patience_steps
            if stalled and reason is None:
                self.kind = PATIENCE
                reason = f"{name} has not improved for {since} steps"
        return reason

    @checkpoints.mark_as_saver
    def save(self, path) -> None:
        """Write the best and the last values to ``path``."""
        state = {"best": self.best, "last": self.last, "within": [*self.within]}
        Path(path).write_text(json.dumps(state), encoding="utf-8")

    @checkpoints.mark_as_loader
    def load(self, path, end_of_epoch) -> None:
        """Restore what ``save`` wrote, and judge it by the patience of this run."""
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        self.best, self.last = state["best"], state["last"]
        # Older checkpoints do not have it.
        self.within = set(state.get("within", ()))
        self.kind = None
        self.reason = None if self.last is None else self._judge()


class Epochs(EpochCounter):
    """Count nominal epochs (validation intervals) until the steps are done.

    Arguments:
        steps: Optimizer steps of the run.
        valid_interval: Optimizer steps of one nominal epoch.
        stopping: Its ``reason`` also ends the count.

    Raises ``UserError`` when either number is below 1.
    """

    def __init__(self, steps: int, valid_interval: int, stopping: EarlyStopping):
        if min(steps, valid_interval) < 1:
            raise UserError(
                f"steps is {steps} and valid_interval {valid_interval}; both must be "
                "at least 1"
            )
        super().__init__(limit=math.ceil(steps / valid_interval))
        self.stopping = stopping

    def __next__(self):
        if self.stopping.reason is not None:
            raise StopIteration
        return super().__next__()


def selection_score(metrics: dict[str, float], selection: dict[str, float]) -> float:
    """Weighted sum of the selecting metrics; an absent task contributes 0.

    Paper section 4.2: WER / 4 + EER. Raises ``DivergedError`` when a metric is not
    finite: such a checkpoint must never be the best one.
    """
    score = 0.0
    for name, weight in selection.items():
        value = metrics.get(name, 0.0)
        if not math.isfinite(value):
            raise DivergedError(
                f"the validation {name} is {value}; the run has diverged: lower --lr"
            )
        score += weight * value
    return score
