"""A run's results to read: the page ``report.html`` and a summary in the terminal.

Both are made from the files of the output folder alone, so that they can be made
again at any time; whatever is not there yet is left out.
"""

import base64
import html
import logging
import time
from pathlib import Path

import numpy as np

from lobes.errors import UserError, explanation
from lobes.evaluation.ending import Ending
from lobes.evaluation.examples import _aligned, _examples, _words
from lobes.evaluation.metrics import (
    _NONE,
    _PERCENT,
    _RATES,
    _cell,
    _heading,
    _named,
    _value,
)
from lobes.evaluation.progress import ProgressLog
from lobes.evaluation.results import speakers_of
from lobes.evaluation.summary import (
    _BASELINES,
    _all_sets,
    _interval,
    _meaning,
    _notes,
    _span,
    _stopped,
)
from lobes.system.files import read_json, write_atomically
from lobes.system.lazy import lazy

edit_distance = lazy("speechbrain.utils.edit_distance")
pandas = lazy("pandas")

logger = logging.getLogger(__name__)

#: Transcripts of each test set on the page, and in the terminal.
PAGE_EXAMPLES = 10


# Rows of the tables over time.
_ROWS = 12


# What a table of groups shows: by what, and whether its rows are of trials.
_GROUP_NOTES = {
    ("sex", False): "by the speaker's sex",
    ("length", False): "by the utterance's length, about equally many each",
    ("speaker", False): "the speakers with the highest WER",
    ("sex", True): "by the speakers' sex, at the threshold of the EER",
    ("length", True): "by the shorter utterance's length, at the threshold of the EER",
    ("speaker", True): "the speakers in whose trials most decisions are wrong, at the "
    "threshold of the EER",
}


def publish(folder, run=None):
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


