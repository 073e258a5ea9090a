"""What is printed for people to read."""

import sys
import time

from rich.console import Console
from tqdm import tqdm

#: Seconds between two lines of a bar in a log.
LOG_INTERVAL = 10

#: A bar's line in a log, which has no room to redraw it.
_LOG_FORMAT = (
    "{desc}: {percentage:.0f}%, {n_fmt} of {total_fmt} "
    "[{elapsed}<{remaining}, {rate_fmt}{postfix}]"
)


class _Console(Console):
    def on_broken_pipe(self):
        # rich would end the process, whatever it is in the middle of.
        raise


def console(**settings) -> Console:
    """A rich console that takes every text as it is.

    A name may hold what rich would read as markup, ``[/bold]``, or as an emoji.
    ``settings`` are those of ``rich.console.Console``.
    """
    return _Console(**{"highlight": False, "markup": False, "emoji": False, **settings})


def progress_bar(title: str, total: int | None, unit: str = "utt", **settings) -> tqdm:
    """A bar with rate and remaining time, on standard error.

    Where that is no terminal the bar is a line of a log every ``LOG_INTERVAL`` seconds
    at most, and none for what takes less time. ``settings`` are those of ``tqdm``.
    """
    settings = {"desc": title, "total": total, "unit": unit, **settings}
    if sys.stderr.isatty():
        return tqdm(mininterval=0.5, dynamic_ncols=True, **settings)
    return _LoggedBar(
        mininterval=1, bar_format=_LOG_FORMAT if total else None, **settings
    )


class _LoggedBar(tqdm):
    """A bar for a log: whole lines, and few of them."""

    _began = _told = _steps_told = None

    def display(self, msg=None, pos=None):
        """Write a line, unless the last one is too new."""
        now = time.monotonic()
        if self._began is None:
            self._began = self._told = now
        elif msg is None and now - self._told >= LOG_INTERVAL:
            self._told = now
            self._write_line()

    def close(self):
        """Write a last line for a bar that had others and is to stay."""
        others = not self.disable and self._told != self._began
        if others and self.leave and self._steps_told != self.n:
            self._write_line()
        self.leave = False
        super().close()

    def _write_line(self):
        self._steps_told = self.n
        self.fp.write(f"{self}\n")
        self.fp.flush()


def say(message: str) -> None:
    """Tell the user something; standard output stays free for results."""
    print(message, file=sys.stderr, flush=True)
