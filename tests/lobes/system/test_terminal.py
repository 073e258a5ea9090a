"""What is printed is what was meant."""

import io
import subprocess
import sys

import pytest
from rich.table import Table

from lobes.system import terminal
from lobes.system.terminal import console, progress_bar


@pytest.mark.fault(
    "C7",
    "values with rich's markup: `[/bold]`, `[1, 2]`, `:warning:`",
    "printed as they are",
)
def test_markup_in_values_is_text():
    output = io.StringIO()
    table = Table(box=None)
    table.add_column("")
    values = ["lr=[/bold]", "splits=[a, b]", "[red]x", ":warning:"]
    for value in values:
        table.add_row(value)
    console(file=output, width=80).print(table)
    console(file=output, width=80).print("[/bold]", "[i]")
    lines = [line.strip() for line in output.getvalue().splitlines()]
    assert lines[1:] == [*values, "[/bold] [i]"]


def test_a_broken_pipe_is_an_error_and_no_exit():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        console(file=Gone()).print("x")


@pytest.mark.fault(
    "B9",
    "`torchvision is not available - cannot save figures`",
    "no longer said; figures are saved without it",
)
def test_speechbrain_s_word_on_its_own_figures_is_left_out(repository):
    program = (
        "import logging; logging.basicConfig(); import lobes.runs.command_line\n"
        "import speechbrain.utils.train_logger as one\n"
        "one._get_image_saver(); one.logger.warning('other')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "torchvision" not in done.stderr and "other" in done.stderr


@pytest.fixture
def clock(monkeypatch):
    """The bars' clock: a list of one number, the seconds."""
    seconds = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr("tqdm.std.time", lambda: seconds[0])
    return seconds


def advance(clock, seconds, **settings):
    """Draw a bar of one step a second, with figures that change in every step."""
    with progress_bar("reading", seconds, "file", **settings) as bar:
        for second in range(seconds):
            clock[0] += 1
            bar.update()
            bar.set_postfix(loss=second)


def test_a_bar_in_a_log_is_a_line_every_ten_seconds_at_most(clock, capsys):
    advance(clock, 35)
    output = capsys.readouterr().err
    assert "\r" not in output
    assert [line.split("[")[0] for line in output.splitlines()] == [
        "reading: 29%, 10 of 35 ",
        "reading: 57%, 20 of 35 ",
        "reading: 86%, 30 of 35 ",
        "reading: 100%, 35 of 35 ",
    ]
    assert "00:35<00:00,  1.00file/s, loss=34]" in output.splitlines()[-1]


def test_the_last_line_of_a_bar_in_a_log_comes_once(clock, capsys):
    advance(clock, 30)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "reading: 33%",
        "reading: 67%",
        "reading: 100%",
    ]


@pytest.mark.parametrize(
    ("seconds", "settings", "lines"),
    [(9, {}, 0), (25, {"leave": False}, 2), (25, {"disable": True}, 0)],
)
def test_a_log_has_no_line_of_a_short_or_hidden_bar(
    seconds, settings, lines, clock, capsys
):
    for _ in range(3):
        advance(clock, seconds, **settings)
    assert len(capsys.readouterr().err.splitlines()) == 3 * lines


def test_a_bar_over_items_of_unknown_number_is_told_in_a_log_too(clock, capsys):
    for _ in progress_bar("reading", None, iterable=iter(range(12))):
        clock[0] += 1
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("reading: 10utt [00:10,") and "12utt" in last


def test_a_terminal_has_a_bar_that_is_drawn_anew(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    advance(clock, 5)
    output = capsys.readouterr().err
    assert "reading: 100%|" in output and output.count("\r") >= 5
