"""Trial lists and score files: their format, reading, checking and writing.

A trial list has a line ``label enrol_ID test_ID`` per trial; the label is 1 for two
utterances of the same speaker, else 0. A score file has the score as a fourth field.
"""

import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike

import numpy as np

from lobes.errors import UserError, enumeration
from lobes.system.files import read_text, write_atomically
from lobes.system.lazy import lazy

distributed = lazy("lobes.system.distributed")
pandas = lazy("pandas")

# Problems of one list that a message spells out; the rest are counted.
_SHOWN_PROBLEMS = 10

# Lines of a list that a warning names.
_SHOWN_LINES = 3


@dataclass(frozen=True)
class Trials:
    """A list of verification trials; trial ``i`` is line ``i + 1`` of ``path``.

    Attributes:
        labels: bool ``[trials]``, True for two utterances of the same speaker.
        enrol, test: Utterance IDs of the two sides.
        path: Where the list was read, for messages.
    """

    labels: np.ndarray
    enrol: list[str]
    test: list[str]
    path: str = "trials"

    def __len__(self) -> int:
        return len(self.enrol)

    def utterances(self) -> list[str]:
        """IDs of all utterances in the list, each once, in order of appearance."""
        return list(dict.fromkeys([*self.enrol, *self.test]))

    def sides(self) -> tuple[list[str], np.ndarray]:
        """``utterances()``, and where in it each trial's sides are ``[2, trials]``."""
        both = np.array([*self.enrol, *self.test], dtype=object)
        places, names = pandas.factorize(both)
        return names.tolist(), places.reshape(2, -1)


def read_trials(path: str | PathLike, allow_repeats: bool = False) -> Trials:
    """Read a trial list.

    Windows line ends, a byte order mark and empty lines at the end are fine.

    Arguments:
        path: The list.
        allow_repeats: Accept a pair that occurs again with the same label, as lists
            drawn with replacement may have. Every occurrence then counts as a trial, as
            in published results. Contradicting labels are refused in any case.

    Raises one ``UserError`` that lists the problems of the whole file with
    their line numbers: lines without exactly three fields, other labels,
    labels that contradict another line (of the mirrored pair, too), or 0 for an
    utterance and itself, repeated trials, a missing class, no trial at all, no such
    file.
    """
    trials, _ = _read_list(path, allow_repeats, scored=False)
    return trials


def scorable_trials(
    trials: Trials, csv: str | PathLike, table: "pandas.DataFrame"
) -> Trials:
    """The trials by ID, if they can be scored on the utterances of a table.

    Arguments:
        trials: By ID, or by the ends of their files' paths.
        csv: Where the table was read.
        table: All rows of ``lobes.data.utterance_tables.read_table``.

    A warning counts trials of two utterances that are the same audio, whose score is
    always the highest, and labels that contradict the column ``spk_id``. Raises
    ``UserError`` as ``check_trials`` does, and where all same-speaker trials are of
    the same audio.
    """
    trials = check_trials(trials, table["ID"], csv, table["wav"])
    rows = pandas.Index(table["ID"])
    enrol, test = rows.get_indexer(trials.enrol), rows.get_indexer(trials.test)
    columns = [c for c in ("wav", "start", "stop", "offset") if c in table]
    equal = [table[c].to_numpy()[enrol] == table[c].to_numpy()[test] for c in columns]
    same = (enrol == test) | np.logical_and.reduce(equal)
    if same[trials.labels].all():
        raise UserError(
            f"{trials.path}: each of its {int(trials.labels.sum()):,} same-speaker "
            "trials is of an utterance and itself, which no system can fail; take two "
            "utterances of a speaker"
        )
    if same.any():
        distributed.warn_once(
            f"{trials.path}: {_counted(same)} are of an utterance and itself, which no "
            "system can fail"
        )
    if "spk_id" in table:
        speakers = pandas.factorize(table["spk_id"])[0]
        odd = (speakers[enrol] == speakers[test]) != trials.labels
        if odd.any():
            distributed.warn_once(
                f"{trials.path}: the labels of {_counted(odd)} contradict the column "
                f"spk_id of {csv}"
            )
    return trials


def _counted(marked):
    """How many trials are marked, and the lines of the first."""
    lines = [str(row + 1) for row in np.flatnonzero(marked)]
    shown = ", ".join(lines[:_SHOWN_LINES])
    return f"{len(lines):,} of {len(marked):,} trials (line {shown})"


def check_trials(
    trials: Trials,
    known_ids: Iterable[str],
    source: str | PathLike,
    paths: Sequence[str] | None = None,
) -> Trials:
    """The trials by ID; raises ``UserError`` for an utterance that is not known.

    Arguments:
        trials: By ID, or, with ``paths``, by the ends of files' paths.
        known_ids: IDs that can be scored.
        source: Where these IDs come from (say, the CSV's path), for the message.
        paths: The audio file of each ID. An utterance may then also be named by the end
            of its file's path, with any or no ending, as VoxCeleb's lists do.
    """
    known_ids = list(known_ids)
    known = set(known_ids)
    unknown = [name for name in trials.utterances() if name not in known]
    if unknown and paths is not None:
        ids = _ids_by_path(unknown, known_ids, paths)
        trials = replace(
            trials,
            enrol=[ids.get(name, name) for name in trials.enrol],
            test=[ids.get(name, name) for name in trials.test],
        )
        unknown = [name for name in unknown if name not in ids]
    if not unknown:
        return trials
    missing = set(unknown)
    remedy = "prepare both from the same corpus"
    if "/" in unknown[0]:
        remedy = "name utterances by the column ID, or by a path that one file ends in"
    pairs = enumerate(zip(trials.enrol, trials.test, strict=True), start=1)
    line, first = next((i, n) for i, names in pairs for n in names if n in missing)
    raise UserError(
        f"{trials.path}, line {line}: {first} is not in {source} "
        f"({len(unknown)} of the list's {len(trials.utterances())} utterances "
        f"are not); {remedy}"
    )


