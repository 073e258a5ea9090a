"""Train the recipes' variants on the demo's corpus, all with the same budget.

    python tools/demo_variants.py [--only NAME ...] [--seeds S ...] [--steps N]

Every run goes through its recipe's own train.py, with the demo's tiny encoder below
the variant (`--base=hparams/demo.yaml`) and what the variant counts in layers,
channels or seconds scaled to it. Runs that are complete are kept, so that the command
can be interrupted and repeated, and two of them can share the list with `--only`. The
table of all complete runs is written to `<output>/variants.md` and `variants.csv`.
"""

import argparse
import importlib
import json
import re
import time
from pathlib import Path

import pandas

from lobes.errors import UserError, user_errors_exit
from lobes.files import write_atomically
from lobes.recipe import ROOT
from tools import export_encoder, pseudo_label
from tools.demo_corpus import make_demo_corpus

MTL = "LibriSpeech_VoxCeleb/MTL"
ASR = "LibriSpeech/ASR"
SPEAKER = "VoxCeleb/SpeakerRec"

#: Stands for the file of automatic transcripts, which a run of asr.yaml makes.
TRANSCRIPTS = "TRANSCRIPTS"

SHORT, LONG = "--crop_seconds=0.8", "--crop_seconds=2.5"
READERS = "--n_speakers=40"
JOINT = [f"--voxceleb_transcripts={TRANSCRIPTS}"]

#: Name of the run: recipe, YAML, and what is scaled. The full model's 3 s and 9 s
#: crops, 12 layers and 768 channels are 0.8 s and 2.5 s, 4 layers and 144 channels
#: here.
RUNS = {
    "speech alone": (ASR, "demo"),
    "speech alone, regularised": (ASR, "asr_regularised", "--mask_feature_length=12"),
    "speech alone, as published": (ASR, "asr_as_published"),
    "speech alone, regularised as published": (ASR, "asr_regularised_as_published"),
    "speakers alone, short crops": (SPEAKER, "demo", SHORT),
    "speakers alone, long crops": (SPEAKER, "speaker_9s", LONG),
    "speakers alone, first+cls, short crops": (SPEAKER, "speaker_first_cls", SHORT),
    "speakers alone, first+cls, long crops": (SPEAKER, "speaker_first_cls_9s", LONG),
    "the demo: mean, long crops, static 1 : 0.5": (MTL, "demo"),
    "short crops, static 0.5 : 0.5": (MTL, "static_0.5_3s", SHORT),
    "short crops, static 0.88 : 0.12": (MTL, "static_0.88_3s", SHORT),
    "short crops, dynamic": (MTL, "mtl_3s", SHORT),
    "long crops, static 0.5 : 0.5": (MTL, "static_0.5_9s", LONG),
    "long crops, static 0.88 : 0.12": (MTL, "static_0.88_9s", LONG),
    "long crops, dynamic": (MTL, "mtl_3s", LONG),
    "static 0.9 : 0.1": (MTL, "static_0.9"),
    "dynamic, max": (MTL, "dynamic_max"),
    "dynamic weight average": (MTL, "dwa"),
    "first+cls": (MTL, "pool_first_cls"),
    "first+cls, learnt": (MTL, "pool_first_cls", "--class_token=learnt"),
    "CTC pooling, blanks": (MTL, "pool_ctc_blank"),
    "CTC pooling, letters": (MTL, "pool_ctc_nonblank"),
    "split 36 : 108": (MTL, "split_192", "--speaker_dims=36"),
    "split 72 : 72": (MTL, "split_384", "--speaker_dims=72"),
    "split 108 : 36": (MTL, "split_576", "--speaker_dims=108"),
    "1 shared layer of 4": (MTL, "branch_3", "--shared_layers=1"),
    "2 shared layers of 4": (MTL, "branch_6", "--shared_layers=2"),
    "3 shared layers of 4": (MTL, "branch_9", "--shared_layers=3"),
    "split 72 : 72, CTC pooling": (MTL, "pool_ctc_blank", "--speaker_dims=72"),
    "2 shared layers, CTC pooling": (MTL, "pool_ctc_blank", "--shared_layers=2"),
    "2 shared layers, first+cls": (MTL, "pool_first_cls", "--shared_layers=2"),
    "first frame": (MTL, "pool_first"),
    "maximum": (MTL, "pool_max"),
    "mean and standard deviation": (MTL, "pool_mean_std"),
    "attentive statistics": (MTL, "pool_attentive"),
    "regularised": (MTL, "regularised", "--mask_feature_length=12"),
    "regularised as in the notes": (MTL, "regularised_notes"),
    "as published": (MTL, "as_published"),
    "letter prior, log": (MTL, "demo", "--letter_prior=log"),
    "letter prior, relative": (MTL, "demo", "--letter_prior=relative"),
    "disjoint, short crops": (MTL, "disjoint_2s", SHORT),
    "disjoint, long crops": (MTL, "disjoint_10s", LONG),
    "disjoint, readers only, short crops": (MTL, "disjoint_ls_2s", SHORT, READERS),
    "disjoint, readers only, long crops": (MTL, "disjoint_ls_10s", LONG, READERS),
    "joint, readers only": (MTL, "joint_ls", READERS),
    "joint, both corpora": (MTL, "joint", "--n_speakers=140", *JOINT),
    "speakers alone, readers only": (MTL, "speaker_ls", READERS),
    "speech alone, automatic transcripts": (MTL, "asr_vox", *JOINT),
}


