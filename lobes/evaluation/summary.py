"""A run's results in the terminal, made from the files of its output folder."""

import logging
import sys
from pathlib import Path

from rich.table import Table
from rich.text import Text

from lobes.evaluation.ending import COMPLETE, DIVERGED, PATIENCE, Ending
from lobes.evaluation.examples import _aligned, _examples, _words
from lobes.evaluation.metrics import (
    _RATES,
    _format,
    _named,
)
from lobes.evaluation.results import speakers_of
from lobes.evaluation.significance import MEANING
from lobes.system.files import read_json
from lobes.system.lazy import lazy
from lobes.system.terminal import console

edit_distance = lazy("speechbrain.utils.edit_distance")
pandas = lazy("pandas")
logger = logging.getLogger(__name__)


TERMINAL_EXAMPLES = 5


# Columns of a plain summary: a terminal's width is unknown in a file.
_PLAIN_WIDTH = 130


# Results of lobes.evaluation.mfcc_baseline on a trial list.
_BASELINES = {
    "eer": "MFCC baseline, z-normalised",
    "eer_raw": "MFCC baseline",
}


def print_summary(folder, examples=TERMINAL_EXAMPLES):
    """Print the metrics, some transcripts with their errors, and where the files are.

    In colours when standard output is a terminal, as plain text when not.

    Arguments
    ---------
    folder : str or Path
        An evaluation's files, with ``results.json``.
    examples : int
        Transcripts of each test set, from the worst to the best.

    Where nothing can be printed, the log says so: the evaluation has succeeded.
    """
    try:
        _print_summary(Path(folder), examples)
    # A terminal that is gone, or a full disk that takes the output.
    except OSError as error:
        logger.warning("The summary of %s could not be printed: %s", folder, error)


def _print_summary(folder, examples):
    """Print the summary on standard output as it is now."""
    results = read_json(folder / "results.json", "evaluate again")
    if sys.stdout.isatty():
        output = console()
    else:
        # Without a colour system nothing is styled, whatever the environment says.
        output = console(color_system=None, width=_PLAIN_WIDTH)
    output.print()
    for name in _all_sets(results):
        rows = _aligned(folder, name) if examples else []
        if not rows:
            continue
        chosen = _examples(rows, examples, speakers_of(folder, name))
        title = Text(f"{name}: {len(chosen)} of {len(rows)} utterances, worst first; ")
        title.append("[-missed-]", style="red")
        title.append(" ")
        title.append("{+added+}", style="green")
        output.print(title)
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(justify="right")
        table.add_column(overflow="fold")
        for row in chosen:
            table.add_row(f"  {row['WER']:.0f} %", _marked_text(row))
        output.print(table)
        output.print()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for name, metrics in _all_sets(results).items():
        for row in _summary_rows(results, name, metrics):
            table.add_row(*map(Text, row))
    output.print(table)
    for text in _meaning(results):
        output.print(Text(text))
    for text in results.get("warnings", ()):
        output.print(Text(f"warning: {text}", style="yellow"))
    where = [f"Checkpoint of step {results['step']}"]
    if "training" in results:
        where.append(str(Ending(**results["training"])))
    if "seconds" in results:
        where.append(f"{results['seconds']:.0f} seconds in all")
    output.print(Text("; ".join(where)))
    page = folder / "report.html"
    if _is_of(page, folder):
        output.print(Text(f"Report:   {page}"), soft_wrap=True)
    else:
        text = f"warning: {page} could not be written (the log tells why)"
        output.print(Text(text, style="yellow"), soft_wrap=True)
    pictures = ", ".join(path.name for path in sorted(folder.glob("*.png")))
    if pictures:
        output.print(Text(f"Pictures: {pictures} in {folder}"), soft_wrap=True)
    for line in _stopped(results):
        output.print(Text(line, style="bold red"))


def _is_of(page, folder):
    """Whether a page is of the results that lie beside it, not of earlier ones."""
    try:
        made = (folder / "results.json").stat().st_mtime_ns
        return page.stat().st_mtime_ns >= made
    except OSError:
        return False


def _stopped(results):
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


def _marked_text(row):
    """An utterance with its errors in brackets, as wdiff marks them."""
    text = Text()
    for said, heard in _words(row):
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


def _all_sets(results):
    """``{set or trial list: {metric: value}}`` of all tasks."""
    return {n: m for named in results["sets"].values() for n, m in named.items()}


def _summary_rows(results, name, metrics):
    """Lines of the summary on one set: (name, metric, interval, details)."""
    rates = [rate for rate in _RATES if rate in metrics]
    for rate in rates:
        notes = _notes(metrics) if rate != "cer" else _letter_notes(metrics)
        value = f"{rate.upper()} {metrics[rate]:6.2f} %"
        shown = name if rate == rates[0] else ""
        yield shown, value, _interval(results, name, rate), notes
    baseline = results.get("baselines", {}).get(name, {})
    for key, title in _BASELINES.items():
        if key in baseline:
            interval = _span(baseline["interval"]) if key == "eer" else ""
            yield "", f"EER {baseline[key]:6.2f} %", interval, title
    if not rates:
        yield name, "", "", ", ".join(_named(*metric) for metric in metrics.items())


def _interval(results, name, metric):
    """A metric's 95 % interval as text, empty where there is none."""
    return _span(results.get("intervals", {}).get(name, {}).get(metric))


def _span(interval):
    """An interval as text, empty where there is none."""
    if interval is None:
        return ""
    return f"{interval['low']:.1f} to {interval['high']:.1f}"


def _meaning(results):
    """What the intervals mean, as one line; none without intervals."""
    units = {}
    for name, metrics in results.get("intervals", {}).items():
        for interval in filter(None, metrics.values()):
            unit = f"{interval['count']:,} {interval['over']}"
            units.setdefault(unit, {})[name] = None
    over = [f"{unit} ({', '.join(names)})" for unit, names in units.items()]
    return [f"{MEANING}; over {', '.join(over)}"] if over else []


def _letter_notes(metrics):
    """What belongs to a CER, in one line."""
    parts = [f"{metrics['letters']:,} letters"] if "letters" in metrics else []
    if "blank_frames" in metrics:
        parts.append(f"{metrics['blank_frames']:.1f} % of the frames blank")
    return "; ".join(parts)


def _notes(metrics):
    """What belongs to a WER or an EER, in one line."""
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
        parts.append(f"threshold {_format('threshold', metrics['threshold'])}")
    return "; ".join(part for part in parts if part)
