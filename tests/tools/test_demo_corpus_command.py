"""The command that speaks the demo's corpus."""

import subprocess
import sys


def test_command(tmp_path, repository):
    command = [sys.executable, str(repository / "tools" / "demo_corpus.py")]
    command += [str(tmp_path / "c"), "--small", "--seed", "3", "--train", "1", "2"]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "made in" in first.stdout and first.stderr.strip() == ""
    assert len(list((tmp_path / "c").rglob("*.flac"))) == 2 + 6 + 6
    again = subprocess.run(command, capture_output=True, text=True)
    assert "complete already" in again.stdout
    (tmp_path / "c" / "corpus.json").unlink()
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
