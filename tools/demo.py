"""The demo: make a corpus, train both tasks on it, evaluate, show the result.

    python tools/demo.py [--seed N] [train.py's --key=value overrides]

`make demo` runs it. Everything happens below `data/demo` and `results/demo`.
"""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lobes.errors import ArgumentParser, UserError, user_errors_exit
from lobes.evaluation.report import publish
from lobes.preparation.demo_corpus import make_demo_corpus
from lobes.preparation.demo_plan import SMALL
from lobes.runs.command_line import parse_arguments
from lobes.settings.table import PATH
from lobes.system.checkout import ROOT
from lobes.system.files import read_json, write_atomically
from lobes.system.locks import one_writer
from recipes.LibriSpeech_VoxCeleb.MTL import train

#: Marks a folder that a demo may remove: every training has the other files.
MARKER = ".demo"

#: What the corpus of ``--small`` asks for in place of the YAML's.
_FOR_SMALL = (
    f"--speaker.n_speakers={SMALL.vox2[0]}",
    "--voxceleb.valid_fraction=0.3",
    "--voxceleb.valid_positive_trials=10",
    "--voxceleb.valid_negative_trials=10",
)

RECIPE = ROOT / "recipes" / "LibriSpeech_VoxCeleb" / "MTL"


@user_errors_exit
def main(argv: Sequence[str] | None = None):
    """The command; see the module's docstring."""
    parser = ArgumentParser(
        description="Train and evaluate both tasks on a small spoken corpus.",
        epilog="Further options are those of train.py, such as --steps=600.",
    )
    for name, default in (
        ("yaml", RECIPE / "hparams" / "demo.yaml"),
        ("corpus", ROOT / "data" / "demo"),
        ("output_folder", ROOT / "results" / "demo"),
    ):
        parser.add_argument(f"--{name}", type=PATH, default=str(default))
    parser.add_argument(
        "--small", action="store_true", help="a corpus of 18 speakers, for a quick look"
    )
    options, overrides = parser.parse_known_args(argv)
    started = time.perf_counter()
    corpus, output = Path(options.corpus), Path(options.output_folder).resolve()
    prepared = output / "prepared"
    if options.small:
        overrides = [*_FOR_SMALL, *overrides]
    training = [
        options.yaml,
        f"--librispeech_folder={corpus / 'LibriSpeech'}",
        f"--voxceleb2_folder={corpus / 'VoxCeleb2'}",
        f"--voxceleb1_folder={corpus / 'VoxCeleb1'}",
        f"--output_folder={output}",
        f"--prepared_folder={prepared}",
        # Where the baseline looks, and whoever reads the demo's folder.
        f"--librispeech_csv_folder={prepared / 'LibriSpeech'}",
        f"--voxceleb_csv_folder={prepared / 'VoxCeleb'}",
    ]
    _check(training, overrides)
    training += overrides

    print(f"1/2  Corpus: {corpus}", flush=True)
    made = make_demo_corpus(
        corpus, sizes=SMALL if options.small else None, progress=True
    )
    with _afresh(output):
        print(f"2/2  Training and evaluation: {output}", flush=True)
        train.main(training)
    path = output / "results.json"
    results = read_json(path, "run the demo again")

    # A corpus that was there already counts with what it took to make.
    seconds = time.perf_counter() - started + (not made["made"]) * made["seconds"]
    results["seconds"] = round(seconds, 1)
    write_atomically(path, json.dumps(results, indent=2) + "\n")
    publish(output)
    print(f"{seconds:.0f} seconds in all")
    print("None of the speakers and sentences of these tests was heard in training.")


def _check(training, overrides):
    """Raise ``UserError`` for a command line that cannot train, or not as a demo.

    Nothing is made or removed before: a mistyped option costs no finished demo.
    """
    fixed = {word.partition("=")[0] for word in training} | {"--debug"}
    for word in overrides:
        if word.partition("=")[0] in fixed:
            raise UserError(
                f"{word}: the demo has folders and results of its own (--corpus, "
                "--output_folder); give it to train.py"
            )
    with tempfile.TemporaryDirectory() as folder:
        # Loading makes folders below the output folder.
        changes = {"output_folder": folder}
        hparams = parse_arguments([*training, *overrides], changes)[0]
    missing = {"wer", "eer"} - set(hparams["headline_sets"])
    if missing:
        raise UserError(
            f"headline_sets: the demo shows WER and EER; name a set for "
            f"{' and '.join(sorted(missing))}"
        )


@contextlib.contextmanager
def _afresh(output):
    """An empty folder for a new demo; the last one is removed when this one is made.

    It waits under the name ``<output>.last``, and comes back when the new one fails.
    """
    last = output.with_name(f"{output.name}.last")
    for folder in (output, last):
        if _holds_something(folder) and not (folder / MARKER).is_file():
            raise UserError(f"{folder} is not a demo's folder; give --output_folder")
    if _holds_something(output):
        with one_writer(output / "lock"):  # unless it is still running
            # One that was killed is worth less than a finished one before it.
            if (output / "results.json").is_file() or not last.exists():
                shutil.rmtree(last, ignore_errors=True)
                output.rename(last)
            else:
                shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()
    try:
        yield
    except BaseException:
        if last.exists():
            shutil.rmtree(output)
            last.rename(output)
            print(f"     The last demo is still in {output}", flush=True)
        raise
    if last.exists():
        print(f"     Removing the last demo of {output}", flush=True)
        shutil.rmtree(last)


def _holds_something(folder):
    """Whether a file is there, or a folder that is not empty."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


if __name__ == "__main__":
    main()
