"""What the preparation of every corpus shares: from audio files to CSVs.

A corpus is prepared in parts (one LibriSpeech split, the training half of
VoxCeleb, ...). Each part owns a few output files and a marker,
``<part>.prepared.json``, which is written last. It holds the options, a hash
of the input listing and the hash of every output; a part whose marker does
not fit in any of the three is built again, so that a stale, half-written or
edited file is never trusted.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lobes.data.audio import (
    SAMPLE_RATE,
    AudioStatistics,
    audio_statistics,
    import_pyav_for,
    usable_frames,
)
from lobes.data.markers import marker_path, read_marker
from lobes.errors import UserError, enumeration
from lobes.system.files import file_hash, write_atomically
from lobes.system.locks import one_writer
from lobes.system.parallel import map_in_processes, worker_count
from lobes.system.terminal import progress_bar, say

# Raised when the content of the output files changes for the same input.
_FORMAT = 1

# Audio files handed to a worker at once: large enough to hide the cost of
# passing messages, small enough for a moving progress bar.
_CHUNK = 32

# Rows turned into text at once.
_ROWS = 1 << 14


class Problem(NamedTuple):
    """An utterance that cannot be used: its ID, its file, and why."""

    utterance: str
    path: str
    reason: str


class Scan(NamedTuple):
    """What decoding a list of files gave; columns ``[file]``.

    ``frames`` (int64, samples), ``mean`` and ``std`` (float64, of all samples)
    are 0 where decoding failed; ``reasons`` maps the index of such a file to
    what is wrong with it. Of headers alone, ``mean`` and ``std`` may be NaN.
    """

    frames: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    reasons: dict


def scan_audio(
    paths, num_workers=None, title="decoding", journal=None, header_only=False
):
    """Decode every file once, in parallel, for its length, mean and std.

    Arguments
    ---------
    paths : list of str
    num_workers : int
        Processes; None for all cores, 1 to stay in this process.
    title : str
        Label of the progress bar (on standard error; in a log it gains a line
        every half minute).
    journal : lobes.data.scan_cache.Journal
        Files that it knows are not decoded, and those that are become known to it.
        Bad files never do. None: every file is decoded.
    header_only : bool
        Take the length from the header of wav and flac files, which is fast and
        overlooks damage behind it.

    Returns
    -------
    Scan
        In the order of ``paths``, whatever the number of workers.

    Raises ``UserError`` when PyAV is needed and absent, or a worker died.
    """
    import_pyav_for(paths)
    scan = Scan(
        np.zeros(len(paths), dtype=np.int64), *np.zeros((2, len(paths))), reasons={}
    )
    left = np.arange(len(paths))
    if journal is not None:
        known, *columns = journal.find(paths, statistics=not header_only)
        scan = Scan(*columns, reasons={})
        left = np.flatnonzero(~known)
        if known.any():
            say(
                f"{title}: {int(known.sum()):,} of {len(paths):,} files were decoded "
                f"before ({journal.path.name}) and did not change since"
            )
    starts = range(0, len(left), _CHUNK)
    chunks = ([paths[i] for i in left[start : start + _CHUNK]] for start in starts)
    workers = min(worker_count(num_workers), len(starts))
    function = _read_headers if header_only else _scan_chunk
    with progress_bar(title, len(paths), initial=len(paths) - len(left)) as progress:
        for start, results in zip(
            starts, map_in_processes(function, chunks, workers), strict=True
        ):
            good = []
            for index, result in zip(
                left[start : start + _CHUNK].tolist(), results, strict=True
            ):
                if isinstance(result, str):
                    scan.reasons[index] = result
                else:
                    scan.frames[index], scan.mean[index], scan.std[index] = result
                    good.append(index)
            if journal is not None and good:
                journal.add(good, *(column[good] for column in scan[:3]))
            progress.update(len(results))
    return scan


class Inputs:
    """A running hash of the input files: relative path, size and time of change.

    Files count in the order in which they are added, so add them sorted.
    """

    def __init__(self):
        self._hash = hashlib.sha256()

    def add(self, name, path):
        """Add the file at ``path`` under a name that does not depend on the root."""
        try:
            status = os.stat(path)
            line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
        except OSError:
            # A dangling link: decoding will say so, with the utterance's ID.
            line = f"{name}\0missing\n"
        self._hash.update(line.encode("utf-8", "surrogateescape"))

    def digest(self):
        """The hash as text."""
        return self._hash.hexdigest()


class Part:
    """One group of output files that is built, and trusted, as a whole.

    Arguments
    ---------
    save_folder : str or Path
        Where the outputs and the marker ``<name>.prepared.json`` lie.
    name : str
    corpus : str
        Kept in the marker: two corpora must not share a part's files.
    options : dict
        Everything but the input files that decides the outputs (JSON types).
    inputs : str
        ``Inputs.digest()`` of the files that the outputs are made from.
    """

    def __init__(self, save_folder, name, corpus, options, inputs):
        self.folder = Path(save_folder)
        self.name = name
        self.marker = marker_path(save_folder, name)
        self._key = {
            "format": _FORMAT,
            "corpus": corpus,
            "options": json.loads(json.dumps(options)),
            "inputs": inputs,
        }

    def reusable(self, skip_budget):
        """Counts of the outputs that lie there, or None if they must be built.

        Says on standard error which of the two it is, and why.
        """
        stored = read_marker(self.marker)
        if not stored:
            return None
        reason = self._difference(stored)
        if reason is None and stored["skipped"] > skip_budget:
            reason = f"more utterances were left out than skip_budget={skip_budget}"
        if reason is None:
            say(f"{self.name}: prepared before and nothing changed; kept")
            return stored["counts"]
        say(f"{self.name}: {reason}; preparing it again")
        return None

    def skip(self, problems, skip_budget):
        """Accept ``problems`` as left out, if there are not too many.

        Writes all of them to ``<name>.skipped.csv`` (``ID,path,reason``) and
        says how many there are; without any, a list of an earlier run goes.
        Raises ``UserError`` beyond ``skip_budget``.
        """
        path = self.folder / f"{self.name}.skipped.csv"
        if not problems:
            path.unlink(missing_ok=True)
            return
        problems = sorted(Problem(*map(shown, problem)) for problem in problems)
        columns = list(zip(*problems, strict=True))
        write_atomically(path, csv_text(("ID", "path", "reason"), columns))
        if len(problems) > skip_budget:
            raise UserError(
                f"{self.name}: {len(problems)} bad utterance(s): "
                f"{enumeration([': '.join(problem) for problem in problems])}; all are "
                f"listed in {path}: repair them, or leave them out with "
                f"--skip_budget={len(problems)} (now {skip_budget}"
                f"{'' if skip_budget else ', as always with --strict'})"
            )
        say(f"{self.name}: left out {len(problems)} bad utterance(s), listed in {path}")

    def write(self, files, counts, skipped=0):
        """Write all outputs, then the marker that vouches for them.

        Arguments
        ---------
        files : dict
            Content (str) by file name.
        counts : dict
            What ``reusable`` will return next time (JSON types).
        skipped : int
            Utterances left out, listed in ``<name>.skipped.csv``.
        """
        # It vouches for nothing yet, but says whose files these are.
        unfinished = {"corpus": self._key["corpus"], "unfinished": list(files)}
        write_atomically(self.marker, json.dumps(unfinished) + "\n")
        for name, content in files.items():
            write_atomically(self.folder / name, content)
        names = [*files, f"{self.name}.skipped.csv"] if skipped else list(files)
        stored = {
            **self._key,
            "skipped": skipped,
            "counts": counts,
            "files": {name: file_hash(self.folder / name) for name in names},
        }
        write_atomically(self.marker, json.dumps(stored, indent=1) + "\n")

    def _difference(self, stored):
        """Why the outputs may not be kept, or None."""
        for key, text in (
            ("format", "it was written by another version"),
            ("options", "the options changed"),
            ("inputs", "the input files changed"),
        ):
            if stored[key] != self._key[key]:
                return text
        for name, wanted in stored["files"].items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if file_hash(path) != wanted:
                return f"{name} was edited or cut since it was written"
        return None


@contextlib.contextmanager
def one_preparation(save_folder, journal_folder):
    """Be the only process that prepares into either folder; wait for others."""
    with contextlib.ExitStack() as stack:
        # In this order for all processes: none waits for one that waits for it.
        for folder in dict.fromkeys((Path(save_folder), Path(journal_folder))):
            lock = folder / ".prepare.lock"
            stack.enter_context(one_writer(lock, wait=True))
        yield


def check_owner(save_folder, name, corpus, outputs):
    """Raise ``UserError`` where a part's files would overwrite what is not its own.

    Arguments
    ---------
    save_folder : Path
    name, corpus : str
        Of the part, as for ``Part``.
    outputs : list of str
        Names of the files that it writes.
    """
    marker = marker_path(save_folder, name)
    other = read_marker(marker).get("corpus", corpus)
    if other != corpus:
        raise UserError(
            f"{save_folder}: {name}.csv there was prepared from {other}, not from "
            f"{corpus}; give every corpus a save_folder of its own"
        )
    for output in outputs:
        if not marker.exists() and os.path.lexists(save_folder / output):
            raise UserError(
                f"{save_folder / output} is there and no preparation wrote it; it is "
                f"not overwritten: move it away, choose another save_folder, or set "
                f"skip_prep=True to train with your own files"
            )


class LeftOut:
    """What lies in a corpus and is no utterance, counted by kind.

    Arguments
    ---------
    root : str or Path
        Of the corpus: examples are told relative to it.
    """

    def __init__(self, root):
        self._prefix = os.path.join(root, "")
        self._kinds = {}

    def add(self, kind, path, count=1):
        """Count something; the first ``path`` of a kind becomes its example."""
        found = self._kinds.setdefault(kind, [0, path])
        found[0] += count

    def counts(self):
        """``{kind: number}``, the most first."""
        kinds = sorted(self._kinds, key=lambda kind: (-self._kinds[kind][0], kind))
        return {kind: self._kinds[kind][0] for kind in kinds}

    def say(self, part):
        """Tell all kinds in one line, where there are any."""
        told = []
        for kind, count in self.counts().items():
            example = shown(self._kinds[kind][1].removeprefix(self._prefix))
            told.append(f"{count:,} {kind} ({example}{', ...' if count > 1 else ''})")
        if told:
            say(f"{part}: left out: {'; '.join(told)}")


def shown(text):
    """``text`` on one line of UTF-8: other bytes and control characters escaped."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def name_problem(utterance, path):
    """Why an utterance of that ID and file cannot stand in our files, or None.

    A CSV is UTF-8, and the fields of a trial list are separated by blanks.
    """
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "its path is not UTF-8; rename the file or folder"
    if utterance.isprintable() and " " not in utterance:
        return None
    held = sorted({c for c in utterance if c.isspace() or not c.isprintable()})
    return (
        f"its name holds {' '.join(map(ascii, held))}, which no trial list can hold; "
        f"rename the file or folder without"
    )


