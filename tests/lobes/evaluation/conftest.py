"""A finished and evaluated run whose results are shown."""

import shutil

import pytest

from lobes.runs import evaluate as evaluation
from tests.helpers import tiny


@pytest.fixture(scope="session")
def trained(tiny_corpus, tmp_path_factory, curves):
    """The folder of a finished and evaluated tiny run."""
    folder = tmp_path_factory.mktemp("report") / "results" / "tiny" / "7"
    system = tiny.brain(tiny_corpus, folder, steps=4, valid_interval=2)
    with curves():
        tiny.fit(system)
    evaluation.evaluate(system, vars(system.hparams))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy to change."""
    return shutil.copytree(trained, tmp_path / "run")
