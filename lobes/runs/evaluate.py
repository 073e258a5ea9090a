"""Test a trained model and write down what it reaches."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import sys
import time
from pathlib import Path

from lobes.data.prepared import check_test_sets
from lobes.errors import ArgumentParser, DivergedError, UserError, user_errors_exit
from lobes.evaluation.ending import DIVERGED, Ending
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
leaks = lazy("lobes.data.leaks")
report = lazy("lobes.evaluation.report")
utterances = lazy("lobes.data.utterances")
summary = lazy("lobes.evaluation.summary")

logger = logging.getLogger(__name__)


def evaluate(
    brain,
    hparams,
    checkpoint="best",
    test_sets=None,
    folder=None,
    command=None,
    own=None,
):
    """Load a checkpoint, run the test sets, and write what it reaches.

    That is ``results.json``, the files of each task, and ``report.html``, which
    shows them. Nothing is printed but progress: ``conclude`` does that.

    Arguments
    ---------
    brain : SpeechSpeakerBrain
    hparams : dict
        The loaded YAML (``test_sets``, ``headline_sets``, ``output_folder``).
    checkpoint : str
        ``best`` (lowest selection score), ``last``, or a checkpoint's folder.
    test_sets : dict
        Task to ``{name: EvaluationSet}``; defaults to the YAML's.
    folder : str
        Where the files go; defaults to the output folder.
    command : str
        The command line that does this again, where it is not the training's.
    own : dict
        The user's own files that make up ``test_sets``, for ``results.json``.

    Returns
    -------
    dict
        Nothing in SpeechBrain's debug mode; else what ``results.json`` holds:
        ``wer``, ``cer`` and ``eer`` (percent) of the YAML's headline sets, all metrics
        of all sets, what ``lobes.evaluation.assessment.assess`` says of them (by the
        first process), the checkpoint and its step, how the ``training`` ended
        (``lobes.evaluation.ending.Ending``), the number of parameters, device, memory
        in bytes, and the seconds taken.
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
    # All before the first is scored.
    evaluation_sets.open_sets({}, {}, test_sets, brain.rank, brain.world_size)
    found = load_checkpoint(brain.checkpointer, checkpoint)
    with _made(folder):
        sets = brain.test(test_sets, str(folder))
        tested = time.perf_counter()
        headlines = hparams["headline_sets"] if own is None else _own_headlines(sets)
        results = {
            **headline(sets, headlines),
            "headline_sets": dict(headlines),
            "sets": sets,
            "checkpoint": str(found.path),
            "step": found.meta.get("step", brain.optimizer_step),
            "validation": {
                name: found.meta[name]
                for name in (*hparams["selection"], "cer")
                if name in found.meta
            },
            "training": dataclasses.asdict(ending),
            "parameters": sum(p.numel() for p in brain.modules.parameters()),
            "seed": hparams["seed"],
            "evaluation_seconds": round(tested - started, 1),
        }
        if command is not None:
            results["command"] = command
        if own is not None:
            results["own"] = own
        if _first():
            lists = {n: m for named in sets.values() for n, m in named.items()}
            plots.plot_trials(folder, [n for n, m in lists.items() if "eer" in m])
            results.update(_assessed(brain, hparams, folder, sets, test_sets))
            results["assessment_seconds"] = round(time.perf_counter() - tested, 1)
            text = json.dumps(results, indent=2) + "\n"
            write_atomically(folder / "results.json", text)
            report.publish(folder, run)
    return results


def conclude(results, hparams):
    """Print what a training has reached, after it was noted in the ledger.

    Raises ``DivergedError``, which makes the exit status 2, when the training was
    stopped because it had diverged: what it reached before is told all the same.
    """
    if not results or not _first():
        return
    summary.print_summary(hparams["output_folder"])
    ending = Ending(**results["training"])
    if ending.kind == DIVERGED:
        raise DivergedError(
            f"{ending}; lower --lr for a new run (the same command would only test "
            "again; docs/grid.md tells when it goes on)"
        )


def _first():
    """Whether this process is the one that writes and tells."""
    return distributed.rank_and_world_size()[0] == 0


@contextlib.contextmanager
def _made(folder):
    """Make a folder; when nothing was written into it, it does not stay."""
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        raise


