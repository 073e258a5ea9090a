"""Speak a small LibriSpeech, VoxCeleb1 and VoxCeleb2 with espeak-ng.

    python tools/demo_corpus.py data/demo            # about 3 hours of speech
    python tools/demo_corpus.py data/tiny --small    # for tests

Every speaker is a synthetic voice of its own that says sentences of a grammar
of about 40 words. Folders, names, transcripts, meta files and trial lists have
the layouts of the real corpora, so what prepares those prepares this one.
"""

import dataclasses

from lobes.errors import ArgumentParser, user_errors_exit
from lobes.preparation.demo_corpus import make_demo_corpus
from lobes.preparation.demo_plan import SEED, SMALL, Sizes
from lobes.settings.table import COUNT, option


@user_errors_exit
def main(arguments=None):
    """Run the command with ``arguments`` (default: the process's own)."""
    options = _parser().parse_args(arguments)
    base = SMALL if options.small else Sizes()
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Sizes)
        if getattr(options, field.name) is not None
    }
    sizes = dataclasses.replace(
        base, **{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    )
    marker = make_demo_corpus(
        options.out,
        options.seed,
        options.jobs,
        sizes,
        progress=True,
        pretraining=options.pretraining,
    )
    rows = {**marker["sets"], "total": marker}
    print(f"{'':<30}{'speakers':>9}{'utterances':>12}{'hours':>8}")
    for name, row in rows.items():
        print(
            f"{name:<30}{row['speakers']:>9}{row['utterances']:>12}{row['hours']:>8.2f}"
        )
    size = marker["audio_bytes"] / 1e6
    if marker["made"]:
        print(f"{options.out}: made in {marker['seconds']} s, {size:.0f} MB")
    else:
        print(f"{options.out}: complete already, {size:.0f} MB; nothing to do")


def _parser():
    """The command line."""
    parser = ArgumentParser(
        description=(
            "Speak a small LibriSpeech, VoxCeleb1 and VoxCeleb2 with espeak-ng, in "
            "the layouts of the real corpora. The same seed and sizes give the same "
            "audio, whatever --jobs is."
        ),
        epilog="Needs `pip install -e .[demo]`.",
    )
    parser.add_argument("out", help="folder to make; a complete one is left alone")
    parser.add_argument(
        "--seed", type=option("seed"), default=SEED, help=f"default {SEED}"
    )
    parser.add_argument(
        "--pretraining",
        action="store_true",
        help="sentences that no corpus without this option has",
    )
    parser.add_argument(
        "--jobs", type=COUNT, help="processes at a time (default: one per usable core)"
    )
    parser.add_argument(
        "--small", action="store_true", help="a tiny corpus for tests, in seconds"
    )
    two, three = ("SPEAKERS", "UTTERANCES"), ("SPEAKERS", "VIDEOS", "UTTERANCES")
    for name, metavar, what in (
        ("train", two, "LibriSpeech train-clean-100, utterances per speaker"),
        ("dev", two, "LibriSpeech dev-other"),
        ("test", two, "LibriSpeech test-other"),
        ("vox2", three, "VoxCeleb2 dev, utterances per video"),
        ("vox1", three, "VoxCeleb1"),
    ):
        default = " ".join(map(str, getattr(Sizes(), name)))
        parser.add_argument(
            f"--{name}",
            type=COUNT,
            nargs=len(metavar),
            metavar=metavar,
            help=f"{what} (default {default})",
        )
    parser.add_argument(
        "--trials",
        type=COUNT,
        help=f"length of each VoxCeleb1 trial list (default {Sizes().trials})",
    )
    return parser


if __name__ == "__main__":
    main()
