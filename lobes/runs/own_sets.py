"""Test sets of a user's own: CSVs and trial lists named to ``evaluate.py``."""

import argparse
import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from lobes.errors import UserError
from lobes.evaluation.results import read_results
from lobes.settings.table import PATH
from lobes.system.lazy import lazy

evaluation_sets = lazy("lobes.data.evaluation_sets")
leaks = lazy("lobes.data.leaks")
names = lazy("lobes.runs.names")
utterances = lazy("lobes.data.utterances")

#: The files of a user's own by option: paths, and a list of them for ``trials``.
Files = dict[str, str | list[str]]


def add_options(parser: argparse.ArgumentParser):
    """The options that name a user's own files."""
    parser.add_argument(
        "--speech_csv", type=PATH, help="WER on this CSV instead of the test sets"
    )
    parser.add_argument(
        "--speaker_csv", type=PATH, help="utterances of the trials in --trials"
    )
    parser.add_argument(
        "--trials", type=PATH, nargs="+", help="trial lists, with --speaker_csv"
    )


def named_files(options: argparse.Namespace) -> Files:
    """The files that a command line names.

    Raises ``UserError`` for a fault in them, before a model is loaded.
    """
    if bool(options.speaker_csv) != bool(options.trials):
        raise UserError("--speaker_csv and --trials go together; give both or neither")
    named = {
        name: getattr(options, name)
        for name in ("speech_csv", "speaker_csv", "trials")
        if getattr(options, name)
    }
    if named:
        evaluation_sets.open_sets({}, {}, _sets(named))
    return named


def full_paths(files: Files) -> Files:
    """The files with full paths, for ``results.json``."""
    return {
        name: [str(Path(path).resolve()) for path in value]
        if isinstance(value, list)
        else str(Path(value).resolve())
        for name, value in files.items()
    }


def own_folder(run: str | Path, files: Files) -> Path:
    """Where the results of a user's own files go: ``<run>/own/<name of the CSV>``.

    Files of the same name from elsewhere get another folder. Only what the same files
    gave before is overwritten. ``files`` have full paths.
    """
    csv = files.get("speech_csv") or files["speaker_csv"]
    folder = Path(run) / "own" / Path(csv).stem
    if not (folder / "results.json").exists():
        return folder
    # Damaged results may be those of other files.
    with contextlib.suppress(UserError):
        if read_results(folder).get("own") == files:
            return folder
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return folder.with_name(f"{folder.name}-{digest[:8]}")


def own_sets(files: Files, hparams: Mapping) -> dict[str, dict]:
    """``{task: {name: EvaluationSet}}`` of the files, for a run's tasks.

    Raises ``UserError`` for a task that the run lacks, and for two sets of one name.
    """
    for task in ("speech", "speaker"):
        if f"{task}_csv" in files and task not in hparams["tasks"]:
            raise UserError(
                f"--{task}_csv: this run has no {task} task, only "
                f"{', '.join(hparams['tasks'])}"
            )
    sets = _sets(
        files,
        {"letters": hparams["letters"]} if "speech_csv" in files else None,
        max_batch_samples=hparams["test_batch_samples"],
        num_workers=hparams["num_workers"],
        timeout=hparams["loader_timeout"],
    )
    names.check_sets(sets)
    return sets


def _sets(files, labels=None, **loading):
    """The sets; ``labels`` are those of the speech set."""
    sets = {}
    if "speech_csv" in files:
        csv = files["speech_csv"]
        one = evaluation_sets.EvaluationSet(csv, labels=labels, **loading)
        sets["speech"] = {Path(csv).stem: one}
    if "speaker_csv" in files:
        csv, trials = files["speaker_csv"], files["trials"]
        one = evaluation_sets.EvaluationSet(csv, trial_paths=trials, **loading)
        sets["speaker"] = {"own": one}
    return sets


def warn_of_leaks(hparams: Mapping, sets: Mapping[str, Mapping]):
    """Count what a run was trained on among a user's own test sets, if it is known."""
    trained = {
        task: stream
        for task, stream in hparams["train_streams"].items()
        if all(Path(path).is_file() for path in stream.csvs)
    }
    # A fault in the CSVs of a training that is over is not this evaluation's.
    with contextlib.suppress(UserError):
        for stream in trained.values():
            stream.utterances = utterances.Utterances(stream.csvs, {})
        leaks.check_leaks(trained, {}, sets, allowed=True)
