"""The log of a training: rows of numbers by optimizer step, and their means."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lobes.system.files import usable_rows, write_atomically
from lobes.system.lazy import lazy

pandas = lazy("pandas")
torch = lazy("torch")

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor


class ProgressLog:
    """Rows of numbers by optimizer step, in ``progress.jsonl`` and TensorBoard.

    Training rows hold means over an interval, validation rows the metrics. A
    resumed run drops the rows after its checkpoint, so that each step stands
    once.

    Arguments:
        folder: Where ``progress.jsonl`` lies; TensorBoard files go to ``tensorboard/``.
        tensorboard: Also write TensorBoard files (extra ``tensorboard``).
    """

    def __init__(self, folder: str | Path, tensorboard: bool = False):
        self.path = Path(folder) / "progress.jsonl"
        self.writer = None
        if tensorboard:
            # A recipe looks for the package when it starts: lobes.runs.experiment.
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(Path(folder) / "tensorboard")

    def rewind(self, step: int) -> None:
        """Forget the rows after ``step``."""
        rows = [row for row in self.rows() if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def add(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Append one row of plain numbers."""
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{stage}/{name}", value, step)
            self.writer.flush()

    def rows(self) -> list[dict]:
        """All rows, each with ``stage`` (train or valid), ``step``, and numbers.

        A line that a crash cut is left out, and counted in the log.
        """
        return usable_rows(self.path, "move it away", _problem_of)

    def tables(self) -> tuple["DataFrame", "DataFrame"]:
        """Training and validation rows; the column ``step`` is always there."""
        tables = {"train": [], "valid": []}
        for row in self.rows():
            if row["stage"] in tables:
                tables[row["stage"]].append(
                    {k: v for k, v in row.items() if k != "stage"}
                )
        return tuple(
            pandas.DataFrame(rows, columns=None if rows else ["step"])
            for rows in tables.values()
        )


def best_step(validation: "DataFrame") -> float | None:
    """Step of the lowest selection score; None where there is none."""
    if "score" not in validation or validation["score"].isna().all():
        return None
    return float(validation.loc[validation["score"].idxmin(), "step"])


def _problem_of(row):
    """Why a row of the log cannot be used, or None."""
    if type(row.get("step")) is not int or not isinstance(row.get("stage"), str):
        return "no row of a training (stage, a text, and step, a number, are needed)"
    numbers = {name: v for name, v in row.items() if name != "stage"}
    odd = [n for n, v in numbers.items() if type(v) not in (int, float, bool)]
    return f"{odd[0]} is no number" if odd else None


class StepAverages:
    """Means over steps; the values stay on the device until they are asked for."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self.values, self.steps, self.seconds_of_audio = [], 0, 0.0
        self.started = time.perf_counter()

    def add(
        self,
        values: "Mapping[str, float | Tensor]",
        seconds_of_audio: float,
        steps: int = 1,
    ) -> None:
        """Add one batch: scalars by name (tensors or numbers), optimizer steps."""
        self.values.append(values)
        self.steps += steps
        self.seconds_of_audio += seconds_of_audio

    def means(self) -> dict[str, float]:
        """Means by name, with the speed; one transfer per name."""
        names = dict.fromkeys(name for row in self.values for name in row)
        result = {}
        for name in names:
            # With gradient accumulation only some batches have a learning rate.
            column = [row[name] for row in self.values if name in row]
            column = [torch.as_tensor(value).float() for value in column]
            # Apple's devices have no float64: the host computes.
            result[name] = float(torch.stack(column).cpu().double().mean())
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        result["steps_per_second"] = self.steps / elapsed
        result["audio_per_second"] = self.seconds_of_audio / elapsed
        return result
