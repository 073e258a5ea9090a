"""What may be said of an evaluation: intervals, a baseline, groups, and warnings.

All of it comes from the files that the tasks have written (transcripts, scores) and
from the tables of the evaluation sets. It is made once, by the first process, and
stands in ``results.json``, from where the console and the report take it.
"""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pandas

from lobes.data.audio import SAMPLE_RATE
from lobes.data.trials import read_scores
from lobes.errors import UserError
from lobes.evaluation.groups import _sexes, _trial_groups, _word_groups
from lobes.evaluation.metrics import CHANCE
from lobes.evaluation.mfcc_baseline import Piece, baseline_scores, mean_mfccs
from lobes.evaluation.significance import (
    eer_difference,
    eer_interval,
    rate_interval,
    read_words,
)
from lobes.evaluation.verification import equal_error_rate

#: Share of a set's hypotheses without a letter, or all alike, that is warned of.
MANY_ALIKE = 0.5

#: A CTC model whose frames hold fewer letters than this share of the references'
#: letters says hardly anything; blanks alone are no fault, as most frames of a good
#: model are blank.
FEW_LETTERS = 0.5

#: EER (percent) of scores that know nothing, and the WER of one that says nothing.
CHANCE_EER = 50.0
SILENT_WER = 100.0


#: Kept in a run's folder of prepared data: the mean MFCCs of all its audio.
CACHE = "mfcc_baseline.npz"


def assess(folder, results, evaluation_sets, hparams, progress=False):
    """Everything that belongs beside an evaluation's metrics.

    Arguments
    ---------
    folder : str or Path
        With the tasks' files; ``utterances_<set>.csv`` are written into it: ID,
        speaker, sex and seconds of every utterance, as far as they are known.
    results : dict
        ``{task: {set or trial list: {metric: value}}}``.
    evaluation_sets : dict
        ``{task: {name: lobes.data.streams.EvaluationSet}}``, opened.
    hparams : dict
        Used here: the corpora's folders, ``prepared_folder``, ``num_workers``,
        ``mfcc_baseline``.
    progress : bool
        Show a bar for the baseline.

    Returns
    -------
    dict
        ``data``: set to its numbers of utterances and speakers, its hours, and its
        trial lists. ``intervals``: set or list to metric to ``Interval`` as a dict.
        ``baselines``: list to the MFCC baseline's ``eer``, ``eer_raw``, ``interval``
        and the ``difference`` from it. ``groups``: set or list to rows by sex, length
        and speaker. ``warnings``: sentences.
    """
    folder, sexes = Path(folder), _sexes(hparams)
    metrics = {n: m for named in results.values() for n, m in named.items()}
    found = {"data": {}, "intervals": {}, "baselines": {}, "groups": {}, "warnings": []}
    # Several tasks may have one set.
    everything = {n: s for sets in evaluation_sets.values() for n, s in sets.items()}
    for name, evaluation_set in everything.items():
        table = _table(evaluation_set, sexes)
        table.to_csv(folder / f"utterances_{name}.csv", index=False)
        found["data"][name] = {
            **count(table),
            "lists": list(evaluation_set.trials),
        }
        if "wer" in metrics.get(name, {}):
            _assess_words(found, folder, name, metrics[name], table)
        lists = [n for n in evaluation_set.trials if "eer" in metrics.get(n, {})]
        vectors = None
        if lists and hparams.get("mfcc_baseline", True):
            vectors = _mfccs(found, folder, evaluation_set, hparams, progress)
        for one in lists:
            _assess_trials(found, folder, one, metrics[one], table, vectors)
    return found


def count(table):
    """Utterances, speakers (None where they are unknown) and hours of a table."""
    speakers = table["speaker"]
    return {
        "utterances": len(table),
        "speakers": speakers.nunique() if (speakers != "").all() else None,
        "hours": round(float(table["seconds"].sum()) / 3600, 3),
    }


def utterance_table(utterances, sexes=None):
    """ID, speaker, sex and seconds of some ``lobes.data.streams.Utterances``.

    A column ``sex`` or ``gender`` of the CSV wins over ``sexes`` by speaker; what is
    unknown is an empty text.
    """
    table, none = utterances.table, pandas.Series("", utterances.table.index)
    speakers = table["spk_id"] if "spk_id" in table else none
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


def _table(evaluation_set, sexes):
    """The table of what was evaluated: with trials, only their utterances."""
    table = utterance_table(evaluation_set.utterances, sexes)
    if evaluation_set.trials:
        named = set().union(*(t.utterances() for t in evaluation_set.trials.values()))
        table = table[table["ID"].isin(named)].reset_index(drop=True)
    return table