def write_report(folder, run=None):
    """Write ``report.html``: one file with everything in it, and no scripts.

    Arguments
    ---------
    folder : str or Path
        An evaluation's files (``results.json`` and what lies beside it).
    run : str or Path
        The training's output folder, where that is another one.

    Returns
    -------
    Path
        The page.
    """
    folder = Path(folder)
    run = Path(run or folder)
    results = read_json(folder / "results.json", "evaluate again")
    name = _title(results, run)
    evaluated = time.localtime((folder / "results.json").stat().st_mtime)
    sections = [
        ("Results", _ended(results) + _warnings(results) + _headline(results)),
        ("All metrics", _metric_tables(results)),
        ("Errors by sex, length and speaker", _groups(results)),
        ("Transcripts", _transcripts(results, folder)),
        ("Speaker verification", _verification(results, folder)),
        ("Data and machine", _facts(_data_facts(results))),
        ("Training", _training(results, run)),
        ("How to reproduce it", _commands(results, run)),
        ("Settings and environment", _details(run)),
    ]
    body = "".join(
        f"<section><h2>{title}</h2>{content}</section>\n"
        for title, content in sections
        if content
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # The browser, too, is told to load nothing and to run nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(name)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<header><h1>{_escape(name)}</h1><p>Evaluated "
        f"{time.strftime('%Y-%m-%d %H:%M', evaluated)} from {_escape(folder)}</p>"
        f"</header>\n{body}</body>\n</html>\n"
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path


# Words and their errors ------------------------------------------------------


def _spread(rows, count):
    """``count`` of the rows, evenly spread, the first and the last among them."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows)))
    return [rows[place] for place in places.round().astype(int)]


def _marked_html(row):
    """An utterance with its errors as del and ins elements, substitutions as both."""
    pieces = []
    for said, heard in _words(row):
        if said == heard:
            pieces.append(_escape(said))
        elif heard is None:
            pieces.append(f"<del>{_escape(said)}</del>")
        elif said is None:
            pieces.append(f"<ins>{_escape(heard)}</ins>")
        else:
            pieces.append(
                f'<span class="sub"><del>{_escape(said)}</del> '
                f"<ins>{_escape(heard)}</ins></span>"
            )
    return " ".join(pieces)


# The summary -----------------------------------------------------------------


# The page --------------------------------------------------------------------


def _title(results, run):
    """The run, and which files of the user's own it was tested on."""
    own = results.get("own")
    if not own:
        return _run_name(run)
    names = [own.get(name) for name in ("speech_csv", "speaker_csv")]
    files = [Path(path).name for path in dict.fromkeys(filter(None, names))]
    return f"{' and '.join(files)}, tested with {_run_name(run)}"


def _ended(results):
    """A box when the training did not take all of its steps."""
    lines = [line for line in _stopped(results) if line.strip("= ")]
    return f'<p class="stopped">{_escape(" ".join(lines))}</p>' if lines else ""


def _warnings(results):
    """A box with everything that makes the figures doubtful."""
    lines = [f"<li>{_escape(text)}</li>" for text in results.get("warnings", ())]
    return f'<ul class="warnings">{"".join(lines)}</ul>' if lines else ""


def _run_name(run):
    """The run's folder as named below ``results``."""
    parts = run.resolve().parts
    if "results" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("results")
        parts = parts[last + 1 :] or parts
        return "/".join(parts)
    return parts[-1]


def _headline(results):
    """The figures that a table would quote, large; of own files those of every set."""
    tiles, sets = [], _all_sets(results)
    quoted = list(results["headline_sets"].items())
    if "own" in results:
        quoted = [(r, n) for n, m in sets.items() for r in ("wer", "eer") if r in m]
    for metric, name in quoted:
        if metric not in sets.get(name, {}):
            continue
        rates = [metric, "cer"] if metric == "wer" else [metric]
        notes = []
        for rate in rates:
            span = _interval(results, name, rate)
            if rate != metric and rate in sets[name]:
                notes.append(_named(rate, sets[name][rate]))
            notes += [f"95 % interval {span} %"] if span else []
        notes += _notes(sets[name]).split("; ")
        label = f"{_heading(metric).removesuffix(_PERCENT)} on {name}"
        tiles.append(_tile(label, _value(metric, sets[name][metric]), notes))
        baseline = results.get("baselines", {}).get(name)
        if baseline:
            tiles.append(_baseline_tile(name, baseline))
    meaning = "".join(f"<p>{_escape(text)}.</p>" for text in _meaning(results))
    return f'<div class="tiles">{"".join(tiles)}</div>{meaning}' if tiles else ""


def _baseline_tile(name, baseline):
    """What mean MFCCs reach, large."""
    notes = ["mean of MFCCs, z-normalised, cosine: no model at all"]
    span = _span(baseline["interval"])
    notes += [f"95 % interval {span} %"] if span else []
    notes.append(f"{baseline['eer_raw']:.2f} % without the normalisation")
    difference = baseline["difference"]
    if difference:
        notes.append(
            f"ours minus this: {difference['difference']:+.2f}, 95 % interval "
            f"{difference['low']:+.2f} to {difference['high']:+.2f}"
        )
    return _tile(f"EER of a baseline on {name}", _value("eer", baseline["eer"]), notes)


def _tile(label, value, notes):
    """One large figure, what it is, and what belongs to it."""
    lines = "".join(f"<div>{_escape(note)}</div>" for note in notes if note)
    return (
        f'<div class="tile"><div class="label">{_escape(label)}</div>'
        f'<div class="value">{_escape(value)}</div>{lines}</div>'
    )


def _metric_tables(results):
    """All metrics of all sets, a table for each task."""
    tables = []
    for task, sets in results["sets"].items():
        columns = list(dict.fromkeys(m for metrics in sets.values() for m in metrics))
        first = [name for name in _RATES if name in columns]
        columns = [*first, *(name for name in columns if name not in first)]
        rows = []
        for name, metrics in sets.items():
            spans = [_interval(results, name, rate) or _NONE for rate in first]
            cells = [_cell(c, metrics.get(c)) for c in columns]
            rows.append([name, *_beside(cells, spans)])
            baseline = results.get("baselines", {}).get(name, {})
            for key, title in _BASELINES.items():
                if key in baseline:
                    found = {"eer": baseline[key]}
                    cells = [_cell(c, found.get(c)) for c in columns]
                    span = _span(baseline["interval"]) if key == "eer" else ""
                    spans = [
                        span or _NONE if rate == "eer" else _NONE for rate in first
                    ]
                    rows.append([f"{name}, {title}", *_beside(cells, spans)])
        spans = ["95 % interval"] * len(first)
        headings = [task, *_beside(list(map(_heading, columns)), spans)]
        tables.append(_table(headings, rows))
    return "".join(tables)


def _beside(cells, spans):
    """Cells with the intervals of the first ones behind them."""
    pairs = [cell for pair in zip(cells, spans, strict=False) for cell in pair]
    return [*pairs, *cells[len(spans) :]]


def _groups(results):
    """Tables of the errors by sex, length and speaker of every set."""
    tables = []
    for name, rows in results.get("groups", {}).items():
        for by in dict.fromkeys(row["by"] for row in rows):
            kept = [row for row in rows if row["by"] == by]
            columns = [c for c in kept[0] if c not in ("by", "name")]
            cells = [
                [row["name"], *(_cell(c, row[c]) for c in columns)] for row in kept
            ]
            note = _GROUP_NOTES[by, "trials" in columns]
            tables.append(
                _table([by, *map(_heading, columns)], cells, f"{name}: {note}")
            )
    return "".join(tables)


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


def _transcripts(results, folder):
    """Some utterances of every set, their errors marked, and a legend."""
    tables = []
    for name, metrics in _all_sets(results).items():
        rows = _aligned(folder, name)
        if not rows:
            continue
        speakers = speakers_of(folder, name)
        chosen = _examples(rows, PAGE_EXAMPLES, speakers)
        cells = "".join(
            f'<tr><td class="number">{row["WER"]:.0f}&nbsp;%</td>'
            f"<td>{_marked_html(row)}<br><code>{_escape(row['key'])}"
            f"{_by(speakers.get(row['key']))}</code></td></tr>"
            for row in chosen
        )
        wer = "".join(f", {_named(r, metrics[r])}" for r in _RATES if r in metrics)
        tables.append(
            f"<h3>{_escape(name)}</h3><p>{len(chosen)} of {len(rows):,} utterances"
            f"{wer}: from the worst to the best, evenly spread over the error rate.</p>"
            '<table class="texts"><thead><tr><th class="number">WER</th>'
            f"<th>words</th></tr></thead><tbody>{cells}</tbody></table>"
        )
    if not tables:
        return ""
    return (
        '<p class="legend"><del>missed</del> was said and not recognised (deletion); '
        "<ins>added</ins> was recognised and not said (insertion); "
        '<span class="sub"><del>said</del> <ins>recognised</ins></span> is a '
        "substitution.</p>" + "".join(tables)
    )


def _by(speaker):
    """Who said it, where that is known."""
    return f", speaker {_escape(speaker)}" if speaker else ""


def _verification(results, folder):
    """DET curves and score histograms of the trial lists."""
    lists = [name for name, m in _all_sets(results).items() if "eer" in m]
    pictures = []
    if lists:
        pictures.append(
            _picture(
                folder / "det.png",
                "Detection error trade-off: false rejections against false "
                "acceptances as the threshold moves; nearer to the lower left is "
                "better, the dot is the EER.",
                "narrow",
            )
        )
    for name in lists:
        pictures.append(
            _picture(
                folder / f"histogram_{name}.png",
                f"Scores of {name}: the less the two distributions overlap, the "
                "better.",
            )
        )
    return "".join(pictures)


def _training(results, run):
    """The checkpoint, the speed, the curves, and tables over time."""
    training, validation = ProgressLog(run).tables()
    pieces = [
        _facts(_checkpoint_facts(results, validation) + _speed_facts(training)),
        _picture(
            run / "curves.png",
            "Losses, the tasks' weights in the sum of losses, learning rate, and "
            "validation metrics over the optimizer steps.",
        ),
        _training_table(training),
        _validation_table(results, validation),
    ]
    return "".join(pieces)


def _checkpoint_facts(results, validation):
    """What was evaluated: (name, value) pairs."""
    facts = [
        ("Checkpoint", f"{Path(results['checkpoint']).name}, step {results['step']:,}")
    ]
    values = dict(results["validation"])
    if "score" in validation:
        found = validation.loc[validation["step"] == results["step"], "score"]
        if len(found):
            values["score"] = found.iloc[-1]
    shown = [_named(name, value) for name, value in values.items()]
    if shown:
        best = results["step"] == _best_step(validation)
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


def _training_table(training):
    """Losses, weights and learning rate at some steps."""
    losses = [column for column in training if column.endswith("_loss")]
    weights = [column for column in training if column.endswith("_weight")]
    # The weight of a single task is 1.
    weights = weights if len(weights) > 1 else []
    columns = ["step", *losses, *weights, *({"lr"} & set(training))]
    if len(columns) == 1:
        return ""
    rows = _spread(training[columns].to_dict("records"), _ROWS)
    return _table(
        [_heading(name) for name in columns],
        [[_cell(name, row[name]) for name in columns] for row in rows],
        f"Training: {len(rows)} of the {len(training):,} rows of progress.jsonl. Each "
        "holds the means over the steps of one logging interval.",
    )


def _validation_table(results, validation):
    """Metrics and losses at some validations, the best among them and marked."""
    losses = [column for column in validation if column.endswith("_loss")]
    wanted = [*results["validation"], *_RATES, "score", "blank_frames", *losses]
    columns = [name for name in dict.fromkeys(wanted) if name in validation]
    if not columns:
        return ""
    best = _best_step(validation)
    rows = _spread(validation[["step", *columns]].to_dict("records"), _ROWS)
    if best is not None and best not in [row["step"] for row in rows]:
        kept = validation["step"] == best
        rows += validation.loc[kept, ["step", *columns]].to_dict("records")[:1]
        rows.sort(key=lambda row: row["step"])
    cells = []
    for row in rows:
        mark = " (best)" if row["step"] == best else ""
        step = _cell("step", row["step"]) + mark
        cells.append([step, *(_cell(name, row[name]) for name in columns)])
    return _table(
        ["step", *map(_heading, columns)],
        cells,
        f"Validation: {len(rows)} of the {len(validation):,} rows of progress.jsonl.",
    )


def _best_step(validation):
    """Step of the lowest selection score, None where there is none."""
    if "score" not in validation or validation["score"].isna().all():
        return None
    return validation.loc[validation["score"].idxmin(), "step"]


def _commands(results, run):
    """The commands of training and evaluation."""
    commands = (_read(run / "command.txt") or "").splitlines()
    if "command" in results:
        commands = [*commands[:1], results["command"]]
    if not commands:
        return ""
    environment = _read(run / "env.log") or ""
    commit = [line for line in environment.splitlines() if line.startswith("Commit ")]
    return (
        "".join(f"<pre>{_escape(line)}</pre>" for line in commands)
        + "<p>In a folder with a finished training, train.py only evaluates again: "
        "give another --output_folder to train anew.</p>"
        + "".join(f"<p>{_escape(line)}.</p>" for line in commit)
    )


def _details(run):
    """The stored settings and environment, folded."""
    pieces = []
    for file, title in (
        ("hyperparams.yaml", "Resolved settings"),
        ("env.log", "Environment"),
    ):
        text = _read(run / file)
        if text:
            pieces.append(
                f"<details><summary>{title} ({file})</summary>"
                f"<pre>{_escape(text)}</pre></details>"
            )
    return "".join(pieces)


def _facts(facts):
    """A description list."""
    rows = "".join(
        f"<dt>{_escape(name)}</dt><dd>{_escape(value)}</dd>" for name, value in facts
    )
    return f"<dl>{rows}</dl>" if rows else ""


def _table(headings, rows, caption=""):
    """An HTML table; all columns but the first hold numbers."""
    first, *others = headings
    head = f"<th>{_escape(first)}</th>" + "".join(
        f'<th class="number">{_escape(heading)}</th>' for heading in others
    )
    lines = "".join(
        f"<tr><td>{_escape(name)}</td>"
        + "".join(f'<td class="number">{_escape(cell)}</td>' for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    caption = f"<caption>{_escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _picture(path, caption, shape=""):
    """A PNG as part of the page; nothing when it is not there."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    data = base64.b64encode(content).decode("ascii")
    caption = _escape(caption)
    return (
        f'<figure class="{shape}"><img alt="{caption}" '
        f'src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption>'
        "</figure>"
    )


def _read(path):
    """A text file's content, None when there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _escape(text):
    """Text that HTML shows as it is."""
    return html.escape(str(text))


# Colours are pairs that stay apart for colour-blind readers; del and ins differ
# by their lines, too. Pictures keep the white background they were drawn on.
_STYLE = """
:root {
  color-scheme: light dark;
  --text: #1c1e21; --quiet: #5c6370; --page: #ffffff; --card: #f4f5f7;
  --line: #d9dce1; --del: #a83200; --del-back: #fdeae1; --ins: #00568a;
  --ins-back: #e0f0fa;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e4e6ea; --quiet: #9da3ae; --page: #17191c; --card: #22252a;
    --line: #3a3f47; --del: #ff9e73; --del-back: #46261a; --ins: #7cc8f5;
    --ins-back: #16364a;
  }
}
* { box-sizing: border-box; }
body {
  max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem;
  color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 {
  font-size: 1.25rem; margin: 2.75rem 0 1rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line);
}
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; }
p { margin: .5rem 0; }
header p { color: var(--quiet); overflow-wrap: anywhere; }
.tiles {
  display: grid; gap: 1rem; margin-bottom: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr));
}
.tile {
  padding: 1rem 1.25rem; background: var(--card); border-radius: .5rem;
  border: 1px solid var(--line); font-size: .8125rem; color: var(--quiet);
}
.tile .label { font-size: .875rem; font-weight: 600; color: var(--text); }
.tile .value {
  font-size: 2.25rem; line-height: 1.3; font-weight: 600; color: var(--text);
}
.wide { overflow-x: auto; margin: 1.25rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
caption { text-align: left; color: var(--quiet); padding-bottom: .4rem; }
th, td {
  padding: .35rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line);
}
th { vertical-align: bottom; border-bottom: 2px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.texts td { font-size: 1rem; }
.texts .number { width: 5rem; }
code { font-size: .75rem; color: var(--quiet); }
del, ins { padding: 0 .2em; border-radius: .2em; }
del {
  color: var(--del); background: var(--del-back); text-decoration: line-through;
}
ins {
  color: var(--ins); background: var(--ins-back);
  text-decoration: underline; text-underline-offset: .2em;
}
.sub {
  display: inline-block; padding: 0 .15em; border: 1px dashed var(--quiet);
  border-radius: .25em;
}
.warnings, .stopped {
  padding: .75rem 1.25rem; margin: 0 0 1rem; border-radius: .5rem;
  border: 1px solid var(--del); background: var(--del-back); color: var(--del);
}
.warnings { padding-left: 2.25rem; }
.stopped { font-weight: 600; }
.legend { color: var(--quiet); }
figure { margin: 1.5rem 0; text-align: center; break-inside: avoid; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: .4rem; }
.narrow img { max-width: min(100%, 36rem); }
figcaption { font-size: .875rem; color: var(--quiet); text-align: left; }
dl {
  display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem;
  margin: 0; font-size: .9375rem;
}
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
pre {
  padding: .75rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; font: .8125rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
details { margin: .75rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } }
@media print {
  :root {
    color-scheme: light;
    --text: #000000; --quiet: #444444; --page: #ffffff; --card: #ffffff;
    --line: #bbbbbb; --del: #a83200; --del-back: transparent; --ins: #00568a;
    --ins-back: transparent;
  }
  body { max-width: none; padding: 0; font-size: 11pt; }
  h2, h3 { break-after: avoid; }
  tr, .tile { break-inside: avoid; }
  .wide { overflow: visible; break-inside: avoid; }
  /* A tall picture stays on one page, with its caption. */
  img { max-height: 17cm; width: auto; }
  .narrow img { max-width: 11cm; }
}
"""
