"""Checkpoints that are whole or absent, and found whole again."""

import json
import logging
import math
import os
import pickle
import random
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import speechbrain.utils.checkpoints as stock
import torch
import yaml
from speechbrain.utils import distributed

from lobes.errors import UserError
from lobes.system.distributed import spread_random_state
from lobes.system.files import file_hash
from lobes.system.preemption import LOADER_DIED

logger = logging.getLogger(__name__)

#: Sizes and SHA-256 of a checkpoint's other files; written last.
MANIFEST = "MANIFEST.json"


class Checkpointer(stock.Checkpointer):
    """SpeechBrain's Checkpointer, for machines that stop at any moment.

    A checkpoint is written into a hidden folder and flushed to the disk with a
    manifest of sizes and SHA-256. Then one rename gives it its name; a deletion begins
    with a rename. A checkpoint is compared with its manifest before it is loaded. The
    log names a damaged one, and the next best is taken. Of several processes the first
    one writes, and no process waits for it. The folder is made with the first
    checkpoint: a refused command leaves none behind.

    Raises ``UserError`` when a checkpoint cannot be written, when there are
    checkpoints but none is whole, and when one is of another model.
    """

    def __init__(self, checkpoints_dir: str | Path, recoverables=None, **hooks):
        # SpeechBrain's Checkpointer makes its folder at once.
        with tempfile.TemporaryDirectory() as folder:
            super().__init__(folder, recoverables, **hooks)
        self.checkpoints_dir = Path(checkpoints_dir)

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        """See SpeechBrain. The values of ``meta`` must be plain and finite."""
        if not distributed.if_main_process():
            return None
        try:
            with distributed.MainProcessContext():
                written = super().save_checkpoint(
                    meta or {}, end_of_epoch, name, logging.DEBUG
                )
            _seal(written.path)
            final = self.checkpoints_dir / written.path.name.removeprefix(".")
            written.path.rename(final)
            _flush(self.checkpoints_dir)
        # torch's writer in C++ reports a full disk as a RuntimeError.
        except (OSError, RuntimeError) as error:
            if LOADER_DIED in str(error):
                raise
            self._remove_leftovers()
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{self.checkpoints_dir}: a checkpoint could not be written "
                f"({reason}); free space there and start the command again: it "
                "continues from the last whole checkpoint"
            ) from error
        logger.log(verbosity, "Saved %s", final)
        files = {name: final / path.name for name, path in written.paramfiles.items()}
        return stock.Checkpoint(final, written.meta, files)

    def delete_checkpoints(
        self,
        *,
        num_to_keep=1,
        min_keys=None,
        max_keys=None,
        importance_keys=(stock.ckpt_recency,),
        ckpt_predicate=None,
        verbosity=logging.INFO,
    ):
        if not distributed.if_main_process():
            return
        orders = [{"min_key": key} for key in min_keys or ()]
        orders += [{"max_key": key} for key in max_keys or ()]
        # SpeechBrain's callers append the same key to one list with every call.
        orders += [{"importance_key": key} for key in dict.fromkeys(importance_keys)]
        ranked, kept = set(), set()
        for order in orders:
            best = self.find_checkpoints(ckpt_predicate=ckpt_predicate, **order)
            paths = [checkpoint.path for checkpoint in best]
            ranked.update(paths)
            kept.update(paths[:num_to_keep])
        for path in ranked - kept:
            hidden = path.with_name(f".deleted-{path.name}")
            path.rename(hidden)
            shutil.rmtree(hidden)
            logger.log(verbosity, "Deleted %s", path)

    def find_checkpoint(self, *args, **kwargs):
        """See SpeechBrain: the best checkpoint that is whole.

        None when there is no checkpoint at all of the wanted kind.
        """
        distributed.ddp_barrier()  # The first process may still be deleting.
        ranked = self.find_checkpoints(*args, **kwargs)
        for checkpoint in ranked:
            problem = checkpoint_problem(checkpoint.path)
            if problem is None:
                return checkpoint
            logger.warning("%s is damaged: %s", checkpoint.path, problem)
        # No ranking has unreadable checkpoints; a run must not start anew over them.
        folders = self._list_checkpoint_dirs()
        if ranked or (folders and not self.list_checkpoints()):
            raise UserError(
                f"{self.checkpoints_dir}: none of {len(folders)} checkpoints is whole "
                "(the log says why); restore one, or move the folder away to start "
                "from the beginning"
            )
        return None

    def recover_if_possible(self, *args, **kwargs):
        """See SpeechBrain. What interrupted saves left is reported and removed.

        Damaged checkpoints are renamed: none of them stays the best one.
        """
        if distributed.if_main_process():
            self._remove_leftovers()
            folders = self._list_checkpoint_dirs()
            problems = {path: checkpoint_problem(path) for path in folders}
            if None in problems.values():
                for path in filter(problems.get, problems):
                    aside = path.with_name(f"damaged-{path.name}")
                    logger.warning(
                        "%s is damaged: %s; it is now %s", path, problems[path], aside
                    )
                    path.rename(aside)
        return super().recover_if_possible(*args, **kwargs)

    def load_checkpoint(self, checkpoint):
        try:
            super().load_checkpoint(checkpoint)
        except pickle.UnpicklingError as error:
            # torch's own words tell how to run the code in it.
            raise UserError(
                f"{checkpoint.path}: a file there holds more than tensors, maybe code, "
                "and was not loaded; restore the folder from where you trust it"
            ) from error
        except (RuntimeError, KeyError, ValueError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(
                f"{checkpoint.path} is of another model, or no checkpoint of ours "
                f"({' '.join(lines)[:200]}); choose another output folder, or the "
                "settings of this one's hyperparams.yaml"
            ) from error

    def _new_checkpoint_dirpath(self):
        # A checkpoint is hidden until it is whole: the dot keeps it out of all lists.
        final = super()._new_checkpoint_dirpath()
        return final.with_name(f".{final.name}")

    def _custom_checkpoint_dirpath(self, name):
        final = super()._custom_checkpoint_dirpath(name)
        return final.with_name(f".{final.name}")

    def _list_checkpoint_dirs(self):
        # A folder without readable metadata counts: it is damaged, not absent.
        folders = self.checkpoints_dir.glob(f"{stock.CKPT_PREFIX}*")
        return sorted(path for path in folders if path.is_dir())

    def _construct_checkpoint_objects(self, checkpoint_dirs):
        checkpoints = []
        for folder in checkpoint_dirs:
            try:
                meta = yaml.safe_load(
                    (folder / stock.METAFNAME).read_text(encoding="utf-8")
                )
                float(meta["unixtime"]), bool(meta["end-of-epoch"])
            except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
                logger.warning(
                    "%s is damaged: %s cannot be read (%s)",
                    folder,
                    stock.METAFNAME,
                    type(error).__name__,
                )
                continue
            files = {path.stem: path for path in folder.glob(f"*{stock.PARAMFILE_EXT}")}
            checkpoints.append(stock.Checkpoint(folder, meta, files))
        return checkpoints

    def _save_checkpoint_metafile(self, fpath, meta_to_include=None, end_of_epoch=True):
        meta = {name: _plain(name, v) for name, v in (meta_to_include or {}).items()}
        # The newest stays the newest, even if the clock of another node is behind.
        times = [c.meta["unixtime"] for c in self.list_checkpoints()]
        now = max([time.time(), *(moment + 1e-3 for moment in times)])
        meta = {"unixtime": now, "end-of-epoch": end_of_epoch, **meta}
        Path(fpath).write_text(yaml.dump(meta), encoding="utf-8")
        return meta

    def _remove_leftovers(self):
        for kind, problem in (
            (f".{stock.CKPT_PREFIX}*", "an unfinished checkpoint"),
            (".deleted-*", "a checkpoint that was being deleted"),
        ):
            for path in self.checkpoints_dir.glob(kind):
                logger.warning("Removing %s: %s", path, problem)
                shutil.rmtree(path, ignore_errors=True)


def checkpoint_problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, compared with its manifest.

    None when every file has the size and the SHA-256 that were written.
    """
    try:
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, (size, sha256) in expected.items():
            size_now = (folder / name).stat().st_size
            if size_now != size:
                return f"{name} has {size_now} bytes, not {size}"
            if file_hash(folder / name) != sha256:
                return f"the content of {name} has changed"
    except OSError as error:
        return f"{Path(error.filename or '').name}: {error.strerror}"
    except (ValueError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def _seal(folder):
    """Flush the files of a new checkpoint to the disk and write its manifest."""
    contents = {}
    for path in sorted(folder.iterdir()):
        _flush(path)
        contents[path.name] = [path.stat().st_size, file_hash(path)]
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    _flush(manifest)
    _flush(folder)


def _flush(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(name, value):
    """A value of the metadata as a plain one, for YAML and for comparisons."""
    if isinstance(value, (bool, int, str)):
        return value
    value = float(value)
    if not math.isfinite(value):
        raise UserError(f"checkpoint: {name} is {value}; the run has diverged")
    return value


@stock.register_checkpoint_hooks
class RandomState:
    """The global random generators (dropout, LayerDrop, masks), as a recoverable.

    Rank 0 saves. The other ranks seed theirs from that state and their rank: their
    dropout masks differ.
    """

    @stock.mark_as_saver
    def save(self, path) -> None:
        """Write the states of Python, NumPy and torch to ``path``."""
        kind, numpy_keys, *numpy_rest = np.random.get_state()
        state = {
            "python": random.getstate(),
            "numpy": [kind, numpy_keys.tolist(), *numpy_rest],
            "torch": torch.get_rng_state().tolist(),
            # Only of the device in use: a resumed run may see more or fewer of them.
            "cuda": torch.cuda.get_rng_state().tolist()
            if torch.cuda.is_initialized()
            else None,
        }
        Path(path).write_text(json.dumps(state), encoding="utf-8")

    @stock.mark_as_loader
    def load(self, path, end_of_epoch) -> None:
        """Restore the states in ``path``."""
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        version, keys, gauss = state["python"]
        random.setstate((version, tuple(keys), gauss))
        kind, numpy_keys, *numpy_rest = state["numpy"]
        np.random.set_state((kind, np.array(numpy_keys, np.uint32), *numpy_rest))
        torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
        if torch.cuda.is_available() and state["cuda"]:
            torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))
        elif torch.cuda.is_available():
            logger.warning("%s has no random state of a GPU: dropout differs", path)
        spread_random_state()
