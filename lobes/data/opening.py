"""What will be read is looked at first: files, lengths, statistics, leaks.

A fault that shows when an utterance is drawn costs the days before it. Everything here
acts when a set is opened, before the first step and before a model is loaded.
"""

import functools
import logging
import os
from pathlib import Path

import numpy as np

from lobes.data.audio import (
    AAC_SUFFIXES,
    MINIMUM_SAMPLES,
    SAMPLE_RATE,
    import_pyav_for,
    read_audio,
    usable_frames,
)
from lobes.data.markers import vouched_since
from lobes.data.scan_cache import ScanCache
from lobes.data.trials import check_trials
from lobes.data.utterance_tables import read_header
from lobes.errors import UserError, enumeration
from lobes.system.lazy import lazy
from lobes.system.parallel import map_in_processes, worker_count
from lobes.system.terminal import progress_bar

distributed = lazy("lobes.system.distributed")
pandas = lazy("pandas")

logger = logging.getLogger(__name__)

#: Samples that an utterance may end behind its file: what a duration rounded to two
#: decimals is off by at most (5 ms). It is a quarter of the encoder's step of 20 ms;
#: a cut file lacks more.
ROUNDING = SAMPLE_RATE // 200

#: Relative and absolute difference of a mean or standard deviation from the audio's
#: that rounding explains.
_TOLERANCE = 0.05, 1e-4

# Files handed to a process at once; fewer are looked at without another process.
_CHUNK = 256

# Fewer headers than these are read again faster than they are remembered.
_WORTH_REMEMBERING = 1000

# Rows that are decoded for their statistics, of the suspicious ones and of the rest.
_SAMPLED = 16

# Rows that a message shows.
_TOLD = 3

# Lengths of files that are as the CSV says, and that cannot be used.
_VOUCHED, _BAD = -1, -2


def open_sets(train_streams, valid_sets, test_sets, rank=0, world_size=1):
    """Open every set, the small ones first; each file's header is read.

    Arguments
    ---------
    train_streams, valid_sets : dict
        Task name to ``TaskStream`` and to ``EvaluationSet``.
    test_sets : dict
        Task name to ``{name: EvaluationSet}``.

    Raises one ``UserError`` of all that is wrong with any of them.
    """
    tests = [one for sets in test_sets.values() for one in sets.values()]
    problems = {}
    for one in [*tests, *valid_sets.values(), *train_streams.values()]:
        try:
            one.open(rank, world_size)
        except UserError as error:
            problems[str(error)] = None
    if problems:
        raise UserError("; ".join(problems))


# Files and lengths --------------------------------------------------------------


def true_stops(csv, table, lines):
    """Look at the file of every row; where each utterance really ends.

    Headers are read in parallel, m4a files decoded. A length is remembered by the
    file's path, size and time of change in ``<name>.headers`` beside the CSV, where
    that can be written. The files of a CSV that a preparation vouches for were decoded
    by it; of them only those are looked at again that changed since.

    Arguments
    ---------
    csv : str or Path
        Where the rows were read.
    table : pandas.DataFrame
        Rows of ``lobes.data.utterance_tables.read_table``.
    lines : numpy.ndarray
        Their lines in the CSV ``[row]``.

    Returns
    -------
    numpy.ndarray
        int64 ``[row]`` in samples. Not what ``table`` says where that is up to
        ``ROUNDING`` samples behind the end of the file; such rows are counted.

    Raises one ``UserError`` with the number of rows that cannot be used and the first
    of them: absent, unreadable or too short files, extents that are not in their
    file, durations that contradict them, implausible means and standard deviations.
    """
    frames, reasons = _lengths(csv, table)
    starts, stops = table["start"].to_numpy(), table["stop"].to_numpy()
    known = frames > 0
    behind = known & (stops > frames)
    rounded = behind & (stops <= frames + ROUNDING) & (starts < frames)
    ends = np.where(rounded, frames, stops)
    columns = read_header(csv)
    extent = "stop" if "start" in columns else "duration"

    def beyond(row):
        return (
            f"column {extent}: the utterance ends at {stops[row] / SAMPLE_RATE:.3f} s, "
            f"but {table['wav'].iloc[row]} has {frames[row] / SAMPLE_RATE:.3f} s"
        )

    def short(row):
        return (
            f"column {extent}: the utterance has {ends[row] - starts[row]} samples, "
            f"fewer than the {MINIMUM_SAMPLES} that one wav2vec2 frame needs"
        )

    def contradiction(row):
        return (
            f"column duration: it is {table['duration'].iloc[row]:g} s, but start and "
            f"stop are {(stops[row] - starts[row]) / SAMPLE_RATE:g} s apart"
        )

    problems = [
        (frames == _BAD, lambda row: f"column wav: {reasons[row]}"),
        (behind & ~rounded, beyond),
        (ends - starts < MINIMUM_SAMPLES, short),
    ]
    if extent == "stop" and "duration" in table:
        samples = table["duration"].to_numpy() * SAMPLE_RATE
        # SpeechBrain's CSVs of segments have the duration of the whole file.
        fits = np.minimum(abs(samples - (stops - starts)), abs(samples - frames))
        problems.append((known & (fits > ROUNDING), contradiction))
    problems += _statistics_problems(table, frames)
    _refuse(csv, lines, problems)
    if rounded.any():
        _warn(
            f"{csv}: {int(rounded.sum()):,} of {len(table):,} utterances end up to "
            f"{1000 * (stops - ends).max() / SAMPLE_RATE:.1f} ms behind the end of "
            "their file, as rounded durations do; they are read to its end"
        )
    return ends


