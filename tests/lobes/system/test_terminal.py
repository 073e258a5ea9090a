"""What is printed is what was meant."""

import io
import subprocess
import sys

import pytest
from rich.table import Table

from lobes.system.terminal import console


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
        "import logging; logging.basicConfig(); import lobes.runs.experiment\n"
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
