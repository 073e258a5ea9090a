"""Check the names of tasks, metrics and sets in a loaded YAML, before a training.

A misspelt one would otherwise show after it: a metric that nobody measures counts 0,
and the best checkpoint is an arbitrary one.
"""

from pathlib import Path

from lobes.errors import UserError
from lobes.model.tasks import SpeakerRecognition, SpeechRecognition
from lobes.model.weighting import DynamicWeightAverage, StaticWeighting
from lobes.settings.kinds import similar

#: What a training and an evaluation read of a recipe's YAML.
_KEYS = (
    "tasks encoder weighting opt_class schedule steps freeze_steps valid_interval "
    "epoch_counter stopping train_streams valid_sets test_sets selection "
    "headline_sets train_logger log_interval tensorboard checkpointer init_from "
    "checkpoints_to_keep test_batch_samples num_workers loader_timeout lr"
).split()


def check_keys(hparams: dict, path: str | Path) -> None:
    """Raise ``UserError`` when a loaded YAML lacks what every recipe's has."""
    missing = [key for key in _KEYS if key not in hparams]
    if missing:
        raise UserError(
            f"{path} has no key {', '.join(missing)}; name a recipe's YAML, or a "
            "variant of one (base: ...)"
        )


def check_names(hparams: dict) -> None:
    """Check tasks, streams, weights, metrics and sets of a loaded YAML.

    Raises ``UserError`` for a name that is not there.
    """
    tasks = hparams["tasks"]
    for task in tasks.values():
        task.check_tasks(tasks)
    for key in ("train_streams", "valid_sets", "test_sets"):
        for name in hparams[key]:
            if name not in tasks:
                raise UserError(
                    f"{key}: {name} is none of the tasks ({', '.join(tasks)}); remove "
                    f"it from {key}, or add it to tasks"
                )
    for name in tasks:
        if name not in hparams["train_streams"]:
            raise UserError(
                f"tasks: {name} has no stream in train_streams "
                f"({', '.join(hparams['train_streams'])}); add one, or remove the task"
            )
    _check_weights(hparams["weighting"], tasks)
    _check_metrics(hparams)
    check_sets(hparams["test_sets"])
    _check_headline_sets(hparams)


def _check_weights(weighting, tasks):
    """A weight for every task; with one task there is nothing to weigh."""
    if isinstance(weighting, StaticWeighting):
        named = list(weighting.weights)
    elif isinstance(weighting, DynamicWeightAverage):
        named = weighting.tasks
    else:
        return
    missing = [task for task in tasks if task not in named]
    if missing and len(tasks) > 1:
        raise UserError(
            f"weighting: no weight for the task {', '.join(missing)}; it has "
            f"{', '.join(named)}"
        )


def _check_metrics(hparams):
    """What chooses checkpoints and ends a training must be measured."""
    measured = {n: hparams["tasks"][n].reports for n in hparams["valid_sets"]}
    selection, stopping = hparams["selection"], hparams["stopping"]
    named = {
        "selection": selection,
        "rate_selection": hparams.get("rate_selection") or {},
        "stopping.metrics": getattr(stopping, "metrics", ()),
        "stopping.limits": getattr(stopping, "limits", ()),
    }
    if None in measured.values():
        # A user's own task, which does not say what it measures.
        return
    present = {metric for metrics in measured.values() for metric in metrics}
    known = {*present, *SpeechRecognition.reports, *SpeakerRecognition.reports}
    for key, names in named.items():
        for name in names:
            if name not in known:
                raise UserError(
                    f"{key}: no task gives the metric {name}{similar(name, known)}; "
                    f"there are {', '.join(sorted(present))}"
                )
    if not present & {name for name, weight in selection.items() if weight}:
        raise UserError(
            f"selection: {', '.join(selection)} is no metric of the tasks that are "
            f"validated ({', '.join(measured)}); take some of "
            f"{', '.join(sorted(present))}"
        )


def set_names(sets: dict) -> list[tuple[str, bool]]:
    """What a task's test sets, ``{name: EvaluationSet}``, go by in the results.

    Each name with True for a trial list, False for a whole set.
    """
    return [
        (path.stem, True) if path else (own, False)
        for own, one in sets.items()
        for path in one.trial_paths or [None]
    ]


def check_sets(test_sets: dict) -> None:
    """Raise ``UserError`` when two test sets go by the same name.

    Two tasks may share a trial list, but not the name of a list and of another set.
    """
    kinds = {}
    for task, sets in test_sets.items():
        names = set_names(sets)
        for name, is_list in names:
            twice = [one for one, _ in names].count(name) > 1
            if twice or kinds.setdefault(name, is_list) != is_list:
                raise UserError(
                    f"test sets: {name} of {task} is the name of two sets, and results "
                    "go by it; rename one of the files"
                )


def _check_headline_sets(hparams):
    """Each headline must be measured on its set."""
    tasks, test_sets = hparams["tasks"], hparams["test_sets"]
    by_task = {t: [n for n, _ in set_names(sets)] for t, sets in test_sets.items()}
    everything = sorted({name for names in by_task.values() for name in names})
    reports = {task: tasks[task].reports for task in by_task}
    for metric, name in hparams["headline_sets"].items():
        if name not in everything:
            raise UserError(
                f"headline_sets: {metric} is to be that of {name}, which is not among "
                f"the test sets ({', '.join(everything)}); set "
                f'--headline_sets="{{{metric}: ...}}"'
            )
        owners = [task for task, names in by_task.items() if name in names]
        if any(reports[task] is None or metric in reports[task] for task in owners):
            continue
        known = [one for told in reports.values() for one in told or ()]
        fit = [task for task in by_task if metric in (reports[task] or ())]
        sets = ", ".join(one for task in fit for one in by_task[task])
        hint = "" if metric in known else similar(metric, known)
        remedy = f"take one of {sets}" if sets else "correct the metric"
        raise UserError(
            f"headline_sets: {name} is a set of {' and '.join(owners)}, which gives no "
            f"{metric}{hint}; {remedy}"
        )