# Speech -----------------------------------------------------------------------


def _assess_words(found, folder, name, metrics, table):
    """Intervals, groups and warnings of a set of transcripts."""
    words = read_words(folder / f"transcripts_{name}.csv")
    rows = table.set_index("ID").loc[words.ids].reset_index()
    speakers = dict(zip(rows["ID"], rows["speaker"], strict=True))
    found["intervals"][name] = {
        metric: _as_dict(rate_interval(getattr(words, metric), words.ids, speakers))
        for metric in ("wer", "cer")
    }
    found["groups"][name] = _word_groups(words, rows)
    found["warnings"] += [f"{name}: {text}" for text in _of_words(words, metrics)]


def _of_words(words, metrics):
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


# Speakers ---------------------------------------------------------------------


def _mfccs(found, folder, evaluation_set, hparams, progress):
    """Mean MFCC vectors of the utterances of all trials, None where that fails."""
    utterances = evaluation_set.utterances
    named = set().union(*(t.utterances() for t in evaluation_set.trials.values()))
    pieces = [
        _piece(utterances, row)
        for row, name in enumerate(utterances.ids)
        if name in named
    ]
    prepared = Path(hparams.get("prepared_folder") or folder)
    cache = (prepared if prepared.is_dir() else folder) / CACHE
    try:
        return mean_mfccs(pieces, cache, hparams.get("num_workers", 0), progress)
    except UserError as error:
        found["warnings"].append(f"there is no MFCC baseline: {error}")
        return None


def _piece(utterances, row):
    """Where the audio of an utterance lies."""
    window = None
    if utterances.windows is not None and utterances.windows[row, 0] >= 0:
        window = tuple(map(int, utterances.windows[row]))
    start = int(utterances.starts[row])
    stop = start + int(utterances.lengths[row])
    return Piece(utterances.ids[row], utterances.paths[row], start, stop, window)


def _assess_trials(found, folder, name, metrics, table, vectors):
    """Interval, baseline, groups and warnings of a trial list."""
    trials, scores = read_scores(folder / f"scores_{name}.txt")
    speakers = dict(zip(table["ID"], table["speaker"], strict=True))
    interval = eer_interval(trials, scores, speakers)
    found["intervals"][name] = {"eer": _as_dict(interval)}
    found["groups"][name] = _trial_groups(trials, scores, metrics["threshold"], table)
    found["warnings"] += [f"{name}: {t}" for t in _of_eer(metrics["eer"], interval)]
    if vectors is None:
        return
    baseline = baseline_scores(trials, vectors)
    eers = {n: equal_error_rate(s, trials.labels)[0] for n, s in baseline.items()}
    difference = eer_difference(trials, baseline["znorm"], scores, speakers)
    found["baselines"][name] = {
        "eer": eers["znorm"],
        "eer_raw": eers["raw"],
        "interval": _as_dict(eer_interval(trials, baseline["znorm"], speakers)),
        "difference": _as_dict(difference),
    }
    # Where there is no interval, the two numbers must do.
    if difference.high >= 0 if difference else metrics["eer"] >= eers["znorm"]:
        worse = difference.low > 0 if difference else metrics["eer"] > eers["znorm"]
        how = "worse" if worse else "not clearly better"
        text = f"{name}: EER {metrics['eer']:.2f} % is {how} than the "
        text += f"{eers['znorm']:.2f} % of the MFCC baseline"
        if difference:
            text += (
                f" (difference {difference.difference:+.2f}, 95 % interval "
                f"{difference.low:+.2f} to {difference.high:+.2f})"
            )
        found["warnings"].append(text)


def _of_eer(eer, interval):
    """Whether scores know nothing."""
    if interval is None:
        if eer >= CHANCE["eer"]:
            yield f"EER {eer:.2f} % is near to chance ({CHANCE_EER:.0f} %)"
    elif interval.high >= CHANCE_EER:
        yield (
            f"EER {eer:.2f} % is no better than chance ({CHANCE_EER:.0f} %): its 95 % "
            f"interval is {interval.low:.2f} to {interval.high:.2f} %"
        )


# Groups -----------------------------------------------------------------------


# What is known of speakers ----------------------------------------------------


def _as_dict(interval):
    """An interval for ``results.json``; None where there is none."""
    return None if interval is None else dataclasses.asdict(interval)
