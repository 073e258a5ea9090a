"""Preparation of many entries, for what grows with them."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_million_utterances_fit_into_a_gigabyte(tmp_path, repository):
    done = subprocess.run(
        [sys.executable, "-m", "tests.scale", "50000", tmp_path / "vox2"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    grown = found["memory_after"] - found["memory_before"]
    assert found["memory_before"] + grown / 50_000 * 1_100_000 < 1e9
    # Processor time, which other programs do not change.
    assert 50_000 / found["list"][0] > 20_000
    assert 50_000 / found["prepare"][0] > 1_500
    assert found["other_split"][0] < found["prepare"][0]
