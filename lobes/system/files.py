"""Files: written whole or not at all, and read with every fault named by its line."""

import csv
import hashlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lobes.errors import UserError

logger = logging.getLogger(__name__)

#: How a message calls what JSON holds.
_KINDS = {dict: "an object, {...}", list: "a list, [...]", str: "a text"}


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write ``content`` (str or bytes) to ``path`` so that no reader sees half.

    The bytes go to a temporary file in the same folder, are flushed to the
    disk, and take the final name in one rename. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode("utf-8")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; results are meant to be shared.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            # Writing names no file, and the rename the temporary one.
            error.filename, error.filename2 = str(path), None
        raise


def read_text(path: str | Path, remedy: str) -> str:
    """A file's UTF-8 text, without a byte order mark.

    Arguments:
        remedy: What the user can do about a file that cannot be read; it ends the
            message.

    Raises ``UserError``, which names the file, and the line that is not UTF-8.
    """
    return _decoded(_bytes(path, remedy), path, remedy)


def read_json(path: str | Path, remedy: str, kind: type = dict) -> Any:
    """What a JSON file holds, which must be of a ``kind`` (dict, list or str).

    Raises ``UserError`` as ``read_text`` does, also for what is no JSON.
    """
    return parse_json(read_text(path, remedy), path, remedy, kind)


def parse_json(
    text: str | bytes,
    path: str | Path,
    remedy: str,
    kind: type = dict,
    line: int | None = None,
) -> Any:
    """As ``read_json``, of text (or UTF-8 bytes) from a file, or from its ``line``."""
    where = path if line is None else f"{path}, line {line}"
    if isinstance(text, bytes):
        text = _decoded(text, path, remedy, line)
    try:
        found = json.loads(text)
    # An integer of thousands of digits, and thousands of nested lists.
    except (ValueError, RecursionError) as error:
        if line is None and getattr(error, "lineno", 0):
            where = f"{path}, line {error.lineno}"
        reason = getattr(error, "msg", None) or str(error).split(";")[0]
        reason = "it is empty" if not text.strip() else f"no JSON: {reason}"
        raise UserError(f"{where}: {reason}; {remedy}") from error
    if not isinstance(found, kind):
        shown = text.strip()
        shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
        raise UserError(f"{where}: {shown} is not {_KINDS[kind]}; {remedy}")
    return found


def read_rows(
    path: str | Path, columns: Iterable[str], remedy: str
) -> list[dict[str, str]]:
    """The rows of a CSV with a header, as dicts.

    Raises ``UserError`` as ``read_text`` does, for a column of ``columns`` that is
    not there, and for a row with other columns than the header.
    """
    rows = []
    text = read_text(path, remedy)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path} has no column {', '.join(missing)}; {remedy}")
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, line {reader.line_num}: it has not as many columns as "
                    f"the header; {remedy}"
                )
            rows.append(row)
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: no CSV ({error}); {remedy}"
        ) from error
    return rows


def usable_rows(
    path: str | Path,
    remedy: str,
    problem_of: Callable[[dict], str | None] | None = None,
    report: bool = True,
) -> list[dict]:
    """The objects in a file of JSON lines; an absent file has none.

    A line that cannot be used, as a killed process may leave it, is skipped. Such
    lines are named in the log and counted, unless ``report`` is False because they
    were before.

    Arguments:
        remedy: As for ``read_text``.
        problem_of: Takes an object; returns why it cannot be used, or None.

    Raises ``UserError`` when the file itself cannot be read.
    """
    rows, skipped = [], 0
    lines = _bytes(path, remedy, absent=b"").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, path, "skipped", line=number)
            problem = problem_of and problem_of(row)
            if not problem:
                rows.append(row)
                continue
            message = f"{path}, line {number}: {problem}; skipped"
        except UserError as error:
            message = str(error)
        skipped += 1
        if report:
            logger.warning("%s", message)
    if skipped and report:
        logger.warning("%s: %d of its lines skipped", path, skipped)
    return rows


def _bytes(path, remedy, absent=None):
    """What a file holds; ``absent``, if given, where there is none."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        if absent is not None and isinstance(error, FileNotFoundError):
            return absent
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); {remedy}"
        ) from error


def _decoded(content, path, remedy, line=None):
    """Bytes as text; the ``UserError`` names the line that is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = line or content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8; {remedy}") from error


class Window(io.FileIO):
    """Bytes ``offset`` to ``offset + size`` of a file, as a file for reading.

    Nothing outside of them can be read; every read is one of the file below.
    """

    # Those of FileIO would not end with the window.
    read, readall = io.RawIOBase.read, io.RawIOBase.readall

    def __init__(self, path, offset, size):
        super().__init__(path)
        self._offset, self._size = offset, size
        self.seek(0)

    def tell(self):
        """Position within the window."""
        return super().tell() - self._offset

    def seek(self, offset, whence=os.SEEK_SET):
        """Move as in any file, also behind the end; returns the new position."""
        origins = {os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}
        position = origins.get(whence, 0) + offset
        if position < 0:
            raise ValueError(f"a file has no position {position}")
        return super().seek(self._offset + position) - self._offset

    def readinto(self, buffer):
        """Fill ``buffer`` as far as the window goes; returns the bytes read."""
        left = max(self._size - self.tell(), 0)
        return super().readinto(memoryview(buffer).cast("B")[:left])


def _umask():
    """The process's file mode mask (it can only be read by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, as text."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
