"""Preparations that are killed continue, and write what they would have written."""

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lobes.data.audio import SAMPLE_RATE
from lobes.preparation import parts, scan
from recipes.LibriSpeech.librispeech_prepare import prepare_librispeech
from recipes.VoxCeleb.voxceleb_prepare import prepare_voxceleb

#: Utterances of each corpus below.
SPEAKERS, RECORDINGS, UTTERANCES = 6, 4, 5
TOTAL = SPEAKERS * RECORDINGS * UTTERANCES


def write(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(seed).randint(-9000, 9000, 800 + seed)
    soundfile.write(path, noise.astype(np.int16), SAMPLE_RATE)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Both corpora with 120 utterances, one of them bad."""
    folder = tmp_path_factory.mktemp("corpora")
    numbers = itertools.product(range(SPEAKERS), range(RECORDINGS), range(UTTERANCES))
    for seed, (s, r, u) in enumerate(numbers):
        write(folder / "vox2" / f"id{s:05d}" / f"v{r}" / f"{u:05d}.wav", seed)
        chapter = folder / "LibriSpeech" / "train-a" / f"{s}" / f"{r}"
        write(chapter / f"{s}-{r}-{u:04d}.flac", seed)
        with open(chapter / f"{s}-{r}.trans.txt", "a") as stream:
            stream.write(f"{s}-{r}-{u:04d} A\n")
    (folder / "vox2" / "id00002" / "v1" / "00003.wav").write_text("<html>")
    (folder / "LibriSpeech" / "train-a" / "2" / "1" / "2-1-0003.flac").write_text("")
    return folder


def librispeech(corpora, save_folder, **options):
    return prepare_librispeech(
        corpora, save_folder, ["train-a"], skip_budget=1, num_workers=1, **options
    )


def voxceleb(corpora, save_folder, **options):
    options = {"valid_fraction": 0.1, **options}
    return prepare_voxceleb(
        corpora / "vox2", None, save_folder, skip_budget=1, num_workers=1, **options
    )


def contents(folder):
    """Every file that a preparation wrote, except for what helps it to continue."""
    return {
        path.name: path.read_bytes()
        for path in Path(folder).iterdir()
        if path.suffix != ".scan" and not path.name.startswith(".")
    }


def count_calls(monkeypatch, name, kill_at=None):
    """Count calls of a function; die before number ``kill_at``."""
    calls = []
    module = scan if name == "audio_statistics" else parts
    function = getattr(module, name)

    def counted(*arguments):
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(module, name, counted)
    return calls


def killed(monkeypatch, name, kill_at, run):
    """Run in a process of its own that ends by SIGKILL."""
    child = os.fork()
    if not child:
        try:
            with monkeypatch.context() as patch:
                count_calls(patch, name, kill_at)
                run()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.fault(
    "F25",
    "preparation killed at each of its stages",
    "the next one gives the same bytes",
)
@pytest.mark.parametrize("run", [librispeech, voxceleb])
@pytest.mark.parametrize(
    "points",
    [
        [("audio_statistics", 0)],
        [("audio_statistics", 31)],
        [("audio_statistics", 33), ("audio_statistics", 40)],
        [("audio_statistics", TOTAL - 1)],
        # The list of the skipped, whose the files are, the first CSV, and so on.
        *([("write_atomically", number)] for number in range(5)),
    ],
)
def test_a_killed_preparation_continues(
    corpora, tmp_path, monkeypatch, capfd, run, points
):
    run(corpora, tmp_path / "whole")
    remembered = 0
    for name, kill_at in points:
        killed(monkeypatch, name, kill_at, lambda: run(corpora, tmp_path / "killed"))
        journal = next((tmp_path / "killed").glob("*.scan"), None)
        kept = journal.stat().st_size // 48 if journal else 0
        assert kept >= remembered
        remembered = kept
    if points[-1] == ("audio_statistics", TOTAL - 1):
        # All whole chunks of 32, without the bad utterance.
        assert remembered == 95
    if points[-1][0] == "write_atomically":
        assert remembered == TOTAL - 1
    markers = (tmp_path / "killed").glob("*.prepared.json")
    complete = any("unfinished" not in json.loads(m.read_text()) for m in markers)
    capfd.readouterr()
    with monkeypatch.context() as patch:
        decoded = count_calls(patch, "audio_statistics")
        run(corpora, tmp_path / "killed")
    assert len(decoded) == (0 if complete else TOTAL - remembered)
    said = f": {remembered} of {TOTAL} files were decoded before"
    assert (said in capfd.readouterr().err) == (remembered > 0 and not complete)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def mini_librispeech(mini_corpora, save_folder):
    splits = ["train-clean-100"], ["dev-other"], ["test-other"]
    prepare_librispeech(
        mini_corpora / "LibriSpeech", save_folder, *splits, num_workers=1
    )


def mini_voxceleb(mini_corpora, save_folder):
    pytest.importorskip("av")
    folders = mini_corpora / "VoxCeleb2", mini_corpora / "VoxCeleb1"
    prepare_voxceleb(*folders, save_folder, num_workers=1)


@pytest.mark.fault(
    "F25",
    "six SIGKILLs one after the other, mini corpora",
    "the seventh attempt writes the same bytes as an uninterrupted one",
)
@pytest.mark.slow
@pytest.mark.parametrize("prepare", [mini_librispeech, mini_voxceleb])
def test_the_mini_corpora_killed_again_and_again(
    mini_corpora, tmp_path, monkeypatch, prepare
):
    prepare(mini_corpora, tmp_path / "whole")
    for name, kill_at in (
        ("audio_statistics", 40),
        ("audio_statistics", 300),
        # The first CSV, then what follows it.
        ("write_atomically", 0),
        ("write_atomically", 1),
        # The next part.
        ("audio_statistics", 20),
        ("write_atomically", 2),
    ):
        run = functools.partial(prepare, mini_corpora, tmp_path / "killed")
        killed(monkeypatch, name, kill_at, run)
        assert contents(tmp_path / "killed") != contents(tmp_path / "whole")
    prepare(mini_corpora, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "options", [{"seed": 4}, {"valid_fraction": 0.2}, {"valid_positive_trials": 3}]
)
def test_another_split_decodes_nothing_but_the_bad(
    corpora, tmp_path, monkeypatch, options
):
    voxceleb(corpora, tmp_path / "again")
    with monkeypatch.context() as patch:
        decoded = count_calls(patch, "audio_statistics")
        voxceleb(corpora, tmp_path / "again", **options)
    assert [Path(path).name for (path,) in decoded] == ["00003.wav"]
    voxceleb(corpora, tmp_path / "fresh", **options)
    assert contents(tmp_path / "again") == contents(tmp_path / "fresh")


@pytest.mark.fault(
    "F25", "SIGKILL of a preparation with workers", "the next one gives the same bytes"
)
def test_a_killed_command_with_workers_continues(corpora, tmp_path, repository):
    script = repository / "recipes" / "VoxCeleb" / "voxceleb_prepare.py"
    slow = (
        "import sys, time\n"
        "import lobes.preparation.scan as p\n"
        "from recipes.VoxCeleb.voxceleb_prepare import main\n"
        "real = p.audio_statistics\n"
        "p.audio_statistics = lambda path: time.sleep(0.02) or real(path)\n"
        "main()\n"
    )
    arguments = [corpora / "vox2", tmp_path / "killed", "--valid_fraction=0.1"]
    arguments += ["--skip_budget=1", "--num_workers=2"]
    parent = subprocess.Popen(
        [sys.executable, "-c", slow, *arguments],
        cwd=repository,
        stderr=subprocess.DEVNULL,
    )
    journal = tmp_path / "killed" / "train.scan"
    end = time.monotonic() + 60
    while not journal.exists() and time.monotonic() < end:
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    assert parent.wait() == -signal.SIGKILL
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert " of 120 files were decoded before" in done.stderr
    voxceleb(corpora, tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
