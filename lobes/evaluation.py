"""Test a trained model and write down what it reaches."""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

from lobes.errors import UserError, user_errors_exit
from lobes.files import read_json, write_atomically
from lobes.lazy import lazy
from lobes.recipe import RESTORE, parse_arguments, shell_command

brains = lazy("lobes.brain")
checkpoints = lazy("lobes.checkpoints")
distributed = lazy("lobes.distributed")
ledger = lazy("lobes.ledger")
report = lazy("lobes.report")
streams = lazy("lobes.streams")

logger = logging.getLogger(__name__)


def evaluate(
    brain, hparams, checkpoint="best", test_sets=None, folder=None, command=None
):
    """Load a checkpoint, run the test sets, and write what it reaches.

    That is ``results.json``, the files of each task, and ``report.html``, which
    shows them; a summary is printed.

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

    Returns
    -------
    dict
        Nothing in SpeechBrain's debug mode; else what ``results.json`` holds:
        ``wer`` and ``eer`` (percent) of the YAML's headline sets, all metrics of
        all sets, the checkpoint and its step, the number of parameters, and the
        seconds taken.
    """
    if brain.debug:
        logger.warning("Debug mode: a few batches give no results, nothing is tested")
        return {}
    started = time.perf_counter()
    folder = Path(folder or hparams["output_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    found = load_checkpoint(brain.checkpointer, checkpoint)
    sets = brain.test(test_sets or hparams["test_sets"], str(folder))
    results = {
        **headline(sets, hparams["headline_sets"]),
        "headline_sets": dict(hparams["headline_sets"]),
        "sets": sets,
        "checkpoint": str(found.path),
        "step": found.meta.get("step", brain.optimizer_step),
        "validation": {
            name: found.meta[name]
            for name in hparams["selection"]
            if name in found.meta
        },
        "parameters": sum(p.numel() for p in brain.modules.parameters()),
        "seed": hparams["seed"],
        "evaluation_seconds": round(time.perf_counter() - started, 1),
    }
    if command is not None:
        results["command"] = command
    if distributed.rank_and_world_size()[0] == 0:
        write_atomically(folder / "results.json", json.dumps(results, indent=2) + "\n")
        report.publish(folder, hparams["output_folder"])
    return results


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
            changes["source"] = None
            changes["encoder_config"] = read_json(config, RESTORE)
        what = yaml
    elif not what.is_file():
        raise UserError(f"{what} does not exist; name a results folder or a YAML file")
    hparams, run_opts, _ = parse_arguments([str(what), *arguments], changes)
    distributed.join_processes(run_opts)
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
        problem = found and checkpoints.damage(found.path)
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
    """The one WER and the one EER that a table quotes, where they were measured."""
    everything = {n: m for named in sets.values() for n, m in named.items()}
    return {
        metric: everything[name][metric]
        for metric, name in headline_sets.items()
        if name in everything
    }


@user_errors_exit
def main(argv=None):
    """The command ``evaluate.py``; see ``--help``."""
    parser = argparse.ArgumentParser(
        description="Evaluate a trained model: WER with alignments, EER, minDCF.",
        epilog="Further --key=value overrides are those of train.py; a YAML that was "
        "trained with overrides needs the same ones, a results folder none.",
        allow_abbrev=False,
    )
    parser.add_argument("what", help="hparams/x.yaml, or a results folder")
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last, or a folder"
    )
    parser.add_argument("--speech_csv", help="WER on this CSV instead of the test sets")
    parser.add_argument("--speaker_csv", help="utterances of the trials in --trials")
    parser.add_argument("--trials", nargs="+", help="trial lists, with --speaker_csv")
    parser.add_argument(
        "--to",
        help="folder for the results; default: the run's, or with a CSV of your own "
        "<run>/own/<name of the CSV>",
    )
    options, rest = parser.parse_known_args(argv)
    if bool(options.speaker_csv) != bool(options.trials):
        raise UserError("--speaker_csv and --trials go together; give both or neither")
    brain, hparams = load_run(options.what, rest)
    own = options.speech_csv or options.speaker_csv
    if own and not options.to:
        # The run's own results stay what they are.
        options.to = str(Path(hparams["output_folder"]) / "own" / Path(own).stem)
    with ledger.entry(hparams) as results:
        results.update(
            evaluate(
                brain,
                hparams,
                options.checkpoint,
                _own_sets(options, hparams),
                options.to,
                shell_command(sys.argv[0], sys.argv[1:]) if argv is None else None,
            )
        )


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
            name: streams.EvaluationSet(
                options.speech_csv,
                labels=labels,
                max_batch_samples=budget,
                num_workers=hparams["num_workers"],
                timeout=hparams["loader_timeout"],
            )
        }
    if options.speaker_csv:
        sets["speaker"] = {
            "own": streams.EvaluationSet(
                options.speaker_csv,
                trial_paths=options.trials,
                max_batch_samples=budget,
                num_workers=hparams["num_workers"],
                timeout=hparams["loader_timeout"],
            )
        }
    return sets or None
