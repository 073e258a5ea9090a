"""The marker ``fault``, and the table of ``docs/reliability.md`` that it fills.

``@pytest.mark.fault("F04", "newest model file truncated")`` says which case a test
proves and what it injects; the first line of its docstring says what must come of it,
or a third argument where one test proves several. ``pytest -n 2 -m fault
--fault-table=docs/reliability.md`` runs them and writes what came.
"""

import re
from pathlib import Path

import pytest

#: What stands in the page around the table.
BEGIN, END = "<!-- fault table: begin -->\n", "<!-- fault table: end -->\n"
HEADER = """| case | injected | outcome | test | result |
|---|---|---|---|---|
"""
#: Faults that were foreseen, and those that were found by trying the product: with
#: real weights and corpora (A), on a first day (B), by hostile input (C), after public
#: bug reports of others (D), beside the paper's own code (E).
CASES = [f"F{number:02}" for number in range(1, 36)] + [
    f"{part}{number}"
    for part, count in (("A", 11), ("B", 10), ("C", 7), ("D", 10), ("E", 4))
    for number in range(1, count + 1)
]

#: (case, injected, outcome, test) of every collected test, and the results so far.
FAULTS = pytest.StashKey[dict]()
#: Paths of all test files that were collected.
FILES = pytest.StashKey[set]()


def pytest_addoption(parser):
    """The option that writes the table."""
    parser.addoption(
        "--fault-table",
        metavar="FILE",
        help="write the results of the tests marked `fault` into this page",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Take down every marked test, before any is deselected."""
    found = config.stash.setdefault(FAULTS, {})
    config.stash.setdefault(FILES, set()).update(item.path for item in items)
    for item in items:
        for row in faults_of(item):
            found.setdefault(row, [])


def faults_of(item):
    """``(case, injected, outcome, test)`` of each of a test's markers."""
    path = item.path.relative_to(item.config.rootpath)
    test = f"{path.as_posix()}::{item.originalname}"
    summary = (item.function.__doc__ or "").strip().split("\n")[0]
    for marker in item.iter_markers("fault"):
        case, injected, *outcome = marker.args
        if case not in CASES:
            raise pytest.UsageError(f"{test}: there is no fault case {case}")
        if not (outcome or summary):
            raise pytest.UsageError(f"{test}: say what must come of {case}")
        yield case, injected, *(outcome or [summary]), test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Let a marked test's report carry its rows, from a process of xdist, too."""
    report = yield
    # A test that passes is reported three times; the call is what counts.
    if report.when == "call" or not report.passed:
        report.faults = [list(row) for row in faults_of(item)]
    return report


def pytest_configure(config):
    """Listen to the reports of all processes."""
    config.pluginmanager.register(_Results(config))


class _Results:
    """Keeps the results of marked tests."""

    def __init__(self, config):
        self.found = config.stash.setdefault(FAULTS, {})

    def pytest_runtest_logreport(self, report):
        """Note the outcome of each row of a report."""
        for row in getattr(report, "faults", ()):
            self.found.setdefault(tuple(row), []).append(report.outcome)


def pytest_sessionfinish(session):
    """Write the table where it is asked for, from the first process."""
    page = session.config.getoption("--fault-table")
    if page and not hasattr(session.config, "workerinput"):
        page = Path(page)
        found = session.config.stash.get(FAULTS, {})
        page.write_text(_with_table(page.read_text("utf-8"), found), "utf-8")


def _with_table(text, found):
    """The page with a row for each fault and test; the latest of a row counts."""
    lines = []
    for row, results in sorted(found.items(), key=lambda pair: CASES.index(pair[0][0])):
        worst = [r for r in ("failed", "skipped", "passed") if r in results]
        result = worst[0] if worst else "not run"
        if len(results) > 1:
            result += f" ({len(results)} variants)"
        cells = [cell.replace("|", "\\|") for cell in (*row, result)]
        lines.append(f"| {' | '.join(cells)} |\n")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{HEADER}{''.join(lines)}{END}{rest.split(END)[1]}"


def read_table(page):
    """Rows of a page's table: (case, injected, outcome, test, result)."""
    table = page.read_text("utf-8").split(BEGIN)[1].split(END)[0]
    rows = table.removeprefix(HEADER).splitlines()
    return [tuple(re.split(r"(?<!\\) \| ", row[2:-2])) for row in rows]
