"""Errors that a user can cause, told in one line.

``user_errors_exit`` is the one boundary: every command's ``main`` stands within it.

    Exception
        UserError           the message is the line: file, row or key, and the remedy
            DivergedError   a training that cannot go on
        OSError             of disk, permissions, ... : ``os_error_line``
        MemoryError, RuntimeError of torch, JSONDecodeError, BadZipFile, ...
                            what the machine or a damaged file caused: ``explanation``
        (any other)         a defect of the program; it keeps its traceback
    SystemExit
        Preempted           lobes.system.preemption: stopped, to be continued
    KeyboardInterrupt       exit status 130
"""

import argparse
import contextlib
import csv
import errno
import functools
import importlib.metadata
import io
import json
import logging
import lzma
import os
import pickle
import sys
import tarfile
import traceback
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

#: Exit status of a command that Ctrl-C has ended, as a shell gives it.
INTERRUPTED = 130


class UserError(Exception):
    """Something in the user's files, settings or data is wrong.

    The message is one line that names the thing (file, row, key) and the
    remedy. Commands print it without a traceback.
    """


class DivergedError(UserError):
    """Training cannot go on: its numbers are not finite, or beyond a limit."""


_ROOM = "make room on that disk, and start the same command again"
_OTHER = "choose another folder or file"
_MEMORY = "use smaller batches or fewer --num_workers, or a machine with more memory"
_FILES = "raise the limit (ulimit -n 4096), or use fewer --num_workers"
_SHARED = (
    "give the container more of it (--shm-size=1g), or load in the training process "
    "(--num_workers=0)"
)

#: What to do about an error of the operating system.
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: "make room within your quota, and start the same command again",
    errno.EFBIG: "no file may be so large there (ulimit -f); raise the limit",
    errno.EROFS: "nothing can be written there; choose another folder",
    errno.EACCES: "correct its permissions, or choose another folder or file",
    errno.EPERM: "correct its permissions, or choose another folder or file",
    errno.EISDIR: f"a folder stands where a file belongs; {_OTHER}",
    errno.ENOTDIR: f"a file stands where a folder belongs; {_OTHER}",
    errno.EEXIST: f"something stands there already; {_OTHER}",
    errno.ENOENT: "correct the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "the links there lead in a circle; correct them",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: _MEMORY,
    errno.EIO: "the disk, or what connects it, fails; look at the machine's log",
    errno.ESTALE: "the network file system lost it; mount it again",
    errno.ETXTBSY: f"a program runs from it; {_OTHER}",
}

#: Errors of the machine as torch tells them in a ``RuntimeError``: some words of the
#: message, what they mean, and what to do.
_OF_THE_MACHINE = (
    ("shared memory", "there is too little shared memory (/dev/shm)", _SHARED),
    ("</torch_", "there is too little shared memory (/dev/shm)", _SHARED),
    ("Too many open files", "too many files are open", _FILES),
    ("can't allocate memory", "there is too little memory", _MEMORY),
    ("not enough memory", "there is too little memory", _MEMORY),
    ("out of memory", "there is too little memory", _MEMORY),
    ("No space left on device", "a disk is full", _ROOM),
    ("PytorchStreamWriter failed", "a file could not be written", _ROOM),
    ("file write failed", "a file could not be written", _ROOM),
    ("Read-only file system", "a file could not be written", _OTHER),
)

