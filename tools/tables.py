"""Tables and figures from a ledger, with the paper's figures beside ours.

    python tools/tables.py paper [--ledger=FILE] [--steps=5000 ...]
    python tools/tables.py grid grids/demo.yaml [options of the grid]
    python tools/tables.py compare A B
    python tools/tables.py readme

Of several learning rates the one with the lowest validation score, WER / 4 + EER, is
taken; its test results count, as in the paper (section 4.2). Several seeds give means
and standard deviations. "-" stands for what has not been run.
"""

import collections
import functools
import itertools
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lobes.errors import ArgumentParser, UserError, user_errors_exit
from lobes.evaluation.metrics import RATES
from lobes.evaluation.progress import ProgressLog
from lobes.evaluation.significance import MEANING, compare_eer, compare_words
from lobes.runs import cost, ledger
from lobes.runs.grids import Grid, latest, members, read_grid, same_but
from lobes.settings import yamls
from lobes.settings.table import PATH, counts
from lobes.system.checkout import ROOT
from lobes.system.files import write_atomically
from lobes.system.lazy import lazy

nn = lazy("torch.nn")
pandas = lazy("pandas")
plots = lazy("lobes.evaluation.plots")

Row = ledger.Row

#: The training that counts of every run, by ``ledger.key``.
Runs = dict[str, Row]

PAPER = ROOT / "docs" / "paper"

#: Runs whose results the documents show.
PUBLISHED = ROOT / "docs" / "ledger.jsonl"

TITLES = {
    "table1": "Table 1: single tasks, and both with mean pooling (test)",
    "table2": "Table 2: embedding strategies, 9 s, dynamic weights (test)",
    "table3": "Table 3: layers that both tasks share (test)",
    "table4": "Table 4: learning rates with mean pooling (validation)",
    "table5": "Table 5: learning rates of the embedding strategies (validation)",
    "table6": "Table 6: learning rates of the branched encoder (validation)",
}
TEST_TABLES = ("table1", "table2", "table3")

#: Figures 3 and 4: the grid, and where the paper clips diverged values (percent).
FIGURES = {"figure3": {"wer": 15.5}, "figure4": {"eer": 8.0}}

#: Settings that do not make another system of a run: the rate that is searched, and
#: how it is computed.
IGNORED = ("lr", "precision", "encoder.gradient_checkpointing")

#: Rows of the table in README.md: name, recipe, variant.
README_ROWS = (
    ("speech alone", "LibriSpeech/ASR", "asr"),
    ("speakers alone, 3 s", "VoxCeleb/SpeakerRec", "speaker"),
    ("both, 9 s, dynamic weights", "LibriSpeech_VoxCeleb/MTL", "mtl"),
    ("both, 3 s, dynamic weights", "LibriSpeech_VoxCeleb/MTL", "mtl_3s"),
    ("both, first+cls", "LibriSpeech_VoxCeleb/MTL", "pool_first_cls"),
    ("both, 9 shared layers", "LibriSpeech_VoxCeleb/MTL", "branch_9"),
)

_METRICS = ("wer", "eer")

#: Means and deviations of ``summary``, and what tables of a grid call them.
_OURS = {f"{m}{end}": f"our_{m}{end}" for m in RATES for end in ("", "_std")}


@user_errors_exit
def main(argv: Sequence[str] | None = None):
    """The command; see the module's docstring."""
    parser = ArgumentParser(
        description="Write tables and figures of the runs in a ledger.",
        epilog="paper and grid take further --key=value, as given to the runs.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("paper", "the paper's Tables 1 to 6, Figures 3 and 4"),
        ("grid", "a grid's selected systems, all its rates, and curves of its runs"),
        ("compare", "two runs: settings, metrics, significance"),
        ("readme", "the tables within README.md and docs"),
    ):
        sub = commands.add_parser(name, help=text)
        if name == "grid":
            sub.add_argument("files", nargs="+", help="grids, or YAMLs of recipes")
        if name == "compare":
            for side in ("first", "second"):
                sub.add_argument(side, help="results folder, or the end of its path")
        if name == "readme":
            sub.add_argument("--check", action="store_true", help="only look")
            continue
        sub.add_argument("--ledger", type=PATH, default=str(ledger.DEFAULT))
        sub.add_argument(
            "--output", type=PATH, default=str(ROOT / "results" / "tables")
        )
    options, overrides = parser.parse_known_args(argv)
    if overrides and options.command not in ("paper", "grid"):
        raise UserError(f"{overrides[0]} is no option of {options.command}")
    if options.command == "readme":
        return readme(options.check)
    runs = latest(options.ledger)
    output = Path(options.output)
    if options.command == "paper":
        texts = paper(runs, overrides, output)
    elif options.command == "grid":
        texts = grid(runs, read_grid(options.files, overrides), output)
    else:
        texts = [compare(runs, options.first, options.second)]
    text = "\n".join(texts)
    write_atomically(output / f"{options.command}.md", text)
    print(text)
    print(f"Written to {output}")


