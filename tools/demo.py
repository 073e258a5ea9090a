"""The demo: make a corpus, train both tasks on it, evaluate, show the result.

    python tools/demo.py [--seed N] [train.py's --key=value overrides]

`make demo` runs it. Everything happens below `data/demo` and `results/demo`.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from lobes.baseline import mfcc_baseline
from lobes.errors import UserError, user_errors_exit
from lobes.files import read_json, write_atomically
from lobes.locks import one_writer
from lobes.recipe import ROOT
from lobes.report import publish
from recipes.LibriSpeech_VoxCeleb.MTL import train
from tools.demo_corpus import SMALL, make_demo_corpus

#: Marks a folder that a demo may remove: every training has the other files.
MARKER = ".demo"

RECIPE = ROOT / "recipes" / "LibriSpeech_VoxCeleb" / "MTL"


@user_errors_exit
def main(argv=None):
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description="Train and evaluate both tasks on a small spoken corpus.",
        epilog="Further options are those of train.py, such as --steps=600.",
        allow_abbrev=False,
    )
    parser.add_argument("--yaml", default=str(RECIPE / "hparams" / "demo.yaml"))
    parser.add_argument("--corpus", default=str(ROOT / "data" / "demo"))
    parser.add_argument("--output_folder", default=str(ROOT / "results" / "demo"))
    parser.add_argument(
        "--small", action="store_true", help="a corpus of 18 speakers, for a quick look"
    )
    options, overrides = parser.parse_known_args(argv)
    started = time.perf_counter()
    corpus, output = Path(options.corpus), Path(options.output_folder)
    prepared = output / "prepared"

    print(f"1/3  Corpus: {corpus}", flush=True)
    made = make_demo_corpus(
        corpus, sizes=SMALL if options.small else None, progress=True
    )
    _start_afresh(output)

    print(f"2/3  Training and evaluation: {output}", flush=True)
    train.main(
        [
            options.yaml,
            f"--librispeech_folder={corpus / 'LibriSpeech'}",
            f"--voxceleb2_folder={corpus / 'VoxCeleb2'}",
            f"--voxceleb1_folder={corpus / 'VoxCeleb1'}",
            f"--output_folder={output}",
            f"--prepared_folder={prepared}",
            *overrides,
        ]
    )
    path = output / "results.json"
    results = read_json(path, "run the demo again")

    print("3/3  Baseline: mean of MFCCs, cosine", flush=True)
    trials = results["headline_sets"]["eer"]
    voxceleb = prepared / "VoxCeleb"
    baseline = mfcc_baseline(voxceleb / "test.csv", voxceleb / f"{trials}.txt")
    results["baseline_eer"] = baseline["eer_znorm"]
    results["baseline_eer_raw"] = baseline["eer_raw"]
    # A corpus that was there already counts with what it took to make.
    seconds = time.perf_counter() - started + (not made["made"]) * made["seconds"]
    results["seconds"] = round(seconds, 1)
    write_atomically(path, json.dumps(results, indent=2) + "\n")
    # The evaluation has just shown transcripts.
    publish(output, examples=0)
    print("None of the speakers and sentences of these tests was heard in training.")


def _start_afresh(output):
    """Remove the last demo, so that each run trains and times everything."""
    if output.exists() and any(output.iterdir()):
        if not (output / MARKER).is_file():
            raise UserError(f"{output} is not a demo's folder; give --output_folder")
        print(f"     Removing the last run in {output}", flush=True)
        with one_writer(output / "lock"):  # unless it is still running
            shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()


if __name__ == "__main__":
    main()
