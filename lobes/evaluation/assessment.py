"""What may be said of an evaluation: intervals, a baseline, groups, and warnings.

All of it comes from the files that the tasks have written (transcripts, scores) and
from the tables of the evaluation sets. It is made once, by the first process, and
stands in ``results.json``, from where the console and the report take it.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas

from lobes.data.audio import SAMPLE_RATE
from lobes.data.trials import read_scores
from lobes.errors import UserError
from lobes.evaluation.groups import speaker_sexes, trial_groups, word_groups
from lobes.evaluation.metrics import CHANCE
from lobes.evaluation.mfcc_baseline import Piece, baseline_scores, mean_mfccs
from lobes.evaluation.results import Assessment, DataRow, owner
from lobes.evaluation.significance import (
    Interval,
    Words,
    eer_difference,
    eer_interval,
    rate_interval,
    read_words,
)
from lobes.evaluation.verification import equal_error_rate

#: Share of a set's hypotheses without a letter, or all alike, that is warned of.
MANY_ALIKE = 0.5

#: A CTC model whose frames hold fewer letters than this share of the references'
#: letters says hardly anything. Blanks alone are no fault: most frames of a good
#: model are blank.
FEW_LETTERS = 0.5

#: EER (percent) of scores that know nothing, and the WER of a model that says nothing.
CHANCE_EER = 50.0
SILENT_WER = 100.0

#: The mean MFCCs of all audio are kept in this file among a run's prepared data.
CACHE = "mfcc_baseline.npz"


def assess(
    folder: str | Path,
    results: Mapping[str, Mapping[str, Mapping[str, float]]],
    evaluation_sets: Mapping[str, Mapping],
    hparams: Mapping,
    progress: bool = False,
) -> Assessment:
    """Everything that belongs beside an evaluation's metrics.

    Arguments:
        folder: With the tasks' files; ``utterances_<set>.csv`` are written into it: ID,
            speaker, sex and seconds of every utterance, as far as they are known.
        results: ``{task: {set or trial list: {metric: value}}}``.
        evaluation_sets: ``{task: {name: lobes.data.evaluation_sets.EvaluationSet}}``,
            opened.
        hparams: Used here: the corpora's folders, ``prepared_folder``, ``num_workers``,
            ``mfcc_baseline``.
        progress: Show a bar for the baseline.
    """
    folder, sexes = Path(folder), speaker_sexes(hparams)
    assessment: Assessment = {
        **{key: {} for key in ("data", "intervals", "baselines", "groups")},
        "warnings": [],
    }
    for task, sets in evaluation_sets.items():
        for name, evaluation_set in sets.items():
            table = utterance_table(evaluation_set.utterances, sexes)
            table = table.loc[evaluation_set.rows].reset_index(drop=True)
            row = {**count(table), "lists": list(evaluation_set.trials)}
            # Two tasks may share a set, or have another one each under one name.
            same = assessment["data"].get(name, row) == row
            file = name if same else f"{name} ({task})"
            assessment["data"][file] = row
            table.to_csv(folder / f"utterances_{file}.csv", index=False)
            if owner(results, name, "wer") == task:
                metrics = results[task][name]
                _assess_words(assessment, folder, name, metrics, table)
            lists = [
                n for n in evaluation_set.trials if owner(results, n, "eer") == task
            ]
            vectors = None
            if lists and hparams.get("mfcc_baseline", True):
                vectors = _mfccs(assessment, folder, evaluation_set, hparams, progress)
            for one in lists:
                metrics = results[task][one]
                _assess_trials(assessment, folder, one, metrics, table, vectors)
    return assessment


def count(table: pandas.DataFrame) -> DataRow:
    """Utterances, speakers (None where they are unknown) and hours of a table."""
    speakers = table["speaker"]
    return {
        "utterances": len(table),
        "speakers": speakers.nunique() if (speakers != "").all() else None,
        "hours": round(float(table["seconds"].sum()) / 3600, 3),
    }


def utterance_table(utterances, sexes: Mapping[str, str] | None = None):
    """ID, speaker, sex and seconds of some ``lobes.data.utterances.Utterances``.

    Returns a ``pandas.DataFrame`` with their rows in order. A column ``sex`` or
    ``gender`` of the CSV wins over ``sexes`` by speaker. What is unknown is an empty
    text.
    """
    table = utterances.table
    unknown = pandas.Series("", table.index)
    speakers = table["spk_id"] if "spk_id" in table else unknown
    given = [name for name in ("sex", "gender") if name in table]
    sex = table[given[0]] if given else speakers.map(sexes or {}).fillna("")
    return pandas.DataFrame(
        {
            "ID": table["ID"],
            "speaker": speakers,
            "sex": sex.str.strip().str.lower().str[:1],
            "seconds": np.round(utterances.lengths / SAMPLE_RATE, 3),
        }
    ).reset_index(drop=True)


# Speech --------------------------------------------------------------------------


def _assess_words(assessment, folder, name, metrics, table):
    """Intervals, groups and warnings of a set of transcripts."""
    words = read_words(folder / f"transcripts_{name}.csv")
    rows = table.set_index("ID").loc[words.ids].reset_index()
    speakers = dict(zip(rows["ID"], rows["speaker"], strict=True))
    assessment["intervals"][name] = {
        metric: _as_dict(rate_interval(getattr(words, metric), words.ids, speakers))
        for metric in ("wer", "cer")
    }
    assessment["groups"][name] = word_groups(words, rows)
    doubts = word_doubts(words, metrics)
    assessment["warnings"] += [f"{name}: {text}" for text in doubts]


def word_doubts(words: Words, metrics: Mapping[str, float]) -> Iterator[str]:
    """What is suspicious about transcripts."""
    count = len(words.ids)
    empty = words.hypotheses.count("")
    if empty >= MANY_ALIKE * count:
        yield f"{empty} of {count} hypotheses are empty"
    said = Counter(filter(None, words.hypotheses)).most_common(1)
    commonest = Counter(words.references).most_common(1)[0][1]
    for text, times in said:
        if times >= max(MANY_ALIKE * count, 2 * commonest):
            yield f"{times} of {count} hypotheses are {text[:40]!r}"
    frames, blank = metrics["frames"], metrics["blank_frames"]
    letters = sum(len(reference) for reference in words.references)
    if frames * (1 - blank / 100) < FEW_LETTERS * letters:
        yield (
            f"{blank:.1f} % of the frames are blank: letters stand in "
            f"{100 - blank:.1f} % of them, and the references need "
            f"{100 * letters / max(frames, 1):.1f} %"
        )
    if metrics["wer"] >= SILENT_WER:
        yield f"WER {metrics['wer']:.2f} % is no better than saying nothing (100 %)"


# Speakers ------------------------------------------------------------------------


def _mfccs(assessment, folder, evaluation_set, hparams, progress):
    """Mean MFCC vectors of the utterances of all trials, None where that fails."""
    utterances = evaluation_set.utterances
    pieces = [_piece(utterances, int(row)) for row in evaluation_set.rows]
    prepared = Path(hparams.get("prepared_folder") or folder)
    cache = (prepared if prepared.is_dir() else folder) / CACHE
    try:
        return mean_mfccs(pieces, cache, hparams.get("num_workers", 0), progress)
    except UserError as error:
        assessment["warnings"].append(f"there is no MFCC baseline: {error}")
        return None


def _piece(utterances, row):
    """Where the audio of an utterance lies."""
    start = int(utterances.starts[row])
    stop = start + int(utterances.lengths[row])
    name, path = utterances.ids[row], utterances.paths[row]
    return Piece(name, path, start, stop, utterances.window(row))


def _assess_trials(assessment, folder, name, metrics, table, vectors):
    """Interval, groups, warnings and baseline of a trial list."""
    trials, scores = read_scores(folder / f"scores_{name}.txt")
    speakers = dict(zip(table["ID"], table["speaker"], strict=True))
    interval = eer_interval(trials, scores, speakers)
    assessment["intervals"][name] = {"eer": _as_dict(interval)}
    assessment["groups"][name] = trial_groups(
        trials, scores, metrics["threshold"], table
    )
    doubts = list(eer_doubts(metrics["eer"], interval))
    if vectors is not None:
        baseline = baseline_scores(trials, vectors)
        eers = {n: equal_error_rate(s, trials.labels)[0] for n, s in baseline.items()}
        difference = eer_difference(trials, baseline["znorm"], scores, speakers)
        assessment["baselines"][name] = {
            "eer": eers["znorm"],
            "eer_raw": eers["raw"],
            "interval": _as_dict(eer_interval(trials, baseline["znorm"], speakers)),
            "difference": _as_dict(difference),
        }
        doubts += _baseline_doubts(metrics["eer"], eers["znorm"], difference)
    assessment["warnings"] += [f"{name}: {text}" for text in doubts]


def eer_doubts(eer: float, interval: Interval | None) -> Iterator[str]:
    """Whether scores know nothing."""
    if interval is None:
        if eer >= CHANCE["eer"]:
            yield f"EER {eer:.2f} % is near to chance ({CHANCE_EER:.0f} %)"
    elif interval.high >= CHANCE_EER:
        yield (
            f"EER {eer:.2f} % is no better than chance ({CHANCE_EER:.0f} %): its 95 % "
            f"interval is {interval.low:.2f} to {interval.high:.2f} %"
        )


def _baseline_doubts(eer, baseline, difference):
    """Whether a model is better than none; without an interval two numbers must do."""
    if difference.high < 0 if difference else eer < baseline:
        return
    worse = difference.low > 0 if difference else eer > baseline
    how = "worse" if worse else "not clearly better"
    text = f"EER {eer:.2f} % is {how} than the {baseline:.2f} % of the MFCC baseline"
    if difference:
        text += (
            f" (difference {difference.difference:+.2f}, 95 % interval "
            f"{difference.low:+.2f} to {difference.high:+.2f})"
        )
    yield text


def _as_dict(interval):
    """An interval for ``results.json``; None where there is none."""
    return None if interval is None else dataclasses.asdict(interval)
