"""Endless, resumable training batches and finite evaluation sets, per task.

Which utterances stand in a batch, and where a crop starts, is a function of
(seed, pass, utterance) alone. A stream that is opened again at a saved position
therefore continues with exactly the batches it would have given.

A stream cuts one batch for an optimizer step. The processes, and the parts that
gradients are accumulated over, divide it: a step is the same step however many they
are.
"""

import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process

from lobes.data.audio import MINIMUM_SAMPLES, SAMPLE_RATE
from lobes.data.utterance_tables import as_paths
from lobes.data.utterances import Utterances, padded_to
from lobes.errors import UserError
from lobes.settings.changes import differences, record_changes

logger = logging.getLogger(__name__)


class TaskStream:
    """Endless batches of one task; subclasses decide which.

    Arguments
    ---------
    csv : str or sequence of str
        Training CSV, read by ``open`` (it may not exist before). Several are one
        corpus, in this order; no ID may stand in two of them. The attribute ``csv``
        names them all, for messages.
    labels : dict
        Label name to encoder (``lobes.data.labels``).
    seed : int
        Order of the utterances and places of the crops.
    num_workers : int
        Reading processes; 0 reads in the training process.
    timeout : float
        Seconds that they may take for a batch; 0 waits for ever.
    length_grid_seconds : float
        Pad every batch to a multiple of it, and batches of crops to the crop: there
        are few shapes then, which suits what is prepared for each shape. 0 pads to
        the longest only.
    """

    def __init__(
        self, csv, labels, seed=0, num_workers=0, timeout=0, length_grid_seconds=0.0
    ):
        self.csvs = as_paths(csv)
        self.csv = " and ".join(map(str, self.csvs))
        self.labels = labels
        self.seed = seed
        self.num_workers = num_workers
        self.timeout = timeout
        if length_grid_seconds < 0:
            raise UserError(
                f"length_grid_seconds is {length_grid_seconds}; give the seconds that "
                "lengths are padded to a multiple of, or 0 for none"
            )
        self.grid = max(1, round(length_grid_seconds * SAMPLE_RATE))
        self.position = self.first_position
        self.utterances = None

    first_position = None

    def open(self, rank=0, world_size=1, parts=1):
        """Read the CSVs, once; this process takes its part of every batch.

        A batch is used in ``parts`` one after another, each of them divided over the
        ``world_size`` processes. Raises ``UserError`` for any problem of the CSVs or
        of the files that they name.
        """
        self.rank, self.world_size, self.parts = rank, world_size, parts
        if self.utterances is None:
            utterances = Utterances(self.csvs, self.labels, self.grid)
            utterances.look()
            self.utterances = utterances
        self.plan()

    def plan(self):
        """Check the utterances against the stream's settings, once, at ``open``."""

    def requests(self, position):
        """Yield ``(next position, requests)`` of whole batches, endlessly."""
        raise NotImplementedError

    def _own_requests(self, position):
        """Yield ``((position, share), requests)`` of this process.

        Between two parts of a batch the stream stands before it: gradients that were
        accumulated so far are in no checkpoint.
        """
        for after, requests in self.requests(position):
            pieces = divided(requests, self.parts * self.world_size)
            for part in range(self.parts):
                now = pieces[part * self.world_size : (part + 1) * self.world_size]
                share = sum(map(len, now)) / len(requests)
                stands = after if part == self.parts - 1 else position
                yield (stands, share), now[self.rank]
            position = after

    def batches(self, pin_memory=False):
        """Yield ``Batch`` objects endlessly from ``self.position``.

        ``self.position`` moves when a batch is handed out, not when a worker
        reads ahead. Raises ``UserError`` when an utterance cannot be read.
        """
        requests = self._own_requests(self.position)
        for batch in self.utterances.loader(
            requests, self.num_workers, self.timeout, pin_memory
        ):
            self.position, share = batch.position
            yield replace(batch, position=self.position, share=share)

    def _random(self, *key):
        """A generator that depends on the seed and ``key`` only."""
        return np.random.default_rng([self.seed, *key])


