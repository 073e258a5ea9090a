"""What SpeechBrain's Checkpointer does not do by itself."""

import json
import logging
import random
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from lobes.distributed import spread_random_state
from lobes.errors import UserError

logger = logging.getLogger(__name__)


@register_checkpoint_hooks
class RandomState:
    """The global random generators (dropout, LayerDrop, masks), as a recoverable.

    Rank 0 saves; the other ranks resume with generators seeded from that state
    and their rank, so that their dropout masks differ.
    """

    @mark_as_saver
    def save(self, path):
        """Write the states of Python, NumPy and torch to ``path``."""
        version, keys, gauss = random.getstate()
        kind, numpy_keys, *numpy_rest = np.random.get_state()
        state = {
            "python": [version, list(keys), gauss],
            "numpy": [kind, numpy_keys.tolist(), *numpy_rest],
            "torch": torch.get_rng_state().tolist(),
            "cuda": [s.tolist() for s in torch.cuda.get_rng_state_all()]
            if torch.cuda.is_available()
            else [],
        }
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(state, stream)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Restore the states in ``path``."""
        with open(path, encoding="utf-8") as stream:
            state = json.load(stream)
        version, keys, gauss = state["python"]
        random.setstate((version, tuple(keys), gauss))
        kind, numpy_keys, *numpy_rest = state["numpy"]
        np.random.set_state((kind, np.array(numpy_keys, np.uint32), *numpy_rest))
        torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
        cuda = [torch.tensor(s, dtype=torch.uint8) for s in state["cuda"]]
        if cuda and len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(cuda)
        spread_random_state()


def load_initial_weights(folder, modules):
    """Start from the best checkpoint of another run: weights only.

    Optimizer, schedule, weighting and streams stay fresh. A branch that the other
    run did not have starts as its shared layers. A head's tensor of another size (a
    classifier of other speakers) stays random, and is named in the log.

    Arguments
    ---------
    folder : str or Path
        Results folder of the other run.
    modules : torch.nn.ModuleDict
        ``encoder`` and the tasks.

    Raises
    ------
    UserError
        There is no checkpoint, or it does not fill the encoder.
    """
    saves = Path(folder) / "save"
    found = None
    if saves.is_dir():
        found = Checkpointer(saves).find_checkpoint(min_key="score")
    if found is None:
        raise UserError(
            f"init_from: {saves} holds no checkpoint; name the results folder of a "
            "training that has validated once"
        )
    fresh = []
    for name, module in modules.items():
        if name == "weighting":
            continue
        path = found.path / f"{name}.ckpt"
        if not path.is_file():
            fresh.append(name)
            continue
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if name == "encoder":
            stored = _with_branch(stored, module)
        state = module.state_dict()
        fits = {
            key: tensor
            for key, tensor in stored.items()
            if key in state and state[key].shape == tensor.shape
        }
        missing = sorted(set(state) - set(fits))
        odd = sorted({*missing, *(set(stored) - set(state))})
        if odd and name == "encoder":
            # Also what is left over: the layers of other branches are other layers.
            raise UserError(
                f"init_from: {path} does not fit the encoder ({odd[0]} and "
                f"{len(odd) - 1} more); give the same shared_layers and class_token"
            )
        fresh += [f"{name}.{key}" for key in missing]
        module.load_state_dict(fits, strict=False)
    logger.info(
        "Starting from the weights of %s; random at the start: %s",
        found.path,
        ", ".join(fresh) or "nothing",
    )


def _with_branch(stored, encoder):
    """An encoder's stored tensors, the speaker's own layers copied where absent."""
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
