"""Signals of a cluster that takes its machine back, and of the user's Ctrl-C.

While a model trains, a signal asks for a checkpoint at the end of the step; at any
other time it ends the process, as preparation and evaluation continue by themselves.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

#: What a process that a signal has ended exits with: "try again later"
#: (``EX_TEMPFAIL``). The same command line continues the run.
EXIT_CODE = 75

#: Stands in torch's ``RuntimeError`` when a loading process has died, which its
#: signal handler raises wherever the training process happens to be.
LOADER_DIED = "DataLoader worker"

#: SIGHUP comes when the terminal, or the connection to it, is closed.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Preempted(SystemExit):
    """Ends the process with ``EXIT_CODE``."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class _State:
    """What the handler knows; signals belong to the whole process."""

    process = None
    training = False
    request = 0


def handle_signals() -> None:
    """End this process in good order at any of ``SIGNALS``, from now on."""
    _State.process = os.getpid()
    for number in SIGNALS:
        # What nohup ignores stays ignored.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


@contextlib.contextmanager
def at_steps() -> Iterator[None]:
    """Within this context a signal is only noted, for ``requested`` to tell."""
    _State.training, _State.request = True, 0
    try:
        yield
    finally:
        _State.training = False


def requested() -> int:
    """The number of the first signal since training began; 0 for none."""
    return _State.request


def protect_worker(_: int) -> None:
    """Let a loading process (``worker_init_fn``) survive signals to its whole group.

    It must go on reading until its trainer has finished the step, however often it is
    told to end; it ends when its trainer asks it to, or is gone
    (``lobes.data.utterances.Utterances.batches``).
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _handle(number, frame):
    if os.getpid() != _State.process:
        # A child of this process: it means nothing to it but what it always does.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    elif not _State.training:
        # After SIGHUP the terminal may be gone.
        with contextlib.suppress(OSError):
            os.write(2, b"stopped by a signal; the same command continues\n")
        raise Preempted
    elif _State.request and number == signal.SIGINT:
        # Whoever presses Ctrl-C again does not want to wait for the step.
        raise KeyboardInterrupt
    else:
        _State.request = _State.request or number
