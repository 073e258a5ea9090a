"""What is printed for people to read."""

import sys

from rich.console import Console
from tqdm import tqdm


class _Console(Console):
    def on_broken_pipe(self):
        # rich would end the process, whatever it is in the middle of.
        raise


def console(**settings):
    """A rich console that takes every text as it is.

    A name may hold what rich would read as markup, ``[/bold]``, or as an emoji.
    ``settings`` are those of ``rich.console.Console``.
    """
    return _Console(**{"highlight": False, "markup": False, "emoji": False, **settings})


def progress_bar(title, total, unit="utt", **settings):
    """A bar with rate and remaining time; in a log a line every half minute.

    ``settings`` are those of ``tqdm``.
    """
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        dynamic_ncols=True,
        **settings,
    )


def say(message):
    """Tell the user something; standard output stays free for results."""
    print(message, file=sys.stderr, flush=True)
