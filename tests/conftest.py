"""Fixtures shared by all tests."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

# Before anything imports huggingface_hub, which reads it once: a test must never
# wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402

from lobes.runs import ledger  # noqa: E402
from lobes.system import preemption  # noqa: E402
from tests.helpers.faults import (  # noqa: E402, F401
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_makereport,
    pytest_sessionfinish,
)

# A shell lets its background jobs ignore Ctrl-C; here it acts as in the foreground.
signal.signal(signal.SIGINT, signal.default_int_handler)
HANDLERS = {number: signal.getsignal(number) for number in preemption.SIGNALS}

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _fresh_logging():
    """Undo what an experiment did to logging and signals: they end with its test."""
    yield
    # Those of before any experiment: a fixture of a whole module may have run one.
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    root = logging.getLogger()
    for handler in [h for h in root.handlers if "pytest" not in type(h).__module__]:
        root.removeHandler(handler)


@pytest.fixture(autouse=True, scope="session")
def _own_ledger(tmp_path_factory):
    """Keep the trainings of tests out of the checkout's ledger."""
    ledger.DEFAULT = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"


@pytest.fixture(autouse=True, scope="session")
def _no_curves():
    """Draw no learning curves: that takes longer than a tiny training does."""
    with pytest.MonkeyPatch.context() as patch:
        # Tests that do without the Brain shall not wait for its import.
        if brain := sys.modules.get("lobes.training.brain"):
            patch.setattr(brain, "plot_curves", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def curves(_no_curves):
    """``with curves():`` trainings draw them, for a test that looks at them."""
    from lobes.evaluation import plots
    from lobes.training import brain

    @contextlib.contextmanager
    def curves():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(brain, "plot_curves", plots.plot_curves)
            yield

    return curves


@pytest.fixture(scope="session")
def repository():
    """Root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def torchrun(repository):
    """``torchrun(program, *arguments, timeout)``: the program in two processes."""

    def torchrun(program, *arguments, timeout):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc_per_node=2", "--no_python", sys.executable, "-c", program,
            *map(str, arguments),
        ]  # fmt: skip
        return subprocess.run(
            command,
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)},
            check=False,
        )

    return torchrun


@pytest.fixture(scope="session")
def mini_corpora():
    """Real speech in the corpora's own layouts; lies beside the checkout."""
    folder = ROOT.parent / "shared" / "data" / "mini_corpora"
    if not folder.is_dir():
        pytest.skip("the mini corpora (../shared/data/mini_corpora) are not here")
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """Prepared CSVs of a made-up corpus (``tests/helpers/tiny.py``)."""
    # Only here: the process that hands out the tests needs no torch.
    from tests.helpers import tiny

    return tiny.write_corpus(tmp_path_factory.mktemp("tiny_corpus"))