def _assessed(brain, hparams, folder, sets, test_sets):
    """What the first process adds to the metrics: intervals, data, machine, ..."""
    weights = next(brain.modules.parameters())
    found = assessment.assess(folder, sets, test_sets, hparams, not brain.noprogressbar)
    found["data"] = {**_training_data(hparams), **found["data"]}
    for metric, name in hparams["headline_sets"].items():
        if metric == "eer" and name in found["baselines"]:
            found["baseline_eer"] = found["baselines"][name]["eer"]
            found["baseline_eer_raw"] = found["baselines"][name]["eer_raw"]
    return {
        **found,
        "device": device_name(weights.device),
        "memory": peak_memory(weights.device),
    }


def _training_data(hparams):
    """Utterances, speakers and hours of the training sets, by ``train <task>``.

    An evaluation of a run's folder does not read them: it takes what the run's own
    results have.
    """
    streams = hparams["train_streams"].items()
    opened = {t: s.utterances for t, s in streams if s.utterances is not None}
    if opened:
        return {
            f"train {t}": assessment.count(assessment.utterance_table(u))
            for t, u in opened.items()
        }
    try:
        path = Path(hparams["output_folder"]) / "results.json"
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
        return {name: row for name, row in data.items() if name.startswith("train ")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def load_run(what, arguments=()):
    """Brain and hparams of a YAML file or of a results folder, without weights yet.

    A results folder may have been moved, and needs no pre-trained encoder: its
    checkpoints hold all weights. Raises ``UserError`` when it is none.
    """
    what = Path(what)
    changes = {}
    if what.is_dir():
        yaml = what / "hyperparams.yaml"
        if not yaml.is_file():
            raise UserError(
                f"{what} has no hyperparams.yaml; name the output folder of a training"
            )
        changes = {"output_folder": str(what), "init_from": None}
        config = what / "encoder_config.json"
        if config.is_file():
            changes["encoder.source"] = None
            changes["encoder.config"] = read_json(config, RESTORE)
        what = yaml
    elif not what.is_file():
        raise UserError(f"{what} does not exist; name a results folder or a YAML file")
    hparams, run_opts, _ = parse_arguments([str(what), *arguments], changes)
    distributed.join_processes(run_opts)
    names.check_keys(hparams, what)
    names.check_sets(hparams["test_sets"])
    brain = brains.SpeechSpeakerBrain(hparams, run_opts, hparams["checkpointer"])
    return brain, hparams


def load_checkpoint(checkpointer, which):
    """Load ``best``, ``last``, or the checkpoint in a folder; returns it.

    Raises ``UserError`` when there is none: random weights are never scored.
    """
    folder = checkpointer.checkpoints_dir
    if which == "best":
        found = checkpointer.find_checkpoint(min_key="score")
    elif which == "last":
        found = checkpointer.find_checkpoint()
    else:
        wanted = Path(which).resolve()
        listed = checkpointer.list_checkpoints()
        found = next((c for c in listed if c.path.resolve() == wanted), None)
        problem = found and checkpoints.checkpoint_problem(found.path)
        if problem:
            raise UserError(f"{which} is damaged: {problem}; name another checkpoint")
    if found is None:
        raise UserError(
            f"{folder} holds no {which} checkpoint; train first, or ask for best, "
            "last or the folder of a checkpoint"
        )
    logger.info("Evaluating %s", found.path)
    checkpointer.load_checkpoint(found)
    return found


def headline(sets, headline_sets):
    """The one WER, with its CER, and the one EER that a table quotes, if measured."""
    values = {}
    for metric, name in headline_sets.items():
        # Two tasks may have a set of one name, with other metrics.
        for named in sets.values():
            for one in (metric, *(["cer"] if metric == "wer" else [])):
                if one in named.get(name, {}):
                    values[one] = named[name][one]
    return values


def _own_headlines(sets):
    """The first set of a user's own that has a WER, and the first with an EER."""
    found = {}
    for named in sets.values():
        for name, metrics in named.items():
            for metric in ("wer", "eer"):
                if metric in metrics:
                    found.setdefault(metric, name)
    return found


@user_errors_exit
def main(argv=None):
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
    parser.add_argument(
        "--speech_csv", type=PATH, help="WER on this CSV instead of the test sets"
    )
    parser.add_argument(
        "--speaker_csv", type=PATH, help="utterances of the trials in --trials"
    )
    parser.add_argument(
        "--trials", type=PATH, nargs="+", help="trial lists, with --speaker_csv"
    )
    parser.add_argument(
        "--to",
        type=PATH,
        help="folder for the results; default: the run's, or with a CSV of your own "
        "<run>/own/<name of the CSV>; another CSV of that name gets another one",
    )
    options, rest = parser.parse_known_args(argv)
    if bool(options.speaker_csv) != bool(options.trials):
        raise UserError("--speaker_csv and --trials go together; give both or neither")
    _look_at_own_sets(options)
    brain, hparams = load_run(options.what, rest)
    own = _own_files(options)
    folder = Path(options.to or hparams["output_folder"])
    if own and not options.to:
        # The run's own results stay what they are.
        folder = own_folder(folder, own)
    sets = _own_sets(options, hparams)
    if sets is not None:
        evaluation_sets.open_sets({}, {}, sets, brain.rank, brain.world_size)
        _warn_of_leaks(hparams, sets)
    elif not brain.allow_changes:
        check_test_sets(
            hparams["output_folder"], hparams["test_sets"], brain.rank, brain.world_size
        )
    with ledger.entry(hparams) as results:
        results.update(
            evaluate(
                brain,
                hparams,
                options.checkpoint,
                sets,
                folder,
                shell_command(sys.argv[0], sys.argv[1:]) if argv is None else None,
                own,
            )
        )
    if results and _first():
        summary.print_summary(folder)


def own_folder(run, own):
    """Where the results of a user's own files go: ``<run>/own/<name of the CSV>``.

    Files of the same name from elsewhere get another folder: nothing is overwritten
    but what the same files gave before.
    """
    csv = own.get("speech_csv") or own["speaker_csv"]
    folder = Path(run) / "own" / Path(csv).stem
    try:
        text = (folder / "results.json").read_text(encoding="utf-8")
    except OSError:
        return folder
    try:
        same = json.loads(text).get("own") == own
    except (ValueError, AttributeError):
        same = False
    if same:
        return folder
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    return folder.with_name(f"{folder.name}-{digest[:8]}")


def _own_files(options):
    """The user's own files on the command line, by option, with full paths; or None."""
    given = {
        "speech_csv": options.speech_csv,
        "speaker_csv": options.speaker_csv,
        "trials": options.trials,
    }
    full = {
        name: [str(Path(p).resolve()) for p in value]
        if isinstance(value, list)
        else str(Path(value).resolve())
        for name, value in given.items()
        if value
    }
    return full or None


def _look_at_own_sets(options):
    """Find what is wrong with the files of the user's own before a model is loaded."""
    sets = {"speech": {}, "speaker": {}}
    if options.speech_csv:
        sets["speech"]["own"] = evaluation_sets.EvaluationSet(options.speech_csv)
    if options.speaker_csv:
        trials = options.trials
        sets["speaker"]["own"] = evaluation_sets.EvaluationSet(
            options.speaker_csv, trial_paths=trials
        )
    evaluation_sets.open_sets({}, {}, sets)


def _warn_of_leaks(hparams, sets):
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


def _own_sets(options, hparams):
    """Test sets named on the command line, or None."""
    budget = hparams["test_batch_samples"]
    sets = {}
    wanted = {"speech": options.speech_csv, "speaker": options.speaker_csv}
    for task, csv in wanted.items():
        if csv and task not in hparams["tasks"]:
            raise UserError(
                f"--{task}_csv: this run has no {task} task, only "
                f"{', '.join(hparams['tasks'])}"
            )
    if options.speech_csv:
        name = Path(options.speech_csv).stem
        labels = {"letters": hparams["letters"]}
        sets["speech"] = {
            name: evaluation_sets.EvaluationSet(
                options.speech_csv,
                labels=labels,
                max_batch_samples=budget,
                num_workers=hparams["num_workers"],
                timeout=hparams["loader_timeout"],
            )
        }
    if options.speaker_csv:
        sets["speaker"] = {
            "own": evaluation_sets.EvaluationSet(
                options.speaker_csv,
                trial_paths=options.trials,
                max_batch_samples=budget,
                num_workers=hparams["num_workers"],
                timeout=hparams["loader_timeout"],
            )
        }
    names.check_sets(sets)
    return sets or None