def csv_text(header, columns):
    """CSV text with a header line; ``columns`` are equally long sequences.

    Floats are written so that reading them gives the same float64 again.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    # A million rows of Python's own numbers take more room than the text.
    for start in range(0, max(map(len, columns), default=0), _ROWS):
        block = [column[start : start + _ROWS] for column in columns]
        block = [c.tolist() if isinstance(c, np.ndarray) else c for c in block]
        writer.writerows(zip(*block, strict=True))
    return stream.getvalue()


def csv_counts(name, speakers, frames, skipped):
    """What one CSV holds; also said on standard error.

    Arguments
    ---------
    name : str
    speakers : list of str ``[utterance]``
    frames : numpy.ndarray ``[utterance]``, in samples
    skipped : int

    Returns
    -------
    dict
        ``{speakers, utterances, hours, skipped}``
    """
    counts = {
        "speakers": len(set(speakers)),
        "utterances": len(frames),
        "hours": int(np.sum(frames)) / SAMPLE_RATE / 3600,
        "skipped": skipped,
    }
    say(
        f"{name}: {counts['speakers']} speakers, {counts['utterances']} utterances, "
        f"{counts['hours']:.2f} hours, {counts['skipped']} skipped"
    )
    return counts


def with_paths(save_folder, counts):
    """``counts`` by file name, each with the file's ``path`` added."""
    return {
        name: {"path": os.path.join(save_folder, name), **count}
        for name, count in counts.items()
    }


