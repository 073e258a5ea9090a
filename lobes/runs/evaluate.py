"""Test a trained model and write down what it reaches."""

import contextlib
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lobes.data.prepared import check_test_sets
from lobes.errors import ArgumentParser, DivergedError, UserError, user_errors_exit
from lobes.evaluation.ending import DIVERGED, Ending
from lobes.evaluation.results import Results, read_results
from lobes.runs import own_sets
from lobes.runs.command_line import RESTORE, parse_arguments, shell_command
from lobes.settings.table import PATH
from lobes.system.files import read_json, write_atomically
from lobes.system.lazy import lazy
from lobes.system.machine import device_name, peak_memory

assessment = lazy("lobes.evaluation.assessment")
brains = lazy("lobes.training.brain")
checkpoints = lazy("lobes.training.checkpoints")
distributed = lazy("lobes.system.distributed")
ledger = lazy("lobes.runs.ledger")
evaluation_sets = lazy("lobes.data.evaluation_sets")
names = lazy("lobes.runs.names")
plots = lazy("lobes.evaluation.plots")
report = lazy("lobes.evaluation.report")
summary = lazy("lobes.evaluation.summary")

if TYPE_CHECKING:
    from speechbrain.utils.checkpoints import Checkpoint, Checkpointer

    from lobes.training.brain import SpeechSpeakerBrain

logger = logging.getLogger(__name__)


def evaluate(
    brain: "SpeechSpeakerBrain",
    hparams: Mapping,
    checkpoint: str = "best",
    test_sets: Mapping[str, Mapping] | None = None,
    folder: str | Path | None = None,
    command: str | None = None,
    own: dict | None = None,
) -> Results:
    """Load a checkpoint, run the test sets, and write what it reaches.

    That is ``results.json``, the files of each task, and ``report.html``, which
    shows them. Only progress is printed: ``conclude`` prints the results.

    Arguments:
        hparams: The loaded YAML (``test_sets``, ``headline_sets``, ``output_folder``).
        checkpoint: ``best`` (lowest selection score), ``last``, or a checkpoint's
            folder.
        test_sets: Task to ``{name: EvaluationSet}``; defaults to the YAML's.
        folder: Where the files go; defaults to the output folder.
        command: The command line that does this again, where it is not the training's.
        own: The user's own files that make up ``test_sets``, for ``results.json``.

    Returns:
        Nothing in SpeechBrain's debug mode; else what ``results.json`` holds. The part
        that is an ``Assessment`` is there in the first process only.
    """
    if brain.debug:
        logger.warning("Debug mode: a few batches give no results, nothing is tested")
        return {}
    started = time.perf_counter()
    run = Path(hparams["output_folder"])
    folder = Path(folder or run)
    # An evaluation goes back to where the checkpoint was made.
    ending = brain.ending or ledger.ending(hparams)
    test_sets = test_sets or hparams["test_sets"]
    # All sets are opened before the first is scored.
    evaluation_sets.open_sets({}, {}, test_sets, brain.rank, brain.world_size)
    loaded = load_checkpoint(brain.checkpointer, checkpoint)
    with _folder_made(folder):
        sets = brain.test(test_sets, str(folder))
        tested = time.perf_counter()
        headline_sets = _own_headlines(sets) if own else hparams["headline_sets"]
        validated = [*hparams["selection"], "cer"]
        results: Results = {
            **_headlines(sets, headline_sets),
            "headline_sets": dict(headline_sets),
            "sets": sets,
            "checkpoint": str(loaded.path),
            "step": loaded.meta.get("step", brain.optimizer_step),
            "validation": {n: loaded.meta[n] for n in validated if n in loaded.meta},
            "training": dataclasses.asdict(ending),
            "parameters": sum(p.numel() for p in brain.modules.parameters()),
            "seed": hparams["seed"],
            "evaluation_seconds": round(tested - started, 1),
        }
        if command is not None:
            results["command"] = command
        if own:
            results["own"] = own
        if _is_first():
            measured = [pair for named in sets.values() for pair in named.items()]
            lists = dict.fromkeys(n for n, metrics in measured if "eer" in metrics)
            plots.plot_trials(folder, lists)
            results.update(_assessed(brain, hparams, folder, sets, test_sets))
            results["assessment_seconds"] = round(time.perf_counter() - tested, 1)
            text = json.dumps(results, indent=2) + "\n"
            write_atomically(folder / "results.json", text)
            report.publish(folder, run)
    return results


def conclude(results: Results, hparams: Mapping):
    """Print what a training has reached, after it was noted in the ledger.

    Raises ``DivergedError``, which makes the exit status 2, when the training was
    stopped because it had diverged. What it reached before is printed all the same.
    """
    if not results or not _is_first():
        return
    summary.print_summary(hparams["output_folder"])
    ending = Ending(**results["training"])
    if ending.kind == DIVERGED:
        raise DivergedError(
            f"{ending}; lower --lr for a new run (the same command would only test "
            "again; docs/grid.md tells when it goes on)"
        )


def _is_first():
    """Whether this process is the one that writes and prints."""
    return distributed.rank_and_world_size()[0] == 0


@contextlib.contextmanager
def _folder_made(folder):
    """A folder is made; after a failure that wrote nothing into it, it is removed."""
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()
        raise


def _assessed(brain, hparams, folder, sets, test_sets):
    """What the first process adds to the metrics: the assessment and the machine."""
    weights = next(brain.modules.parameters())
    bars = not brain.noprogressbar
    assessed = assessment.assess(folder, sets, test_sets, hparams, bars)
    assessed["data"] = {**_training_data(hparams), **assessed["data"]}
    baseline = assessed["baselines"].get(hparams["headline_sets"].get("eer"))
    if baseline:
        assessed["baseline_eer"] = baseline["eer"]
        assessed["baseline_eer_raw"] = baseline["eer_raw"]
    return {
        **assessed,
        "device": device_name(weights.device),
        "memory": peak_memory(weights.device),
    }


