"""Endless, resumable training batches and finite evaluation sets, per task.

Which utterances stand in a batch, and where a crop starts, is a function of
(seed, pass, utterance) alone. A stream that is opened again at a saved position
therefore continues with exactly the batches it would have given.

A stream cuts one batch for an optimizer step. The processes, and the parts that
gradients are accumulated over, divide it: a step is the same step however many they
are.
"""

import atexit
import hashlib
import itertools
import json
import logging
import math
import multiprocessing
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from torch.utils.data import DataLoader
from tqdm import tqdm

from lobes.data.audio import MINIMUM_SAMPLES, SAMPLE_RATE, read_audio
from lobes.data.opening import look_at_trials, true_stops
from lobes.data.trials import read_trials
from lobes.data.utterance_tables import as_paths, concatenate, read_table
from lobes.errors import UserError
from lobes.settings.changes import differences, record_changes
from lobes.settings.table import MOST_WORKERS
from lobes.system.preemption import protect_worker

logger = logging.getLogger(__name__)

#: Added to the variance, as the HuggingFace feature extractor does, so that
#: digital silence stays finite.
VARIANCE_FLOOR = 1e-7


@dataclass
class Batch:
    """Utterances of one task.

    Attributes
    ----------
    ids : list of str
        Utterance IDs.
    wavs : torch.Tensor
        Waveforms [batch, samples], float32, 16 kHz; each utterance had zero mean
        and unit variance as a whole before it was cropped; zeros pad the end,
        on a grid of lengths that of the longest, too.
    lengths : torch.Tensor
        Samples of each waveform [batch], int64. Stays on the host, where the
        decision whether anything is padded costs no device synchronisation.
    labels : dict
        Per label name what its encoder gave: a tensor [batch], or a pair of a
        padded tensor and lengths, which stay on the host.
    columns : dict
        Per label column the text as it stands in the CSV.
    position : object
        Where the stream stands once this batch has been used.
    share : float
        Of the utterances of the optimizer step, the part that all processes together
        take now: 1 unless gradients are accumulated.
    """

    ids: list
    wavs: torch.Tensor
    lengths: torch.Tensor
    labels: dict = field(default_factory=dict)
    columns: dict = field(default_factory=dict)
    position: object = None
    share: float = 1.0

    def __len__(self):
        return len(self.ids)

    def to(self, device, non_blocking=True):
        """The batch with waveforms and labels on ``device``."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self):
        """The batch in page-locked memory (called by ``DataLoader``)."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, move):
        # The lengths in a pair stay on the host, as the waveforms' lengths do.
        labels = {
            name: (move(label[0]), label[1])
            if isinstance(label, tuple)
            else move(label)
            for name, label in self.labels.items()
        }
        return replace(self, wavs=move(self.wavs), labels=labels)


