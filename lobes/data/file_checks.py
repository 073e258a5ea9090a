"""The files that a CSV names are checked before anything of them is used.

A fault that shows when an utterance is drawn costs the days before it. The checks here
run when a set is opened: before the first step, and before a model is loaded.
"""

import logging
import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import numpy as np

from lobes.data import audio
from lobes.data.audio import SAMPLE_RATE
from lobes.data.markers import vouched_since
from lobes.data.scan_cache import ScanCache
from lobes.data.utterance_tables import file_names, read_header, windows_of
from lobes.errors import UserError
from lobes.system.lazy import lazy
from lobes.system.machine import usable_cores
from lobes.system.parallel import map_in_chunks
from lobes.system.terminal import progress_bar

distributed = lazy("lobes.system.distributed")
pandas = lazy("pandas")

logger = logging.getLogger(__name__)

#: Samples that an utterance may end behind its file. A duration that is rounded to two
#: decimals is off by at most so many (5 ms). They are a quarter of the encoder's step
#: of 20 ms; a cut file lacks more.
ROUNDING = SAMPLE_RATE // 200

# Rounding explains a mean or standard deviation that differs from the audio's by so
# much: a part of the deviation, and a number.
_TOLERANCE = 0.05, 1e-4

# A process gets so many files at once. So few files need no other process.
_CHUNK = 256

# Fewer headers than these are read again faster than they are remembered.
_WORTH_REMEMBERING = 1000

# Rows that are decoded for their statistics: of the suspicious ones, and of the rest.
_SAMPLED = 16

# Rows that a message shows.
_SHOWN = 3

# These numbers in the place of a length say: it is as in the CSV; there is none.
_VOUCHED, _UNUSABLE = -1, -2


def checked_stops(
    csv: str | PathLike, table: "pandas.DataFrame", lines: np.ndarray
) -> np.ndarray:
    """Check the file of every row; where each utterance really ends.

    Headers are read in parallel, m4a files decoded. A length is remembered by the
    file's path, size and time of change in ``<name>.headers`` beside the CSV, where
    that can be written. A preparation decoded the files of the CSVs that it vouches
    for; of them only those are read that changed since.

    The rows are those of ``lobes.data.utterance_tables.read_table``; ``lines`` are
    their lines in ``csv``. What comes back is int64 ``[row]`` in samples. It differs
    from the column ``stop`` where that is up to ``ROUNDING`` samples behind the end of
    the file; such rows are counted.

    Raises one ``UserError`` with the number of rows that cannot be used and the first
    of them: absent, unreadable or too short files, extents that are not in their
    file, durations that contradict them, implausible means and standard deviations.
    """
    frames, reasons = _lengths(csv, table)
    starts, stops = table["start"].to_numpy(), table["stop"].to_numpy()
    behind = (frames > 0) & (stops > frames)
    rounded = behind & (stops <= frames + ROUNDING) & (starts < frames)
    ends = np.where(rounded, frames, stops)
    extent = "stop" if "start" in read_header(csv) else "duration"

    def beyond(row):
        return (
            f"column {extent}: the utterance ends at {stops[row] / SAMPLE_RATE:.3f} s, "
            f"but {table['wav'].iloc[row]} has {frames[row] / SAMPLE_RATE:.3f} s"
        )

    def short(row):
        return (
            f"column {extent}: the utterance has {ends[row] - starts[row]} samples, "
            f"fewer than the {audio.MINIMUM_SAMPLES} that one wav2vec2 frame needs"
        )

    problems = [
        (frames == _UNUSABLE, lambda row: f"column wav: {reasons[row]}"),
        (behind & ~rounded, beyond),
        (ends - starts < audio.MINIMUM_SAMPLES, short),
    ]
    if extent == "stop" and "duration" in table:
        problems.append(_contradictions(table, frames))
    problems += _statistics_problems(table, frames)
    _refuse(csv, lines, problems)
    if rounded.any():
        distributed.warn_once(
            f"{csv}: {int(rounded.sum()):,} of {len(table):,} utterances end up to "
            f"{1000 * (stops - ends).max() / SAMPLE_RATE:.1f} ms behind the end of "
            "their file, as rounded durations do; they are read to its end"
        )
    return ends


