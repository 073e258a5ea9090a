"""Convert a corpus once, in parallel: VoxCeleb2's m4a to wav or flac.

    python tools/convert.py /corpora/VoxCeleb2 /corpora/VoxCeleb2 --to flac

What becomes of each file is told in lobes/preparation/conversion.py; the preparation of
VoxCeleb does the same with --convert, for the m4a files that it needs. The same command
goes on where a killed one stopped. Files that cannot be converted are listed in
OUT/convert.failed.csv, and the exit status is then 1.
"""

import sys

from lobes.errors import ArgumentParser, user_errors_exit
from lobes.preparation.conversion import convert, summary
from lobes.settings.table import PATH, option
from lobes.system.terminal import say


@user_errors_exit
def main(argv=None):
    """The command; see the module's docstring."""
    parser = ArgumentParser(
        description="Convert the audio files of a corpus, in parallel; go on where an "
        "earlier run of the same command stopped.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=PATH, help="the corpus")
    parser.add_argument("out", metavar="OUT", type=PATH, help="may be FOLDER itself")
    parser.add_argument("--to", required=True, choices=("flac", "wav"))
    parser.add_argument(
        "--num_workers",
        type=option("librispeech", "num_workers"),
        help="processes (default: all cores)",
    )
    parser.add_argument(
        "--delete",
        action="store_true",
        help="delete each original once its output was read back from the disk",
    )
    options = parser.parse_args(argv)
    try:
        counts = convert(**vars(options))
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        sys.exit(130)
    print(summary(counts, options.out))
    if counts["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
