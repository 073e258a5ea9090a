"""From a command line to a running experiment: variants, overrides, folders."""

import functools
import importlib.metadata
import json
import logging
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from lobes.errors import UserError
from lobes.runs.command_line import (
    ALLOW_CHANGES,
    RESTORE,
    ExperimentOptions,
    code_folders,
)
from lobes.settings import yamls
from lobes.settings.changes import changed_settings, differences, record_changes
from lobes.system.checkout import commit
from lobes.system.files import read_json, write_atomically
from lobes.system.lazy import lazy
from lobes.system.locks import one_writer
from lobes.system.preemption import handle_signals

distributed = lazy("lobes.system.distributed")
names = lazy("lobes.runs.names")
sb_core = lazy("speechbrain.core")
sb_logger = lazy("speechbrain.utils.logger")
torch = lazy("torch")

logger = logging.getLogger(__name__)

#: Output folders that this process holds, with their locks: until it ends.
_held = {}


def start_experiment(hparams: Mapping, run_opts: ExperimentOptions, settings: str):
    """Join the process group, make the output folder, and log into it.

    The folder gets ``hyperparams.yaml`` (the merged settings), ``command.txt`` (the
    lines that train and evaluate again), ``env.log``, ``log.txt``, and what lets an
    evaluation rebuild the model without its pre-trained weights, wherever the folder
    has gone: the encoder's configuration and the files of the user's own classes.
    From now on a signal ends the process in good order (``lobes.system.preemption``).

    Raises ``UserError`` when another process trains there, and when there are
    checkpoints of a run with other settings, unless ``--allow_changes`` is given;
    ``changes.jsonl`` then records them.
    """
    distributed.join_processes(run_opts)
    handle_signals()
    names.check_keys(hparams, run_opts["param_file"])
    names.check_names(hparams)
    folder = Path(hparams["output_folder"])
    if distributed.rank_and_world_size()[0]:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _hold(folder)
        config = hparams["encoder"].model.config.to_json_string()
        if any((folder / "save").glob("CKPT*")):
            _check_changes(folder, settings, config, run_opts.get("allow_changes"))
        write_atomically(folder / "hyperparams.yaml", settings)
    except OSError as error:
        raise UserError(
            f"output_folder: {folder} cannot be written ({error.strerror}); give "
            "another one with --output_folder"
        ) from error
    commands = "".join(f"{command}\n" for command in run_opts.commands)
    write_atomically(folder / "command.txt", commands)
    write_atomically(folder / "encoder_config.json", config)
    for source in _own_modules(run_opts["param_file"]):
        write_atomically(folder / source.name, source.read_bytes())
    write_atomically(folder / "env.log", _environment())
    log_config = run_opts["log_config"] or sb_core.DEFAULT_LOG_CONFIG
    handlers = {"file_handler": {"filename": str(folder / "log.txt")}}
    sb_logger.setup_logging(log_config, {"handlers": handlers})
    # On a full disk its errors would bury the one line that says so.
    logging.raiseExceptions = False
    # At the level DEBUG it describes every font of the machine.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    logger.info("Output folder: %s", folder)


def _hold(folder):
    """Be the only process that trains into a folder, until this one ends."""
    lock = (folder / "lock").resolve()
    if _held.get(lock, (None, None))[0] != os.getpid() or not lock.exists():
        context = one_writer(lock)
        context.__enter__()
        _held[lock] = os.getpid(), context


def _check_changes(folder, settings, config, allowed):
    """Compare the settings with those that the checkpoints there were made with."""
    stored = folder / "hyperparams.yaml"
    if not stored.exists():
        changes = [f"unknown ones, as {stored.name} is missing there"]
    else:
        old = yamls.read(stored, "restore it, or choose another --output_folder")
        changes = changed_settings(old, yamls.load(settings))
    stored = folder / "encoder_config.json"
    if stored.is_file():
        old, new = (
            {k: v for k, v in tree.items() if k != "transformers_version"}
            for tree in (read_json(stored, RESTORE), json.loads(config))
        )
        lines = [line for line in differences(old, new) if line[0] != "_"]
        changes += [f"encoder {line}" for line in lines]
    if not changes:
        return
    if not allowed:
        raise UserError(
            f"{folder} holds the checkpoints of a run with other settings "
            f"({'; '.join(changes)}); choose another --output_folder, or go on with "
            f"the new ones with {ALLOW_CHANGES}"
        )
    record_changes(folder, changes)
    logger.warning("Going on with other settings: %s", "; ".join(changes))


def _own_modules(path):
    """Loaded modules that are single files where ``_load`` looks for classes."""
    folders = code_folders(path)
    # Not getattr: SpeechBrain's lazy modules would be imported by it.
    files = [vars(module).get("__file__") for module in list(sys.modules.values())]
    paths = {Path(file) for file in files if file}
    # A few hundred folders of thousands of files.
    real = {parent: parent.resolve() for parent in {path.parent for path in paths}}
    return {
        real[path.parent] / path.name
        for path in paths
        if str(real[path.parent]) in folders
    }


def _environment():
    """Python, platform, commit and packages, one a line.

    SpeechBrain's own description asks whatever `pip` comes first in PATH.
    """
    lines = [
        f"Python {platform.python_version()}",
        platform.platform(),
        f"Commit {commit() or 'unknown (no git checkout)'}",
        *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        *_packages(),
    ]
    return "\n".join(lines) + "\n"


@functools.cache
def _packages():
    """The installed packages with their versions; they stay as long as the process."""
    return sorted(
        {f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}
    )
