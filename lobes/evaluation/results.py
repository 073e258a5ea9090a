"""``results.json`` of an evaluation: what it holds, and how it is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

from lobes.errors import UserError
from lobes.system.files import read_json, read_rows

_REMEDY = "evaluate again"


class IntervalRow(TypedDict):
    """``lobes.evaluation.significance.Interval`` as JSON."""

    low: float
    high: float
    over: str
    count: int
    replicates: int


class DifferenceRow(IntervalRow):
    """``lobes.evaluation.significance.Difference`` as JSON."""

    difference: float
    p: float


class BaselineRow(TypedDict):
    """What mean MFCCs reach on a trial list, in percent."""

    #: With z-normalised vectors, and with the vectors as they are.
    eer: float
    eer_raw: float
    interval: IntervalRow | None
    #: The system's EER minus ``eer``.
    difference: DifferenceRow | None


class DataRow(TypedDict, total=False):
    """How much a set holds; ``speakers`` is None where they are unknown."""

    utterances: int
    speakers: int | None
    hours: float
    lists: list[str]


class Assessment(TypedDict):
    """What ``lobes.evaluation.assessment.assess`` says of an evaluation."""

    #: By set; those of the training are named ``train <task>``.
    data: dict[str, DataRow]
    #: By set or trial list, then by metric.
    intervals: dict[str, dict[str, IntervalRow | None]]
    #: By trial list.
    baselines: dict[str, BaselineRow]
    #: By set or trial list: rows with ``by`` (sex, length, speaker), ``name``, metrics.
    groups: dict[str, list[dict[str, str | float | None]]]
    warnings: list[str]


class Results(Assessment, total=False):
    """What ``results.json`` holds. Rates are in percent, memory is in bytes."""

    #: Of the headline sets.
    wer: float
    cer: float
    eer: float
    baseline_eer: float
    baseline_eer_raw: float
    #: Metric to the set that it is quoted of.
    headline_sets: dict[str, str]
    #: Task to set or trial list to metric to value.
    sets: dict[str, dict[str, dict[str, float]]]
    checkpoint: str
    step: int
    #: The metrics of the checkpoint's validation.
    validation: dict[str, float]
    #: A ``lobes.evaluation.ending.Ending``.
    training: dict[str, str | int | None]
    parameters: int
    seed: int
    device: str
    memory: dict[str, int]
    evaluation_seconds: float
    assessment_seconds: float
    #: Of a demo, with its corpus and training.
    seconds: float
    #: The command line that does it again, where it is not the training's.
    command: str
    #: The user's own files by option, where these were tested.
    own: dict[str, str | list[str]]


# How deep objects lie within objects there.
_DEPTHS = {"sets": 3, "data": 2, "intervals": 2, "baselines": 2, "groups": 1}


class MeasuredSet(NamedTuple):
    """One task's metrics of one set or trial list, with what belongs beside them."""

    task: str
    #: The set's name, by which its files go.
    name: str
    #: The name to show: with the task where two tasks have a set of this name.
    label: str
    metrics: dict[str, float]
    intervals: dict[str, IntervalRow | None]
    baseline: BaselineRow | None


def read_results(folder: str | Path) -> Results:
    """What the ``results.json`` of a folder holds.

    Raises ``UserError`` when it cannot be read, or holds something else.
    """
    path = Path(folder) / "results.json"
    results = read_json(path, _REMEDY)
    for key, depth in _DEPTHS.items():
        nodes = [results.get(key, {})]
        for _ in range(depth):
            if not all(isinstance(node, dict) for node in nodes):
                raise UserError(f"{path}: {key} is none of an evaluation; {_REMEDY}")
            nodes = [value for node in nodes for value in node.values()]
    return results


def measured_sets(results: Results) -> list[MeasuredSet]:
    """The sets of all tasks, each with its own metrics.

    Two tasks may have a set of one name. Intervals and baseline stand beside the
    metrics of the task that ``owner`` names.
    """
    tasks, measured = results["sets"], []
    for task, sets in tasks.items():
        for name, metrics in sets.items():
            own = [metric for metric in metrics if owner(tasks, name, metric) == task]
            intervals = results.get("intervals", {}).get(name, {})
            baseline = results.get("baselines", {}).get(name)
            shared = sum(name in others for others in tasks.values()) > 1
            measured.append(
                MeasuredSet(
                    task,
                    name,
                    f"{name} ({task})" if shared else name,
                    metrics,
                    {m: row for m, row in intervals.items() if m in own},
                    baseline if "eer" in own else None,
                )
            )
    return measured


def owner(tasks: Mapping[str, Mapping], name: str, metric: str) -> str | None:
    """The last of the tasks that measure a metric of a set; None where none does.

    Its files are the ones that go by the set's name. ``tasks`` is
    ``{task: {set: {metric: value}}}``.
    """
    owners = [task for task, sets in tasks.items() if metric in sets.get(name, ())]
    return owners[-1] if owners else None


def speakers_of(folder: str | Path, name: str) -> dict[str, str]:
    """``{ID: speaker}`` of the utterances of a set or trial list of an evaluation.

    Empty where ``results.json`` and ``utterances_<set>.csv`` do not tell: older
    evaluations have no such files.
    """
    folder = Path(folder)
    try:
        for known, row in read_results(folder).get("data", {}).items():
            if name == known or name in row.get("lists", ()):
                path = folder / f"utterances_{known}.csv"
                rows = read_rows(path, ["ID", "speaker"], _REMEDY)
                return {row["ID"]: row["speaker"] for row in rows}
    except UserError:
        pass
    return {}
