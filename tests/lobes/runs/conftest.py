"""YAML files of a test's own, and a process that stays as it was."""

import sys

import pytest
import torch

from lobes.runs.command_line import parse_arguments
from tests.helpers.small_yamls import BASE, FOLDERS, MTL, SMALL


@pytest.fixture
def write(tmp_path):
    """Write YAML files below ``rec/hparams``; returns the path of the last."""

    def write(**files):
        folder = tmp_path / "rec" / "hparams"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path = folder / f"{name}.yaml"
            path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def base(write):
    """A small YAML with a value of every kind."""
    return write(base=BASE)


@pytest.fixture(autouse=True)
def unchanged_process():
    """Undo what loading a recipe changes in this process."""
    path, threads = list(sys.path), torch.get_num_threads()
    yield
    sys.path[:] = path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def mtl(tmp_path_factory):
    """mtl.yaml loaded with a tiny encoder: hparams, run options, settings."""
    output = tmp_path_factory.mktemp("mtl") / "out"
    argv = [str(MTL), *(f"--{name}_folder=x" for name in FOLDERS)]
    argv += ["--encoder.source=null", f"--encoder.config={SMALL}"]
    argv += [f"--output_folder={output}"]
    return parse_arguments([*argv, "--device=cpu", "--lr=1e-3"])
