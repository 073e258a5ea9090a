"""A run's results in lines of text: printed in the terminal, and put on the page.

They come from the files of the output folder alone, so that they can be made again
at any time. What is not there yet is left out.
"""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from lobes.evaluation.ending import COMPLETE, DIVERGED, PATIENCE, Ending
from lobes.evaluation.examples import aligned, chosen, word_pairs
from lobes.evaluation.metrics import RATES, number, phrase
from lobes.evaluation.results import (
    BaselineRow,
    IntervalRow,
    MeasuredSet,
    Results,
    measured_sets,
    read_results,
    speakers_of,
)
from lobes.evaluation.significance import MEANING
from lobes.system.terminal import console

logger = logging.getLogger(__name__)

#: Transcripts of each test set in the terminal.
EXAMPLES = 5

# Columns of a plain summary: a terminal's width is unknown in a file.
_PLAIN_WIDTH = 130


def print_summary(folder: str | Path, examples: int = EXAMPLES):
    """Print the metrics, some transcripts with their errors, and where the files are.

    In colours when standard output is a terminal, as plain text when not.

    Arguments:
        folder: An evaluation's files, with ``results.json``.
        examples: Transcripts of each test set, from the worst to the best.

    Where nothing can be printed, the log says so: the evaluation has succeeded.
    """
    folder = Path(folder)
    if sys.stdout.isatty():
        output = console()
    else:
        # Without a colour system nothing is styled, whatever the environment says.
        output = console(color_system=None, width=_PLAIN_WIDTH)
    try:
        results = read_results(folder)
        output.print()
        if examples:
            _print_transcripts(output, folder, results, examples)
        _print_metrics(output, results)
        _print_places(output, folder, results)
        for line in stopped(results):
            output.print(Text(line, style="bold red"))
    # A terminal that is gone, or a full disk that takes the output.
    except OSError as error:
        logger.warning("The summary of %s could not be printed: %s", folder, error)


def _print_transcripts(output, folder, results, count):
    """Some utterances of every set, with their errors."""
    for name in dict.fromkeys(one.name for one in measured_sets(results)):
        rows = aligned(folder, name)
        if not rows:
            continue
        shown = chosen(rows, count, speakers_of(folder, name))
        title = Text(f"{name}: {len(shown)} of {len(rows)} utterances, worst first; ")
        title.append("[-missed-]", style="red")
        title.append(" ")
        title.append("{+added+}", style="green")
        output.print(title)
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(justify="right")
        table.add_column(overflow="fold")
        for row in shown:
            table.add_row(f"  {row['WER']:.0f} %", marked(row))
        output.print(table)
        output.print()