# Tables -----------------------------------------------------------------------


def paper(runs: Runs, overrides: Sequence[str], output: Path) -> list[str]:
    """Write the paper's tables and figures; returns the tables as Markdown."""
    texts = []
    for name, title in TITLES.items():
        table = paper_table(name, runs, overrides)
        write_atomically(output / f"{name}.csv", table.to_csv(index=False))
        texts.append(f"## {title}\n\n{markdown(table)}")
        write_atomically(output / f"{name}.md", texts[-1])
        if name not in TEST_TABLES:
            _plot(output / f"{name}.png", _rates_of(table))
    for name, clip in FIGURES.items():
        found = read_grid([ROOT / "grids" / f"{name}.yaml"], overrides)
        _plot(output / f"{name}.png", all_rates(systems(runs, found)), clip)
    return texts


def paper_table(
    name: str, runs: Runs, overrides: Sequence[str] = ()
) -> "pandas.DataFrame":
    """One of the paper's tables with ours beside it, as a DataFrame."""
    given = pandas.read_csv(PAPER / f"{name}.csv", dtype=str, keep_default_na=False)
    words = [w for w in overrides if counts(w[2:].partition("=")[0], "named")]
    is_test = name in TEST_TABLES
    rows = []
    for row in given.to_dict("records"):
        recipe, variant = row.pop("recipe"), row.pop("variant")
        metrics = [m for m in ("wer", "eer", "score") if m in row]
        paper_values = {m: float(row.pop(m) or "nan") for m in metrics}
        steps = row.pop("steps", "")
        long = ["--steps=320000"] if steps == "320000" else []
        found = _runs_of(runs, recipe, variant, (*words, *long))
        if is_test:
            ours = summary(selected(found), "test")
        else:
            row["lr"] = float(row["lr"])
            ours = summary(by_rate(found).get(_rate(row["lr"]), []), "valid")
        for metric, value in paper_values.items():
            row[f"paper_{metric}"] = value
            row[f"our_{metric}"] = ours[metric]
            row[f"our_{metric}_std"] = ours[f"{metric}_std"]
            row[f"difference_{metric}"] = ours[metric] - value
        if is_test:
            row["lr"] = ours["lr"]
        row["steps"] = ours["steps"] if ours["seeds"] else float(steps or "nan")
        row["seeds"], row["diverged"] = ours["seeds"], ours["diverged"]
        if is_test:
            row["parameters"] = parameters(recipe, variant, tuple(words))
        rows.append(row)
    return pandas.DataFrame(rows)


def grid(runs: Runs, found: Grid, output: Path) -> list[str]:
    """Write a grid's tables, figure and curves; returns the tables as Markdown."""
    named = systems(runs, found)
    texts = []
    for name, table in grid_tables(named).items():
        write_atomically(output / f"grid_{name}.csv", table.to_csv(index=False))
        texts.append(f"## {name.capitalize()}\n\n{markdown(table)}")
    table = all_rates(named)
    if table["lr"].nunique() != 1:
        _plot(output / "learning_rates.png", table)
    for name, rows in named.items():
        for row in rows:
            slug = re.sub(r"[^\w.+=]+", "_", f"{name}_lr={row['lr']:g}_{row['seed']}")
            _plot_run(output / "curves" / f"{slug}.png", ROOT / row["output_folder"])
    return texts


