"""The demo end to end, on a tiny corpus and with a few steps."""

import json
import subprocess
import sys

import pytest

from tests import tiny
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
        "--source=null",
        f"--encoder_config={encoder}",
        "--n_speakers=6",
        "--valid_fraction=0.3",
        "--valid_trials=10",
        "--steps=4",
        "--freeze_steps=1",
        "--valid_interval=2",
        "--threads=1",
        "--device=cpu",
        "--noprogressbar",
    ]


def test_it_trains_evaluates_and_shows_the_result_twice(arguments, capsys):
    output, command = arguments
    for _ in range(2):
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
    assert "Removing the last run" in printed


def test_a_demo_that_still_runs_is_not_removed(arguments, tmp_path, capsys):
    _, command = arguments
    (tmp_path / ".demo").touch()
    program = (
        "import sys; from lobes.locks import one_writer\n"
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
