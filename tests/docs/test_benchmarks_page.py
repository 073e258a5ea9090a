"""docs/benchmarks.md names tests that are there."""

import re

from lobes.system.checkout import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"


def test_every_test_that_it_names_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text("utf-8"))
    assert len(named) > 10
    for file, test in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not test or f"\ndef {test}(" in text, f"{file}::{test}"
