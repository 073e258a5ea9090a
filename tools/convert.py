"""Convert a corpus once, in parallel: VoxCeleb2's m4a to wav or flac.

    python tools/convert.py /corpora/VoxCeleb2 /corpora/VoxCeleb2 --to flac

What becomes of each file is told in lobes/preparation/conversion.py; the preparation of
VoxCeleb does the same with --convert, for the m4a files that it needs. The same command
goes on where a killed one stopped. Files that cannot be converted are listed in
OUT/convert.failed.csv, and the exit status is then 1.
"""

import sys
from collections.abc import Sequence

from lobes.errors import resumable
from lobes.preparation.conversion import convert, summary
from lobes.settings.signatures import Command
from lobes.settings.table import option

COMMAND = Command(
    convert,
    positional=("folder", "out"),
    hidden=("only",),
    kinds={"num_workers": option("librispeech", "num_workers")},
)


@resumable
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    options = COMMAND.parse(argv)
    counts = convert(**options)
    print(summary(counts, options["out"]))
    if counts["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
