"""The rows of tests/recipes/*.csv, in SpeechBrain's columns: complete, and run."""

import csv
import importlib
import json
import re
import shlex
import tomllib

import pytest

from lobes.system.checkout import ROOT

#: speechbrain/speechbrain, tests/recipes/README.md and LibriSpeech.csv.
COLUMNS = [
    "Task", "Dataset", "Script_file", "Hparam_file", "Data_prep_file", "Readme_file",
    "Result_url", "HF_repo", "test_debug_flags", "test_debug_checks", "performance",
]  # fmt: skip

TABLES = {
    path.stem: list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    for path in sorted((ROOT / "tests" / "recipes").glob("*.csv"))
}
ROWS = [row for rows in TABLES.values() for row in rows]


def once(row):
    """The row as a test of its own; most variants are slow ones."""
    quick = {"mtl", "demo", "asr", "speaker", "pool_ctc_blank", "joint_ls"}
    path = ROOT / row["Hparam_file"]
    marks = () if path.stem in quick else pytest.mark.slow
    return pytest.param(row, marks=marks, id=row["Hparam_file"])


def test_one_table_per_corpus_in_speechbrain_s_columns():
    assert set(TABLES) == {"LibriSpeech", "VoxCeleb", "LibriSpeech_VoxCeleb"}
    for name, rows in TABLES.items():
        assert rows and all(list(row) == COLUMNS for row in rows), name
        assert {row["Dataset"] for row in rows} == {name}


def test_every_yaml_stands_in_exactly_one_row():
    found = sorted(ROOT.glob("recipes/**/*.yaml"))
    assert sorted(ROOT / row["Hparam_file"] for row in ROWS) == found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["Hparam_file"])
def test_the_files_of_a_row_exist_and_the_readme_names_the_yaml(row):
    for column in ("Script_file", "Hparam_file", "Data_prep_file", "Readme_file"):
        paths = row[column].split()
        assert paths and all((ROOT / path).is_file() for path in paths)
        assert row[column].startswith("recipes/")
    yaml = ROOT / row["Hparam_file"]
    assert yaml.name in (ROOT / row["Readme_file"]).read_text(encoding="utf-8")
    assert row["Script_file"].startswith(f"recipes/{row['Dataset']}/")


@pytest.mark.parametrize("row", map(once, ROWS))
def test_a_row_runs_resumes_and_leaves_its_files(row, tiny_corpus, tmp_path, curves):
    flags = row["test_debug_flags"].replace("tests/tmp/corpus", str(tiny_corpus))
    output = tmp_path / "run"
    options = [f"--output_folder={output}", "--device=cpu", "--noprogressbar"]
    # The tiny corpus is validated and tested on what is trained on.
    options.append("--allow_leaks=True")
    module = row["Script_file"].removesuffix(".py").replace("/", ".")
    main = importlib.import_module(module).main
    arguments = [str(ROOT / row["Hparam_file"]), *shlex.split(flags), *options]
    # Stopped in the middle of an epoch, and run again.
    main([*arguments, "--optimizer_step_limit=3"])
    with curves():
        main(arguments)
    log = (output / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [entry["step"] for entry in map(json.loads, log) if "lr" in entry]
    assert steps == [1, 2, 3, 4]
    wanted = re.fullmatch(r"file_exists=\[(.+)\]", row["test_debug_checks"])
    names = wanted[1].split(",")
    assert [name for name in names if not (output / name).is_file()] == []
    assert all((output / name).stat().st_size for name in names)


def requirements(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_extra_requirements_are_the_project_s_extras():
    """For those who install as SpeechBrain's recipes ask to."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    found = {
        path.parent.relative_to(ROOT / "recipes").as_posix(): requirements(path)
        for path in ROOT.glob("recipes/**/extra_requirements.txt")
    }
    assert found == {
        "VoxCeleb/SpeakerRec": set(extras["m4a"]),
        "LibriSpeech_VoxCeleb/MTL": {*extras["m4a"], *extras["demo"]},
    }
