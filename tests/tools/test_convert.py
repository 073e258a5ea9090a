"""The command that converts a corpus; its work is tested in test_conversion.py."""

import subprocess
import sys

from tests.lobes.preparation.test_conversion import write_wav


def test_the_command_runs_by_path(repository, tmp_path):
    write_wav(tmp_path / "in" / "dev" / "aac" / "a.wav", 1)
    tool = repository / "tools" / "convert.py"
    command = [sys.executable, tool, tmp_path / "in", tmp_path / "out", "--to"]
    found = subprocess.run([*command, "flac"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("1 files: 1 converted, 0 there before, 0 failed; ")
    assert (tmp_path / "out" / "dev" / "wav" / "a.flac").is_file()
    found = subprocess.run([*command, "wav"], capture_output=True, text=True)
    assert found.returncode == 2
    *_, line = found.stderr.splitlines()
    assert line.startswith("error: ") and "1 with .wav" in line
