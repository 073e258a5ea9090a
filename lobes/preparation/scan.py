"""Decoding every audio file once, in parallel: its length, mean and deviation."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from lobes.data.audio import audio_statistics, import_pyav_for, usable_frames
from lobes.data.scan_cache import ScanCache
from lobes.errors import UserError
from lobes.system.parallel import map_in_chunks
from lobes.system.terminal import progress_bar, say

# Audio files handed to a worker at once: large enough to hide the cost of
# passing messages, small enough for a moving progress bar.
_CHUNK = 32


class Scan(NamedTuple):
    """What decoding a list of files gave; columns ``[file]``.

    ``frames`` (int64, samples), ``mean`` and ``std`` (float64, of all samples)
    are 0 where decoding failed; ``reasons`` maps the index of such a file to
    what is wrong with it. Of headers alone, ``mean`` and ``std`` may be NaN.
    """

    frames: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    reasons: dict[int, str]


def scan_audio(
    paths: Sequence[str],
    num_workers: int | None = None,
    title: str = "decoding",
    cache: ScanCache | None = None,
    header_only: bool = False,
) -> Scan:
    """Decode every file once, in parallel, for its length, mean and std.

    The result is in the order of ``paths``, whatever the number of workers.

    Arguments:
        num_workers: Processes; None for all cores, 1 to stay in this process.
        title: Label of the progress bar on standard error.
        cache: Files that it knows are not decoded, and those that are become known to
            it. Bad files never do. None: every file is decoded.
        header_only: Take the length from the header of wav and flac files, which is
            fast and overlooks damage behind it.

    Raises ``UserError`` when PyAV is needed and absent, or a worker died.
    """
    import_pyav_for(paths)
    known, columns = np.zeros(len(paths), dtype=bool), np.zeros((2, len(paths)))
    scan = Scan(np.zeros(len(paths), dtype=np.int64), *columns, reasons={})
    if cache is not None:
        known, *columns = cache.find(paths, statistics=not header_only)
        scan = Scan(*columns, reasons={})
        if known.any():
            say(
                f"{title}: {int(known.sum()):,} of {len(paths):,} files were decoded "
                f"before ({cache.path.name}) and did not change since"
            )
    unknown = np.flatnonzero(~known)
    left = [paths[i] for i in unknown]
    function = partial(_scan_chunk, header_only)
    with progress_bar(title, len(paths), initial=len(paths) - len(left)) as progress:
        for start, results in map_in_chunks(function, left, _CHUNK, num_workers):
            good = []
            chunk = unknown[start : start + len(results)].tolist()
            for index, result in zip(chunk, results, strict=True):
                if isinstance(result, str):
                    scan.reasons[index] = result
                else:
                    scan.frames[index], scan.mean[index], scan.std[index] = result
                    good.append(index)
            if cache is not None and good:
                cache.add(good, *(column[good] for column in scan[:3]))
            progress.update(len(results))
    return scan


def _scan_chunk(header_only, paths):
    """``(frames, mean, std)`` of each file, or the reason why it has none."""
    results = []
    for path in paths:
        try:
            if header_only:
                results.append((usable_frames(path), np.nan, np.nan))
            else:
                results.append(tuple(audio_statistics(path)))
        except UserError as error:
            results.append(str(error).removeprefix(f"{path}: "))
    return results
