"""One process at a time, and none for ever."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from lobes.errors import UserError
from lobes.system.locks import fcntl, lock_file, one_writer

HOLD = """
import sys
from lobes.system.locks import one_writer
with one_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_holder_is_named_and_a_killed_one_holds_nothing(tmp_path):
    lock = tmp_path / "new" / ".lock"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, lock]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        told = rf"^{lock.parent}: another process \(.*pid {holder.pid}\)"
        with pytest.raises(UserError, match=told), one_writer(lock):
            pass
        holder.send_signal(signal.SIGKILL)
    with one_writer(lock):
        assert lock.read_text().endswith(f"pid {os.getpid()}\n")
    with one_writer(lock):
        pass


@pytest.mark.parametrize("wait", [False, True])
def test_where_there_are_no_locks_everybody_may_write(tmp_path, monkeypatch, wait):
    numbers = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO]

    def refuse(*_):
        raise OSError(numbers[0], "no")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with open(tmp_path / "lock", "a", encoding="utf-8") as stream:
        while numbers[1:]:
            assert lock_file(stream, wait)
            del numbers[0]
        with pytest.raises(OSError, match="no"):
            lock_file(stream, wait)
