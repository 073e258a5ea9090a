"""The summary: plain or in colours, and never in the way."""

import io
import sys

import pytest

from lobes.evaluation import summary
from tests.helpers.shown import write_transcripts


@pytest.mark.fault(
    "C7", "the summary cannot be printed", "a line in the log; the run is finished"
)
def test_printing_changes_nothing(run, caplog, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Gone())
    summary.print_summary(run)
    assert "could not be printed: [Errno 32] Broken pipe" in caplog.text


def test_the_summary_is_plain_text_when_not_a_terminal(run, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    write_transcripts(run, ("[bold] A", "[bold] B"))
    summary.print_summary(run)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "[bold] [-A-]{+B+}" in printed, "brackets are no markup"
    assert "WER" in printed and "EER" in printed and "minDCF" in printed
    assert str(run / "report.html") in printed and "det.png" in printed
    summary.print_summary(run, examples=0)
    assert "[-" not in capsys.readouterr().out


def test_the_summary_has_colours_in_a_terminal(run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    write_transcripts(run, ("A", "B"))
    summary.print_summary(run)
    printed = capsys.readouterr().out
    assert "\x1b[31m[-A-]\x1b[0m\x1b[32m{+B+}" in printed