class LengthBuckets(TaskStream):
    """Whole utterances of similar length under a budget of samples.

    A batch holds n utterances with n x longest <= ``max_batch_samples``, padding
    counted (paper section 4.2: 3.2 M samples). Each pass sorts the utterances by
    length with a random jitter, cuts batches, and shuffles them.

    Arguments
    ---------
    csv, labels, seed, num_workers, timeout, length_grid_seconds
        See ``TaskStream``.
    max_batch_samples : int
        Budget of all processes together, without accumulation per optimizer step.
        With it the step has as many budgets as parts, as one: its batch is cut whole,
        then divided, so that the parts differ by an utterance at most.
    length_jitter : float
        Relative disturbance of the lengths before sorting: 0 gives the least
        padding and the same neighbours in every pass.
    max_utterance_seconds : float or None
        Longer utterances are left out, and counted; None leaves out none.
    """

    first_position = (0, 0)

    def __init__(
        self,
        csv,
        labels,
        max_batch_samples=3_200_000,
        length_jitter=0.05,
        seed=0,
        num_workers=0,
        timeout=0,
        length_grid_seconds=0.0,
        max_utterance_seconds=None,
    ):
        super().__init__(csv, labels, seed, num_workers, timeout, length_grid_seconds)
        self.max_batch_samples = max_batch_samples
        self.length_jitter = length_jitter
        self.max_utterance_seconds = max_utterance_seconds

    def plan(self):
        """Raise ``UserError`` when an utterance exceeds one process's budget.

        And when there are not enough utterances for all processes and parts.
        """
        if self.max_utterance_seconds is not None:
            self._leave_out()
        self.budget = self.max_batch_samples * self.parts
        budget = self.max_batch_samples // self.world_size
        self.padded = padded_to(self.utterances.lengths, self.grid)
        over = int((self.padded > budget).sum())
        if over:
            longest = int(self.utterances.lengths.argmax())
            samples, padded = self.utterances.lengths[longest], self.padded[longest]
            padding = remedy = ""
            if padded > samples:
                padding = f", with padding {padded}"
                remedy = ", lower length_grid_seconds"
            # A whole number of the grid's steps, cut to what can be typed.
            fits = budget // self.grid * self.grid / SAMPLE_RATE
            raise UserError(
                f"{self.csv}: {over:,} of {len(self.utterances):,} utterances have "
                f"more samples than a batch may hold ({budget}); the longest, "
                f"{self.utterances.place(longest)}, has {samples}{padding}; give "
                f"--max_batch_samples={padded * self.world_size}{remedy}, or leave "
                f"out long ones with --max_utterance_seconds={int(fits * 100) / 100}"
            )
        if len(self.utterances) < self.parts * self.world_size:
            raise UserError(
                f"{self.csv}: {len(self.utterances)} utterances are too few for "
                f"{self.world_size} processes and {self.parts} batches per step; lower "
                "--nproc_per_node or --grad_accumulation_factor"
            )

    def _leave_out(self):
        """Forget the utterances that are longer than ``max_utterance_seconds``."""
        lengths = self.utterances.lengths
        short = lengths <= self.max_utterance_seconds * SAMPLE_RATE
        if short.all():
            return
        told = (
            f"{self.csv}: {int((~short).sum()):,} of {len(lengths):,} utterances "
            f"({lengths[~short].sum() / SAMPLE_RATE / 3600:.2f} of "
            f"{lengths.sum() / SAMPLE_RATE / 3600:.2f} hours) are longer than "
            f"max_utterance_seconds={self.max_utterance_seconds}"
        )
        if not short.any():
            raise UserError(f"{told}; none is left: raise it")
        if if_main_process():
            logger.warning("%s and are left out", told)
        self.utterances.keep(np.flatnonzero(short))

    def batches_of_pass(self, number):
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
        # No other batch is smaller: so many of the longest utterance are in the budget.
        fewest = self.parts * self.world_size
        if len(batches[-1]) < fewest:
            batches[-1] = order[-fewest:].tolist()
        return [batches[i] for i in random.permutation(len(batches))]

    def requests(self, position):
        """See ``TaskStream``; a position is (pass, batch within the pass)."""
        first, batch = position
        lengths = self.utterances.lengths
        for number in itertools.count(first):
            batches = self.batches_of_pass(number)
            for index in range(batch, len(batches)):
                rows = [(int(row), 0, int(lengths[row])) for row in batches[index]]
                yield (number, index + 1), rows
            batch = 0


