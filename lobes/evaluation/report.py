"""The page ``report.html`` of a run: its results, and what they are made of.

It is made from the files of the output folder alone, so that it can be made again at
any time. What is not there yet is left out. ``report.html.j2`` is its template.
"""

import base64
import logging
import time
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np

from lobes.errors import UserError, explanation
from lobes.evaluation.ending import Ending
from lobes.evaluation.examples import aligned, chosen, word_pairs
from lobes.evaluation.metrics import (
    NONE,
    RATES,
    heading,
    number,
    phrase,
    quantity,
    title,
)
from lobes.evaluation.progress import ProgressLog, best_step
from lobes.evaluation.results import (
    MeasuredSet,
    Results,
    measured_sets,
    read_results,
    speakers_of,
)
from lobes.evaluation.summary import baseline_lines, details, meaning, span, stopped
from lobes.system.files import write_atomically
from lobes.system.lazy import lazy

pandas = lazy("pandas")

logger = logging.getLogger(__name__)

#: Transcripts of each test set on the page.
EXAMPLES = 10

# Rows of the tables over time.
_ROWS = 12

# Captions of the tables of groups: by what, and whether the rows are of trials.
_GROUP_CAPTIONS = {
    ("sex", False): "by the speaker's sex",
    ("length", False): "by the utterance's length, about equally many each",
    ("speaker", False): "the speakers with the highest WER",
    ("sex", True): "by the speakers' sex, at the threshold of the EER",
    ("length", True): "by the shorter utterance's length, at the threshold of the EER",
    ("speaker", True): "the speakers in whose trials most decisions are wrong, at the "
    "threshold of the EER",
}


class Table(NamedTuple):
    """A table of texts; its first column names the rows."""

    headings: list[str]
    rows: list[list[str]]
    caption: str = ""


class Tile(NamedTuple):
    """One large figure, what it is, and what belongs to it."""

    label: str
    value: str
    notes: list[str]


def publish(folder: str | Path, run: str | Path | None = None) -> bool:
    """Write ``report.html``; returns whether that was possible.

    Arguments are those of ``write_report``. Whatever is wrong with the page is logged:
    it must not end an evaluation that has succeeded.
    """
    try:
        write_report(folder, run)
    except Exception as error:
        path = Path(folder) / "report.html"
        old = "; the one that is there is of an earlier evaluation" * path.exists()
        told = str(error) if isinstance(error, UserError) else explanation(error)
        logger.warning(
            "%s could not be written%s (%s)",
            path,
            old,
            told or repr(error),
            exc_info=told is None,
        )
        return False
    return True


def write_report(folder: str | Path, run: str | Path | None = None) -> Path:
    """Write ``report.html``: one file with everything in it, and no scripts.

    Arguments:
        folder: An evaluation's files (``results.json`` and what lies beside it).
        run: The training's output folder, where that is another one.

    Returns:
        The page.
    """
    folder = Path(folder)
    run = Path(run or folder)
    results = read_results(folder)
    sets = measured_sets(results)
    evaluated = time.localtime((folder / "results.json").stat().st_mtime)
    lists = dict.fromkeys(one.name for one in sets if "eer" in one.metrics)
    training, validation = ProgressLog(run).tables()
    page = _template().render(
        name=_title(results, run),
        evaluated=time.strftime("%Y-%m-%d %H:%M", evaluated),
        folder=folder,
        stopped=" ".join(line for line in stopped(results) if line.strip("= ")),
        warnings=results.get("warnings", ()),
        tiles=_tiles(results, sets),
        meaning=meaning(results),
        metrics=[_metric_table(task, sets) for task in results["sets"]],
        groups=_group_tables(results),
        transcripts=_transcripts(folder, sets),
        det=_png(folder / "det.png"),
        histograms=[(name, _png(folder / f"histogram_{name}.png")) for name in lists],
        data=_data_facts(results),
        training=_checkpoint_facts(results, validation) + _speed_facts(training),
        curves=_png(run / "curves.png"),
        progress=_tables_over_time(results, training, validation),
        commands=_commands(results, run),
        commit=_commit(run),
        details=[
            (title, file, _text(run / file))
            for title, file in (
                ("Resolved settings", "hyperparams.yaml"),
                ("Environment", "env.log"),
            )
        ],
    )
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _template() -> jinja2.Template:
    """The page's template; every text that it is given is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _title(results, run):
    """The run, and which files of the user's own it was tested on."""
    parts = run.resolve().parts
    if "results" in parts[:-1]:
        # A run is known by its folder below the last folder "results".
        parts = parts[len(parts) - parts[::-1].index("results") :] or parts
        name = "/".join(parts)
    else:
        name = parts[-1]
    own = results.get("own", {})
    files = [own[key] for key in ("speech_csv", "speaker_csv") if key in own]
    names = [Path(path).name for path in dict.fromkeys(files)]
    return f"{' and '.join(names)}, tested with {name}" if names else name