def grid_tables(named: dict[str, list[Row]]) -> dict[str, "pandas.DataFrame"]:
    """``selected`` systems with their test results, and ``validation`` of all rates."""
    rows = []
    for name, found in named.items():
        best = summary(selected(found), "test")
        rows.append({"system": name, **best, "minutes": best["total_seconds"] / 60})
    columns = ["system", "lr", *_OURS, "score", "steps", "seeds", "diverged"]
    columns += ["parameters", "minutes"]
    tables = {"selected": pandas.DataFrame(rows, columns=columns)}
    rates = all_rates(named)
    if len(rates):
        tables["validation"] = rates
    for name, table in tables.items():
        if table["cer"].isna().all():
            # As in old ledgers.
            table = table.drop(columns=["cer", "cer_std"])
        tables[name] = table.rename(columns=_OURS)
    return tables


def all_rates(named: dict[str, list[Row]]) -> "pandas.DataFrame":
    """Validation results of every learning rate of every system, as a DataFrame."""
    rows = [
        {"system": name, **summary(group, "valid")}
        for name, rows in named.items()
        for group in by_rate(rows).values()
    ]
    columns = ["system", "lr", *_OURS, "score", "steps", "seeds", "diverged"]
    return pandas.DataFrame(rows, columns=columns)


def systems(runs: Runs, found: Grid) -> dict[str, list[Row]]:
    """``{name: runs}`` of a grid; a system is a run with all values but the rate.

    Every seed in the ledger counts, whatever the grid's are, and so does every way to
    compute (``IGNORED``) that the grid itself does not go through.
    """
    wanted = members(found, fill=True, many=True)
    ignored = {
        name
        for name in IGNORED
        if name != "lr" and len({str(m.changes.get(name)) for m in wanted}) == 1
    }
    done = collections.defaultdict(list)
    for row in runs.values():
        if row["state"] in ledger.DONE:
            done[same_but(row, ignored)].append(row)
    named = {}
    for member in wanted:
        values = {k: v for k, v in member.values.items() if k not in ("lr", "seed")}
        name = ", ".join([member.run, *(f"{k}={v}" for k, v in values.items())])
        named.setdefault(name, []).extend(done.pop(same_but(vars(member), ignored), ()))
    return named


def by_rate(rows: list[Row]) -> dict[str, list[Row]]:
    """``{learning rate: runs}``, the lowest rate first."""
    rows = sorted(rows, key=lambda row: row["lr"])
    groups = itertools.groupby(rows, lambda row: _rate(row["lr"]))
    return {rate: list(group) for rate, group in groups}


def selected(rows: list[Row]) -> list[Row]:
    """The runs, one for each seed, of the rate with the best mean validation score.

    A diverged run's score is infinite, whatever an earlier checkpoint of it had; where
    every rate has such runs, the one with the smallest part of them is taken.
    """

    def rank(group):
        known = [row for row in group if row["state"] != "diverged"]
        scores = [row["score"] for row in known if row.get("score") is not None]
        mean = sum(scores) / len(scores) if scores else math.inf
        return 1 - len(scores) / len(group), mean

    return min(by_rate(rows).values(), key=rank, default=[])


def summary(rows: list[Row], kind: str) -> dict[str, float]:
    """Means and standard deviations over runs, ``test`` or ``valid`` results."""
    names = ("score", "lr", "steps", "parameters", "total_seconds")
    results = (row if kind == "test" else row.get("validation", {}) for row in rows)
    frame = pandas.DataFrame(
        [
            {n: row.get(n) for n in names} | {m: found.get(m) for m in RATES}
            for row, found in zip(rows, results, strict=True)
        ],
        columns=[*RATES, *names],
        dtype=float,
    )
    means, stds = frame.mean(), frame.std()
    return {
        **means.to_dict(),
        **{f"{name}_std": stds[name] for name in (*RATES, "score")},
        "seeds": len(rows),
        "diverged": sum(row["state"] == "diverged" for row in rows),
    }


def _runs_of(runs, recipe, variant, words):
    """All done runs of a variant with these settings, whatever their rate."""
    wanted = _system(recipe, variant, words)
    return [
        row
        for row in runs.values()
        if row["variant"] == variant
        and row["state"] in ledger.DONE
        and same_but(row, IGNORED) == wanted
    ]


