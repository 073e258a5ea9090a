"""What is printed for people to read."""

from rich.console import Console


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