# Results -------------------------------------------------------------------------


def _tiles(results: Results, sets: list[MeasuredSet]) -> list[Tile]:
    """The figures that a table would quote; of own files those of every set."""
    tiles, quoted = [], list(results["headline_sets"].items())
    if "own" in results:
        every = [(r, one.name) for one in sets for r in ("wer", "eer")]
        quoted = list(dict.fromkeys(every))
    for metric, name in quoted:
        for one in sets:
            if one.name == name and metric in one.metrics:
                tiles += _tiles_of(one, metric)
    return tiles


def _tiles_of(one, metric):
    """A metric of a set, and the baseline beside it."""
    notes = []
    for rate in (metric, "cer") if metric == "wer" else (metric,):
        if rate != metric and rate in one.metrics:
            notes.append(phrase(rate, one.metrics[rate]))
        notes += _interval_note(one.intervals.get(rate))
    notes += filter(None, details(one, metric).split("; "))
    label = f"{title(metric)} on {one.label}"
    yield Tile(label, quantity(metric, one.metrics[metric]), notes)
    baseline = one.baseline
    if not baseline:
        return
    notes = ["mean of MFCCs, z-normalised, cosine: no model at all"]
    notes += _interval_note(baseline["interval"])
    notes.append(f"{baseline['eer_raw']:.2f} % without the normalisation")
    difference = baseline["difference"]
    if difference:
        notes.append(
            f"ours minus this: {difference['difference']:+.2f}, 95 % interval "
            f"{difference['low']:+.2f} to {difference['high']:+.2f}"
        )
    label = f"EER of a baseline on {one.label}"
    yield Tile(label, quantity("eer", baseline["eer"]), notes)


def _interval_note(interval):
    """An interval as a list of one text; empty where there is none."""
    return [f"95 % interval {span(interval)} %"] if interval else []


def _metric_table(task: str, sets: list[MeasuredSet]) -> Table:
    """All metrics of a task's sets; an interval stands behind each error rate."""
    sets = [one for one in sets if one.task == task]
    columns = dict.fromkeys(m for one in sets for m in one.metrics)
    columns = sorted(columns, key=[*RATES, *columns].index)
    headings = [task]
    for column in columns:
        headings.append(heading(column))
        headings += ["95 % interval"] * (column in RATES)

    def cells(name, metrics, spans):
        row = [name]
        for column in columns:
            row.append(number(column, metrics.get(column)))
            row += [spans.get(column) or NONE] * (column in RATES)
        return row

    rows = []
    for one in sets:
        spans = {rate: span(interval) for rate, interval in one.intervals.items()}
        rows.append(cells(one.name, one.metrics, spans))
        for text, eer, interval in baseline_lines(one.baseline):
            name = f"{one.name}, {text}"
            rows.append(cells(name, {"eer": eer}, {"eer": interval}))
    return Table(headings, rows)


def _group_tables(results):
    """Tables of the errors by sex, length and speaker of every set."""
    tables = []
    for name, rows in results.get("groups", {}).items():
        for by in dict.fromkeys(row["by"] for row in rows):
            kept = [row for row in rows if row["by"] == by]
            columns = [c for c in kept[0] if c not in ("by", "name")]
            cells = [
                [row["name"], *(number(c, row[c]) for c in columns)] for row in kept
            ]
            caption = f"{name}: {_GROUP_CAPTIONS[by, 'trials' in columns]}"
            tables.append(Table([by, *map(heading, columns)], cells, caption))
    return tables


def _transcripts(folder, sets):
    """Some utterances of every set that has transcripts."""
    tables = []
    for name in dict.fromkeys(one.name for one in sets):
        rows = aligned(folder, name)
        if not rows:
            continue
        speakers = speakers_of(folder, name)
        shown = chosen(rows, EXAMPLES, speakers)
        rates = [
            phrase(rate, one.metrics[rate])
            for one in sets
            for rate in RATES
            if one.name == name and rate in one.metrics
        ]
        caption = ", ".join([f"{len(shown)} of {len(rows):,} utterances", *rates])
        examples = [
            {
                "wer": f"{row['WER']:.0f}",
                "words": list(word_pairs(row)),
                "id": row["key"],
                "speaker": speakers.get(row["key"]),
            }
            for row in shown
        ]
        tables.append({"name": name, "caption": caption, "rows": examples})
    return tables