class Utterances(torch.utils.data.Dataset):
    """Reads and collates the utterances of a CSV, or of several as one corpus.

    ``csv`` and ``labels`` are those of ``TaskStream``. An item is a whole batch:
    ``utterances[position, requests]`` where the requests are ``(row, start, stop)``
    in samples from the utterance's start. Batches are padded to a multiple of
    ``grid`` samples.
    """

    def __init__(self, csv, labels, grid=1):
        self.csvs = as_paths(csv)
        self.labels = labels
        self.grid = grid
        columns = [label.column for label in labels.values()]
        tables = []
        for path in self.csvs:
            tables.append(read_table(path, columns))
            for label in labels.values():
                label.check(path, tables[-1])
        self._ends = np.cumsum([len(table) for table in tables])
        #: Of each row, in the CSV that it stands in.
        self.lines = np.concatenate([table.index for table in tables])
        self._hold(concatenate(self.csvs, tables))
        # The row that each loading process reads now, and -1: it reads none.
        self.reading = torch.full((MOST_WORKERS,), -1).share_memory_()

    def _hold(self, table):
        """Take the columns that are used for every batch."""
        self.table = table
        self.ids = table["ID"].to_numpy(dtype=object)
        self.paths = table["wav"].to_numpy(dtype=object)
        self.starts = table["start"].to_numpy()
        self.lengths = (table["stop"] - table["start"]).to_numpy()
        self.statistics = None
        if "mean" in table and "std" in table:
            self.statistics = table[["mean", "std"]].to_numpy()
        self.windows = None
        if "offset" in table and "size" in table:
            self.windows = table[["offset", "size"]].to_numpy()

    def keep(self, rows):
        """Forget all rows but some (sorted, int array)."""
        self._ends = np.searchsorted(rows, self._ends)
        self.lines = self.lines[rows]
        self._hold(self.table.iloc[rows])

    def look(self, rows=None):
        """Look at the files of some rows, or of all, before they are read.

        Utterances that end a little behind their file are shortened; see
        ``lobes.data.opening.true_stops`` for that and for the ``UserError`` that it
        raises.
        """
        stops = self.table["stop"].to_numpy(copy=True)
        rows = np.arange(len(self)) if rows is None else np.sort(rows)
        cuts = np.searchsorted(rows, self._ends[:-1])
        problems = []
        for csv, some in zip(self.csvs, np.split(rows, cuts), strict=True):
            table = self.table if len(some) == len(self) else self.table.iloc[some]
            try:
                stops[some] = true_stops(csv, table, self.lines[some])
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("; ".join(problems))
        self.table["stop"] = stops
        self.lengths = stops - self.starts

    def digest(self):
        """SHA-256 of what training draws from the corpus: IDs, pieces and labels.

        Where the files lie does not count.
        """
        columns = {label.column for label in self.labels.values()}
        digest = hashlib.sha256()
        for column in ("ID", "start", "stop", *sorted(columns)):
            digest.update("\0".join(map(str, self.table[column])).encode())
        return digest.hexdigest()[:16]

    def __len__(self):
        return len(self.ids)

    def source(self, row):
        """The CSV that a row stands in, for messages."""
        return self.csvs[int(np.searchsorted(self._ends, row, side="right"))]

    def place(self, row):
        """What messages call a row."""
        return f"{self.ids[row]} ({self.source(row)}, line {self.lines[row]})"

    def __getitem__(self, item):
        position, requests = item
        try:
            return self.read(requests, position)
        except UserError as error:
            # Raised in a worker, it would reach the user as a page of traceback.
            return error
        except Exception as error:
            logger.exception("reading %s", self.in_hand())
            return UserError(f"reading {self.in_hand()}: {error!r}; see the log")

    def in_hand(self):
        """The utterances that are being read, for messages."""
        rows = [row for row in self.reading.tolist() if row >= 0]
        return ", ".join(f"{self.ids[row]} ({self.paths[row]})" for row in rows)

    def loader(self, requests, num_workers, timeout, pin_memory):
        """Yield the batch of every item of ``requests``, read by other processes.

        Raises ``UserError`` when an utterance cannot be read, a loading process
        ends, or a batch takes more than ``timeout`` seconds.
        """
        self.reading.fill_(-1)
        loader = DataLoader(
            self,
            sampler=requests,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=num_workers,
            pin_memory=pin_memory,
            timeout=timeout if num_workers else 0,
            worker_init_fn=protect_worker,
            # A generator of its own: the default one would draw from the global
            # random state, which a resumed run must find untouched.
            generator=torch.Generator(),
        )
        batches = iter(loader)
        try:
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    # What torch knows of it: a signal, or its own time limit.
                    _kill_loaders()
                    raise UserError(
                        f"{' and '.join(map(str, self.csvs))}: loading failed "
                        f"({str(error).strip().splitlines()[0]}) while reading "
                        f"{self.in_hand()}; check these files, the memory "
                        "(--num_workers) and --loader_timeout; the same command "
                        "continues"
                    ) from error
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        finally:
            # The loading processes end with it, though a traceback keep this frame.
            del batches

    def read(self, requests, position=None):
        """The batch of the requested pieces, in their order."""
        waves = [self._wave(*request) for request in requests]
        rows = [request[0] for request in requests]
        lengths = torch.tensor([len(wave) for wave in waves])
        wavs = torch.zeros(len(waves), padded_to(int(lengths.max()), self.grid))
        for row, wave in zip(wavs, waves, strict=True):
            row[: len(wave)] = torch.from_numpy(wave)
        columns, labels = {}, {}
        for name, label in self.labels.items():
            columns[label.column] = self.table[label.column].iloc[rows].to_list()
            labels[name] = label.encode(columns[label.column])
        ids = [self.ids[row] for row in rows]
        return Batch(ids, wavs, lengths, labels, columns, position)

    def _wave(self, row, start, stop):
        """Samples [start, stop) of one utterance, normalised as a whole."""
        worker = torch.utils.data.get_worker_info()
        self.reading[worker.id if worker else 0] = row
        # NaN in a CSV without statistics that was read with one that has them.
        if self.statistics is not None and not np.isnan(self.statistics[row, 0]):
            wave = self._read(row, start, stop)
            mean, std = self.statistics[row]
        else:
            whole = self._read(row, 0, self.lengths[row])
            mean, std = whole.mean(dtype=np.float64), whole.std(dtype=np.float64)
            wave = whole[start:stop]
        scale = math.sqrt(std * std + VARIANCE_FLOOR)
        return ((wave - mean) / scale).astype(np.float32)

    def _read(self, row, start, stop):
        """Samples [start, stop) of one utterance as they stand in its file."""
        window = None
        # -1 in a CSV of files that was read with one of shards.
        if self.windows is not None and self.windows[row, 0] >= 0:
            window = self.windows[row]
        first = self.starts[row]
        return read_audio(self.paths[row], first + start, first + stop, window)


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