def _print_metrics(output, results):
    """A line for every error rate, what the intervals mean, and the warnings."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for one in measured_sets(results):
        for row in _lines_of(one):
            table.add_row(*map(Text, row))
    output.print(table)
    for text in meaning(results):
        output.print(Text(text))
    for text in results.get("warnings", ()):
        output.print(Text(f"warning: {text}", style="yellow"))


def _print_places(output, folder, results):
    """What was evaluated, and where its files lie."""
    facts = [f"Checkpoint of step {results['step']}"]
    if "training" in results:
        facts.append(str(Ending(**results["training"])))
    if "seconds" in results:
        facts.append(f"{results['seconds']:.0f} seconds in all")
    output.print(Text("; ".join(facts)))
    page = folder / "report.html"
    if _is_newer(page, folder / "results.json"):
        output.print(Text(f"Report:   {page}"), soft_wrap=True)
    else:
        text = f"warning: {page} could not be written (the log tells why)"
        output.print(Text(text, style="yellow"), soft_wrap=True)
    pictures = ", ".join(path.name for path in sorted(folder.glob("*.png")))
    if pictures:
        output.print(Text(f"Pictures: {pictures} in {folder}"), soft_wrap=True)


def _is_newer(page, results):
    """Whether a page is of these results, not of earlier ones."""
    try:
        return page.stat().st_mtime_ns >= results.stat().st_mtime_ns
    except OSError:
        return False


def _lines_of(one):
    """Lines on one set: (name, metric, interval, details)."""
    rates = [rate for rate in RATES if rate in one.metrics]
    for rate in rates:
        value = f"{rate.upper()} {one.metrics[rate]:6.2f} %"
        shown = one.label if rate == rates[0] else ""
        yield shown, value, span(one.intervals.get(rate)), details(one, rate)
    for title, eer, interval in baseline_lines(one.baseline):
        yield "", f"EER {eer:6.2f} %", interval, title
    if not rates:
        values = ", ".join(phrase(*metric) for metric in one.metrics.items())
        yield one.label, "", "", values


# Texts that the page has, too ----------------------------------------------------


def marked(row: dict) -> Text:
    """An aligned utterance with its errors in brackets, as wdiff marks them."""
    text = Text()
    for said, heard in word_pairs(row):
        if text:
            text.append(" ")
        if said == heard:
            text.append(said)
            continue
        if said is not None:
            text.append(f"[-{said}-]", style="red")
        if heard is not None:
            text.append(f"{{+{heard}+}}", style="green")
    return text


def span(interval: IntervalRow | None) -> str:
    """An interval as text, empty where there is none."""
    return f"{interval['low']:.1f} to {interval['high']:.1f}" if interval else ""


def baseline_lines(baseline: BaselineRow | None) -> list[tuple[str, float, str]]:
    """What the baseline reaches: (name, EER in percent, interval)."""
    if not baseline:
        return []
    return [
        ("MFCC baseline, z-normalised", baseline["eer"], span(baseline["interval"])),
        ("MFCC baseline", baseline["eer_raw"], ""),
    ]


def meaning(results: Results) -> list[str]:
    """What the intervals mean, as one line; none without intervals."""
    units = {}
    for name, metrics in results.get("intervals", {}).items():
        for interval in filter(None, metrics.values()):
            unit = f"{interval['count']:,} {interval['over']}"
            units.setdefault(unit, {})[name] = None
    over = [f"{unit} ({', '.join(names)})" for unit, names in units.items()]
    return [f"{MEANING}; over {', '.join(over)}"] if over else []


def stopped(results: Results) -> Iterator[str]:
    """Lines that nobody overlooks, when a training did not take all of its steps."""
    if "training" not in results:
        return
    ending = Ending(**results["training"])
    if ending.kind == COMPLETE:
        return
    advice = "the weights tested here are those of a part of the training"
    if ending.kind in (DIVERGED, PATIENCE):
        advice = "the same command only tests again"
    yield ""
    yield "=" * 72
    yield f"NOT ALL STEPS WERE TRAINED: {ending}"
    yield f"({advice})"
    yield "=" * 72


def details(one: MeasuredSet, rate: str) -> str:
    """What belongs to an error rate, in one line."""
    metrics = one.metrics
    if rate == "cer":
        parts = [f"{metrics['letters']:,} letters"] if "letters" in metrics else []
        if "blank_frames" in metrics:
            parts.append(f"{metrics['blank_frames']:.1f} % of the frames blank")
        return "; ".join(parts)
    parts = [
        ", ".join(
            f"{metrics[name]:,} {name if metrics[name] != 1 else name[:-1]}"
            for name in names
            if name in metrics
        )
        for names in (
            ("utterances", "words", "trials"),
            ("substitutions", "deletions", "insertions"),
        )
    ]
    prefix = "min_dcf_"
    costs = ", ".join(
        f"{value:.3f} (p {name.removeprefix(prefix)})"
        for name, value in metrics.items()
        if name.startswith(prefix)
    )
    if costs:
        parts.append(f"minDCF {costs}")
    if "threshold" in metrics:
        parts.append(f"threshold {number('threshold', metrics['threshold'])}")
    return "; ".join(filter(None, parts))
