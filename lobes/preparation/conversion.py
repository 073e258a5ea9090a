"""Converting a corpus once, in parallel, file by file: VoxCeleb2's m4a to wav or flac.

Files are decoded by the same code that recipes use on the fly and stored with 16 bits,
so that samples differ by rounding only, at most 1/65536 of full scale; AAC may go
beyond full scale, and what does is clipped, and counted. Folders are kept, except that
one called aac becomes wav, where preparation looks first: dev/aac/id00012/21Uxsk56VDQ/
00001.m4a becomes dev/wav/.../00001.flac.

Lists and meta files (.txt, .csv, ...) are copied along to another folder.

Every output is either complete or absent. A conversion that was killed goes on where it
stopped, and its outputs are the same bytes.
"""

import contextlib
import functools
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import soundfile

from lobes.data.audio import (
    AAC_SUFFIXES,
    SAMPLE_RATE,
    audio_frames,
    encode_audio,
    import_pyav_for,
    read_audio,
)
from lobes.errors import UserError
from lobes.preparation.folders import existing_folder, listing, shown, writable_folder
from lobes.preparation.outputs import csv_text
from lobes.system.files import write_atomically
from lobes.system.locks import one_writer
from lobes.system.parallel import map_in_chunks, worker_count
from lobes.system.terminal import progress_bar, say

#: File in the output folder that lists what could not be converted, and why.
FAILED = "convert.failed.csv"

_SUFFIXES = (*AAC_SUFFIXES, ".wav", ".flac")

# Transcripts, trial lists, tables of speakers.
_LISTS = (".txt", ".csv", ".tsv", ".json", ".md")

# Files handed to a worker at once.
_CHUNK = 32

# 16-bit audio: the largest sample, and how much rounding may change one.
_LARGEST, _ROUNDING = 32767 / 32768, 1 / 65536


class Outcome(NamedTuple):
    """What became of one file.

    ``samples`` decoded now (0: the output was there), those ``clipped`` among them,
    and the ``reason`` why there is no output.
    """

    samples: int = 0
    clipped: int = 0
    reason: str | None = None


class Conversion(TypedDict):
    """How many files were converted, ``kept`` (there before), failed and clipped.

    ``copied`` counts lists, ``hours`` the audio converted, ``seconds`` what it took.
    """

    files: int
    converted: int
    kept: int
    failed: int
    clipped: int
    copied: int
    hours: float
    seconds: float


def convert(
    folder: str | Path,
    out: str | Path,
    to: Literal["flac", "wav"],
    num_workers: int | None = None,
    delete: bool = False,
    only: Sequence[str] | None = None,
) -> Conversion:
    """Convert every m4a, mp4, aac, wav and flac file below a folder.

    Arguments:
        folder: The corpus.
        out: May be ``folder`` itself, but not lie in it. Complete outputs there are
            kept, judged by their headers, without decoding anything again; audio of
            another rate or number of channels is never overwritten. Another folder also
            gets the lists and meta files, where it has none of that name.
        to: ``wav`` or ``flac``; files that have this format are left as they are.
        num_workers: Processes, by default one for each core.
        delete: Delete each original once its output is on the disk, was read back and
            has the original's samples.
        only: Paths below ``folder`` of the files to convert; None for all.

    Raises ``UserError`` for missing folders, nothing to convert, two files with one
    output, a missing PyAV, a full disk, and another process that converts to ``out``.
    """
    folder, out = existing_folder(folder, "FOLDER"), Path(os.path.abspath(out))
    worker_count(num_workers)
    home, goal = (Path(os.path.realpath(path)) for path in (folder, out))
    if goal != home and goal.is_relative_to(home):
        raise UserError(
            f"OUT: {out} lies in FOLDER, whose conversion would next time take it for "
            f"a part of the corpus; choose a folder outside of it, or FOLDER itself"
        )
    listed, lists = (only, []) if only is not None else _list_files(folder)
    pairs = _plan(folder, out, f".{to}", listed)
    import_pyav_for(source for source, _ in pairs)
    out = writable_folder(out, "OUT")
    with one_writer(out / ".convert.lock"):
        counts = _convert_all(pairs, out, to, num_workers, delete)
        if delete:
            _remove_empty_folders(folder, [source for source, _ in pairs])
        counts["copied"] = 0 if goal == home else _copy_lists(folder, out, lists)
    return counts


