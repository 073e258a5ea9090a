"""Commands that only answer a question import nothing that takes seconds."""

import json
import os
import subprocess
import sys

import pytest

from lobes.system.lazy import lazy, module_alone
from tests.helpers import tiny

HEAVY = {"torch", "speechbrain", "transformers", "pandas", "matplotlib", "scipy"}

#: Runs the commands one after another; prints what each imported, and how it ended.
PROGRAM = """
import contextlib, io, json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = words
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            runpy.run_path(words[0], run_name="__main__")
        status = None
    except SystemExit as end:
        status = end.code
    print(json.dumps([words, status, list(sys.modules), output.getvalue()]))
"""

TRAIN = str(tiny.MTL.parents[1] / "train.py")
WRONG = [
    [TRAIN, str(tiny.MTL), "--lrr=1"],
    [TRAIN, "absent.yaml"],
    [str(tiny.MTL.parents[1] / "evaluate.py"), str(tiny.MTL), "--lrr=1"],
    ["tools/bench.py", "--sizee=1"],
    ["tools/convert.py", "a", "b", "--to=mp3"],
    ["tools/cost.py", str(tiny.MTL), "--lrr=1"],
    ["tools/demo_corpus.py", "a", "--smalll"],
    ["tools/doctor.py", str(tiny.MTL), "--lrr=1"],
    ["tools/download.py", "librispeech"],
    ["tools/export_encoder.py", "absent", "out"],
    ["tools/grid.py", str(tiny.MTL), "--lrr=1"],
    ["tools/make_shards.py", "a.csv", "out", "--shard_size=0"],
    ["tools/mfcc_baseline.py", "a"],
    ["tools/pseudo_label.py", "a.csv"],
    ["tools/tables.py", "compare", "a", "b", "--steps=3"],
]


@pytest.fixture(scope="module")
def answers(repository):
    """How each command ended."""
    tools = sorted((repository / "tools").glob("*.py"))
    commands = [p for p in tools if "__main__" in p.read_text(encoding="utf-8")]
    for name in ("train.py", "evaluate.py"):
        commands += sorted((repository / "recipes").glob(f"*/*/{name}"))
    words = [[str(path), "--help"] for path in commands]
    words += [[TRAIN, str(yaml), "--help"] for yaml in (tiny.MTL, tiny.ASR)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(words + WRONG)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.fault(
    "B8",
    "--help and a wrong option of every command",
    "answered without torch, speechbrain, transformers, pandas or matplotlib",
)
def test_help_and_wrong_options_import_nothing_heavy(answers):
    assert len(answers) >= 20 + len(WRONG)
    for words, status, modules, said in answers:
        asked = "--help" in words
        assert status == (0 if asked else 2), (words, said)
        assert "Traceback" not in said
        assert not HEAVY & set(modules), words


def test_a_lazy_module_is_the_module():
    module = lazy("lobes.data.vocabulary")
    assert module.__name__ == "lobes.data.vocabulary"
    from lobes.data import vocabulary as text

    names = [name for name in vars(text) if not name.startswith("__")]
    assert names and all(getattr(module, n) is getattr(text, n) for n in names)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = module.absent
    with pytest.raises(ModuleNotFoundError):
        _ = lazy("lobes.absent").anything


def test_what_replaces_a_part_of_a_lazy_module_replaces_the_modules(monkeypatch):
    from lobes.data import vocabulary as text

    whole = dict(vars(text))
    monkeypatch.setattr(lazy("lobes.data.vocabulary"), "BLANK", "x", raising=False)
    assert text.BLANK == "x"
    monkeypatch.undo()
    assert vars(text).keys() == whole.keys()


def test_a_module_alone_is_the_one_that_others_import():
    alone = module_alone("speechbrain.utils.run_opts")
    import speechbrain

    assert speechbrain.RunOptions is alone.RunOptions


@pytest.mark.parametrize("backend", ["module://absent.backend_inline", "nonsense"])
@pytest.mark.fault(
    "D4",
    "MPLBACKEND of a notebook, or nonsense, in the environment",
    "figures are drawn as ever; the backend is not asked for",
)
def test_no_backend_of_the_users_is_needed(backend, repository, tmp_path):
    program = (
        "import sys, lobes.evaluation.plots as plots; "
        "from matplotlib.figure import Figure; "
        "plots.save(Figure(), sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.png")],
        cwd=repository,
        env={**os.environ, "MPLBACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").stat().st_size > 100