def _data_facts(results):
    """Hours, utterances and speakers of every set, and what it was computed on."""
    facts = []
    for name, data in results.get("data", {}).items():
        parts = [f"{data['hours']:,.2f} hours", f"{data['utterances']:,} utterances"]
        if data["speakers"] is not None:
            parts.append(f"{data['speakers']:,} speakers")
        facts.append((name, ", ".join(parts)))
    if "device" in results:
        facts.append(("Device", results["device"]))
    for place, size in results.get("memory", {}).items():
        facts.append((f"Most memory ({place})", f"{size / 1e9:.2f} GB"))
    for key, text in (
        ("evaluation_seconds", "Time of the test"),
        ("assessment_seconds", "Time of intervals, baseline and groups"),
        ("seconds", "Time in all"),
    ):
        if key in results:
            facts.append((text, f"{results[key]:,.1f} s"))
    return facts


# Training ------------------------------------------------------------------------


def _checkpoint_facts(results, validation):
    """What was evaluated: (name, value) pairs."""
    facts = [
        ("Checkpoint", f"{Path(results['checkpoint']).name}, step {results['step']:,}")
    ]
    values = dict(results["validation"])
    if "score" in validation:
        scores = validation.loc[validation["step"] == results["step"], "score"]
        if len(scores):
            values["score"] = scores.iloc[-1]
    shown = [phrase(name, value) for name, value in values.items()]
    if shown:
        best = results["step"] == best_step(validation)
        note = "; the lowest selection score of the run" if best else ""
        facts.append(("Its validation", ", ".join(shown) + note))
    if "training" in results:
        facts.append(("Training", str(Ending(**results["training"]))))
    facts.append(("Parameters", f"{results['parameters']:,}"))
    facts.append(("Seed", str(results["seed"])))
    return facts


def _speed_facts(training):
    """How far and how fast the training went: (name, value) pairs."""
    facts = []
    if len(training):
        facts.append(("Optimizer steps noted", f"{int(training['step'].max()):,}"))
    if "skipped_steps" in training:
        skipped = int(training["skipped_steps"].dropna().max())
        facts.append(("Skipped steps (gradient not finite)", f"{skipped:,}"))
    speeds = {"steps_per_second": "steps/s", "audio_per_second": "s of audio/s"}
    medians = [
        f"{training[name].median():,.3g} {unit}"
        for name, unit in speeds.items()
        if name in training
    ]
    if medians:
        facts.append(("Training speed (median)", ", ".join(medians)))
    if "steps_per_second" in training:
        steps = np.diff(training["step"], prepend=0)
        seconds = float((steps / training["steps_per_second"]).sum())
        facts.append(("Time in training steps", f"{seconds / 60:,.1f} minutes"))
    return facts


def _tables_over_time(results, training, validation):
    """Tables of the training and of the validations, as far as there are any."""
    losses = [column for column in training if column.endswith("_loss")]
    weights = [column for column in training if column.endswith("_weight")]
    # The weight of a single task is 1.
    weights = weights if len(weights) > 1 else []
    what = "{} of the {:,} rows of progress.jsonl."
    means = " Each holds the means over the steps of one logging interval."
    yield from _table_over_time(
        training, [*losses, *weights, "lr"], f"Training: {what}{means}"
    )
    losses = [column for column in validation if column.endswith("_loss")]
    columns = [*results["validation"], *RATES, "score", "blank_frames", *losses]
    best = best_step(validation)
    yield from _table_over_time(validation, columns, f"Validation: {what}", best)


def _table_over_time(table, columns, caption, best=None):
    """Rows evenly spread over the steps, with the ``best``, which is marked.

    No table is yielded when it has none of the columns.
    """
    columns = [name for name in dict.fromkeys(columns) if name in table]
    if not columns:
        return
    places = np.linspace(0, len(table) - 1, min(_ROWS, len(table))).round()
    kept = table.iloc[places.astype(int)]
    if best is not None and best not in kept["step"].to_numpy():
        kept = pandas.concat([kept, table[table["step"] == best][:1]]).sort_values(
            "step"
        )
    rows = []
    for row in kept.to_dict("records"):
        step = number("step", row["step"]) + " (best)" * (row["step"] == best)
        rows.append([step, *(number(name, row[name]) for name in columns)])
    headings = ["step", *map(heading, columns)]
    yield Table(headings, rows, caption.format(len(rows), len(table)))


# Files ---------------------------------------------------------------------------


def _commands(results, run):
    """The commands of training and evaluation."""
    commands = _text(run / "command.txt").splitlines()
    return [*commands[:1], results["command"]] if "command" in results else commands


def _commit(run):
    """The line of ``env.log`` that names the commit, in a list; or an empty one."""
    lines = _text(run / "env.log").splitlines()
    return [line for line in lines if line.startswith("Commit ")]


def _png(path):
    """A picture as base64; empty when it is not there."""
    try:
        return base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError:
        return ""


def _text(path):
    """A text file's content; empty when it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