@functools.cache
def _system(recipe, variant, words):
    """A variant with these words as ``same_but`` tells it."""
    member = members(Grid({variant: [_yaml(recipe, variant)]}, {}, words), fill=True)[0]
    return same_but(vars(member), IGNORED)


def _yaml(recipe, variant):
    return str(ROOT / "recipes" / recipe / "hparams" / f"{variant}.yaml")


@functools.cache
def parameters(recipe: str, variant: str, words: tuple[str, ...] = ()) -> int:
    """Parameters of a variant's model, counted on torch's meta device."""
    hparams = cost.load(_yaml(recipe, variant), words)
    modules = nn.ModuleList([hparams["encoder"], *hparams["tasks"].values()])
    return sum(p.numel() for p in modules.parameters())


def _rate(value):
    """A learning rate as text of three digits, by which equal ones are known.

    >>> _rate(0.0000562), _rate(1e-4)
    ('5.62e-5', '1e-4')
    """
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}"


# Markdown ---------------------------------------------------------------------


def markdown(table: "pandas.DataFrame") -> str:
    """A table of this module as Markdown."""
    hidden = {c for c in table if c.endswith("_std") or c == "diverged"}
    shown = [column for column in table if column not in hidden]
    rows = [[_cell(n, row) for n in shown] for row in table.to_dict("records")]
    return _lined(map(_heading, shown), rows) + "\n"


def _lined(headings, rows):
    """Headings and rows of cells as a table of Markdown."""
    first, *rest = [f"| {' | '.join(cells)} |" for cells in (headings, *rows)]
    return "\n".join([first, "|---" * (first.count(" | ") + 1) + "|", *rest])


def _heading(name):
    name = re.sub("^difference_.*", "difference", name)
    name = re.sub(rf"_({'|'.join(RATES)})$", lambda end: end[0].upper(), name)
    return name.replace("_", " ")


def _cell(name, row):
    """One value; "-" for a run that has not been made."""
    value = row[name]
    if isinstance(value, str):
        return value
    if name == "seeds":
        note = f" ({row['diverged']} diverged)" if row["diverged"] else ""
        return f"{value}{note}" if value else "-"
    if pandas.isna(value):
        metric = name.rpartition("_")[2]
        # A single-task system has no such metric: leave the cell empty.
        told = not pandas.isna(row.get(f"paper_{metric}", 0.0))
        absent = row.get("seeds") and metric in RATES
        return "-" if told and not absent and not name.startswith("paper") else ""
    if name in ("steps", "parameters"):
        return f"{value:,.0f}"
    if name == "lr":
        return _rate(value)
    if name == "minutes":
        return f"{value:.1f}"
    if name.startswith("difference"):
        return f"{value:+.2f}"
    return _with_spread(value, row.get(f"{name}_std"))


def _with_spread(mean, std, digits=2):
    note = "" if pandas.isna(std) else f" ± {std:.{digits}f}"
    return f"{mean:.{digits}f}{note}"


# Figures ----------------------------------------------------------------------


def _rates_of(table):
    """A table of learning rates, as ``plots.learning_rates_figure`` wants it."""
    names = table.columns[: list(table.columns).index("lr")]
    units = {"speaker_seconds": " s", "shared_layers": " shared layers"}
    systems = [
        ", ".join(row[n] + units.get(n, "") for n in names if row[n] not in ("", "-"))
        for row in table.to_dict("records")
    ]
    ours = {name: column for column, name in _OURS.items()}
    return table.assign(system=systems).rename(columns=ours)


def _plot(path, table, clip=None):
    """Figure of the learning rates, where there are any of ours."""
    if not table[list(_METRICS)].notna().any(axis=None):
        print(f"{path.name} is not drawn: the ledger has none of its runs")
        return
    # A diverged run is drawn at the edge, whatever its validations were.
    lost = table["diverged"] == table["seeds"]
    worst = {
        metric: table[metric].mask(lost & table[metric].notna(), ledger.WORST[metric])
        for metric in _METRICS
    }
    plots.plot_learning_rates(path, table.assign(**worst), clip)


def _plot_run(path, folder):
    """A run's curves, where its folder is still there."""
    training, validation = ProgressLog(folder).tables()
    if not len(training):
        return
    names = {"step", *RATES, "score"}
    kept = [c for c in validation if c in names or c.endswith("_loss")]
    plots.plot_curves(path, training, validation[kept])