class EvaluationSet:
    """Every utterance of a CSV once, whole or its first seconds.

    Arguments
    ---------
    csv : str
        CSV, read by ``open``.
    labels : dict
        Label name to encoder; none for speakers that were never trained on.
    trial_lists : sequence of str
        Trial lists as preparation was given them; it wrote each under its own name
        beside the CSV, from where it is read.
    trial_paths : sequence of str
        Further lists, read from where they are; their IDs are the CSV's. With any
        list, only utterances named in one are read. ``trials`` holds the opened
        lists by the name of the file without its ending, which no two may share.
    crop_seconds : float or None
        Take the first seconds of each utterance only (the paper's validation of
        the speaker task); None takes it whole.
    max_batch_samples : int or None
        Budget of a batch, padding counted; None takes one utterance at a time.
        The encoder gives the same frames either way (``lobes.model.encoder``).
    num_workers, timeout
        See ``TaskStream``.
    """

    def __init__(
        self,
        csv,
        labels=None,
        trial_lists=(),
        trial_paths=(),
        crop_seconds=None,
        max_batch_samples=None,
        num_workers=0,
        timeout=0,
    ):
        self.csv = csv
        self.labels = labels or {}
        prepared = [Path(csv).parent / Path(name).name for name in trial_lists]
        self.trial_paths = [*prepared, *map(Path, trial_paths)]
        stems = [path.stem for path in self.trial_paths]
        for path in self.trial_paths:
            if stems.count(path.stem) > 1:
                raise UserError(
                    f"{path}: {stems.count(path.stem)} trial lists have the name "
                    f"{path.stem}, by which results go; rename one"
                )
        self.trials = None
        self.crop = None if crop_seconds is None else round(crop_seconds * SAMPLE_RATE)
        self.max_batch_samples = max_batch_samples
        self.num_workers = num_workers
        self.timeout = timeout

    def open(self, rank=0, world_size=1):
        """Read the CSV and trial lists, once; this process takes its share of batches.

        Raises ``UserError`` for any problem of the files, or of the IDs in a list.
        """
        if self.trials is not None:
            return
        self.utterances = Utterances(self.csv, self.labels)
        # Official lists repeat a few trials; they count as often as they stand.
        trials = {p.stem: read_trials(p, allow_repeats=True) for p in self.trial_paths}
        named = set()
        for name, one in trials.items():
            trials[name] = look_at_trials(one, self.csv, self.utterances.table)
            named.update(trials[name].utterances())
        ids = enumerate(self.utterances.ids)
        #: The utterances that are read, by their place in ``utterances``.
        self.rows = np.array([row for row, i in ids if not trials or i in named])
        self.utterances.look(self.rows)
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

    def digest(self):
        """SHA-256 of the utterances and trials; where they lie does not count."""
        digest = hashlib.sha256(self.utterances.digest().encode())
        for name, trials in sorted(self.trials.items()):
            rows = zip(trials.labels, trials.enrol, trials.test, strict=True)
            lines = [f"{label:d} {enrol} {test}" for label, enrol, test in rows]
            digest.update("\n".join([name, *lines]).encode())
        return digest.hexdigest()[:16]

    def __len__(self):
        return len(self._requests)

    def batches(self, pin_memory=False):
        """Yield every ``Batch`` of this process, longest utterances first."""
        return self.utterances.loader(
            self._requests, self.num_workers, self.timeout, pin_memory
        )


