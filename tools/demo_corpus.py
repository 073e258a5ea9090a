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

#: What a size counts.
_COUNTED = {
    2: ("SPEAKERS", "UTTERANCES"),
    3: ("SPEAKERS", "VIDEOS", "UTTERANCES"),
}

_HELP = {
    "train": "LibriSpeech train-clean-100, utterances per speaker",
    "dev": "LibriSpeech dev-other",
    "test": "LibriSpeech test-other",
    "vox2": "VoxCeleb2 dev, utterances per video",
    "vox1": "VoxCeleb1",
    "trials": "length of each VoxCeleb1 trial list",
}


@user_errors_exit
def main(arguments=None):
    """Run the command with ``arguments`` (default: the process's own)."""
    options = vars(_parser().parse_args(arguments))
    out, small = options["out"], options.pop("small")
    sizes = SMALL if small else Sizes()
    for name in _HELP:
        value = options.pop(name)
        if value is not None:
            value = tuple(value) if isinstance(value, list) else value
            sizes = dataclasses.replace(sizes, **{name: value})
    marker = make_demo_corpus(**options, sizes=sizes, progress=True)
    print(f"{'':<30}{'speakers':>9}{'utterances':>12}{'hours':>8}")
    for name, row in {**marker["sets"], "total": marker}.items():
        print(
            f"{name:<30}{row['speakers']:>9}{row['utterances']:>12}{row['hours']:>8.2f}"
        )
    size = marker["audio_bytes"] / 1e6
    if marker["made"]:
        print(f"{out}: made in {marker['seconds']} s, {size:.0f} MB")
    else:
        print(f"{out}: complete already, {size:.0f} MB; nothing to do")


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
    flag = {"action": "store_true"}
    per_core = "processes at a time (default: one per usable core)"
    for name, settings, text in (
        ("out", {}, "folder to make; a complete one is left alone"),
        ("--seed", {"type": option("seed"), "default": SEED}, f"default {SEED}"),
        ("--pretraining", flag, "sentences that no corpus without this option has"),
        ("--jobs", {"type": COUNT}, per_core),
        ("--small", flag, "a tiny corpus for tests, in seconds"),
    ):
        parser.add_argument(name, **settings, help=text)
    for field in dataclasses.fields(Sizes):
        values = field.default if isinstance(field.default, tuple) else (field.default,)
        counted = _COUNTED.get(len(values))
        default = " ".join(map(str, values))
        parser.add_argument(
            f"--{field.name}",
            type=COUNT,
            nargs=counted and len(counted),
            metavar=counted,
            help=f"{_HELP[field.name]} (default {default})",
        )
    return parser


if __name__ == "__main__":
    main()