def children(folder, folders=False):
    """Files (or ``folders``) directly in ``folder``, as ``listing`` gives them."""
    return listing(folder)[0 if folders else 1]


def listing(folder):
    """``(folders, files)`` directly in ``folder``: each sorted by name, none hidden.

    They are ``os.DirEntry`` objects; links count as what they point to.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry)
    except OSError as error:
        raise UserError(
            f"{folder}: the folder cannot be listed ({error.strerror}); check its path "
            f"and permissions"
        ) from error
    for found in (folders, files):
        found.sort(key=lambda entry: entry.name)
    return folders, files


def best_audio(entries, suffixes, left_out):
    """One file per stem: ``{stem: entry}``, where ``suffixes`` come best first.

    Files with other suffixes are added to ``left_out``; the stems come sorted.
    """
    best = {}
    for entry in entries:
        stem, suffix = os.path.splitext(entry.name)
        suffix = suffix.lower()
        if suffix not in suffixes:
            ending = f"that end in {shown(suffix)}" if suffix else "without ending"
            left_out.add(f"file(s) {ending}", entry.path)
            continue
        rank = suffixes.index(suffix)
        if stem not in best or rank < best[stem][0]:
            best[stem] = (rank, entry)
    return {stem: best[stem][1] for stem in sorted(best)}


def existing_folder(folder, argument):
    """``folder`` as an absolute path; a ``UserError`` if it is not there."""
    path = Path(os.path.abspath(folder))
    if not path.is_dir():
        raise UserError(
            f"{argument}: the folder {shown(str(path))} does not exist; set it to "
            f"where the corpus lies"
        )
    if shown(str(path)) != str(path):
        raise UserError(
            f"{argument}: the path {shown(str(path))} cannot stand in a CSV; rename "
            f"the folder, or name a link to it"
        )
    return path


def outside(folder, sources, argument="save_folder"):
    """Raise ``UserError`` if ``folder`` is or lies in one of ``sources``, a corpus's.

    Arguments
    ---------
    folder : str or Path
        Where something is to be written.
    sources : list of Path
        Folders in which audio is looked for.
    argument : str
        What the user calls ``folder``.
    """
    path = Path(os.path.realpath(folder))
    for source in sources:
        if path.is_relative_to(os.path.realpath(source)):
            raise UserError(
                f"{argument}: {folder} lies in the corpus ({source}), where nothing is "
                f"to be written; choose a folder outside of it"
            )


def writable_folder(folder, argument="save_folder"):
    """``folder`` as an absolute path, made and tried; ``UserError`` if it fails."""
    path = Path(os.path.abspath(folder))
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(
            f"{argument}: {path} cannot be written to ({error.strerror}); choose "
            f"another folder or correct its permissions"
        ) from error
    return path


def _scan_chunk(paths):
    """``(frames, mean, std)`` of each file, or the reason why there is none."""
    return [_tried(audio_statistics, path) for path in paths]


def _read_headers(paths):
    """Like ``_scan_chunk``, with NaN for mean and standard deviation."""
    return [_tried(_header, path) for path in paths]


def _tried(function, path):
    """What ``function`` gives for a file as a tuple, or the reason it gives none."""
    try:
        return tuple(function(path))
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")


def _header(path):
    """``AudioStatistics`` without any statistics."""
    return AudioStatistics(usable_frames(path), np.nan, np.nan)