# The rows [row] with a problem are marked; the function tells a row's problem.
_Problem = tuple[np.ndarray, Callable[[int], str]]


def _refuse(csv, lines, problems: list[_Problem]):
    """Raise ``UserError`` for rows with a problem; the first of a row's counts."""
    bad = np.logical_or.reduce([marked for marked, _ in problems])
    if not bad.any():
        return
    shown = []
    for row in np.flatnonzero(bad)[:_SHOWN].tolist():
        describe = next(describe for marked, describe in problems if marked[row])
        shown.append(f"line {lines[row]}, {describe(row)}")
    more = int(bad.sum()) - len(shown)
    raise UserError(
        f"{csv}: {int(bad.sum()):,} of {len(bad):,} rows cannot be used: "
        f"{'; '.join(shown)}{f'; and {more:,} more' if more else ''}; correct these "
        "rows or remove them"
    )


def _contradictions(table, frames) -> _Problem:
    """The rows whose duration is neither the utterance's nor its file's."""
    durations = table["duration"].to_numpy()
    lengths = (table["stop"] - table["start"]).to_numpy()
    samples = durations * SAMPLE_RATE
    # SpeechBrain's CSVs of segments have the duration of the whole file.
    off = np.minimum(abs(samples - lengths), abs(samples - frames))

    def describe(row):
        return (
            f"column duration: it is {durations[row]:g} s, but start and stop are "
            f"{lengths[row] / SAMPLE_RATE:g} s apart"
        )

    return (frames > 0) & (off > ROUNDING), describe


# Lengths ------------------------------------------------------------------------


def _lengths(csv, table):
    """Samples of every row's file, and the first rows' reasons for ``_UNUSABLE``.

    Each process reads its share of the files.
    """
    rank, world_size = distributed.rank_and_world_size()
    places = table[[name for name in ("wav", "offset", "size") if name in table]]
    frames, reasons = _lengths_of_share(csv, places.iloc[rank::world_size])
    shares = distributed.gather({rank: (frames, reasons)})
    frames, reasons = np.empty(len(table), dtype=np.int64), {}
    for other, (some, texts) in shares.items():
        frames[other::world_size] = some
        for row, text in texts.items():
            reasons[row * world_size + other] = text
    return frames, reasons


def _lengths_of_share(csv, table):
    """See ``_lengths``, of one process's rows."""
    paths = table["wav"].to_numpy(dtype=object)
    frames = np.zeros(len(paths), dtype=np.int64)
    since = vouched_since(csv)
    if since is not None:
        frames[:] = [_VOUCHED if _unchanged(path, since) else 0 for path in paths]
    rows = np.flatnonzero(frames == 0)
    if not len(rows):
        return frames, {}
    # Utterances may be pieces of one file.
    file_of_row = pandas.factorize(file_names(table.iloc[rows]))[0]
    first = rows[np.unique(file_of_row, return_index=True)[1]]
    windows = windows_of(table.iloc[first])
    lengths, texts = _lengths_of_files(csv, paths[first].tolist(), windows)
    frames[rows] = lengths[file_of_row]
    shown = np.flatnonzero(frames[rows] == _UNUSABLE)[:_SHOWN].tolist()
    return frames, {int(rows[i]): texts[int(file_of_row[i])] for i in shown}


