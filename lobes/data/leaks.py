"""Leaks: what is trained on must not be what measures it."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from lobes.data.utterance_tables import file_names
from lobes.errors import UserError, enumeration
from lobes.system.lazy import lazy

distributed = lazy("lobes.system.distributed")
pandas = lazy("pandas")

if TYPE_CHECKING:
    from lobes.data.evaluation_sets import EvaluationSet
    from lobes.data.streams import TaskStream


def check_leaks(
    train_streams: "dict[str, TaskStream]",
    valid_sets: "dict[str, EvaluationSet]",
    test_sets: "dict[str, dict[str, EvaluationSet]]",
    allowed: bool = False,
) -> None:
    """Look for what is trained on among what is to measure it.

    All sets of every task are open. An utterance is in two sets when the same part of
    the same file is. It also is when the same ID with as many samples is in two sets
    of one task.

    Raises ``UserError``, unless ``allowed``, for validation and test utterances that
    are trained on, and for test speakers of trials that are trained on, by the column
    ``spk_id``. A warning counts those that are allowed, the test utterances that
    choose the checkpoint in a validation set, and the trained speakers of test sets
    without trials.
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
            sentences = _shared_speakers(train_streams[task], one)
            (errors if one.trial_paths else warnings).extend(sentences)
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
        distributed.warn_once(text)


def _distinct(pairs: Iterable[tuple]):
    """Pairs without those whose second is the same object again."""
    return {id(second): (first, second) for first, second in pairs}.values()


def _pieces(utterances, rows=None):
    """A table of the file, the samples and the ID of some rows, or of all."""
    table = utterances.table
    files = [os.path.normpath(f) if ".." in f else f for f in file_names(table)]
    pieces = pandas.DataFrame(
        {"file": files, "row": np.arange(len(table))}
        | {name: table[name].to_numpy() for name in ("ID", "start", "stop")}
    )
    return pieces if rows is None else pieces.iloc[rows]


def _shared(pieces, owner, one, same_task, how):
    """Sentences about the utterances of ``one`` that are among ``pieces``."""
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
    """Sentences about test speakers that are trained on."""
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
