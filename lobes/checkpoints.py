"""State that SpeechBrain's Checkpointer does not save by itself."""

import json
import random

import numpy as np
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from lobes.distributed import spread_random_state


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
