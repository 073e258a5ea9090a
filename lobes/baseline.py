"""What verification costs without any model: the mean MFCC of an utterance."""

from pathlib import Path

import numpy as np
from rich.progress import track

from lobes.audio import SAMPLE_RATE, read_audio
from lobes.errors import UserError
from lobes.lazy import lazy
from lobes.scoring import check_trials, cosine_scores, equal_error_rate, read_trials
from lobes.terminal import console

pandas = lazy("pandas")
torch = lazy("torch")
torchaudio = lazy("torchaudio")

#: Coefficients per frame, the first of which follows the energy.
COEFFICIENTS = 20

# 25 ms windows every 10 ms, as is usual for speech; in samples.
_WINDOW = SAMPLE_RATE * 25 // 1000
_HOP = SAMPLE_RATE * 10 // 1000


def mfcc_baseline(csv_path, trials_path, progress=False):
    """Equal error rates of cosine scoring on mean MFCC vectors.

    A trained system has to be clearly better than ``eer_znorm``. That number
    is a lenient one for the baseline: the means and deviations are those of the
    evaluated utterances themselves, which a real system could not know.

    Arguments
    ---------
    csv_path : str or Path
        Table with the columns ``ID`` and ``wav`` and, where only a part of
        the file is the utterance, ``start`` and ``stop`` in samples; ``offset`` and
        ``size`` in bytes where the file is in a shard.
    trials_path : str or Path
        Lines of ``label enrol_ID test_ID``.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    dict
        ``eer_raw`` and ``eer_znorm`` in percent: with the mean vectors as they
        are, and with each coefficient scaled to zero mean and unit variance
        over the utterances of the trials.

    Raises ``UserError`` for lists, tables and audio that cannot be used.
    """
    trials = read_trials(trials_path, allow_repeats=True)
    table = _read_csv(csv_path)
    check_trials(trials, table.index, csv_path)
    table = table.loc[trials.utterances()]
    mfcc = torchaudio.transforms.MFCC(
        sample_rate=SAMPLE_RATE,
        n_mfcc=COEFFICIENTS,
        melkwargs={"n_fft": _WINDOW, "hop_length": _HOP, "n_mels": 40, "center": False},
    )
    rows = track(
        table.itertuples(),
        description="MFCC",
        total=len(table),
        console=console(stderr=True),
        disable=not progress,
    )
    vectors = np.stack([_mean_mfcc(mfcc, _read_utterance(row)) for row in rows])
    ids = list(table.index)
    deviation = vectors.std(axis=0)
    # A coefficient that never changes says nothing and stays at zero.
    deviation[deviation == 0] = 1
    normalised = (vectors - vectors.mean(axis=0)) / deviation
    return {
        name: equal_error_rate(cosine_scores(trials, (ids, matrix)), trials.labels)[0]
        for name, matrix in (("eer_raw", vectors), ("eer_znorm", normalised))
    }


def _read_csv(path):
    """The utterance table, indexed by ID."""
    try:
        table = pandas.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: the CSV cannot be read ({reason}); check its path or prepare it"
        ) from error
    missing = [column for column in ("ID", "wav") if column not in table]
    if missing:
        raise UserError(
            f"{path}: column {' and '.join(missing)} missing; the CSV needs ID and wav"
        )
    repeated = table["ID"][table["ID"].duplicated()]
    if len(repeated):
        raise UserError(
            f"{path}, row {repeated.index[0] + 2}: ID {repeated.iloc[0]} occurs again; "
            f"every utterance needs an ID of its own"
        )
    folder = Path(path).resolve().parent
    table["wav"] = [str(folder / wav) for wav in table["wav"]]
    return table.set_index("ID")


def _read_utterance(row):
    """Samples of one table row, at least one window long."""
    start = _number(row, "start") or 0
    window = None
    if hasattr(row, "offset"):
        window = _number(row, "offset"), _number(row, "size")
    samples = read_audio(row.wav, start, _number(row, "stop"), window)
    if len(samples) < _WINDOW:
        raise UserError(
            f"{row.wav}: utterance {row.Index} has {len(samples)} samples, fewer than "
            f"one window of {_WINDOW}; take it off the trial list"
        )
    return samples


def _number(row, column):
    """Samples or bytes, or None where the table does not give any."""
    text = getattr(row, column, "")
    if not text:
        return None
    if not text.isdecimal():
        raise UserError(
            f"utterance {row.Index}: {column} is {text!r}, not a whole number; "
            f"correct the CSV"
        )
    return int(text)


def _mean_mfcc(mfcc, samples):
    """Mean over time of the coefficients, float64 ``[COEFFICIENTS]``."""
    return mfcc(torch.from_numpy(samples)).mean(dim=-1).double().numpy()
