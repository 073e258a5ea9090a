"""Errors of the machine during a training, each turned into one line for the user."""

import contextlib
from pathlib import Path

import torch

from lobes.errors import UserError
from lobes.system.preemption import LOADER_DIED


@contextlib.contextmanager
def continuable(folder: str | Path):
    """Raise ``UserError`` for a dead loading process or a file that cannot be written.

    The run in ``folder`` continues from its last checkpoint.
    """
    go_on = "the same command continues from the last checkpoint"
    try:
        yield
    except RuntimeError as error:
        if LOADER_DIED not in str(error):
            raise
        raise UserError(
            f"{str(error).strip().splitlines()[0]} (or it ran out of memory: lower "
            f"--num_workers); {go_on}"
        ) from error
    except OSError as error:
        where, reason = error.filename or folder, error.strerror or error
        raise UserError(f"{where}: {reason}; {go_on}") from error


@contextlib.contextmanager
def enough_memory(step: int, batches: dict, folder: str | Path):
    """Turn an out-of-memory error at a ``step`` into one with the batches' shapes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch has a class for this error on accelerators only.
        kinds = (torch.OutOfMemoryError, MemoryError)
        if not isinstance(error, kinds) and "can't allocate memory" not in str(error):
            raise
        shapes = " and ".join(
            f"{task} {list(batch.wavs.shape)}" for task, batch in batches.items()
        )
        raise UserError(
            f"out of memory at step {step} with the waveforms {shapes} [utterances, "
            "samples]; lower --max_batch_samples (or --valid_batch_samples, "
            "--test_batch_samples) and raise --grad_accumulation_factor instead; to "
            "continue this run from its last checkpoint, add --allow_changes "
            f"--output_folder={folder}"
        ) from error
