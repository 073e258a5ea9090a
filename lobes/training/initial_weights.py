"""Weights to start from: those of another run's best checkpoint."""

import logging
import pickle
from pathlib import Path

import torch

from lobes.errors import UserError
from lobes.training.checkpoints import Checkpointer

logger = logging.getLogger(__name__)


def load_initial_weights(folder: str | Path, modules: torch.nn.ModuleDict) -> None:
    """Start from the weights of another run's best checkpoint.

    Optimizer, schedule, weighting and streams stay fresh. A branch that the other
    run did not have starts as its shared layers. A head's tensor of another size (a
    classifier of other speakers) stays random, and the log names it.

    Arguments:
        folder: Results folder of the other run.
        modules: ``encoder`` and the tasks.

    Raises:
        UserError: There is no checkpoint, or it does not fill the encoder.
    """
    saves = Path(folder) / "save"
    best = Checkpointer(saves).find_checkpoint(min_key="score")
    if best is None:
        raise UserError(
            f"init_from: {saves} holds no checkpoint; name the results folder of a "
            "training that has validated once"
        )
    fresh = []
    for name, module in modules.items():
        path = best.path / f"{name}.ckpt"
        if name == "encoder" and not path.is_file():
            raise UserError(
                f"init_from: {best.path} holds no weights of an encoder "
                f"({path.name}); name the results folder of a whole training"
            )
        if name == "weighting":
            continue
        if path.is_file():
            fresh += [f"{name}.{key}" for key in _load(path, name, module)]
        else:
            fresh.append(name)
    logger.info(
        "Starting from the weights of %s; random at the start: %s",
        best.path,
        ", ".join(fresh) or "nothing",
    )


def _load(path, name, module):
    """Load the tensors that fit a module; returns the names of the others."""
    stored, state = _tensors(path), module.state_dict()
    if name == "encoder":
        stored = _with_branch(stored, module)
    fits = {n: t for n, t in stored.items() if n in state and state[n].shape == t.shape}
    missing = sorted(state.keys() - fits.keys())
    odd = sorted({*missing, *(stored.keys() - state.keys())})
    if odd and name == "encoder":
        # A tensor that is left over belongs to another branch's layers.
        raise UserError(
            f"init_from: {path} does not fit the encoder ({odd[0]} and "
            f"{len(odd) - 1} more); give the same shared_layers and class_token"
        )
    module.load_state_dict(fits, strict=False)
    return missing


def _tensors(path):
    """The tensors of a checkpoint's file by name; nothing else is loaded."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"init_from: {path} holds no tensors, or more than that, and was not "
            "loaded; name the results folder of a training that you trust"
        ) from error
    if not isinstance(stored, dict):
        raise UserError(f"init_from: {path} holds no weights by name; name another run")
    return {n: t for n, t in stored.items() if isinstance(t, torch.Tensor)}


def _with_branch(stored, encoder):
    """An encoder's stored tensors; the speaker's own layers are copied where absent."""
    stored = dict(stored)
    if any(key.startswith("speaker_layers.") for key in stored):
        return stored
    places = {
        f"model.encoder.layers.{encoder.shared_layers + i}.": f"speaker_layers.{i}."
        for i in range(len(encoder.speaker_layers))
    }
    if encoder.speaker_norm is not None:
        places["model.encoder.layer_norm."] = "speaker_norm."
    for source, target in places.items():
        for key in [key for key in stored if key.startswith(source)]:
            stored[target + key.removeprefix(source)] = stored[key]
    return stored
