"""The utterances of a corpus, read as batches."""

import atexit
import hashlib
import logging
import math
import multiprocessing
import signal
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.utils.data import DataLoader

from lobes.data.audio import read_audio
from lobes.data.file_checks import checked_stops
from lobes.data.utterance_tables import as_paths, concatenate, read_table
from lobes.errors import UserError
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
        ``lobes.data.file_checks.checked_stops`` for that and for the ``UserError``
        that it raises.
        """
        stops = self.table["stop"].to_numpy(copy=True)
        rows = np.arange(len(self)) if rows is None else np.sort(rows)
        cuts = np.searchsorted(rows, self._ends[:-1])
        problems = []
        for csv, some in zip(self.csvs, np.split(rows, cuts), strict=True):
            table = self.table if len(some) == len(self) else self.table.iloc[some]
            try:
                stops[some] = checked_stops(csv, table, self.lines[some])
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


def padded_to(lengths, grid):
    """The next multiples of ``grid`` (int, or array of int)."""
    return -(-lengths // grid) * grid


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
