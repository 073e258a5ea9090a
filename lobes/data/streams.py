"""Endless, resumable training batches: a stream per task, and one of all tasks.

Which utterances stand in a batch, and where a crop starts, is a function of
(seed, pass, utterance) alone. A stream that is opened again at a saved position
therefore continues with exactly the batches it would have given.

A stream cuts one batch for an optimizer step. The processes, and the parts that
gradients are accumulated over, divide it: a step is the same step however many they
are.
"""

import contextlib
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import ClassVar, TypedDict

import numpy as np
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.utils import checkpoints
from speechbrain.utils.distributed import if_main_process

from lobes.data.audio import MINIMUM_SAMPLES, SAMPLE_RATE
from lobes.data.evaluation_sets import EvaluationSet
from lobes.data.labels import Label
from lobes.data.utterance_tables import CSVPaths, as_paths
from lobes.data.utterances import Batch, Request, Utterances, pack, padded_to
from lobes.errors import UserError
from lobes.settings.changes import differences, record_changes

logger = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class TaskStream:
    """Endless batches of one task; subclasses decide which.

    Arguments:
        csv: Training CSV, read by ``open`` (it may not exist before). Several are one
            corpus, in this order; no ID may stand in two of them. The attribute ``csv``
            names them all, for messages.
        labels: Labels by name.
        seed: Order of the utterances and places of the crops.
        num_workers: Reading processes; 0 reads in the training process.
        timeout: Seconds that they may take for a batch; 0 waits for ever.
        length_grid_seconds: Pad every batch to a multiple of it, and batches of crops
            to the crop. There are few shapes then, which suits what is prepared for
            each shape. 0 pads to the longest only.
    """

    #: Where a new stream stands; each subclass has its own kind of position.
    first_position: ClassVar[object] = None

    csv: CSVPaths = field(kw_only=False)
    labels: dict[str, Label] = field(kw_only=False)
    seed: int = 0
    num_workers: int = 0
    timeout: float = 0
    length_grid_seconds: float = 0.0

    def __post_init__(self):
        self.csvs = as_paths(self.csv)
        self.csv = " and ".join(map(str, self.csvs))
        if self.length_grid_seconds < 0:
            raise UserError(
                f"length_grid_seconds is {self.length_grid_seconds}; give the seconds "
                "that lengths are padded to a multiple of, or 0 for none"
            )
        self.grid = max(1, round(self.length_grid_seconds * SAMPLE_RATE))
        self.position = self.first_position
        self.utterances: Utterances | None = None

    def open(self, rank: int = 0, world_size: int = 1, parts: int = 1) -> None:
        """Read the CSVs, once; this process takes its part of every batch.

        A batch is used in ``parts`` one after another, each of them divided over the
        ``world_size`` processes. Raises ``UserError`` for any problem of the CSVs or
        of the files that they name.
        """
        self.rank, self.world_size, self.parts = rank, world_size, parts
        if self.utterances is None:
            utterances = Utterances(self.csvs, self.labels, self.grid)
            utterances.check_files()
            self.utterances = utterances
        self.plan()

    def plan(self) -> None:
        """Check the utterances against the stream's settings, at ``open``."""

    def requests(self, position: object) -> Iterator[tuple[object, list[Request]]]:
        """Yield ``(next position, requests)`` of whole batches, endlessly."""
        raise NotImplementedError

    def batches(self, pin_memory: bool = False) -> Iterator[Batch]:
        """Yield batches endlessly from ``self.position``.

        ``self.position`` moves when a batch is handed out, not when a worker
        reads ahead. Raises ``UserError`` when an utterance cannot be read.
        """
        batches = self.utterances.batches(
            self._own_requests(self.position),
            self.num_workers,
            self.timeout,
            pin_memory,
        )
        with contextlib.closing(batches):
            for batch in batches:
                self.position, share = batch.position
                yield replace(batch, position=self.position, share=share)

    def _own_requests(self, before):
        """Yield ``((position, share), requests)`` of this process.

        Between two parts of a batch the stream stands before it: gradients that were
        accumulated so far are in no checkpoint.
        """
        for after, requests in self.requests(before):
            pieces = divided(requests, self.parts * self.world_size)
            for part in range(self.parts):
                now = pieces[part * self.world_size : (part + 1) * self.world_size]
                share = sum(map(len, now)) / len(requests)
                position = after if part == self.parts - 1 else before
                yield (position, share), now[self.rank]
            before = after

    def _random(self, *key: int) -> np.random.Generator:
        """A generator that depends on the seed and ``key`` only."""
        return np.random.default_rng([self.seed, *key])