def _unchanged(path, since):
    """Whether a file is there, not empty, and did not change after ``since`` (ns)."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_size > 0 and status.st_mtime_ns <= since


def _lengths_of_files(csv, paths, windows):
    """Samples of each file, and the first reasons for ``_UNUSABLE``; both by place."""
    audio.import_pyav_for(paths)
    csv = Path(csv)
    memory = ScanCache(csv.with_suffix(".headers"), csv.resolve().parent)
    known, frames, *_ = memory.find(paths, statistics=False, windows=windows)
    places = np.flatnonzero(~known)
    aac = any(paths[i].lower().endswith(audio.AAC_SUFFIXES) for i in places)
    if len(places) < _WORTH_REMEMBERING and not aac:
        memory = None
    files = [(paths[i], windows[i]) for i in places.tolist()]
    workers = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    reasons = {}
    with progress_bar(
        f"{csv.name}: looking at the files",
        len(paths),
        unit="file",
        initial=len(paths) - len(places),
        leave=False,
        # A bar for a moment would only flicker.
        disable=memory is None or distributed.rank_and_world_size()[0] > 0,
    ) as progress:
        for start, results in map_in_chunks(_read_headers, files, _CHUNK, workers):
            chunk = places[start : start + len(results)]
            for place, result in zip(chunk.tolist(), results, strict=True):
                unusable = isinstance(result, str)
                frames[place] = _UNUSABLE if unusable else result
                if unusable and len(reasons) < _SHOWN:
                    reasons[place] = result
            progress.update(len(results))
            usable = chunk[frames[chunk] > 0]
            if memory is None or not len(usable):
                continue
            try:
                memory.add(usable, frames[usable], np.nan, np.nan)
            except UserError as error:
                logger.info("The headers of these files will be read again: %s", error)
                memory = None
    return frames, reasons


def _read_headers(files):
    """Samples of each file and window, or the reason why it cannot be used."""
    lengths = []
    for path, window in files:
        try:
            lengths.append(audio.usable_frames(path, window))
        except UserError as error:
            lengths.append(str(error))
    return lengths


# Means and standard deviations --------------------------------------------------


def _statistics_problems(table, frames) -> list[_Problem]:
    """The rows whose mean and std cannot be their audio's.

    All negative ones are found. Some rows are decoded: first those that are odd for
    audio in [-1, 1], then some that lie evenly spread.
    """
    if not {"mean", "std"} <= set(table.columns):
        return []
    mean, std = table["mean"].to_numpy(), table["std"].to_numpy()
    # A preparation measured its own, and a part of a joint corpus may have none.
    given = (frames > 0) & ~np.isnan(mean)
    negative = given & (std < 0)
    odd = np.flatnonzero(given & ((std == 0) | (std > 1) | (abs(mean) > 1)))
    rows = np.flatnonzero(given)
    spread = rows[:: max(1, len(rows) // _SAMPLED)]
    texts = {}
    for row in sorted({*odd[:_SAMPLED].tolist(), *spread.tolist()}):
        try:
            real_mean, real_std = _measure(table.iloc[[row]], frames[row])
        except UserError as error:
            texts[row] = f"column wav: {error}"
            continue
        room = _TOLERANCE[0] * real_std + _TOLERANCE[1]
        if max(abs(mean[row] - real_mean), abs(std[row] - real_std)) > room:
            texts[row] = (
                f"columns mean and std: they are {mean[row]:g} and {std[row]:g}, but "
                f"those of the utterance in {table['wav'].iloc[row]} are "
                f"{real_mean:g} and {real_std:g} (leave both columns out: they are "
                "computed then)"
            )
    wrong = np.isin(np.arange(len(table)), list(texts))
    return [
        (negative, lambda row: f"column std: {std[row]:g} is negative"),
        (wrong, texts.get),
    ]


def _measure(table, frames):
    """Mean and standard deviation of the audio of a table's only row."""
    start, stop = (min(int(table[name].iloc[0]), frames) for name in ("start", "stop"))
    samples = audio.read_audio(table["wav"].iloc[0], start, stop, *windows_of(table))
    if not len(samples):
        return 0.0, 0.0
    return samples.mean(dtype=np.float64), samples.std(dtype=np.float64)