def summary(counts: Conversion, out: str | Path) -> str:
    """What was done, as one line; ``counts`` of a conversion to ``out``."""
    seconds = max(counts["seconds"], 1e-9)
    text = (
        f"{counts['files']:,} files: {counts['converted']:,} converted, "
        f"{counts['kept']:,} there before, {counts['failed']:,} failed"
    )
    if counts["copied"]:
        text += f"; {counts['copied']:,} lists and meta files copied"
    if counts["clipped"]:
        text += f", {counts['clipped']:,} with samples beyond full scale, clipped"
    if counts["converted"]:
        text += (
            f"; {counts['hours']:.2f} hours of audio in {seconds:.0f} seconds: "
            f"{counts['converted'] / seconds:.1f} files/s, "
            f"{counts['hours'] * 3600 / seconds:,.0f} hours of audio per hour"
        )
    if counts["failed"]:
        text += f"; see {Path(out) / FAILED}"
    return text


def _plan(folder, out, suffix, listed):
    """Paths of the files to convert, sorted, each with that of what it becomes."""
    others = [path for path in listed if path.lower().endswith(suffix)]
    sources = [path for path in listed if not path.lower().endswith(suffix)]
    origin, prefix = {}, os.path.join(folder, "")
    for path in sources:
        target = _target(path.removeprefix(prefix), out, suffix)
        if origin.setdefault(target, path) != path:
            raise UserError(
                f"{origin[target]} and {path} would both become {target}; give the "
                f"folder of one of them as FOLDER"
            )
    if not sources:
        raise UserError(
            f"{folder}: it holds no {', '.join(_SUFFIXES)} files but {len(others)} "
            f"with {suffix}; correct the path"
        )
    others = sum(path not in origin for path in others)
    if others:
        say(f"{folder}: {others} files are {suffix[1:]} already; left as they are")
    return [(source, target) for target, source in origin.items()]


def _list_files(folder):
    """Paths of all audio files below ``folder``, and of all lists, both sorted.

    Hidden files are left out; others are counted.
    """
    say(f"{folder}: listing its audio files")
    audio, lists, others, folders = [], [], Counter(), [os.fspath(folder)]
    while folders:
        below, files = listing(folders.pop())
        folders += [entry.path for entry in below]
        for entry in files:
            if entry.name.lower().endswith(_SUFFIXES):
                audio.append(entry.path)
            elif not entry.name.lower().endswith(_LISTS):
                others[os.path.splitext(entry.name)[1].lower()] += 1
            elif entry.name != FAILED:
                lists.append(entry.path)
    if others:
        told = (
            f"{count:,} {shown(suffix) or 'without ending'}"
            for suffix, count in sorted(others.items())
        )
        say(f"{folder}: neither audio nor lists, left out: {', '.join(told)}")
    return sorted(audio), sorted(lists)


def _target(name, out, suffix=None):
    """Where the file with the relative path ``name`` goes, with another suffix."""
    *folders, file = name.split(os.sep)
    folders = ["wav" if folder == "aac" else folder for folder in folders]
    if suffix is not None:
        file = os.path.splitext(file)[0] + suffix
    return os.path.join(out, *folders, file)


def _copy_lists(folder, out, lists):
    """Copy what is not there yet; returns how many. What differs is told and kept."""
    copied, prefix = 0, os.path.join(folder, "")
    for path in lists:
        target = Path(_target(path.removeprefix(prefix), out))
        try:
            content = Path(path).read_bytes()
            if not os.path.lexists(target):
                _write(target, content, sync=False)
                copied += 1
            elif target.read_bytes() != content:
                say(f"{shown(str(target))}: it differs from the corpus's; kept")
        except OSError as error:
            raise UserError(
                f"{error.filename or target}: it cannot be read or written "
                f"({error.strerror}); correct that, and run the same command again"
            ) from error
    return copied