def evaluation_sets(folder, names, **settings):
    """``{name: EvaluationSet}`` of the CSVs ``<folder>/<name>.csv``.

    The settings are those of ``EvaluationSet``.
    """
    return {name: EvaluationSet(f"{folder}/{name}.csv", **settings) for name in names}


class EvaluationStream(LoopedLoader):
    """The batches of several evaluation sets as ``{task: Batch}``, one after another.

    Arguments
    ---------
    sets : list of (str, EvaluationSet)
        Task name and opened set.
    pin_memory : bool
        Whether batches are copied to page-locked memory.
    title : str or None
        What a progress bar calls it; None shows none.
    """

    def __init__(self, sets, pin_memory=False, title=None):
        super().__init__(loader=None, epoch_length=sum(len(s) for _, s in sets))
        self.sets = sets
        self.pin_memory = pin_memory
        self.title = title
        self._batches = None

    def close(self):
        """End the loading processes."""
        if self._batches is not None:
            self._batches.close()

    def __iter__(self):
        for task, evaluation_set in self.sets:
            self._batches = evaluation_set.batches(self.pin_memory)
            bar = tqdm(
                self._batches,
                desc=f"{self.title} {task}",
                total=len(evaluation_set),
                unit="batch",
                leave=False,
                dynamic_ncols=True,
                disable=self.title is None,
            )
            for batch in bar:
                yield {task: batch}


def divided(items, parts):
    """Consecutive pieces of a list that differ by one item at most, larger ones first.

    Of utterances in order of their lengths the shorter ones make the larger pieces.
    """
    size, larger = divmod(len(items), parts)
    ends = [size * i + min(i, larger) for i in range(parts + 1)]
    return [items[first:last] for first, last in itertools.pairwise(ends)]


def padded_to(lengths, grid):
    """The next multiples of ``grid`` (int, or array of int)."""
    return -(-lengths // grid) * grid


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


def end_loading(*streams):
    """Close streams, and end their loading processes also where they hang."""
    for stream in streams:
        if stream is not None:
            stream.close()
    _kill_loaders()


def _kill_loaders():
    """End all loading processes of this one; they ignore any milder signal."""
    # torch's handler would raise an error for each of them.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    signal.signal(signal.SIGCHLD, handler)


# The interpreter's own end would wait for ever for processes that ignore its signal.
atexit.register(_kill_loaders)


def _unchanged(batch):
    """Collate function of loaders whose items are batches already."""
    return batch
