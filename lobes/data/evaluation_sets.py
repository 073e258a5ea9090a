"""Evaluation sets: every utterance of a CSV once, and the trials over them.

``open_sets`` opens those of validation and test together with the training streams.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from speechbrain.dataio.dataloader import LoopedLoader

from lobes.data.audio import SAMPLE_RATE
from lobes.data.labels import Label
from lobes.data.trials import Trials, read_trials, scorable_trials
from lobes.data.utterances import Batch, Utterances, pack
from lobes.errors import UserError
from lobes.system.terminal import progress_bar

if TYPE_CHECKING:
    from lobes.data.streams import TaskStream


@dataclass(eq=False)
class EvaluationSet:
    """Every utterance of a CSV once, whole or its first seconds.

    Arguments:
        csv: The CSV, read by ``open``.
        labels: Labels by name; none for speakers that were never trained on.
        trial_lists: Trial lists as preparation was given them. It wrote each under its
            own name beside the CSV, and there they are read.
        trial_paths: Further lists, read from where they are; their IDs are the CSV's.
            With any list, only utterances named in one are read.
        crop_seconds: Take the first seconds of each utterance only (the paper's
            validation of the speaker task); None takes it whole.
        max_batch_samples: Budget of a batch, padding counted; None takes one utterance
            at a time. The encoder gives the same frames either way
            (``lobes.model.encoder``).
        num_workers, timeout: See ``lobes.data.streams.TaskStream``.

    Raises ``UserError`` for two trial lists of one name.
    """

    csv: str | PathLike
    labels: dict[str, Label] | None = None
    trial_lists: Sequence[str | PathLike] = ()
    trial_paths: Sequence[str | PathLike] = ()
    crop_seconds: float | None = None
    max_batch_samples: int | None = None
    num_workers: int = 0
    timeout: float = 0
    #: The opened lists by the name of their file without its ending.
    trials: dict[str, Trials] | None = field(default=None, init=False)

    def __post_init__(self):
        self.labels = self.labels or {}
        self.crop = self.crop_seconds and round(self.crop_seconds * SAMPLE_RATE)
        folder = Path(self.csv).parent
        prepared = [folder / Path(name).name for name in self.trial_lists]
        self.trial_paths = [*prepared, *map(Path, self.trial_paths)]
        stems = [path.stem for path in self.trial_paths]
        for path in self.trial_paths:
            if stems.count(path.stem) > 1:
                raise UserError(
                    f"{path}: {stems.count(path.stem)} trial lists have the name "
                    f"{path.stem}, by which results go; rename one"
                )

    def open(self, rank: int = 0, world_size: int = 1) -> None:
        """Read the CSV and trial lists, once; this process takes its share of batches.

        Raises ``UserError`` for any problem of the files, or of the IDs in a list.
        """
        if self.trials is not None:
            return
        self.utterances = Utterances(self.csv, self.labels)
        trials, named = {}, set()
        for path in self.trial_paths:
            # Official lists repeat a few trials; each occurrence counts.
            listed = read_trials(path, allow_repeats=True)
            listed = scorable_trials(listed, self.csv, self.utterances.table)
            trials[path.stem] = listed
            named.update(listed.utterances())
        ids = enumerate(self.utterances.ids)
        #: The utterances that are read, by their place in ``utterances``.
        self.rows = np.array([row for row, i in ids if not trials or i in named])
        self.utterances.check_files(self.rows)
        lengths = self.utterances.lengths
        if self.crop is not None:
            lengths = np.minimum(lengths, self.crop)
        order = self.rows[np.argsort(-lengths[self.rows], kind="stable")]
        batches = pack(order, lengths, self.max_batch_samples or 0)
        self._requests = [
            (None, [(int(row), 0, int(lengths[row])) for row in rows])
            for rows in batches[rank::world_size]
        ]
        self.trials = trials

    def digest(self) -> str:
        """SHA-256 of the utterances and trials; where they lie does not count."""
        digest = hashlib.sha256(self.utterances.digest().encode())
        for name, trials in sorted(self.trials.items()):
            rows = zip(trials.labels, trials.enrol, trials.test, strict=True)
            lines = [f"{label:d} {enrol} {test}" for label, enrol, test in rows]
            digest.update("\n".join([name, *lines]).encode())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._requests)

    def batches(self, pin_memory: bool = False) -> Iterator[Batch]:
        """Yield every batch of this process, longest utterances first."""
        return self.utterances.batches(
            self._requests, self.num_workers, self.timeout, pin_memory
        )


def evaluation_sets(
    folder: str | PathLike, names: Sequence[str], **settings
) -> dict[str, EvaluationSet]:
    """The sets of the CSVs ``<folder>/<name>.csv``, by name.

    The settings are those of ``EvaluationSet``.
    """
    return {name: EvaluationSet(f"{folder}/{name}.csv", **settings) for name in names}


def open_sets(
    train_streams: "dict[str, TaskStream]",
    valid_sets: dict[str, EvaluationSet],
    test_sets: dict[str, dict[str, EvaluationSet]],
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Open the sets of every task, the small ones first; each file's header is read.

    A task has several test sets, by name. Raises one ``UserError`` of all that is
    wrong with any of them.
    """
    tests = [one for sets in test_sets.values() for one in sets.values()]
    problems = {}
    for one in [*tests, *valid_sets.values(), *train_streams.values()]:
        try:
            one.open(rank, world_size)
        except UserError as error:
            # Two sets may name the same fault; the message says it once.
            problems[str(error)] = None
    if problems:
        raise UserError("; ".join(problems))


@dataclass(eq=False)
class EvaluationStream(LoopedLoader):
    """The batches of several evaluation sets as ``{task: Batch}``, one after another.

    Arguments:
        sets: Task names and opened sets.
        pin_memory: Whether batches are copied to page-locked memory.
        title: What a progress bar calls it; None shows none.
    """

    sets: Sequence[tuple[str, EvaluationSet]]
    pin_memory: bool = False
    title: str | None = None

    def __post_init__(self):
        super().__init__(loader=None, epoch_length=sum(len(s) for _, s in self.sets))
        self._batches = None

    def close(self) -> None:
        """End the loading processes."""
        if self._batches is not None:
            self._batches.close()

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        for task, evaluation_set in self.sets:
            self._batches = evaluation_set.batches(self.pin_memory)
            with progress_bar(
                f"{self.title} {task}",
                len(evaluation_set),
                unit="batch",
                leave=False,
                disable=self.title is None,
            ) as bar:
                for batch in self._batches:
                    yield {task: batch}
                    bar.update()