def _convert_all(pairs, out, to, num_workers, delete):
    """Convert the (source, target) pairs; what failed is listed in ``out``."""
    function = functools.partial(_convert_chunk, to=to, delete=delete)
    counts, failed, began = Counter(), [], time.monotonic()
    with progress_bar(f"converting to {to}", len(pairs), "file") as progress:
        for start, outcomes in map_in_chunks(function, pairs, _CHUNK, num_workers):
            for place, outcome in enumerate(outcomes, start):
                if outcome.reason is not None:
                    failed.append((shown(pairs[place][0]), shown(outcome.reason)))
                else:
                    counts["converted" if outcome.samples else "kept"] += 1
                counts["samples"] += outcome.samples
                counts["clipped"] += outcome.clipped > 0
            speed = counts["samples"] / SAMPLE_RATE / (time.monotonic() - began)
            progress.set_postfix_str(f"{speed:.0f} h of audio per h", refresh=False)
            progress.update(len(outcomes))
    # Without any, a list of an earlier run goes.
    (out / FAILED).unlink(missing_ok=True)
    if failed:
        columns = list(zip(*failed, strict=True))
        write_atomically(out / FAILED, csv_text(("path", "reason"), columns))
    return Conversion(
        files=len(pairs),
        converted=counts["converted"],
        kept=counts["kept"],
        failed=len(failed),
        clipped=counts["clipped"],
        copied=0,
        hours=counts["samples"] / SAMPLE_RATE / 3600,
        seconds=time.monotonic() - began,
    )


def _convert_chunk(pairs, to, delete):
    """The ``Outcome`` of each (source, target)."""
    outcomes = []
    for source, target in pairs:
        try:
            outcomes.append(_convert_file(source, target, to, delete))
        except UserError as error:
            outcomes.append(Outcome(reason=str(error).removeprefix(f"{source}: ")))
        except OSError as error:
            # A full disk is not the defect of a million files.
            raise UserError(
                f"{error.filename or target}: it cannot be written or deleted "
                f"({error.strerror}); make room or correct the permissions, and run "
                f"the same command again to go on"
            ) from error
    return outcomes


def _convert_file(source, target, to, delete):
    """Convert one file, unless it was; raises ``UserError`` or ``OSError``."""
    outcome = Outcome()
    if _is_complete(target, thorough=delete):
        samples = read_audio(source) if delete else None
        if delete and not _reads_back(target, np.clip(samples, -1, _LARGEST)):
            raise UserError(
                f"{source}: {target} was there before and holds other samples; "
                f"nothing was deleted: delete one of them"
            )
    else:
        samples = read_audio(source)
        _check_not_another(source, target)
        if not len(samples):
            raise UserError(f"{source}: it has no samples; leave it out")
        limited = np.clip(samples, -1, _LARGEST)
        clipped = int(np.count_nonzero(np.abs(samples - limited) > _ROUNDING))
        _write(target, encode_audio(samples, to), sync=delete)
        if delete and not _reads_back(target, limited):
            os.unlink(target)
            raise UserError(
                f"{source}: {target} does not read back as it was written; check the "
                f"disk, and run the same command again"
            )
        outcome = Outcome(len(samples), clipped)
    if delete:
        os.unlink(source)
    return outcome


def _reads_back(path, samples):
    """Whether a file holds these samples, but for rounding."""
    with contextlib.suppress(UserError):
        stored = read_audio(path)
        same_length = stored.shape == samples.shape
        return same_length and np.abs(stored - samples).max() <= _ROUNDING
    return False


def _check_not_another(source, target):
    """Refuse to overwrite whole audio that no conversion made."""
    try:
        there = soundfile.info(target)
    except (soundfile.SoundFileError, RuntimeError, OSError):
        # Absent, or what a crash left of an output.
        return
    if (there.samplerate, there.channels) != (SAMPLE_RATE, 1):
        raise UserError(
            f"{source}: {target} is there with {there.samplerate} Hz and "
            f"{there.channels} channel(s), which no conversion made; it is not "
            f"overwritten: move or delete it, or convert to another folder"
        )


def _is_complete(path, thorough):
    """Whether the output is there, judged by its header or by all its samples."""
    with contextlib.suppress(UserError):
        if os.path.exists(path):
            (read_audio if thorough else audio_frames)(path)
            return True
    return False


def _write(path, content, sync):
    """Write a file under a temporary name, which a resumed run uses again."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.part")
    os.makedirs(folder, exist_ok=True)
    with open(temporary, "wb") as stream:
        stream.write(content)
        if sync:
            stream.flush()
            os.fsync(stream.fileno())
    os.replace(temporary, path)


def _remove_empty_folders(folder, sources):
    """Remove the folders below ``folder`` that deleting ``sources`` emptied."""
    emptied = {parent for path in sources for parent in Path(path).parents}
    inside = (path for path in emptied if folder in path.parents)
    for path in sorted(inside, key=lambda path: -len(path.parts)):
        # Something else may lie there, such as what could not be converted.
        with contextlib.suppress(OSError):
            path.rmdir()
