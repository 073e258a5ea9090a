"""One line for every training and evaluation: what ran, where, and what it reached.

The ledger is a file of JSON lines, ``results/ledger.jsonl`` unless the YAML's
``ledger`` names another. ``pandas.read_json(path, lines=True)`` reads it, and ``read``
here also one with damaged lines. A run that was interrupted and continued has a line
for each of its parts.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from lobes.data.trials import read_trials
from lobes.data.utterance_tables import read_values
from lobes.errors import DivergedError, UserError
from lobes.evaluation.ending import COMPLETE, DIVERGED, PATIENCE, Ending
from lobes.evaluation.metrics import CHANCE, RATES
from lobes.evaluation.progress import ProgressLog
from lobes.settings import yamls
from lobes.settings.table import counts
from lobes.system.checkout import ROOT, commit
from lobes.system.files import read_json, usable_rows, write_atomically
from lobes.system.lazy import lazy
from lobes.system.locks import lock_file
from lobes.system.machine import device_name, peak_memory

distributed = lazy("lobes.system.distributed")
evaluation_sets = lazy("lobes.data.evaluation_sets")
torch = lazy("torch")

if TYPE_CHECKING:
    from lobes.runs.command_line import ExperimentOptions

logger = logging.getLogger(__name__)

DEFAULT = ROOT / "results" / "ledger.jsonl"

#: How a line's run ended. The first three need not be run again.
STATES = ("finished", "early-stopped", "diverged", "failed", "pre-empted")
DONE = STATES[:3]

#: The kind of an ``Ending`` of a training that goes on, or was ended from outside.
UNFINISHED = "unfinished"

#: What a diverged run has reached where no validation tells, in percent.
WORST = {"wer": 100.0, "eer": 50.0}

#: The file in a run's folder that tells evaluations which training it was.
IDENTITY = "run.json"

_NEEDED = {"kind", "state", "recipe", "variant", "changes", "seed"}


class Row(TypedDict, total=False):
    """A line of the ledger; lines of long ago lack some of this."""

    time: str
    kind: str  # "training" or "evaluation"
    seconds: float
    state: str  # one of STATES
    reason: str | None
    steps: int | None
    #: What tells a run from others.
    recipe: str | None
    variant: str | None
    changes: dict
    seed: int
    #: What it has reached, in percent; ``sets`` are {task: {set: metrics}}.
    validation: dict[str, float]
    score: float | None
    wer: float
    cer: float
    eer: float
    sets: dict[str, dict[str, dict[str, float]]]
    checkpoint: str
    checkpoint_step: int
    parameters: int
    #: With what it was computed.
    lr: float
    settings: str
    output_folder: str
    data: dict[str, str]
    device: str
    processes: int
    threads: int
    memory: dict[str, int]
    commit: str | None
    versions: dict[str, str]
    #: Of all lines of a run, only in what ``trainings`` returns.
    total_seconds: float


# What a field must hold where it is there; whole numbers are floats, too.
_HOLDS = {
    **dict.fromkeys(("lr", "seconds", "parameters", "wer", "cer", "eer"), float),
    **dict.fromkeys(("steps", "score"), (float, type(None))),
    **dict.fromkeys(("output_folder", "settings", "time"), str),
    **dict.fromkeys(("recipe", "variant", "reason"), (str, type(None))),
    **dict.fromkeys(("changes", "validation", "sets"), dict),
}
_PACKAGES = ("speech-speaker-mtl", "torch", "speechbrain", "transformers")


@contextlib.contextmanager
def entry(hparams: dict, run_opts: "ExperimentOptions | None" = None) -> Iterator[dict]:
    """Note what happens within this context in the ledger, however it ends.

    Arguments:
        hparams: The loaded YAML of a started experiment.
        run_opts: Of a training; None for an evaluation of a run's folder.

    Yields:
        To be filled with what ``lobes.runs.evaluate.evaluate`` returns.

    Nothing is noted in SpeechBrain's debug mode, and by other processes than the first.
    Raises ``UserError`` at once when the ledger cannot be written.
    """
    path = path_of(hparams)
    first = distributed.rank_and_world_size()[0] == 0
    noted = first and not (run_opts and run_opts["debug"])
    folder = Path(hparams["output_folder"])
    if noted:
        _check(path)
    if noted and run_opts:
        identity = {**run_opts.origin, "seed": hparams["seed"]}
        text = json.dumps(identity, indent=2, default=str)
        write_atomically(folder / IDENTITY, text + "\n")
    elif noted:
        # Read it now: a fault in it must not show after the tests.
        _identity(folder)
    began, started, results, error = time.time(), time.perf_counter(), {}, None
    try:
        yield results
    except BaseException as raised:
        error = raised
        raise
    finally:
        # The debug mode of an evaluation gives no results, and no error.
        if noted and (results or error):
            row = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
                "kind": "training" if run_opts else "evaluation",
                "seconds": round(time.perf_counter() - started, 1),
            }
            try:
                row.update(_outcome(hparams, results, error, bool(run_opts)))
                append(path, {**row, **_circumstances(hparams)})
            except Exception:
                # What the run has reached lies in its folder all the same.
                logger.exception("%s: the run could not be noted", path)


def ending(hparams: dict) -> Ending:
    """How far a training has come, as its folder tells.

    Its steps are those of ``progress.jsonl`` or of the newest checkpoint, which a
    signal may have saved before a row was written. The rule that stops a training
    judges the validations of ``progress.jsonl`` again: no file tells its last verdict.
    """
    rows = ProgressLog(hparams["output_folder"]).rows()
    # The loaded rule knows the validations up to the best checkpoint only.
    rule = hparams["stopping"].anew()
    for row in rows:
        if row["stage"] == "valid":
            rule.update(row["step"], row)
    saved = hparams["checkpointer"].list_checkpoints()
    steps = [row["step"] for row in rows] + [c.meta.get("step", 0) for c in saved]
    steps, planned = max(steps, default=0), hparams["steps"]
    kind = rule.kind or UNFINISHED
    if steps >= planned and kind != DIVERGED:
        kind = COMPLETE
    return Ending(kind, steps, planned, rule.reason)


def path_of(hparams: dict) -> Path:
    """Where the ledger of a run is."""
    # Runs from before there was a ledger have no such key.
    return Path(hparams.get("ledger") or DEFAULT)


def append(path: str | Path, row: Row) -> None:
    """Add one line; any number of processes may do so at once.

    A line that a killed process left unfinished is ended first, so that it spoils no
    other. Returns when the line is on the disk.
    """
    line = json.dumps(row, default=str).encode() + b"\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as stream:
        lock_file(stream, wait=True)
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)
        os.fsync(stream.fileno())


def read(path: str | Path = DEFAULT, report: bool = True) -> list[Row]:
    """The lines of a ledger, in order; an absent ledger has none.

    Lines that are damaged are skipped; they are named in the log and counted, unless
    ``report`` is False because they were before.
    """
    return usable_rows(path, "name another ledger", _problem, report)


def _problem(row):
    """What a line lacks or has wrong, or None."""
    if not isinstance(row, dict) or not row.keys() >= _NEEDED:
        return f"no run ({', '.join(sorted(_NEEDED))} are needed)"
    if row["state"] not in STATES:
        return f"the state {row['state']!r} is none of {', '.join(STATES)}"
    for name, kinds in _HOLDS.items():
        if name in row and not _is(row[name], kinds):
            return f"{name} is {json.dumps(row[name])[:40]}"
    of_sets = [m for named in row.get("sets", {}).values() for m in _values(named)]
    for metrics in (row.get("validation", {}), *of_sets):
        if not isinstance(metrics, dict) or not all(
            _is(value, float) for value in metrics.values()
        ):
            return f"metrics are {json.dumps(metrics)[:40]}"
    return None


def _is(value, kinds):
    """Whether a value is of a kind; whole numbers are floats, too."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return isinstance(0.0 if whole else value, kinds)