def _training_data(hparams):
    """Utterances, speakers and hours of the training sets, by ``train <task>``.

    An evaluation of a run's folder does not read the training's CSVs: the run's own
    results tell.
    """
    streams = hparams["train_streams"].items()
    opened = {t: s.utterances for t, s in streams if s.utterances is not None}
    if opened:
        tables = {t: assessment.utterance_table(u) for t, u in opened.items()}
        return {f"train {t}": assessment.count(table) for t, table in tables.items()}
    try:
        data = read_results(hparams["output_folder"]).get("data", {})
    except UserError:
        return {}
    return {name: row for name, row in data.items() if name.startswith("train ")}


def load_run(
    what: str | Path, arguments: Sequence[str] = ()
) -> tuple["SpeechSpeakerBrain", dict]:
    """Brain and hparams of a YAML file or of a results folder, without weights yet.

    A results folder may have been moved, and needs no pre-trained encoder: its
    checkpoints hold all weights. Raises ``UserError`` when it is none.
    """
    what = Path(what)
    changes, config = {}, None
    if what.is_dir():
        yaml = what / "hyperparams.yaml"
        if not yaml.is_file():
            raise UserError(
                f"{what} has no hyperparams.yaml; name the output folder of a training"
            )
        changes = {"output_folder": str(what), "init_from": None}
        stored = what / "encoder_config.json"
        if stored.is_file():
            config = read_json(stored, RESTORE)
        what = yaml
    elif not what.is_file():
        raise UserError(f"{what} does not exist; name a results folder or a YAML file")
    argv = [str(what), *arguments]
    hparams, run_opts, _ = parse_arguments(argv, changes, config=config)
    distributed.join_processes(run_opts)
    names.check_keys(hparams, what)
    names.check_sets(hparams["test_sets"])
    brain = brains.SpeechSpeakerBrain(hparams, run_opts, hparams["checkpointer"])
    return brain, hparams


def load_checkpoint(checkpointer: "Checkpointer", which: str) -> "Checkpoint":
    """Load ``best``, ``last``, or the checkpoint in a folder; returns it.

    Raises ``UserError`` when there is none: random weights are never scored.
    """
    folder = checkpointer.checkpoints_dir
    if which == "best":
        wanted = checkpointer.find_checkpoint(min_key="score")
    elif which == "last":
        wanted = checkpointer.find_checkpoint()
    else:
        path = Path(which).resolve()
        listed = checkpointer.list_checkpoints()
        wanted = next((c for c in listed if c.path.resolve() == path), None)
        problem = wanted and checkpoints.checkpoint_problem(wanted.path)
        if problem:
            raise UserError(f"{which} is damaged: {problem}; name another checkpoint")
    if wanted is None:
        raise UserError(
            f"{folder} holds no {which} checkpoint; train first, or ask for best, "
            "last or the folder of a checkpoint"
        )
    logger.info("Evaluating %s", wanted.path)
    checkpointer.load_checkpoint(wanted)
    return wanted


def _headlines(sets, headline_sets):
    """The one WER, with its CER, and the one EER that a table quotes, if measured."""
    values = {}
    for metric, name in headline_sets.items():
        # Two tasks may have a set of one name, with other metrics.
        for named in sets.values():
            for rate in (metric, "cer") if metric == "wer" else (metric,):
                if rate in named.get(name, {}):
                    values[rate] = named[name][rate]
    return values


def _own_headlines(sets):
    """The first set of a user's own that has a WER, and the first with an EER."""
    headline_sets = {}
    for named in sets.values():
        for name, metrics in named.items():
            for metric in ("wer", "eer"):
                if metric in metrics:
                    headline_sets.setdefault(metric, name)
    return headline_sets


@user_errors_exit
def main(argv: Sequence[str] | None = None):
    """The command ``evaluate.py``; see ``--help``."""
    parser = ArgumentParser(
        description="Evaluate a trained model: WER and CER with alignments, EER, "
        "minDCF, 95 % intervals, and the EER of MFCCs.",
        epilog="Further --key=value overrides are those of train.py; a YAML that was "
        "trained with overrides needs the same ones, a results folder none.",
    )
    parser.add_argument("what", type=PATH, help="hparams/x.yaml, or a results folder")
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last, or a folder"
    )
    own_sets.add_options(parser)
    parser.add_argument(
        "--to",
        type=PATH,
        help="folder for the results; default: the run's, or with a CSV of your own "
        "<run>/own/<name of the CSV>; another CSV of that name gets another one",
    )
    options, rest = parser.parse_known_args(argv)
    files = own_sets.named_files(options)
    brain, hparams = load_run(options.what, rest)
    own = own_sets.full_paths(files)
    folder = Path(options.to or hparams["output_folder"])
    if own and not options.to:
        # The run's own results stay what they are.
        folder = own_sets.own_folder(folder, own)
    sets = None
    if own:
        sets = own_sets.own_sets(files, hparams)
        evaluation_sets.open_sets({}, {}, sets, brain.rank, brain.world_size)
        own_sets.warn_of_leaks(hparams, sets)
    elif not brain.allow_changes:
        check_test_sets(
            hparams["output_folder"], hparams["test_sets"], brain.rank, brain.world_size
        )
    command = shell_command(sys.argv[0], sys.argv[1:]) if argv is None else None
    with ledger.entry(hparams) as results:
        results.update(
            evaluate(brain, hparams, options.checkpoint, sets, folder, command, own)
        )
    if results and _is_first():
        summary.print_summary(folder)
