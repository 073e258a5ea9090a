"""The baseline of verification: what mean MFCCs reach, without any model."""

import concurrent.futures
import hashlib
import io
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lobes.data.audio import SAMPLE_RATE, read_audio
from lobes.data.trials import Trials, check_trials, read_trials
from lobes.data.utterance_tables import read_header, read_table, windows_of
from lobes.errors import UserError
from lobes.evaluation.verification import cosine_scores, equal_error_rate
from lobes.system.files import write_atomically
from lobes.system.lazy import lazy
from lobes.system.terminal import progress_bar

torch = lazy("torch")
torchaudio = lazy("torchaudio")

logger = logging.getLogger(__name__)

#: Coefficients per frame, the first of which follows the energy.
COEFFICIENTS = 20

# Windows of 25 ms every 10 ms, as is usual for speech; in samples.
_WINDOW = SAMPLE_RATE * 25 // 1000
_HOP = SAMPLE_RATE * 10 // 1000

# It counts up when the vectors of the same audio change.
_VERSION = 1


class Piece(NamedTuple):
    """Samples ``start`` to ``stop`` of a file; ``window``: its bytes in a shard."""

    name: str
    path: str
    start: int = 0
    stop: int | None = None
    window: tuple[int, int] | None = None


def mfcc_baseline(
    csv_path: str | Path, trials_path: str | Path, progress: bool = False
) -> dict[str, float]:
    """Equal error rates of cosine scoring on mean MFCC vectors.

    A trained system has to be clearly better than ``eer_znorm``. That number flatters
    the baseline: its means and deviations are those of the evaluated utterances
    themselves, which a real system could not know.

    Arguments:
        csv_path: Table with the columns ``ID`` and ``wav`` and, where only a part of
            the file is the utterance, ``start`` and ``stop`` in samples; ``offset`` and
            ``size`` in bytes where the file is in a shard.
        trials_path: Lines of ``label enrol_ID test_ID``.
        progress: Show a progress bar on standard error.

    Returns:
        ``eer_raw`` and ``eer_znorm`` in percent: with the mean vectors as they are, and
        with each coefficient scaled to zero mean and unit variance over the utterances
        of the trials.

    Raises ``UserError`` for lists, tables and audio that cannot be used.
    """
    trials = read_trials(trials_path, allow_repeats=True)
    table = read_table(csv_path, extent=False)
    trials = check_trials(trials, table["ID"], csv_path, table["wav"])
    rows = table.set_index("ID").loc[trials.utterances()]
    # A duration may be rounded: without start and stop the whole file counts.
    extents = [(0, None)] * len(rows)
    if "start" in read_header(csv_path):
        extents = zip(rows["start"].tolist(), rows["stop"].tolist(), strict=True)
    columns = rows.index, rows["wav"], extents, windows_of(rows)
    pieces = [
        Piece(name, path, start, stop, window)
        for name, path, (start, stop), window in zip(*columns, strict=True)
    ]
    vectors = mean_mfccs(pieces, progress=progress)
    return {
        f"eer_{name}": equal_error_rate(scores, trials.labels)[0]
        for name, scores in baseline_scores(trials, vectors).items()
    }


def baseline_scores(
    trials: Trials, vectors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Scores ``[trials]`` of the mean vectors as they are, ``raw``, and ``znorm``.

    Arguments:
        vectors: ID to ``[COEFFICIENTS]``, of at least all utterances of the trials.
    """
    names = trials.utterances()
    matrix = np.stack([vectors[name] for name in names])
    deviation = matrix.std(axis=0)
    # A coefficient that never changes says nothing and stays at zero.
    deviation[deviation == 0] = 1
    normalised = (matrix - matrix.mean(axis=0)) / deviation
    return {
        "raw": cosine_scores(trials, (names, matrix)),
        "znorm": cosine_scores(trials, (names, normalised)),
    }


def mean_mfccs(
    pieces: Sequence[Piece],
    cache: str | Path | None = None,
    threads: int = 1,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Mean MFCC vector of every utterance.

    Arguments:
        cache: A file that keeps the vectors by place and change time of the audio, so
            that they are computed once. The log tells where it cannot be written.
        threads: Threads that read and compute.
        progress: Show a progress bar on standard error.

    Returns:
        ID to float64 ``[COEFFICIENTS]``.

    Raises ``UserError`` for audio that cannot be read or is shorter than one window.
    """
    keys = [_key(piece) for piece in pieces]
    known = _read_cache(cache)
    wanted = [p for p, key in zip(pieces, keys, strict=True) if key not in known]
    if wanted:
        transform = torchaudio.transforms.MFCC(
            sample_rate=SAMPLE_RATE,
            n_mfcc=COEFFICIENTS,
            melkwargs={
                "n_fft": _WINDOW,
                "hop_length": _HOP,
                "n_mels": 40,
                "center": False,
            },
        )
        with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
            vectors = progress_bar(
                "MFCC baseline",
                len(wanted),
                iterable=pool.map(partial(_mean_mfcc, transform), wanted),
                leave=False,
                disable=not progress,
            )
            known.update(zip(map(_key, wanted), vectors, strict=True))
        _write_cache(cache, known)
    return {p.name: known[key] for p, key in zip(pieces, keys, strict=True)}


def _key(piece):
    """16 bytes that change with the place, the size or the change time of audio."""
    try:
        status = os.stat(piece.path)
        state = status.st_size, status.st_mtime_ns
    except OSError:
        # Reading the file gives the reason.
        state = None
    text = repr((_VERSION, *piece[1:], state))
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()


def _read_cache(path):
    """The vectors by key in a cache; none where it is absent or damaged."""
    if path is None:
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            keys, vectors = stored["keys"], stored["vectors"]
        if vectors.shape != (len(keys), COEFFICIENTS) or not np.isfinite(vectors).all():
            raise ValueError("its arrays do not fit")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s) and computed again", path, error)
        return {}
    return dict(zip(map(bytes, keys), vectors, strict=True))


def _write_cache(path, known):
    """Keep the vectors for the next evaluation, where that is possible."""
    if path is None:
        return
    content = io.BytesIO()
    keys = np.frombuffer(b"".join(known), np.uint8).reshape(-1, 16)
    np.savez(content, keys=keys, vectors=np.stack(list(known.values())))
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        logger.info("%s cannot be written: %s", path, error)


def _mean_mfcc(transform, piece):
    """Mean over time of the coefficients, float64 ``[COEFFICIENTS]``."""
    samples = read_audio(piece.path, piece.start, piece.stop, piece.window)
    if len(samples) < _WINDOW:
        raise UserError(
            f"{piece.path}: utterance {piece.name} has {len(samples)} samples, fewer "
            f"than one window of {_WINDOW}; take it off the trial list"
        )
    return transform(torch.from_numpy(samples)).mean(dim=-1).double().numpy()