def _values(node):
    """The values of a mapping; of anything else itself."""
    return node.values() if isinstance(node, dict) else [node]


def key(row: Row) -> str:
    """What tells a run from others: recipe, variant, changes and seed, as text."""
    changes = json.loads(json.dumps(row["changes"], default=str))
    parts = [row["recipe"], row["variant"], changes, row["seed"]]
    return json.dumps(parts, sort_keys=True)


def trainings(rows: Iterable[Row]) -> dict[str, Row]:
    """The training that counts, by ``key``, of every run: the last that is done.

    Of a run that is not done it is the last line; ``total_seconds`` adds up all of a
    run's lines.
    """
    runs, seconds = {}, {}
    for row in rows:
        if row["kind"] != "training":
            continue
        name = key(row)
        seconds[name] = seconds.get(name, 0.0) + row.get("seconds", 0.0)
        if row["state"] in DONE or runs.get(name, row)["state"] not in DONE:
            runs[name] = row
    return {k: {**row, "total_seconds": seconds[k]} for k, row in runs.items()}


def settings_hash(tree: CommentedMap) -> str:
    """12 hexadecimal digits that change with what a merged YAML computes.

    Places, seed and how it is run (``lobes.settings.table``) do not count.
    """
    kept = {k: plain(v) for k, v in tree.items() if counts(k, "compared")}
    text = json.dumps(kept, sort_keys=True, default=str).replace(str(ROOT), "")
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plain(node: Any) -> Any:
    """A YAML node as plain values, with its tag where it has one."""
    if isinstance(node, CommentedMap | dict):
        value = {str(k): plain(v) for k, v in node.items()}
    elif isinstance(node, CommentedSeq | list):
        value = [plain(v) for v in node]
    else:
        value = getattr(node, "value", node)
    tag = getattr(node, "tag", None)
    return [tag.value, value] if tag is not None and tag.value else value


