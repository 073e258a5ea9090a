"""The demo end to end, on a tiny corpus and with a few steps."""

import json
import subprocess
import sys

import pytest

from tests.helpers import tiny
from tools import demo

pytest.importorskip("espeakng_loader", reason="the demo's extra is not installed")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    encoder = str(tiny.ENCODER).replace("'", "")
    return folder / "results", [
        "--small",
        f"--corpus={folder / 'corpus'}",
        f"--output_folder={folder / 'results'}",
        "--encoder.source=null",
        f"--encoder.config={encoder}",
        "--steps=4",
        "--freeze_steps=1",
        "--valid_interval=2",
        "--threads=1",
        "--device=cpu",
        "--noprogressbar",
    ]


def test_it_trains_evaluates_and_shows_the_result_twice(arguments, capsys, curves):
    output, command = arguments
    for _ in range(2):
        with curves():
            demo.main(command)
        results = json.loads((output / "results.json").read_text())
        for key in ("wer", "eer", "baseline_eer", "baseline_eer_raw", "seconds"):
            assert isinstance(results[key], float), key
        assert 0 <= results["eer"] <= 100 and results["seconds"] > 1
        for picture in ("curves.png", "det.png", "histogram_veri_test2.png"):
            assert (output / picture).stat().st_size > 5000
        assert f"{results['baseline_eer']:.2f}" in (output / "report.html").read_text()
        printed = capsys.readouterr().out
        assert "WER" in printed and f"{results['eer']:.2f}" in printed
        assert f"{results['baseline_eer']:.2f}" in printed
    assert "Removing the last demo" in printed


def test_a_demo_that_still_runs_is_not_removed(arguments, tmp_path, capsys):
    _, command = arguments
    (tmp_path / ".demo").touch()
    program = (
        "import sys; from lobes.system.locks import one_writer\n"
        "with one_writer(sys.argv[1]): print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=demo.ROOT,
    )
    with holder:
        holder.stdout.readline()
        with pytest.raises(SystemExit):
            demo.main([*command, f"--output_folder={tmp_path}"])
    assert f"pid {holder.pid}" in capsys.readouterr().err
    assert (tmp_path / ".demo").exists()


def test_another_run_s_folder_is_not_removed(arguments, tmp_path, capsys):
    _, command = arguments
    (tmp_path / "hyperparams.yaml").write_text("seed: 1\n")
    with pytest.raises(SystemExit):
        demo.main([*command, f"--output_folder={tmp_path}"])
    assert "is not a demo's folder" in capsys.readouterr().err
    assert (tmp_path / "hyperparams.yaml").exists()


@pytest.fixture
def finished(tmp_path):
    """A demo's folder with a result."""
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / ".demo").touch()
    (folder / "results.json").write_text("{}")
    return folder


@pytest.mark.fault(
    "C6", "`demo.py --stepz=5`", "the option is refused, the finished demo stays"
)
@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--stepz=5", "stepz"),
        ("--steps=no", "steps"),
        ("--prepared_folder=elsewhere", "--prepared_folder=elsewhere: the demo has"),
        ("--debug", "--debug: the demo has"),
        ("--headline_sets={wer: test-other}", "name a set for eer"),
    ],
)
def test_a_command_that_cannot_train_removes_nothing(
    option, told, arguments, finished, monkeypatch, capsys
):
    _, command = arguments
    monkeypatch.setattr(demo, "make_demo_corpus", lambda *_, **__: pytest.fail("made"))
    with pytest.raises(SystemExit):
        demo.main([*command, f"--output_folder={finished}", option])
    assert told in capsys.readouterr().err
    assert (finished / "results.json").exists()


@pytest.mark.fault(
    "C6",
    "a demo whose training fails after the start",
    "The last demo is still in {output}",
)
def test_a_demo_that_fails_brings_the_last_one_back(
    arguments, finished, monkeypatch, capsys
):
    _, command = arguments

    def fail(_):
        (finished / "half").touch()
        assert not (finished / "results.json").exists()
        raise SystemExit(2)

    monkeypatch.setattr(demo.train, "main", fail)
    with pytest.raises(SystemExit):
        demo.main([*command, f"--output_folder={finished}"])
    assert f"The last demo is still in {finished}" in capsys.readouterr().out
    assert sorted(p.name for p in finished.iterdir()) == [
        ".demo",
        "lock",
        "results.json",
    ]
    assert not finished.with_name("demo.last").exists()


def test_a_killed_demo_costs_no_finished_one(arguments, finished, monkeypatch):
    _, command = arguments
    killed, last = finished, finished.with_name("demo.last")
    finished.rename(last)
    killed.mkdir()
    (killed / ".demo").touch()
    monkeypatch.setattr(demo.train, "main", lambda _: sys.exit(2))
    with pytest.raises(SystemExit):
        demo.main([*command, f"--output_folder={killed}"])
    assert (killed / "results.json").exists() and not last.exists()