# Two runs ---------------------------------------------------------------------


def compare(runs: Runs, first: str, second: str) -> str:
    """Differences of two runs in settings and metrics, as Markdown.

    A name may fit several seeds: their means are compared, and those of the same seed
    (else the first of each) are tested.
    """
    pair = [_find(runs, name) for name in (first, second)]
    text = [f"# {first} and {second}\n", "## Settings\n", _settings(pair)]
    text += ["\n## Metrics\n", _metrics(pair)]
    text += ["\n## Significance\n", _significance(pair)]
    return "\n".join(text)


def _find(runs, name):
    """The done runs whose folder's path ends in ``name``, with or without the seed."""
    wanted = Path(name).parts
    if Path(name).is_dir():
        wanted = Path(name).resolve().parts[-4:]

    def fits(row):
        folder = Path(row["output_folder"])
        return wanted in [f.parts[-len(wanted) :] for f in (folder, folder.parent)]

    found = [r for r in runs.values() if r["state"] in ledger.DONE and fits(r)]
    if not found:
        names = sorted({Path(r["output_folder"]).parent.name for r in runs.values()})
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise UserError(f"no run in the ledger is {name}; there are {shown}")
    if len({same_but(row, ()) for row in found}) > 1:
        raise UserError(f"{name} fits several systems; give more of the folder's path")
    return sorted(found, key=lambda row: row["seed"])


def _settings(pair):
    """Table of the settings that differ."""
    paths = [ROOT / r[0]["output_folder"] / "hyperparams.yaml" for r in pair]
    if all(path.is_file() for path in paths):
        trees = [
            {n: ledger.plain(v) for n, v in tree.items() if counts(n, "compared")}
            for tree in map(yamls.read, paths)
        ]
    else:
        trees = [{"variant": r[0]["variant"], **r[0]["changes"]} for r in pair]
    rows = [
        [name, *(json.dumps(tree[name]) if name in tree else "-" for tree in trees)]
        for name in trees[0] | trees[1]
        if trees[0].get(name) != trees[1].get(name)
    ]
    return _lined(("setting", "first", "second"), rows) if rows else "None differ."


def _metrics(pair):
    """Table of the metrics that both have, means over seeds."""
    frames = [
        pandas.DataFrame(
            [
                {
                    (name, metric): value
                    for sets in row.get("sets", {}).values()
                    for name, metrics in sets.items()
                    for metric, value in metrics.items()
                    if metric in RATES or metric.startswith("min_dcf")
                }
                for row in rows
            ]
        )
        for rows in pair
    ]
    rows = []
    for column in frames[0].columns.intersection(frames[1].columns, sort=False):
        digits = 2 if column[1] in RATES else 3
        values = [frame[column] for frame in frames]
        cells = [_with_spread(v.mean(), v.std(), digits) for v in values]
        difference = values[1].mean() - values[0].mean()
        rows.append([*column, *cells, f"{difference:+.{digits}f}"])
    seeds = [", ".join(str(row["seed"]) for row in rows) for rows in pair]
    text = _lined(("set", "metric", "first", "second", "difference"), rows)
    return f"{text}\n\nSeeds: {seeds[0]} and {seeds[1]}."


def _significance(pair):
    """Table of paired bootstraps of the sets that both folders have."""
    seeds = [{row["seed"]: row for row in rows} for rows in pair]
    common = sorted(seeds[0].keys() & seeds[1].keys())
    one, other = [s[common[0]] for s in seeds] if common else [rows[0] for rows in pair]
    folders = [ROOT / row["output_folder"] for row in (one, other)]
    rows = []
    for pattern, metric, test in (
        ("transcripts_*.csv", "WER", compare_words),
        ("transcripts_*.csv", "CER", functools.partial(compare_words, metric="cer")),
        ("scores_*.txt", "EER", compare_eer),
    ):
        for path in sorted(folders[0].glob(pattern)):
            twin = folders[1] / path.name
            found = test(path, twin) if twin.is_file() else None
            if found is None:
                continue
            extent = f"{found.low:+.2f} to {found.high:+.2f}"
            cells = [path.stem.partition("_")[2], metric, f"{found.difference:+.2f}"]
            cells += [extent, f"{found.p:.3g}", f"{found.count:,} {found.over}"]
            rows.append(cells)
    if not rows:
        return "Their folders hold no evaluation of the same set."
    return (
        f"Seeds {one['seed']} and {other['seed']}; percent points, second minus first; "
        f"{MEANING}.\n\n"
        + _lined(("set", "metric", "difference", "95 %", "p", "over"), rows)
    )