class RandomCrops(TaskStream):
    """A fixed number of random crops per batch, one per utterance.

    Every pass visits each utterance once, in a new order, and crops it at a new
    place. An utterance shorter than the crop is taken whole and padded.

    Arguments
    ---------
    csv, labels, seed, num_workers, timeout, length_grid_seconds
        See ``TaskStream``.
    crop_seconds : float
        Length of a crop in seconds.
    max_batch_samples : int
        Budget of all processes together, without accumulation per optimizer step; a
        batch has floor(budget / crop) crops: 66 x 3 s, 22 x 9 s (paper section 4.4).
        With accumulation the step has as many budgets as parts, as one.
    """

    first_position = 0

    def __init__(
        self,
        csv,
        labels,
        crop_seconds=3.0,
        max_batch_samples=3_200_000,
        seed=0,
        num_workers=0,
        timeout=0,
        length_grid_seconds=0.0,
    ):
        super().__init__(csv, labels, seed, num_workers, timeout, length_grid_seconds)
        self.crop = round(crop_seconds * SAMPLE_RATE)
        if self.crop < MINIMUM_SAMPLES:
            raise UserError(
                f"crop_seconds is {crop_seconds}, but one frame of the encoder needs "
                f"{MINIMUM_SAMPLES / SAMPLE_RATE} seconds; raise crop_seconds"
            )
        if self.grid > 1:
            self.grid = self.crop
        self.max_batch_samples = max_batch_samples
        self.batch_size = max_batch_samples // self.crop
        self._order = (None, None)

    def plan(self):
        """Raise ``UserError`` when no crop fits into one process's budget."""
        self.step_size = self.max_batch_samples * self.parts // self.crop
        if self.batch_size < self.world_size:
            raise UserError(
                f"max_batch_samples holds {self.batch_size} crops of {self.crop} "
                f"samples for {self.world_size} processes; raise max_batch_samples "
                "or lower crop_seconds"
            )

    def requests(self, position):
        """See ``TaskStream``; a position counts crops from the start."""
        total = len(self.utterances)
        for first in itertools.count(position, self.step_size):
            after = first + self.step_size
            places = (divmod(place, total) for place in range(first, after))
            yield after, [self._crop(*place) for place in places]

    def _crop(self, number, index):
        """Request for the ``index``-th utterance of one pass."""
        if self._order[0] != number:
            self._order = (number, self._random(number).permutation(len(self.ids)))
        row = int(self._order[1][index])
        length = int(self.utterances.lengths[row])
        room = length - self.crop
        if room <= 0:
            return row, 0, length
        start = int(self._random(number, row).integers(room + 1))
        return row, start, start + self.crop

    @property
    def ids(self):
        """Utterance IDs of the corpus."""
        return self.utterances.ids


