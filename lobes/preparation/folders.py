"""The folders of a corpus: they are checked and listed; the rest is counted."""

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lobes.errors import UserError
from lobes.system.terminal import say


class Inputs:
    """A running hash of the input files: relative path, size and time of change.

    The order of the files counts, so add them sorted.
    """

    def __init__(self):
        self._hash = hashlib.sha256()

    def add(self, name: str, path: str | Path) -> None:
        """Add the file at ``path`` under a name that does not depend on the root."""
        try:
            status = os.stat(path)
            line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
        except OSError:
            # Decoding will tell of a dangling link, with the utterance's ID.
            line = f"{name}\0missing\n"
        self._hash.update(line.encode("utf-8", "surrogateescape"))

    def digest(self) -> str:
        """The hash as text."""
        return self._hash.hexdigest()


class LeftOut:
    """What lies in a corpus, ``root``, and is no utterance, counted by kind."""

    def __init__(self, root: str | Path):
        self._prefix = os.path.join(root, "")
        self._counts = Counter()
        self._examples = {}

    def add(self, kind: str, path: str, count: int = 1) -> None:
        """Count something; the first ``path`` of a kind is told as its example."""
        self._counts[kind] += count
        self._examples.setdefault(kind, path)

    def counts(self) -> dict[str, int]:
        """``{kind: number}``, the most first."""
        return dict(sorted(self._counts.items(), key=lambda one: (-one[1], one[0])))

    def say(self, part: str) -> None:
        """Tell all kinds in one line, where there are any."""
        told = []
        for kind, count in self.counts().items():
            example = shown(self._examples[kind].removeprefix(self._prefix))
            told.append(f"{count:,} {kind} ({example}{', ...' if count > 1 else ''})")
        if told:
            say(f"{part}: left out: {'; '.join(told)}")


def shown(text: str) -> str:
    """``text`` on one line of UTF-8: other bytes and control characters escaped."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def name_problem(utterance: str, path: str) -> str | None:
    """Why an utterance of that ID and file cannot stand in our files, or None.

    A CSV is UTF-8, and the fields of a trial list are separated by blanks.
    """
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "its path is not UTF-8; rename the file or folder"
    if utterance.isprintable() and " " not in utterance:
        return None
    letters = sorted({c for c in utterance if c.isspace() or not c.isprintable()})
    return (
        f"its name holds {' '.join(map(ascii, letters))}, which no trial list can "
        f"hold; rename the file or folder without"
    )


def listing(folder: str | Path) -> tuple[list[os.DirEntry], list[os.DirEntry]]:
    """``(folders, files)`` directly in ``folder``: each sorted by name, none hidden.

    They are ``os.DirEntry`` objects; links count as what they point to.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry)
    except OSError as error:
        raise UserError(
            f"{folder}: the folder cannot be listed ({error.strerror}); check its path "
            f"and permissions"
        ) from error
    return folders, files


def folders_in(folder: str | Path, left_out: LeftOut, stray: str) -> list[os.DirEntry]:
    """The folders directly in ``folder``; files there are counted as ``stray``."""
    folders, files = listing(folder)
    for entry in files:
        left_out.add(stray, entry.path)
    return folders


def files_in(folder: str | Path, left_out: LeftOut, stray: str) -> list[os.DirEntry]:
    """The files directly in ``folder``; folders there are counted as ``stray``."""
    folders, files = listing(folder)
    for entry in folders:
        left_out.add(stray, entry.path)
    return files


def best_audio(
    entries: Iterable[os.DirEntry], suffixes: Sequence[str], left_out: LeftOut
) -> dict[str, str]:
    """One file per stem: ``{stem: path}``, where ``suffixes`` come best first.

    Files with other suffixes are added to ``left_out``; the stems come sorted.
    """
    best = {}
    for entry in entries:
        stem, suffix = os.path.splitext(entry.name)
        suffix = suffix.lower()
        if suffix not in suffixes:
            ending = f"that end in {shown(suffix)}" if suffix else "without ending"
            left_out.add(f"file(s) {ending}", entry.path)
            continue
        rank = suffixes.index(suffix)
        if stem not in best or rank < best[stem][0]:
            best[stem] = (rank, entry.path)
    return {stem: best[stem][1] for stem in sorted(best)}


def existing_folder(folder: str | Path, argument: str) -> Path:
    """``folder`` as an absolute path; a ``UserError`` if it is not there."""
    path = Path(os.path.abspath(folder))
    if not path.is_dir():
        raise UserError(
            f"{argument}: the folder {shown(str(path))} does not exist; set it to "
            f"where the corpus lies"
        )
    if shown(str(path)) != str(path):
        raise UserError(
            f"{argument}: the path {shown(str(path))} cannot stand in a CSV; rename "
            f"the folder, or name a link to it"
        )
    return path


def outside(save_folder: str | Path, corpus: Iterable[Path]) -> None:
    """Raise ``UserError`` if a folder to write to lies in one with a corpus's audio."""
    path = Path(os.path.realpath(save_folder))
    for source in corpus:
        if path.is_relative_to(os.path.realpath(source)):
            raise UserError(
                f"save_folder: {save_folder} lies in the corpus ({source}), where "
                f"nothing is to be written; choose a folder outside of it"
            )


def writable_folder(folder: str | Path, argument: str = "save_folder") -> Path:
    """``folder`` as an absolute path, made and tried; ``UserError`` if it fails."""
    path = Path(os.path.abspath(folder))
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(
            f"{argument}: {path} cannot be written to ({error.strerror}); choose "
            f"another folder or correct its permissions"
        ) from error
    return path