@dataclass(eq=False)
class LengthBuckets(TaskStream):
    """Whole utterances of similar length under a budget of samples.

    A batch holds n utterances with n x longest <= ``max_batch_samples``, padding
    counted (paper section 4.2: 3.2 M samples). Each pass sorts the utterances by
    length with a random jitter, cuts batches, and shuffles them. A position is
    (pass, batch within the pass).

    Arguments:
        csv, labels, ...: See ``TaskStream``.
        max_batch_samples: Budget of all processes together, without accumulation per
            optimizer step. With it the step has as many budgets as parts, as one: its
            batch is cut whole, then divided, so that the parts differ by an utterance
            at most.
        length_jitter: Relative disturbance of the lengths before sorting: 0 gives the
            least padding and the same neighbours in every pass.
        max_utterance_seconds: Longer utterances are left out, and counted; None leaves
            out none.
    """

    first_position = (0, 0)

    max_batch_samples: int = 3_200_000
    length_jitter: float = 0.05
    max_utterance_seconds: float | None = None

    def plan(self) -> None:
        """Raise ``UserError`` when an utterance exceeds one process's budget.

        And when there are not enough utterances for all processes and parts.
        """
        if self.max_utterance_seconds is not None:
            self._leave_out_long_ones()
        self.budget = self.max_batch_samples * self.parts
        self.padded = padded_to(self.utterances.lengths, self.grid)
        self._check_budget(self.max_batch_samples // self.world_size)
        if len(self.utterances) < self.parts * self.world_size:
            raise UserError(
                f"{self.csv}: {len(self.utterances)} utterances are too few for "
                f"{self.world_size} processes and {self.parts} batches per step; lower "
                "--nproc_per_node or --grad_accumulation_factor"
            )

    def _check_budget(self, budget):
        """Refuse utterances that are longer than one process's ``budget``."""
        over = int((self.padded > budget).sum())
        if not over:
            return
        longest = int(self.utterances.lengths.argmax())
        samples, padded = self.utterances.lengths[longest], self.padded[longest]
        padding = remedy = ""
        if padded > samples:
            padding = f", with padding {padded}"
            remedy = ", lower length_grid_seconds"
        # A whole number of the grid's steps, rounded down to hundredths of seconds.
        fits = budget // self.grid * self.grid / SAMPLE_RATE
        raise UserError(
            f"{self.csv}: {over:,} of {len(self.utterances):,} utterances have "
            f"more samples than a batch may hold ({budget}); the longest, "
            f"{self.utterances.place(longest)}, has {samples}{padding}; give "
            f"--max_batch_samples={padded * self.world_size}{remedy}, or leave "
            "out long ones with --train_streams.speech.max_utterance_seconds="
            f"{int(fits * 100) / 100}"
        )

    def _leave_out_long_ones(self):
        """Forget the utterances that are longer than ``max_utterance_seconds``."""
        lengths = self.utterances.lengths
        short = lengths <= self.max_utterance_seconds * SAMPLE_RATE
        if short.all():
            return
        counted = (
            f"{self.csv}: {int((~short).sum()):,} of {len(lengths):,} utterances "
            f"({lengths[~short].sum() / SAMPLE_RATE / 3600:.2f} of "
            f"{lengths.sum() / SAMPLE_RATE / 3600:.2f} hours) are longer than "
            f"max_utterance_seconds={self.max_utterance_seconds}"
        )
        if not short.any():
            raise UserError(f"{counted}; none is left: raise it")
        if if_main_process():
            logger.warning("%s and are left out", counted)
        self.utterances.keep(np.flatnonzero(short))

    def batches_of_pass(self, number: int) -> list[list[int]]:
        """Row indices of every batch of one pass, in order.

        What is left over at the end of a pass may be too little for all processes and
        parts; it is filled up with the next shorter utterances, which come twice.
        """
        random = self._random(number)
        lengths = self.utterances.lengths
        jitter = random.uniform(
            1 - self.length_jitter, 1 + self.length_jitter, len(lengths)
        )
        order = np.argsort(lengths * jitter, kind="stable")
        batches = pack(order, self.padded, self.budget)
        # Other batches are large enough: the budget holds so many longest utterances.
        fewest = self.parts * self.world_size
        if len(batches[-1]) < fewest:
            batches[-1] = order[-fewest:].tolist()
        return [batches[i] for i in random.permutation(len(batches))]

    def requests(
        self, position: tuple[int, int]
    ) -> Iterator[tuple[tuple[int, int], list[Request]]]:
        first_pass, first_batch = position
        lengths = self.utterances.lengths
        for number in itertools.count(first_pass):
            batches = self.batches_of_pass(number)
            for index in range(first_batch, len(batches)):
                rows = [(int(row), 0, int(lengths[row])) for row in batches[index]]
                yield (number, index + 1), rows
            first_batch = 0


@dataclass(eq=False)
class RandomCrops(TaskStream):
    """A fixed number of random crops per batch, one per utterance.

    Every pass visits each utterance once, in a new order, and crops it at a new
    place. An utterance shorter than the crop is taken whole and padded. A position
    counts crops from the start.

    Arguments:
        csv, labels, ...: See ``TaskStream``.
        crop_seconds: Length of a crop in seconds.
        max_batch_samples: Budget as for ``LengthBuckets``; a batch has floor(budget /
            crop) crops: 66 x 3 s, 22 x 9 s (paper section 4.4).
    """

    first_position = 0

    crop_seconds: float = 3.0
    max_batch_samples: int = 3_200_000

    def __post_init__(self):
        super().__post_init__()
        self.crop = round(self.crop_seconds * SAMPLE_RATE)
        if self.crop < MINIMUM_SAMPLES:
            raise UserError(
                f"crop_seconds is {self.crop_seconds}, but one frame of the encoder "
                f"needs {MINIMUM_SAMPLES / SAMPLE_RATE} seconds; raise crop_seconds"
            )
        if self.grid > 1:
            self.grid = self.crop
        self.batch_size = self.max_batch_samples // self.crop

    def plan(self) -> None:
        """Raise ``UserError`` when no crop fits into one process's budget."""
        self.step_size = self.max_batch_samples * self.parts // self.crop
        if self.batch_size < self.world_size:
            raise UserError(
                f"max_batch_samples holds {self.batch_size} crops of {self.crop} "
                f"samples for {self.world_size} processes; raise max_batch_samples "
                "or lower crop_seconds"
            )

    def requests(self, position: int) -> Iterator[tuple[int, list[Request]]]:
        crops = self._crops(position)
        for after in itertools.count(position + self.step_size, self.step_size):
            yield after, list(itertools.islice(crops, self.step_size))

    def _crops(self, position):
        """Yield the requests of single crops, endlessly."""
        first_pass, first = divmod(position, len(self.utterances))
        for number in itertools.count(first_pass):
            rows = self._random(number).permutation(len(self.utterances))
            for row in rows[first:].tolist():
                yield self._crop(number, row)
            first = 0

    def _crop(self, number, row):
        """The request for an utterance in one pass."""
        length = int(self.utterances.lengths[row])
        room = length - self.crop
        if room <= 0:
            return row, 0, length
        start = int(self._random(number, row).integers(room + 1))
        return row, start, start + self.crop


class TrainState(TypedDict):
    """What a checkpoint holds of a ``TrainStream``."""

    #: Batches of this epoch, of all epochs, and of one optimizer step.
    step: int
    total_steps: int
    batches_per_step: int
    #: True: processes and parts divide the batch of a step.
    divided: bool
    #: By task, as each stream writes its own.
    positions: dict[str, object]
    #: By task: see ``TrainStream.corpora``.
    corpora: dict[str, object]


@checkpoints.register_checkpoint_hooks
@dataclass(eq=False)
class TrainStream(LoopedLoader):
    """One batch of every task per step, in nominal epochs.

    It yields ``{task: Batch}``. The checkpoint holds the position of every stream and
    the step within the epoch, as JSON (``TrainState``).

    Arguments:
        streams: The opened stream of each task. Tasks that share a stream share its
            batches.
        steps: Batches in all; the last epoch may be shorter.
        epoch_length: Batches between two validations.
        pin_memory: Whether batches are copied to page-locked memory.
        batches_per_step: Of these batches so many make one optimizer step.
        valid_sets: The set of each task that chooses the best checkpoint.
        allow_changes: Whether a checkpoint of a run with other data may be gone on
            from.
        output_folder: Where such changes are recorded; None records none.
        limit: Batches in all after which an epoch ends early, for a run without it to
            continue; None: there is no such end.
    """

    streams: dict[str, TaskStream]
    steps: int
    epoch_length: int
    pin_memory: bool = False
    batches_per_step: int = 1
    valid_sets: dict[str, EvaluationSet] = field(default_factory=dict)
    allow_changes: bool = False
    output_folder: str | PathLike | None = None
    limit: int | None = None

    def __post_init__(self):
        super().__init__(loader=None, epoch_length=self.epoch_length)
        #: Whether the last epoch has given all of its batches.
        self.ended = False
        self._corpora = None

    def __iter__(self) -> "TrainStream":
        if self.iterator is None:
            self.iterator = {
                id(stream): self._named(task, stream)
                for task, stream in self.streams.items()
            }
        if self.ended:
            self.step = 0
            self.ended = False
        return self

    def _named(self, task, stream):
        """The stream's batches; its errors begin with the task."""
        try:
            yield from stream.batches(self.pin_memory)
        except UserError as error:
            raise UserError(f"{task}: {error}") from error

    def close(self) -> None:
        """End the loading processes; the positions stay."""
        for batches in (self.iterator or {}).values():
            batches.close()
        self.iterator = None

    def __next__(self) -> dict[str, Batch]:
        if self.step >= self.epoch_length or self.total_steps >= self.steps:
            self.ended = True
            raise StopIteration
        if self.limit is not None and self.total_steps >= self.limit:
            raise StopIteration
        batches = {stream: next(batches) for stream, batches in self.iterator.items()}
        self.step += 1
        self.total_steps += 1
        return {task: batches[id(stream)] for task, stream in self.streams.items()}

    def __len__(self) -> int:
        done = self.total_steps - (0 if self.ended else self.step)
        return min(self.epoch_length, self.steps - done)

    def corpora(self) -> dict[str, object]:
        """What the positions, the weights and the scores belong to, by task."""
        validation = {
            f"validation of {task}": one.digest()
            for task, one in self.valid_sets.items()
            if one.trials is not None
        }
        training = {}
        for task, stream in self.streams.items():
            labels = {name: label.digest() for name, label in stream.labels.items()}
            training[task] = {
                "utterances": len(stream.utterances),
                "corpus": stream.utterances.digest(),
                "labels": {k: v for k, v in labels.items() if v is not None},
                "processes": stream.world_size,
            }
        return validation | training

    @checkpoints.mark_as_saver
    def save(self, path: str | PathLike) -> None:
        """Write the positions to ``path``."""
        if self._corpora is None:
            self._corpora = self.corpora()
        state = TrainState(
            step=self.step,
            total_steps=self.total_steps,
            batches_per_step=self.batches_per_step,
            divided=True,
            positions={task: s.position for task, s in self.streams.items()},
            corpora=self._corpora,
        )
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(state, stream)

    @checkpoints.mark_as_loader
    def load(self, path: str | PathLike, end_of_epoch: bool) -> None:
        """Continue from the positions in ``path``.

        Raises ``UserError`` when they are those of other tasks, or, unless
        ``allow_changes``, of another corpus, vocabulary, set of speakers or number
        of processes.
        """
        with open(path, encoding="utf-8") as stream:
            state: TrainState = json.load(stream)
        if set(state["positions"]) != set(self.streams):
            raise UserError(
                f"{path} holds the tasks {', '.join(state['positions'])}, this run "
                f"has {', '.join(self.streams)}; choose another output folder"
            )
        changes = self._changes(state)
        if changes:
            self._accept(changes, path)
        # Checkpoints stand between two optimizer steps.
        old, new = state["batches_per_step"], self.batches_per_step
        self.total_steps = state["total_steps"] // old * new
        self.step = 0 if end_of_epoch else state["step"] // old * new
        self.ended = False
        self.iterator = None
        for task, position in state["positions"].items():
            self.streams[task].position = position

    def _changes(self, state):
        """What differs between the data of a checkpoint and this run's, as lines."""
        self._corpora = self.corpora()
        # One of the two runs may have opened no validation sets.
        both = state["corpora"].keys() & self._corpora.keys()
        old, new = (
            {key: value for key, value in corpora.items() if key in both}
            for corpora in (state["corpora"], self._corpora)
        )
        changes = differences(old, new)
        several = state["batches_per_step"] > 1 or any(
            task.get("processes", 1) > 1
            for task in state["corpora"].values()
            if isinstance(task, dict)
        )
        if several and not state.get("divided"):
            changes.append(
                "its batches were cut for every process and part; now a step's batch "
                "is cut whole and divided"
            )
        return changes

    def _accept(self, changes, path):
        """Record changes where they are allowed; raise ``UserError`` elsewhere."""
        report = "; ".join(changes)
        if not self.allow_changes:
            raise UserError(
                f"{path}: the run began with other data ({report}); choose "
                "another output folder, or go on all the same with --allow_changes"
            )
        logger.warning("Going on with other data: %s", report)
        if self.output_folder is not None and if_main_process():
            record_changes(self.output_folder, changes)


def divided(items: list, parts: int) -> list[list]:
    """Consecutive pieces of a list that differ by one item at most, larger ones first.

    Of utterances in order of their lengths the shorter ones make the larger pieces.
    """
    places = np.array_split(np.arange(len(items)), parts)
    return [[items[place] for place in piece] for piece in places]