@functools.cache
def _warn(text):
    """Log a warning, also where several processes or sets would say it, once."""
    if distributed.rank_and_world_size()[0] == 0:
        logger.warning("%s", text)


def _refuse(csv, lines, problems):
    """Raise ``UserError`` for rows that are marked in any of ``problems``.

    Each is a mask of rows, and what gives a row's problem as text; the first counts.
    """
    bad = np.logical_or.reduce([mask for mask, _ in problems])
    if not bad.any():
        return
    told = []
    for row in np.flatnonzero(bad)[:_TOLD].tolist():
        text = next(text for mask, text in problems if mask[row])
        told.append(f"line {lines[row]}, {text(row)}")
    more = int(bad.sum()) - len(told)
    raise UserError(
        f"{csv}: {int(bad.sum()):,} of {len(bad):,} rows cannot be used: "
        f"{'; '.join(told)}{f'; and {more:,} more' if more else ''}; correct these "
        "rows or remove them"
    )


def _lengths(csv, table):
    """Samples of every row's file, and the first reasons for ``_BAD`` by row.

    Each process looks at its share of the rows.
    """
    rank, world_size = distributed.rank_and_world_size()
    share = table.iloc[rank::world_size] if world_size > 1 else table
    paths = share["wav"].to_numpy(dtype=object)
    frames = np.zeros(len(paths), dtype=np.int64)
    since = vouched_since(csv)
    if since is not None:
        frames[:] = [_VOUCHED if _older(path, since) else 0 for path in paths]
    left = np.flatnonzero(frames == 0)
    told = {}
    if len(left):
        windows, names = None, paths[left]
        if "offset" in table:
            windows = share[["offset", "size"]].to_numpy()[left]
            names = [f"{p}\0{o}" for p, o in zip(names, windows[:, 0], strict=True)]
        # Utterances may be pieces of one file.
        codes = pandas.factorize(np.asarray(names, dtype=object))[0]
        first = np.unique(codes, return_index=True)[1]
        files = paths[left[first]].tolist()
        if windows is not None:
            windows = [None if w[0] < 0 else tuple(w) for w in windows[first].tolist()]
        found, reasons = _look(csv, files, windows)
        frames[left] = found[codes]
        for place in np.flatnonzero(frames[left] == _BAD)[:_TOLD]:
            told[int(left[place]) * world_size + rank] = reasons[int(codes[place])]
    everything = np.empty(len(table), dtype=np.int64)
    reasons = {}
    for part, (some, texts) in distributed.gather({rank: (frames, told)}).items():
        everything[part::world_size] = some
        reasons.update(texts)
    return everything, reasons


