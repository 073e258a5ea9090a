"""The utterances of a corpus: its CSVs as one table, its audio and labels as batches.

``Utterances`` is read by the training streams (``lobes.data.streams``) and by the
evaluation sets (``lobes.data.evaluation_sets``). Both say which piece of which row
stands in a batch.
"""

import atexit
import hashlib
import logging
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from os import PathLike

import numpy as np
import torch
from torch.utils.data import DataLoader

from lobes.data.audio import ByteRange, read_audio
from lobes.data.file_checks import checked_stops
from lobes.data.labels import Label
from lobes.data.utterance_tables import CSVPaths, as_paths, concatenate, read_table
from lobes.errors import UserError
from lobes.settings.table import MOST_WORKERS
from lobes.system.preemption import protect_worker

logger = logging.getLogger(__name__)

#: Added to the variance, as the HuggingFace feature extractor does, so that
#: digital silence stays finite.
VARIANCE_FLOOR = 1e-7

#: A row, and the first and last sample (exclusive) from the utterance's start.
Request = tuple[int, int, int]

# The loading processes of all loaders that are open.
_loading_processes = set()


@dataclass
class Batch:
    """Utterances of one task.

    Attributes:
        ids: Utterance IDs.
        wavs: Waveforms [batch, samples], float32, 16 kHz. Each utterance had zero mean
            and unit variance as a whole before it was cropped. Zeros pad the end; with
            a grid of lengths the longest is padded, too.
        lengths: Samples of each waveform [batch], int64. They stay on the host: asking
            whether anything is padded then costs no device synchronisation.
        labels: What each label made of its column, by the label's name: a tensor
            [batch], or a padded tensor and its lengths, which stay on the host.
        columns: The text of each label's column as it stands in the CSV, by column.
        position: Where the stream stands once this batch has been used.
        share: The part of the optimizer step's utterances that all processes together
            take now. It is 1 unless gradients are accumulated.
    """

    ids: list[str]
    wavs: torch.Tensor
    lengths: torch.Tensor
    labels: dict = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)
    position: object = None
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The batch with waveforms and labels on ``device``."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (``DataLoader`` calls it)."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, move: Callable) -> "Batch":
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

    An item is a whole batch: ``utterances[position, requests]``.

    Arguments:
        csv: One CSV, or several that are one corpus.
        labels: Labels by name; each is checked against every CSV.
        grid: Batches are padded to a multiple of so many samples.

    Raises ``UserError`` for any problem of the CSVs.
    """

    def __init__(self, csv: CSVPaths, labels: dict[str, Label], grid: int = 1):
        self.csvs = as_paths(csv)
        self.labels = labels
        self.grid = grid
        for name, label in labels.items():
            if not isinstance(label, Label):
                raise UserError(f"labels: {name} is no lobes.data.labels.Label")
        columns = [label.column for label in labels.values()]
        tables = []
        for path in self.csvs:
            table = read_table(path, columns)
            for label in labels.values():
                label.check(path, table)
            tables.append(table)
        self._ends = np.cumsum([len(table) for table in tables])
        #: The line of each row in its CSV.
        self.lines = np.concatenate([table.index for table in tables])
        self._set_table(concatenate(self.csvs, tables))
        # The row that each loading process reads now; -1 where it reads none.
        self._rows_in_hand = torch.full((MOST_WORKERS,), -1).share_memory_()

    def _set_table(self, table):
        """Keep a table, and as arrays the columns that every batch needs."""
        self.table = table
        self.ids = table["ID"].to_numpy(dtype=object)
        self.paths = table["wav"].to_numpy(dtype=object)
        self.starts = table["start"].to_numpy()
        self.lengths = (table["stop"] - table["start"]).to_numpy()
        self.statistics = self.windows = None
        if "mean" in table and "std" in table:
            self.statistics = table[["mean", "std"]].to_numpy()
        if "offset" in table and "size" in table:
            self.windows = table[["offset", "size"]].to_numpy()

    def keep(self, rows: np.ndarray) -> None:
        """Forget all rows but some (sorted, int array)."""
        self._ends = np.searchsorted(rows, self._ends)
        self.lines = self.lines[rows]
        self._set_table(self.table.iloc[rows])

    def check_files(self, rows: np.ndarray | None = None) -> None:
        """Check the files of some rows, or of all, before they are read.

        Utterances that end a little behind their file are shortened; see
        ``lobes.data.file_checks.checked_stops`` for that and for the ``UserError``
        that it raises.
        """
        stops = self.table["stop"].to_numpy(copy=True)
        rows = np.arange(len(self)) if rows is None else np.sort(rows)
        rows_by_csv = np.split(rows, np.searchsorted(rows, self._ends[:-1]))
        problems = []
        for csv, some in zip(self.csvs, rows_by_csv, strict=True):
            table = self.table if len(some) == len(self) else self.table.iloc[some]
            try:
                stops[some] = checked_stops(csv, table, self.lines[some])
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("; ".join(problems))
        self.table["stop"] = stops
        self.lengths = stops - self.starts

    def digest(self) -> str:
        """SHA-256 of what training draws from the corpus: IDs, pieces and labels.

        Where the files lie does not count.
        """
        columns = {label.column for label in self.labels.values()}
        digest = hashlib.sha256()
        for column in ("ID", "start", "stop", *sorted(columns)):
            digest.update("\0".join(map(str, self.table[column])).encode())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.ids)

    def source(self, row: int) -> str | PathLike:
        """The CSV that a row stands in."""
        return self.csvs[int(np.searchsorted(self._ends, row, side="right"))]

    def place(self, row: int) -> str:
        """What messages call a row."""
        return f"{self.ids[row]} ({self.source(row)}, line {self.lines[row]})"

    def window(self, row: int) -> ByteRange | None:
        """Offset and size in bytes of a row's audio within its file, if it has any."""
        # -1 in a CSV of files that was read with one of shards.
        if self.windows is None or self.windows[row, 0] < 0:
            return None
        return tuple(self.windows[row].tolist())

    def batches(
        self,
        items: Iterable,
        num_workers: int = 0,
        timeout: float = 0,
        pin_memory: bool = False,
    ) -> Iterator[Batch]:
        """Yield the batch of every item, read by ``num_workers`` other processes.

        They end with the generator: ``close`` it to end them early. Raises
        ``UserError`` when an utterance cannot be read, a loading process ends, or a
        batch takes more than ``timeout`` seconds.
        """
        self._rows_in_hand.fill_(-1)
        loader = DataLoader(
            self,
            sampler=items,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            timeout=timeout if num_workers else 0,
            worker_init_fn=protect_worker,
            # The default generator would draw from the global random state, which a
            # resumed run must find untouched.
            generator=torch.Generator(),
        )
        others = set(multiprocessing.active_children())
        batches = iter(loader)
        processes = set(multiprocessing.active_children()) - others
        _loading_processes.update(processes)
        try:
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except RuntimeError as error:
            # torch names the signal or the time limit. Without this the end below
            # would wait for a process that hangs.
            _kill(processes)
            raise UserError(
                f"{' and '.join(map(str, self.csvs))}: loading failed "
                f"({str(error).strip().splitlines()[0]}) while reading "
                f"{self._in_hand()}; check these files, the memory (--num_workers) "
                "and --loader_timeout; the same command continues"
            ) from error
        finally:
            # This object ends its processes, but none that hangs, and none while a
            # traceback keeps the object.
            del batches
            _kill(processes)

    def __getitem__(self, item: tuple[object, list[Request]]) -> Batch | UserError:
        position, requests = item
        try:
            return self.read(requests, position)
        except UserError as error:
            # Raised in a worker, it would reach the user as a page of traceback.
            return error
        except Exception as error:
            logger.exception("reading %s", self._in_hand())
            return UserError(f"reading {self._in_hand()}: {error!r}; see the log")

    def _in_hand(self):
        """The utterances that are being read, for messages."""
        rows = [row for row in self._rows_in_hand.tolist() if row >= 0]
        return ", ".join(f"{self.ids[row]} ({self.paths[row]})" for row in rows)

    def read(self, requests: list[Request], position: object = None) -> Batch:
        """The batch of the requested pieces, in their order."""
        waves = [self._wave(*request) for request in requests]
        rows = [request[0] for request in requests]
        lengths = torch.tensor([len(wave) for wave in waves])
        wavs = torch.zeros(len(waves), padded_to(int(lengths.max()), self.grid))
        for padded, wave in zip(wavs, waves, strict=True):
            padded[: len(wave)] = torch.from_numpy(wave)
        columns, labels = {}, {}
        for name, label in self.labels.items():
            columns[label.column] = self.table[label.column].iloc[rows].to_list()
            labels[name] = label.encode(columns[label.column])
        ids = [self.ids[row] for row in rows]
        return Batch(ids, wavs, lengths, labels, columns, position)

    def _wave(self, row, start, stop):
        """Samples [start, stop) of one utterance, normalised as a whole."""
        worker = torch.utils.data.get_worker_info()
        self._rows_in_hand[worker.id if worker else 0] = row
        # NaN in a CSV without statistics that was read with one that has them.
        if self.statistics is not None and not np.isnan(self.statistics[row, 0]):
            wave = self.samples(row, start, stop)
            mean, std = self.statistics[row]
        else:
            whole = self.samples(row, 0, self.lengths[row])
            mean, std = whole.mean(dtype=np.float64), whole.std(dtype=np.float64)
            wave = whole[start:stop]
        scale = math.sqrt(std * std + VARIANCE_FLOOR)
        return ((wave - mean) / scale).astype(np.float32)

    def samples(self, row: int, start: int, stop: int) -> np.ndarray:
        """Samples [start, stop) of one utterance as they stand in its file."""
        first = self.starts[row]
        window = self.window(row)
        return read_audio(self.paths[row], first + start, first + stop, window)


def padded_to(lengths: int | np.ndarray, grid: int) -> int | np.ndarray:
    """The next multiples of ``grid``."""
    return -(-lengths // grid) * grid


def pack(order: Iterable[int], lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Cut rows into consecutive batches with n x longest <= ``budget``.

    A batch has at least one row, so a budget of 0 gives one row each. ``lengths`` are
    those of all rows.
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


def _kill(processes):
    """End those of some loading processes that have not ended."""
    _loading_processes.difference_update(processes)
    processes = processes.intersection(multiprocessing.active_children())
    if not processes:
        return
    # torch's handler would raise an error for each of them.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in processes:
        # They ignore any milder signal.
        process.kill()
        process.join()
    signal.signal(signal.SIGCHLD, handler)


@atexit.register
def _kill_those_left():
    # The interpreter would wait for ever for processes that ignore its signal.
    _kill(set(_loading_processes))
