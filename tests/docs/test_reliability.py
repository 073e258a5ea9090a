"""The table of ``docs/reliability.md``: every case is proven by a test that exists."""

import subprocess
import sys

import pytest

from tests.helpers import faults

PAGE = "docs/reliability.md"


@pytest.fixture(scope="module")
def collected(request, repository, tmp_path_factory):
    """(case, test) of every marker in the tests."""
    files = request.config.stash[faults.FILES]
    if set((repository / "tests").rglob("test_*.py")) <= files:
        rows = list(request.config.stash[faults.FAULTS])
    else:
        # Only some tests run: a collection of all of them, whose table is read.
        page = tmp_path_factory.mktemp("collected") / "page.md"
        page.write_text(faults.BEGIN + faults.END)
        subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests",
             f"--fault-table={page}"],
            cwd=repository,
            check=True,
            capture_output=True,
            timeout=250,
        )  # fmt: skip
        rows = faults.read_table(page)
    return {(row[0], row[3]) for row in rows}


def test_every_case_has_a_test(collected):
    assert {case for case, _ in collected} == set(faults.CASES)


def test_the_page_names_tests_that_are_there_and_passed(collected, repository):
    rows = faults.read_table(repository / PAGE)
    assert {row[0] for row in rows} == set(faults.CASES)
    for case, injected, outcome, test, result in rows:
        assert (case, test) in collected, f"{test} does not prove {case} (any more)"
        assert injected and outcome and result.startswith("passed"), (case, result)


def test_the_table_survives_its_page(tmp_path):
    """Written, read and written again, with a bar in a cell."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{faults.BEGIN}{faults.END}after\n")
    row = ("F02", "a | b", "fine", "tests/test_x.py::test_y")
    results = {row: ["passed", "failed"], ("F01", *row[1:]): ["passed"]}
    for _ in range(2):
        page.write_text(faults._with_table(page.read_text(), results))
        first, second = faults.read_table(page)
        assert first == ("F01", "a \\| b", *row[2:], "passed")
        assert second[0] == "F02" and second[4] == "failed (2 variants)"
    assert page.read_text().startswith("before\n") and "after\n" in page.read_text()