# Documents --------------------------------------------------------------------


def readme(check: bool = False) -> int:
    """Write the tables within the documents; with ``check`` only name the stale ones.

    Returns the exit status: 1 when ``check`` finds a stale one.
    """
    stale = {p: text for p, text in documents().items() if p.read_text() != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)}: {'stale' if check else 'written'}")
        if not check:
            write_atomically(path, text)
    return int(check and bool(stale))


def documents() -> dict[Path, str]:
    """``{path: text}`` of the documents with today's tables."""
    runs = latest(PUBLISHED)
    texts = {ROOT / "README.md": {"results": _readme_table(runs)}}
    found = systems(runs, read_grid([ROOT / "grids" / "demo.yaml"]))
    tables = {f"demo {n}": markdown(t) for n, t in grid_tables(found).items()}
    texts[ROOT / "docs" / "grid.md"] = tables
    done = {}
    for path, blocks in texts.items():
        text = path.read_text(encoding="utf-8")
        for name, content in blocks.items():
            pattern = rf"(<!-- tables: {name} -->\n).*?(<!-- end -->)"
            text, count = re.subn(
                pattern, lambda m, c=content: m[1] + c + m[2], text, flags=re.DOTALL
            )
            if count != 1:
                raise UserError(f"{path}: there must be one <!-- tables: {name} -->")
        done[path] = text
    for recipe in sorted({row[1] for row in README_ROWS}):
        path = ROOT / "recipes" / recipe / "README.md"
        done[path] = _with_ours(path.read_text(encoding="utf-8"), recipe, runs)
    return done


def _readme_table(runs):
    """The table of README.md."""
    headings = "system", "command", "paper WER", "our WER", "paper EER", "our EER"
    rows = []
    for name, recipe, variant in README_ROWS:
        paper_values = paper_results()[recipe, variant, 100_000]
        ours = _ours(runs, recipe, variant)
        cells = []
        for metric in _METRICS:
            known = not pandas.isna(paper_values[metric])
            cells.append(f"{paper_values[metric]:.2f}" if known else "")
            cells.append(ours[metric] if known else "")
        command = f"`{recipe.rpartition('/')[2]}: train.py hparams/{variant}.yaml`"
        rows.append([name, command, *cells])
    return _lined(headings, rows) + "\n"


def _with_ours(text, recipe, runs):
    """A recipe's README, the last cells of its table, ours, as the ledger has them."""

    def fill(match):
        words = (f"--steps={match['steps']}",) if match["steps"] else ()
        ours = _ours(runs, recipe, match["variant"], words).values()
        return f"{match['row']}{' / '.join(v for v in ours if v != '-') or '-'} |"

    row = (
        r"^(?P<row>\| `(?P<variant>[\w.]+)\.yaml(?: --steps=(?P<steps>\d+))?` \|.*\| )"
        r"(?:-|[\d. ±/]+) \|$"
    )
    return re.sub(row, fill, text, flags=re.MULTILINE)


def _ours(runs, recipe, variant, words=()):
    """Our test results as text by metric, "-" where there are none."""
    best = summary(selected(_runs_of(runs, recipe, variant, words)), "test")
    return {m: "-" if pandas.isna(best[m]) else _cell(m, best) for m in _METRICS}


@functools.cache
def paper_results() -> dict[tuple[str, str, int], dict[str, float]]:
    """``{(recipe, variant, steps): {"wer": percent, "eer": percent}}`` of its tests."""
    tables = [pandas.read_csv(PAPER / f"{name}.csv") for name in TEST_TABLES]
    keys = ["recipe", "variant", "steps"]
    table = pandas.concat(tables).drop_duplicates(keys, keep="last")
    return table.set_index(keys)[list(_METRICS)].to_dict("index")


if __name__ == "__main__":
    sys.exit(main())