def _check(path):
    """Find out before a training of days that its end cannot be noted."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass
    except OSError as error:
        raise UserError(
            f"ledger: {path} cannot be written ({error.strerror}); give another one "
            "with --ledger"
        ) from error


def _outcome(hparams, results, error, training):
    """How the run ended, and what it reached."""
    rows = ProgressLog(hparams["output_folder"]).rows()
    told = results.get("training")
    end = Ending(**told) if told else ending(hparams)
    state, reason = "finished", None
    if error is not None:
        state, reason = _ended_by(error)
    elif training:
        state, reason = _ended(end, rows)
    steps = end.steps if training else None
    outcome = {"state": state, "reason": reason, "steps": steps}
    validation = results.get("validation")
    if state == "diverged" and not results:
        # The tables have a row for a diverged run, too.
        validation = _last_validation(hparams, rows)
    if validation is not None:
        # Runs of before there was a rate_selection have no such key.
        weights = hparams.get("rate_selection") or hparams["selection"]
        known = [weights[n] * validation[n] for n in weights if n in validation]
        outcome |= {"validation": validation, "score": sum(known) if known else None}
    if results:
        outcome.update(
            {name: results[name] for name in RATES if name in results},
            sets=results["sets"],
            checkpoint=Path(results["checkpoint"]).name,
            checkpoint_step=results["step"],
            parameters=results["parameters"],
        )
    return outcome


def _last_validation(hparams, rows):
    """The metrics of the last validation, ``WORST`` for those that it has not."""
    last = [row for row in rows if row["stage"] == "valid"][-1:]
    found = {name: WORST[name] for name in hparams["headline_sets"]}
    for row in last:
        found.update({n: row[n] for n in found if math.isfinite(row.get(n, math.nan))})
    return found


def _ended_by(error):
    """State and reason of a run that an exception ended."""
    state = "diverged" if isinstance(error, DivergedError) else "failed"
    if isinstance(error, SystemExit | KeyboardInterrupt):
        state = "pre-empted"
    lines = filter(None, map(str.strip, str(error).splitlines()))
    text = " ".join(lines)[:500].replace(str(ROOT), ".")
    name = type(error).__name__
    return state, text if isinstance(error, UserError) else f"{name}: {text}"


def _ended(end, rows):
    """State and reason of a training that came to an end of its own."""
    if end.kind == DIVERGED:
        return "diverged", end.reason
    if end.kind not in (COMPLETE, PATIENCE):
        # The command line's limit is no verdict on the run.
        return "pre-empted", str(end)
    last = [row for row in rows if row["stage"] == "valid"][-1:]
    known = {n: v for row in last for n, v in row.items() if n in CHANCE}
    if known and all(value >= CHANCE[name] for name, value in known.items()):
        text = ", ".join(f"{name} is {value:.2f}" for name, value in known.items())
        return "diverged", f"not better than chance: {text}"
    if end.kind == PATIENCE:
        return "early-stopped", end.reason
    return "finished", None


def _circumstances(hparams):
    """Which run it is, its data, its program and its machine."""
    folder = Path(hparams["output_folder"])
    device = next(hparams["encoder"].parameters()).device
    resolved = folder.resolve()
    inside = resolved.is_relative_to(ROOT)
    return {
        **_identity(folder),
        "seed": hparams["seed"],
        "lr": hparams["lr"],
        "settings": settings_hash(yamls.read(folder / "hyperparams.yaml")),
        "output_folder": str(resolved.relative_to(ROOT) if inside else resolved),
        "data": data_hashes(hparams),
        "device": device_name(device),
        "processes": distributed.rank_and_world_size()[1],
        "threads": torch.get_num_threads(),
        "memory": peak_memory(device),
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def _identity(folder):
    """What the training of a run's folder was."""
    if (folder / IDENTITY).exists():
        return read_json(folder / IDENTITY, "restore it, or move it away")
    # A run from before there was a ledger is known by its folder's name.
    names = folder.resolve().parts[-2:]
    return {"recipe": None, "variant": "/".join(names), "changes": {}}