@user_errors_exit
def main(argv=None):
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description="Train the recipes' variants on the demo's corpus, all with the "
        "same budget, and write a table of what they reach.",
        epilog="Further options are those of train.py, such as --threads=1.",
        allow_abbrev=False,
    )
    parser.add_argument("--only", nargs="+", help="names as in the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42133724])
    parser.add_argument("--steps", type=int, default=300, help="default: 300")
    parser.add_argument("--output", default=str(ROOT / "results" / "demo_variants"))
    options, overrides = parser.parse_known_args(argv)
    unknown = set(options.only or ()) - set(RUNS)
    if unknown:
        raise UserError(f"--only: no run {', '.join(unknown)}; there are {list(RUNS)}")
    make_demo_corpus(ROOT / "data" / "demo", progress=True)
    output = Path(options.output)
    for seed in options.seeds:
        for name in options.only or RUNS:
            folder = output / str(seed) / _slug(name)
            if (folder / "results.json").is_file():
                continue
            print(f"\n{name}, seed {seed}", flush=True)
            arguments = _arguments(name, options.steps, output / str(seed))
            recipe = importlib.import_module(
                f"recipes.{RUNS[name][0].replace('/', '.')}.train"
            )
            started = time.perf_counter()
            recipe.main(
                [
                    *arguments,
                    f"--output_folder={folder}",
                    f"--seed={seed}",
                    *overrides,
                ]
            )
            _add_seconds(folder, time.perf_counter() - started)
            write_table(output)
    print(write_table(output))


def _arguments(name, steps, folder):
    """The command line of one run."""
    recipe, yaml, *changes = RUNS[name]
    hparams = ROOT / "recipes" / recipe / "hparams"
    base = [] if yaml == "demo" else [f"--base={hparams / 'demo.yaml'}"]
    changes = [
        change.replace(TRANSCRIPTS, str(_transcripts(folder)))
        if TRANSCRIPTS in change
        else change
        for change in changes
    ]
    return [
        str(hparams / f"{yaml}.yaml"),
        *base,
        f"--steps={steps}",
        f"--freeze_steps={steps // 6}",
        f"--valid_interval={steps // 2}",
        "--lr=5e-4",
        # A fifth of the demo's batches: there are many runs.
        "--max_batch_samples=120000",
        *changes,
    ]


def _transcripts(folder):
    """Automatic transcripts of the demo's VoxCeleb2, by the run of asr.yaml."""
    run = folder / _slug("speech alone")
    path, model = folder / "transcripts.jsonl", folder / "ctc"
    if not path.is_file():
        if not (run / "results.json").is_file():
            raise UserError(
                f"{run} has no results.json; run 'speech alone' first: its model "
                "writes the automatic transcripts"
            )
        if not (model / "model.safetensors").is_file():
            export_encoder.main([str(run), str(model), "--ctc"])
    prepared = ROOT / "data" / "demo_prepared" / "VoxCeleb"
    csvs = [str(prepared / name) for name in ("train.csv", "valid.csv")]
    pseudo_label.main([*csvs, f"--model={model}", f"--output={path}"])
    return path


def _slug(name):
    """A run's name as that of a folder."""
    return re.sub(r"[^a-z0-9.+]+", "_", name.lower())


def _add_seconds(folder, seconds):
    """Note in the run's results how long it took, preparation included."""
    path = folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    results["seconds"] = round(seconds, 1)
    write_atomically(path, json.dumps(results, indent=2) + "\n")


def write_table(output):
    """Collect the complete runs; returns the table as Markdown, means over seeds."""
    rows = []
    for name in RUNS:
        for path in sorted(output.glob(f"*/{_slug(name)}/results.json")):
            results = json.loads(path.read_text(encoding="utf-8"))
            lists = results["sets"].get("speaker", {})
            hard = lists.get("list_test_hard2", {}).get("eer")
            rows.append(
                {
                    "run": name,
                    "seed": results["seed"],
                    "WER": results.get("wer"),
                    "EER": results.get("eer"),
                    "EER, hard": hard,
                    "parameters": results["parameters"],
                    "seconds": results.get("seconds"),
                }
            )
    if not rows:
        raise UserError(f"{output}: no run is complete")
    table = pandas.DataFrame(rows)
    write_atomically(output / "variants.csv", table.to_csv(index=False))
    grouped = table.groupby("run", sort=False)
    means = grouped.mean().drop(columns="seed")
    means.insert(0, "seeds", grouped.size())
    lines = [f"| run | {' | '.join(means.columns)} |", "|---" * 7 + "|"]
    digits = {"WER": 1, "EER": 2, "EER, hard": 2}
    for name, row in means.iterrows():
        cells = [
            "" if pandas.isna(value) else f"{value:,.{digits.get(column, 0)}f}"
            for column, value in row.items()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    write_atomically(output / "variants.md", text)
    return text


if __name__ == "__main__":
    main()