@register_checkpoint_hooks
class TrainStream(LoopedLoader):
    """One batch of every task per step, in nominal epochs.

    Arguments
    ---------
    streams : dict
        Task name to ``TaskStream``, opened. Tasks that share a stream share its
        batches.
    steps : int
        Batches in all; the last epoch may be shorter.
    epoch_length : int
        Batches between two validations.
    pin_memory : bool
        Whether batches are copied to page-locked memory.
    batches_per_step : int
        Of these batches so many make one optimizer step.
    valid_sets : dict
        Task name to the ``EvaluationSet`` that chooses the best checkpoint.
    allow_changes : bool
        Whether a checkpoint of a run with other data may be gone on from.

    Yields ``{task: Batch}``; no more than ``limit`` of them in all, when that is
    set: the epoch then ends early, and a run without the limit continues it. The
    checkpoint holds the position of every stream and the step within the epoch, as
    JSON.
    """

    limit = None
    #: Whether the last epoch has given all of its batches.
    ended = False

    def __init__(
        self,
        streams,
        steps,
        epoch_length,
        pin_memory=False,
        batches_per_step=1,
        valid_sets=None,
        allow_changes=False,
    ):
        super().__init__(loader=None, epoch_length=epoch_length)
        self.streams = streams
        self.steps = steps
        self.pin_memory = pin_memory
        self.batches_per_step = batches_per_step
        self.valid_sets = valid_sets or {}
        self.allow_changes = allow_changes
        self._corpora = None

    def __iter__(self):
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

    def close(self):
        """End the loading processes; the positions stay."""
        for batches in (self.iterator or {}).values():
            batches.close()
        self.iterator = None

    def __next__(self):
        if self.step >= self.epoch_length or self.total_steps >= self.steps:
            self.ended = True
            raise StopIteration
        if self.limit is not None and self.total_steps >= self.limit:
            raise StopIteration
        batches = {stream: next(batches) for stream, batches in self.iterator.items()}
        self.step += 1
        self.total_steps += 1
        return {task: batches[id(stream)] for task, stream in self.streams.items()}

    def __len__(self):
        done = self.total_steps - (0 if self.ended else self.step)
        return min(self.epoch_length, self.steps - done)

    def corpora(self):
        """What the positions, the weights and the scores belong to, by task."""
        validation = {
            f"validation of {task}": one.digest()
            for task, one in self.valid_sets.items()
            if one.trials is not None
        }
        return validation | {
            task: {
                "utterances": len(stream.utterances),
                "corpus": stream.utterances.digest(),
                "labels": {
                    name: label.digest()
                    for name, label in stream.labels.items()
                    if hasattr(label, "digest")
                },
                "processes": stream.world_size,
            }
            for task, stream in self.streams.items()
        }

    @mark_as_saver
    def save(self, path):
        """Write the positions to ``path``."""
        if self._corpora is None:
            self._corpora = self.corpora()
        state = {
            "step": self.step,
            "total_steps": self.total_steps,
            "batches_per_step": self.batches_per_step,
            "divided": True,
            "positions": {task: s.position for task, s in self.streams.items()},
            "corpora": self._corpora,
        }
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(state, stream)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Continue from the positions in ``path``.

        Raises ``UserError`` when they are those of other tasks, or, unless
        ``allow_changes``, of another corpus, vocabulary, set of speakers or number
        of processes.
        """
        with open(path, encoding="utf-8") as stream:
            state = json.load(stream)
        if set(state["positions"]) != set(self.streams):
            raise UserError(
                f"{path} holds the tasks {', '.join(state['positions'])}, this run "
                f"has {', '.join(self.streams)}; choose another output folder"
            )
        self._corpora = self.corpora()
        # Without validation sets that were not opened.
        known = state["corpora"].keys() & self._corpora.keys()
        old, new = (
            {k: v for k, v in side.items() if k in known}
            for side in (state["corpora"], self._corpora)
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
        if changes:
            report = "; ".join(changes)
            if not self.allow_changes:
                raise UserError(
                    f"{path}: the run began with other data ({report}); choose "
                    "another output folder, or go on all the same with --allow_changes"
                )
            logger.warning("Going on with other data: %s", report)
            if if_main_process():
                # <output folder>/save/<checkpoint>/<this file>
                record_changes(Path(path).parents[2], changes)
        # Checkpoints stand between two optimizer steps.
        old, new = state["batches_per_step"], self.batches_per_step
        self.total_steps = state["total_steps"] // old * new
        self.step = 0 if end_of_epoch else state["step"] // old * new
        self.ended = False
        self.iterator = None
        for task, position in state["positions"].items():
            self.streams[task].position = position


def divided(items, parts):
    """Consecutive pieces of a list that differ by one item at most, larger ones first.

    Of utterances in order of their lengths the shorter ones make the larger pieces.
    """
    size, larger = divmod(len(items), parts)
    ends = [size * i + min(i, larger) for i in range(parts + 1)]
    return [items[first:last] for first, last in itertools.pairwise(ends)]


def pack(order, lengths, budget):
    """Cut ``order`` into consecutive batches with n x longest <= ``budget``.

    A batch has at least one row, so a budget of 0 gives one row each.
    Returns a list of lists of row indices.
    """
    batches, batch, longest = [], [], 0
    for row in order:
        longest = max(longest, lengths[row])
        if batch and (len(batch) + 1) * longest > budget:
            batches.append(batch)
            batch, longest = [], lengths[row]
        batch.append(row)
    if batch:
        batches.append(batch)
    return batches
