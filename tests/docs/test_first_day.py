"""docs/first_day.md: the small corpus's settings are the YAML's, its command trains."""

import json
import re
import shlex
import shutil

import pytest

from lobes.runs.variants import keys_of, load_variant
from lobes.system.checkout import ROOT
from recipes.LibriSpeech_VoxCeleb.MTL import train as mtl
from tests.helpers import tiny

PAGE = (ROOT / "docs" / "first_day.md").read_text(encoding="utf-8")
YAML = ROOT / "recipes/LibriSpeech_VoxCeleb/MTL/hparams/small_corpus.yaml"

#: (cell of names, cell of values) of each row of "Why these settings".
ROWS = re.findall(
    r"^\| (`[^|]+`) \| ([^|]+) \|",
    PAGE.partition("### Why these settings")[2].partition("### ")[0],
    re.MULTILINE,
)


def test_the_variant_is_short_and_opens_with_its_command():
    lines = YAML.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
    assert lines[0].startswith("# python train.py hparams/small_corpus.yaml ")


def test_every_setting_of_the_variant_is_explained():
    named = {name for cell, _ in ROWS for name in re.findall(r"`([\w.*]+)`", cell)}
    tree, _ = load_variant(YAML)
    keys = {*tree, *keys_of(tree)}
    own = re.findall(r"^([\w.]+):", YAML.read_text(encoding="utf-8"), re.MULTILINE)
    explained = {re.sub(r"\*$", "", name) for name in named}
    for key in own:
        # Where data are, and how many speakers, is told above the table.
        told = re.search(rf"(--|`){re.escape(key)}", PAGE) or key in (
            "base",
            "prepared_folder",
        )
        assert told or any(key.startswith(name) for name in explained), key
    assert explained <= keys | set(own), explained - keys


@pytest.mark.parametrize(
    "key",
    [
        "steps",
        "voxceleb.valid_fraction",
        "voxceleb.valid_positive_trials",
        "crop_seconds",
        "encoder.shared_layers",
        "threads",
    ],
)
def test_a_number_of_the_page_is_the_yaml_s(key):
    (value,) = [value for names, value in ROWS if f"`{key}`" in names]
    number = re.match(r"[\d.,]+", value)[0].rstrip(",").replace(",", "")
    setting = load_variant(YAML)[0]
    for name in key.split("."):
        setting = setting[name]
    assert float(number) == setting


def test_it_prepares_into_a_folder_of_its_own():
    folders = [load_variant(YAML)[0]["prepared_folder"]]
    folders += [
        load_variant(YAML.with_name(f"{n}.yaml"))[0]["prepared_folder"]
        for n in ("demo", "mtl")
    ]
    assert len({str(getattr(folder, "value", folder)) for folder in folders}) == 3


@pytest.mark.fault(
    "B7",
    "a small real corpus without a configuration of its own",
    "hparams/small_corpus.yaml and docs/first_day.md, whose command is run",
)
def test_the_command_for_own_csvs_trains(tiny_corpus, tmp_path):
    mine = tmp_path / "my"
    shutil.copytree(tiny_corpus, mine, ignore=shutil.ignore_patterns("*.wav"))
    for old, new in (
        ("LibriSpeech/dev-other.csv", "LibriSpeech/valid.csv"),
        ("LibriSpeech/test-other.csv", "LibriSpeech/test.csv"),
        ("VoxCeleb/veri_test2.txt", "VoxCeleb/test_trials.txt"),
    ):
        (mine / old).rename(mine / new)
    section = PAGE.partition("### Own CSVs")[2]
    command = re.search(r"```\n(python .*?)```", section, re.DOTALL)[1]
    program, yaml, *words = shlex.split(command.replace("\\\n", " "))[1:]
    assert (ROOT / program).is_file() and ROOT / yaml == YAML
    given = {
        "prepared_folder": mine,
        "output_folder": tmp_path / "run",
        "ledger": tmp_path / "ledger.jsonl",
        "encoder.source": "null",
        "encoder.config": str(tiny.ENCODER).replace("'", ""),
        "speaker.n_speakers": tiny.SPEAKERS + 1,
        "crop_seconds": 0.4,
        "steps": 2,
        "valid_interval": 2,
        "threads": 1,
        # The tiny corpus has the same speakers everywhere.
        "allow_leaks": True,
    }
    named = {word.partition("=")[0] for word in words}
    assert {"--prepared_folder", "--speaker.n_speakers", "--skip_prep"} <= named
    mtl.main(
        [
            str(YAML),
            *words,
            *(f"--{key}={value}" for key, value in given.items()),
            "--device=cpu",
            "--noprogressbar",
        ]
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["sets"]["speech"]) == {"test"}
    assert set(results["sets"]["speaker"]) == {"test_trials"}