#: Exceptions that come of damaged files, where no module told more.
DAMAGED = (
    json.JSONDecodeError,
    UnicodeDecodeError,
    csv.Error,
    zipfile.BadZipFile,
    tarfile.TarError,
    pickle.UnpicklingError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, whose errors are one line: they raise ``UserError``.

    Abbreviated options are refused: a misspelt one must not be taken for another.
    """

    def __init__(self, **settings):
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message):
        """Raise the error with what it is about."""
        raise UserError(f"{message}; --help lists the options")


def user_errors_exit(main: Callable, stopped: str = "stopped") -> Callable:
    """Decorate a command's ``main``: what a user can cause ends it in one line.

    That is a ``UserError``, and what the machine and its files are to blame for: a full
    disk, a folder that cannot be written, too little memory, a damaged file. The line
    goes to standard error and the exit status is 2, as for a wrong command line; after
    Ctrl-C it is 130 and the line ``stopped``. Any other exception is a defect: it
    keeps its traceback, and says where to report it.

    Whoever reads the output may go away, and a terminal may know no Unicode: neither
    ends a command.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        _make_output_lenient()
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except UserError as error:
            _end(str(error))
        except KeyboardInterrupt:
            _end(stopped, INTERRUPTED, "")
        except Exception as error:
            told = explanation(error)
            if told is None:
                error.add_note(
                    "This is a defect of the program. Please report it, with the lines "
                    f"above, to {_tracker()}."
                )
                raise
            logging.getLogger(__name__).debug("%s", told, exc_info=True)
            _end(told)

    return wrapped


def resumable(main: Callable) -> Callable:
    """As ``user_errors_exit``, where the same command goes on after Ctrl-C."""
    return user_errors_exit(main, "stopped; the same command goes on")


def explanation(error: BaseException) -> str | None:
    """The line about an exception that the machine or a file caused, or None."""
    if isinstance(error, OSError) and error.errno is not None:
        return os_error_line(error)
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # What a loading process raised comes with its whole traceback.
    first = lines[-1 if lines[0].startswith("Caught ") else 0][:200]
    if isinstance(error, MemoryError):
        return f"there is too little memory ({first}); {_MEMORY}"
    for part, meaning, remedy in _OF_THE_MACHINE:
        # Also safetensors' errors, whose class is imported with it.
        if part in str(error) and not isinstance(error, KeyError):
            return f"{meaning} ({first}); {remedy}"
    # That of ruamel.yaml or PyYAML, imported or not.
    of_yaml = any(kind.__name__ == "YAMLError" for kind in type(error).__mro__)
    if isinstance(error, DAMAGED) or of_yaml:
        if isinstance(error, pickle.UnpicklingError):
            # torch's own words tell how to run what is in it.
            first = "it holds more than data, maybe code"
        kind = type(error).__name__
        return f"{_file_of(error)} cannot be read ({kind}: {first}); restore it"
    return None


def os_error_line(error: OSError, path: str | Path | None = None) -> str:
    """The line about an ``OSError``: the file, what is wrong, and what to do.

    ``path`` stands for the file where the error names none.
    """
    names = [n for n in (error.filename, error.filename2) if n not in (None, "")]
    # A name may be bytes, or the number of an open file.
    names = [os.fsdecode(n) if isinstance(n, bytes) else str(n) for n in names]
    where = " and ".join(names) or (path and str(path))
    reason = error.strerror or os.strerror(error.errno)
    remedy = _REMEDIES.get(error.errno, "correct that, and start the command again")
    return f"{where or _file_of(error)}: {reason}; {remedy}"


def _end(line, status=2, prefix="error: "):
    """Print the line and exit."""
    print(f"{prefix}{line}", file=sys.stderr, flush=True)
    sys.exit(status)


def _file_of(error):
    """The file that was open where an error came up; else where that was."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for value in list(frame.f_locals.values()):
            name = getattr(value, "name", None) if isinstance(value, io.IOBase) else 0
            if isinstance(name, str):
                return name
    root = Path(__file__).resolve().parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    frames = [f for f in frames if f.filename != __file__]
    ours = [f for f in frames if Path(f.filename).is_relative_to(root / "lobes")]
    ours = ours or frames[-1:]
    if not ours:
        return "a file"
    return f"a file ({Path(ours[-1].filename).name}, line {ours[-1].lineno})"


def _tracker():
    """Where to report a defect."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        metadata = importlib.metadata.metadata("speech-speaker-mtl")
        for entry in metadata.get_all("Project-URL", ()):
            label, _, url = entry.partition(",")
            if "issue" in label.lower() or "tracker" in label.lower():
                return url.strip()
    return "the project's issue tracker"


class _Lenient(io.FileIO):
    """Output that goes nowhere once it cannot be written; a full disk is told once."""

    lost = False

    def write(self, data):
        try:
            if not self.lost:
                return super().write(data)
        except OSError as error:
            self.lost = True
            # The reader of a pipe has ended, or the terminal is gone.
            if error.errno not in (errno.EPIPE, errno.EIO):
                error.filename = "standard output"
                raise
        return memoryview(data).nbytes


def _make_output_lenient():
    """Let no output fail because its reader is gone, or for a character."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            # It was closed (`>&-`): the next file would take its number.
            nowhere = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
            setattr(sys, name, nowhere)
        elif stream is getattr(sys, f"__{name}__") and _number(stream) == number:
            stream.flush()
            lenient = io.TextIOWrapper(
                io.BufferedWriter(_Lenient(number, "w", closefd=False)),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering or name == "stderr",
                write_through=stream.write_through,
            )
            setattr(sys, name, lenient)


def _number(stream):
    """The number of a stream's file, or None."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return stream.fileno()


#: One error message tells so many problems in words; of the others it has the number.
TOLD = 3


def enumeration(items: Sequence[str], told: int = TOLD) -> str:
    """The first few of ``items``, and how many more there are."""
    text = "; ".join(items[:told])
    return f"{text}; and {len(items) - told} more" if len(items) > told else text
