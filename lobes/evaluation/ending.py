"""How a training ended, in one word and in one line."""

from dataclasses import dataclass

#: The kinds of an ending.
COMPLETE, PATIENCE, DIVERGED = "complete", "patience", "diverged"
STEP_LIMIT, DEBUG = "step limit", "debug"


@dataclass(frozen=True)
class Ending:
    """How a training ended.

    Attributes:
        kind: ``complete``: all steps were taken; ``patience``: a metric stalled;
            ``diverged``; ``step limit``: ``--optimizer_step_limit`` was reached;
            ``debug``: SpeechBrain's debug mode takes a few batches only.
        steps, planned: Optimizer steps that were taken, and those that the run should
            have had.
        reason: What the early stopping said, in one line.
    """

    kind: str
    steps: int
    planned: int
    reason: str | None = None

    def __str__(self):
        text = f"{self.steps:,} of {self.planned:,} steps"
        if self.kind == STEP_LIMIT:
            return f"{text}: --optimizer_step_limit; the command without it continues"
        if self.kind in (PATIENCE, DIVERGED):
            return f"{text}, stopped: {self.reason}"
        return text
