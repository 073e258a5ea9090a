"""One process at a time."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from lobes.errors import UserError


@contextlib.contextmanager
def one_writer(lock):
    """Be the only process that holds the file ``lock``, which is made if absent.

    Raises ``UserError`` naming the holder when there is one. The file stays: the
    lock on it ends with its process, even with a killed one.
    """
    lock = Path(lock)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a+", encoding="utf-8") as stream:
        if not take(stream):
            stream.seek(0)
            raise UserError(
                f"{lock.parent}: another process ({stream.read().strip()}) is writing "
                f"there; wait for it, or choose another folder"
            )
        stream.truncate(0)
        stream.write(f"{socket.gethostname()}, pid {os.getpid()}\n")
        stream.flush()
        yield


def take(stream):
    """Lock an open file until it is closed; False if another process holds it."""
    try:
        # Unlike flock, no worker process inherits it and outlives this one.
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
