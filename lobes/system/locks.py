"""Let one process at a time write to a folder or file."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lobes.errors import UserError, os_error_line


@contextlib.contextmanager
def one_writer(lock: str | Path, wait: bool = False) -> Iterator[None]:
    """Be the only process that holds the file ``lock``, which is made if absent.

    When there is another one, ``wait`` for it to finish, saying so, or raise
    ``UserError``; both name it. The file stays: the lock on it ends with its process,
    even with a killed one.
    """
    lock = Path(lock)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "ab+", buffering=0) as stream:
        if not lock_file(stream):
            stream.seek(0)
            holder = stream.read().decode("utf-8", "replace").strip()
            told = f"{lock.parent}: another process ({holder}) is writing there"
            if not wait:
                raise UserError(f"{told}; wait for it, or choose another folder")
            print(f"{told}; waiting for it", file=sys.stderr, flush=True)
            lock_file(stream, wait=True)
        try:
            stream.truncate(0)
            stream.write(f"{socket.gethostname()}, pid {os.getpid()}\n".encode())
        except OSError as error:
            raise UserError(os_error_line(error, lock)) from error
        yield


def lock_file(stream: IO, wait: bool = False) -> bool:
    """Lock an open file until it is closed; False if another process holds it.

    With ``wait`` that process is waited for.
    """
    try:
        # Unlike flock, no worker process inherits it and outlives this one.
        fcntl.lockf(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        # Some file systems of clusters have no locks: then everybody may write.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True