def _ids_by_path(names, ids, paths):
    """``{name: ID}`` of the names that one path ends in; endings do not count."""
    wanted = {os.path.splitext(name)[0].removeprefix("./"): name for name in names}
    depths = {name.count("/") for name in wanted}
    matches = {}
    for identity, path in zip(ids, paths, strict=True):
        parts = os.path.splitext(path)[0].split("/")
        for depth in depths:
            name = wanted.get("/".join(parts[-1 - depth :]))
            if name is not None:
                matches.setdefault(name, set()).add(identity)
    return {name: some.pop() for name, some in matches.items() if len(some) == 1}


def write_scores(path: str | PathLike, trials: Trials, scores: np.ndarray) -> None:
    """Write ``label enrol_ID test_ID score`` lines, complete or not at all.

    Scores are written with all their digits, so that metrics computed from the file
    are those of ``scores`` [trials]. Raises ``UserError`` for scores that are not
    finite.
    """
    scores, labels = checked_scores(scores, trials.labels)
    lines = [
        f"{label:d} {enrol} {test} {score!r}\n"
        for label, enrol, test, score in zip(
            labels.tolist(), trials.enrol, trials.test, scores.tolist(), strict=True
        )
    ]
    write_atomically(path, "".join(lines))


def read_scores(path: str | PathLike) -> tuple[Trials, np.ndarray]:
    """What ``write_scores`` wrote: the trials, and float64 scores ``[trials]``.

    Raises ``UserError`` as ``read_trials`` does (repeats are fine), and for
    scores that are not finite numbers.
    """
    return _read_list(path, allow_repeats=True, scored=True)


def _read_list(path, allow_repeats, scored):
    """``(Trials, scores)`` of a trial list; the scores are None if it has none."""
    layout = "label enrol_ID test_ID" + " score" * scored
    width = len(layout.split())
    lines = _lines(path, layout)
    problems, scores, first_lines = [], [], {}
    labels, enrol, test = [], [], []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if len(fields) != width:
            problems.append(f"line {number}: {len(fields)} fields instead of {width}")
            continue
        label, left, right = fields[:3]
        if label != "1" and label != "0":
            problems.append(f"line {number}: label {label!r} is neither 0 nor 1")
            continue
        repeated, mirrored = first_lines.get((left, right)), None
        first_lines.setdefault((left, right), (number, label))
        # Scored trials were accepted once, perhaps before these checks existed.
        if not scored:
            mirrored = first_lines.get((right, left)) if left != right else None
            if left == right and label == "0":
                problems.append(f"line {number}: label 0 for an utterance and itself")
        for other in (repeated, mirrored):
            if other is not None and other[1] != label:
                problems.append(
                    f"line {number}: label {label} contradicts line {other[0]} "
                    "(same pair)"
                )
        if repeated is not None and repeated[1] == label and not allow_repeats:
            problems.append(f"line {number}: the trial of line {repeated[0]} again")
        labels.append(label == "1")
        enrol.append(left)
        test.append(right)
        if scored:
            scores.append(_number(fields[3]))
            if not math.isfinite(scores[-1]):
                problems.append(
                    f"line {number}: score {fields[3]!r} is not a finite number"
                )
    if not lines:
        problems.append("the file is empty")
    elif labels and len(set(labels)) == 1:
        kinds = ("different-speaker (0)", "same-speaker (1)")
        problems.append(
            f"all {len(labels)} trials are {kinds[labels[0]]}; both kinds are needed"
        )
    _refuse(path, problems, layout)
    trials = Trials(np.array(labels, dtype=bool), enrol, test, str(path))
    return trials, np.array(scores) if scored else None


def _refuse(path, problems, layout):
    """Raise one ``UserError`` of all problems of a list, if there are any."""
    if not problems:
        return
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise UserError(
        f"{path}: {count}: {enumeration(problems, _SHOWN_PROBLEMS)}. "
        f"Each line must be `{layout}` with label 1 (same speaker) or 0"
    )


def _lines(path, layout):
    """Lines of a text file without the empty ones at its end."""
    text = read_text(path, f"give a trial list: lines of `{layout}`")
    # str.splitlines would also split at form feeds and the like; an editor counts
    # other lines.
    text = io.StringIO(text, newline=None).read().rstrip()
    return text.split("\n") if text else []


def _number(text):
    """``text`` as a float, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def checked_scores(
    scores: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores as float64 and labels as bool, refused where no metric is defined."""
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must be [trials], not {scores.shape}, {labels.shape}"
        )
    flags = labels.astype(bool)
    if not np.array_equal(flags, labels):
        raise ValueError("labels must be 0 or 1")
    broken = len(scores) - int(np.isfinite(scores).sum())
    if broken:
        raise UserError(
            f"{broken} of {len(scores)} scores are NaN or infinite, so no error rate "
            f"can be computed; check the embeddings"
        )
    positives = int(flags.sum())
    if positives in (0, len(flags)):
        raise UserError(
            f"error rates need same- and different-speaker trials, but there are "
            f"{positives} and {len(flags) - positives}; use another trial list"
        )
    return scores, flags