def _older(path, since):
    """Whether a file is there, not empty, and did not change after ``since`` (ns)."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_size > 0 and status.st_mtime_ns <= since


def _look(csv, paths, windows):
    """Samples of each file, and the first reasons for ``_BAD``; both by place."""
    import_pyav_for(paths)
    csv = Path(csv)
    memory = ScanCache(csv.with_suffix(".headers"), csv.resolve().parent)
    known, frames, *_ = memory.find(paths, statistics=False, windows=windows)
    left = np.flatnonzero(~known)
    aac = any(paths[i].lower().endswith(AAC_SUFFIXES) for i in left)
    if len(left) < _WORTH_REMEMBERING and not aac:
        memory = None
    starts = range(0, len(left), _CHUNK)
    windows = windows or [None] * len(paths)
    chunks = ([(paths[i], windows[i]) for i in left[s : s + _CHUNK]] for s in starts)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    workers = min(max(1, worker_count(None) // local), len(starts))
    reasons = {}
    with progress_bar(
        f"{csv.name}: looking at the files",
        len(paths),
        unit="file",
        initial=len(paths) - len(left),
        leave=False,
        # Nothing is shown that takes no time.
        disable=memory is None or distributed.rank_and_world_size()[0] > 0,
    ) as progress:
        for start, results in zip(
            starts, map_in_processes(_headers, chunks, workers), strict=True
        ):
            places = left[start : start + _CHUNK]
            for place, result in zip(places.tolist(), results, strict=True):
                if not isinstance(result, str):
                    frames[place] = result
                    continue
                frames[place] = _BAD
                if len(reasons) < _TOLD:
                    reasons[place] = result
            memory = _remember(memory, places, frames)
            progress.update(len(results))
    return frames, reasons


def _remember(memory, places, frames):
    """Add the good files; the memory, or None where it cannot be written."""
    good = places[frames[places] > 0]
    if memory is None or not len(good):
        return memory
    unknown = np.full(len(good), np.nan)
    try:
        memory.add(good, frames[good], unknown, unknown)
    except UserError as error:
        logger.info("The headers of these files will be read again: %s", error)
        return None
    return memory


def _headers(chunk):
    """Samples of each file, or the reason why there are none."""
    return [_header(*one) for one in chunk]


def _header(path, window):
    """See ``_headers``."""
    try:
        return usable_frames(path, window)
    except UserError as error:
        return str(error)


# Trials -------------------------------------------------------------------------


def look_at_trials(trials, csv, table):
    """The trials by ID, if they can be scored on the utterances of a table.

    Arguments
    ---------
    trials : lobes.data.trials.Trials
        By ID, or by the ends of their files' paths.
    csv : str or Path
        Where the table was read.
    table : pandas.DataFrame
        All rows of ``lobes.data.utterance_tables.read_table``.

    Counted in a warning are trials of two utterances that are the same audio, whose
    score is always the highest, and labels that contradict the column ``spk_id``.
    Raises ``UserError`` as ``lobes.data.trials.check_trials`` does, and
    where all same-speaker trials are of the same audio.
    """
    trials = check_trials(trials, table["ID"], csv, table["wav"])
    rows = pandas.Index(table["ID"])
    enrol, test = rows.get_indexer(trials.enrol), rows.get_indexer(trials.test)
    same = enrol == test
    columns = [c for c in ("wav", "start", "stop", "offset") if c in table]
    equal = [table[c].to_numpy()[enrol] == table[c].to_numpy()[test] for c in columns]
    same |= np.logical_and.reduce(equal)
    if same[trials.labels].all():
        raise UserError(
            f"{trials.path}: each of its {int(trials.labels.sum()):,} same-speaker "
            "trials is of an utterance and itself, which no system can fail; take two "
            "utterances of a speaker"
        )
    if same.any():
        _warn(
            f"{trials.path}: {_counted(same)} are of an utterance and itself, which no "
            "system can fail"
        )
    if "spk_id" in table:
        speakers = pandas.factorize(table["spk_id"])[0]
        odd = (speakers[enrol] == speakers[test]) != trials.labels
        if odd.any():
            _warn(
                f"{trials.path}: the labels of {_counted(odd)} contradict the column "
                f"spk_id of {csv}"
            )
    return trials


def _counted(marked):
    """How many trials are marked, and the lines of the first."""
    lines = [str(row + 1) for row in np.flatnonzero(marked)]
    return f"{len(lines):,} of {len(marked):,} trials (line {', '.join(lines[:_TOLD])})"


# Means and standard deviations --------------------------------------------------


def _statistics_problems(table, frames):
    """The rows whose mean and std cannot be their audio's, as ``_refuse`` takes them.

    Negative ones are all found. Some rows are decoded: first those that are odd for
    audio in [-1, 1], then some that lie evenly spread.
    """
    if not {"mean", "std"} <= set(table.columns):
        return []
    mean, std = table["mean"].to_numpy(), table["std"].to_numpy()
    # Not those that a preparation measured, nor what has none in a joint corpus.
    given = (frames > 0) & ~np.isnan(mean)
    negative = given & (std < 0)
    odd = np.flatnonzero(given & ((std == 0) | (std > 1) | (abs(mean) > 1)))
    rows = np.flatnonzero(given)
    spread = rows[:: max(1, len(rows) // _SAMPLED)]
    wrong, texts = np.zeros(len(table), dtype=bool), {}
    for row in sorted({*odd[:_SAMPLED].tolist(), *spread.tolist()}):
        try:
            found = _measure(table.iloc[row], frames[row])
        except UserError as error:
            wrong[row], texts[row] = True, f"column wav: {error}"
            continue
        room = _TOLERANCE[0] * found[1] + _TOLERANCE[1]
        if max(abs(mean[row] - found[0]), abs(std[row] - found[1])) > room:
            wrong[row] = True
            texts[row] = (
                f"columns mean and std: they are {mean[row]:g} and {std[row]:g}, but "
                f"those of the utterance in {table['wav'].iloc[row]} are {found[0]:g} "
                f"and {found[1]:g} (leave both columns out: they are computed then)"
            )
    return [
        (negative, lambda row: f"column std: {std[row]:g} is negative"),
        (wrong, texts.get),
    ]


def _measure(row, frames):
    """Mean and standard deviation of the audio of one row of a table."""
    window = None
    if "offset" in row and row["offset"] >= 0:
        window = row["offset"], row["size"]
    stop = min(row["stop"], frames)
    samples = read_audio(row["wav"], min(row["start"], stop), stop, window)
    if not len(samples):
        return 0.0, 0.0
    return samples.mean(dtype=np.float64), samples.std(dtype=np.float64)


# Leaks --------------------------------------------------------------------------


def check_leaks(train_streams, valid_sets, test_sets, allowed=False):
    """Look for what is trained on among what is to measure it.

    The arguments are those of ``open_sets``, opened. An utterance is in two sets when
    the same part of the same file is, or in those of one task the same ID with as many
    samples.

    Raises ``UserError``, unless ``allowed``, for validation and test utterances that
    are trained on, and for test speakers of trials that are trained on, by the column
    ``spk_id``. Counted in a warning are those that are allowed, test utterances that
    choose the checkpoint in a validation set, and trained speakers of test sets without
    trials.
    """
    tests = [(task, one) for task, sets in test_sets.items() for one in sets.values()]
    judged = _distinct([*valid_sets.items(), *tests])
    errors, warnings = [], []
    for task, stream in _distinct(train_streams.items()):
        pieces = _pieces(stream.utterances)
        for other, one in judged:
            errors += _shared(pieces, stream, one, task == other, "trained on")
    for task, one in _distinct(tests):
        if task in train_streams:
            found = errors if one.trial_paths else warnings
            found += _shared_speakers(train_streams[task], one)
    for task, valid in _distinct(valid_sets.items()):
        pieces = _pieces(valid.utterances, valid.rows)
        for other, one in _distinct(tests):
            warnings += _shared(pieces, valid, one, task == other, "validated on")
    if errors and not allowed:
        raise UserError(
            f"{'; '.join(errors)}; take them out of one of the two, or add "
            "--allow_leaks=True if this is what you want to measure"
        )
    for text in [*errors, *warnings]:
        _warn(text)


def _distinct(pairs):
    """Pairs without those whose second is the same object again."""
    return {id(second): (first, second) for first, second in pairs}.values()


def _pieces(utterances, rows=None):
    """What part of which file the utterances of some rows are: a table."""
    table = utterances.table
    files = [os.path.normpath(p) if ".." in p else p for p in utterances.paths]
    if utterances.windows is not None:
        offsets = utterances.windows[:, 0].tolist()
        files = [f"{f}\0{o}" for f, o in zip(files, offsets, strict=True)]
    pieces = pandas.DataFrame(
        {"file": files, "row": np.arange(len(table))}
        | {name: table[name].to_numpy() for name in ("ID", "start", "stop")}
    )
    return pieces if rows is None else pieces.iloc[rows]


def _shared(pieces, owner, one, same_task, how):
    """A sentence about the utterances of ``one`` that are among ``pieces``, or none."""
    others = _pieces(one.utterances, one.rows)
    common = pieces[pieces["file"].isin(others["file"])].merge(others, on="file")
    common = common[
        (common["start_x"] < common["stop_y"]) & (common["start_y"] < common["stop_x"])
    ]
    if same_task:
        named = pieces[pieces["ID"].isin(others["ID"])].merge(others, on="ID")
        samples = named["stop_x"] - named["start_x"]
        named = named[samples == named["stop_y"] - named["start_y"]]
        common = pandas.concat([common, named])
    common = common.drop_duplicates("row_y").sort_values("row_y")
    if common.empty:
        return []
    ours, theirs = common[["row_x", "row_y"]].iloc[0]
    return [
        f"{one.csv}: {len(common):,} of {len(others):,} utterances are {how}, too: "
        f"{one.utterances.place(theirs)} is {owner.utterances.place(ours)}"
    ]


def _shared_speakers(stream, one):
    """A sentence about test speakers that are trained on, or none."""
    tables = stream.utterances.table, one.utterances.table
    if any("spk_id" not in table for table in tables):
        return []
    tested = set(tables[1]["spk_id"].iloc[one.rows])
    both = sorted(tested & set(tables[0]["spk_id"]))
    if not both:
        return []
    return [
        f"{one.csv}, column spk_id: {len(both):,} of {len(tested):,} speakers are "
        f"trained on in {stream.csv} ({enumeration(both)})"
    ]