def data_hashes(hparams: dict) -> dict[str, str]:
    """``{set: "<count>:<12 digits>"}`` of every split and trial list that is there.

    Of a split the utterances' names count, not where they lie or their order; of a
    trial list its pairs and labels.
    """
    files = {f"train {t}": s.csvs for t, s in hparams["train_streams"].items()}
    lists = {}
    tests = {f"test {task}": sets for task, sets in hparams["test_sets"].items()}
    for group, sets in {"valid": hparams["valid_sets"], **tests}.items():
        for name, found in sets.items():
            if isinstance(found, evaluation_sets.EvaluationSet):
                files[f"{group} {name}"] = [found.csv]
                for path in found.trial_paths:
                    lists[f"{group} {name} {path.stem}"] = path
    hashes = {name: _hash(_utterances, paths) for name, paths in files.items()}
    hashes |= {name: _hash(_trials, path) for name, path in lists.items()}
    return {name: found for name, found in hashes.items() if found is not None}


def _utterances(paths):
    """Names of all utterances of some CSVs."""
    for path in paths:
        # Not pandas' own reader, to which an ID may be "NA" and then none.
        yield from read_values(path, "ID")


def _trials(path):
    """Lines of a trial list, however they are written."""
    trials = read_trials(path, allow_repeats=True)
    for label, *pair in zip(trials.labels, trials.enrol, trials.test, strict=True):
        yield " ".join([f"{label:d}", *pair])


def _hash(texts_of, place):
    """Number of texts, and a hash that does not know their order; None without them."""
    try:
        texts = sorted(texts_of(place))
    except (OSError, ValueError, UserError):
        # The run itself says what is wrong with its data.
        return None
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return f"{len(texts)}:{digest[:12]}"
