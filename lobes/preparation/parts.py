"""The parts of a preparation: outputs that are built, and trusted, as a whole.

A part is one LibriSpeech split, the training half of VoxCeleb, and so on. It owns a few
output files and a marker, ``<part>.prepared.json``, which is written last. The marker
holds the options, a hash of the input listing and the hash of every output. A part is
built again where its marker does not fit in any of the three, so that a stale,
half-written or edited file is never trusted.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lobes.data.markers import marker_path, read_marker
from lobes.errors import UserError, enumeration
from lobes.preparation.folders import shown
from lobes.preparation.outputs import csv_text
from lobes.system.files import file_hash, write_atomically
from lobes.system.terminal import say

# Raised when the content of the output files changes for the same input.
_FORMAT = 1


class Problem(NamedTuple):
    """An utterance that cannot be used: its ID, its file, and why."""

    utterance: str
    path: str
    reason: str


class Part:
    """One group of output files that is built, and trusted, as a whole.

    Arguments:
        save_folder: Where the outputs and the marker ``<name>.prepared.json`` lie.
        corpus: Kept in the marker: two corpora must not share a part's files.
        options: Everything but the input files that decides the outputs (JSON types).
        inputs: ``Inputs.digest()`` of the files that the outputs are made from.
    """

    def __init__(
        self, save_folder: Path, name: str, corpus: str, options: dict, inputs: str
    ):
        self.folder = save_folder
        self.name = name
        self.marker = marker_path(save_folder, name)
        self._key = {
            "format": _FORMAT,
            "corpus": corpus,
            "options": json.loads(json.dumps(options)),
            "inputs": inputs,
        }

    def reusable(self, skip_budget: int) -> dict | None:
        """Counts of the outputs that lie there, or None if they must be built.

        Says on standard error which of the two it is, and why.
        """
        stored = read_marker(self.marker)
        if not stored:
            return None
        reason = self._difference(stored)
        if reason is None and stored["skipped"] > skip_budget:
            reason = f"more utterances were left out than skip_budget={skip_budget}"
        if reason is None:
            say(f"{self.name}: prepared before and nothing changed; kept")
            return stored["counts"]
        say(f"{self.name}: {reason}; preparing it again")
        return None

    def skip(self, problems: Sequence[Problem], skip_budget: int) -> None:
        """Accept ``problems`` as left out, if there are not too many.

        All of them are written to ``<name>.skipped.csv`` (``ID,path,reason``) and
        counted on standard error. Without any, the list of an earlier run goes. Raises
        ``UserError`` beyond ``skip_budget``.
        """
        path = self.folder / f"{self.name}.skipped.csv"
        if not problems:
            path.unlink(missing_ok=True)
            return
        problems = sorted(Problem(*map(shown, problem)) for problem in problems)
        columns = list(zip(*problems, strict=True))
        write_atomically(path, csv_text(("ID", "path", "reason"), columns))
        if len(problems) > skip_budget:
            raise UserError(
                f"{self.name}: {len(problems)} bad utterance(s): "
                f"{enumeration([': '.join(problem) for problem in problems])}; all are "
                f"listed in {path}: repair them, or leave them out with "
                f"--skip_budget={len(problems)} (now {skip_budget}"
                f"{'' if skip_budget else ', as always with --strict'})"
            )
        say(f"{self.name}: left out {len(problems)} bad utterance(s), listed in {path}")

    def write(
        self, files: Mapping[str, str], counts: Mapping, skipped: int = 0
    ) -> None:
        """Write all outputs, then the marker that vouches for them.

        Arguments:
            files: Content (str) by file name.
            counts: What ``reusable`` will return next time (JSON types).
            skipped: Utterances left out, listed in ``<name>.skipped.csv``.
        """
        # This marker vouches for nothing yet; it says whose files these are.
        unfinished = {"corpus": self._key["corpus"], "unfinished": list(files)}
        write_atomically(self.marker, json.dumps(unfinished) + "\n")
        for name, content in files.items():
            write_atomically(self.folder / name, content)
        names = [*files, f"{self.name}.skipped.csv"] if skipped else list(files)
        stored = {
            **self._key,
            "skipped": skipped,
            "counts": counts,
            "files": {name: file_hash(self.folder / name) for name in names},
        }
        write_atomically(self.marker, json.dumps(stored, indent=1) + "\n")

    def _difference(self, stored):
        """Why the outputs may not be kept, or None."""
        for key, text in (
            ("format", "it was written by another version"),
            ("options", "the options changed"),
            ("inputs", "the input files changed"),
        ):
            if stored[key] != self._key[key]:
                return text
        for name, wanted in stored["files"].items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if file_hash(path) != wanted:
                return f"{name} was edited or cut since it was written"
        return None


def check_owner(
    save_folder: Path, name: str, corpus: str, outputs: Iterable[str]
) -> None:
    """Raise ``UserError`` where a part's files would overwrite what is not its own.

    ``name`` and ``corpus`` are the part's, ``outputs`` the names of its files.
    """
    marker = marker_path(save_folder, name)
    other = read_marker(marker).get("corpus", corpus)
    if other != corpus:
        raise UserError(
            f"{save_folder}: {name}.csv there was prepared from {other}, not from "
            f"{corpus}; give every corpus a save_folder of its own"
        )
    for output in outputs:
        if not marker.exists() and os.path.lexists(save_folder / output):
            raise UserError(
                f"{save_folder / output} is there and no preparation wrote it; it is "
                f"not overwritten: move it away, choose another save_folder, or set "
                f"skip_prep=True to train with your own files"
            )
