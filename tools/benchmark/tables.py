"""What tools/bench.py shows: tables as text, and a figure."""

import json
from pathlib import Path

from lobes.system.lazy import lazy
from tools.benchmark.measures import SECTIONS

matplotlib_figure = lazy("matplotlib.figure")
plots = lazy("lobes.evaluation.plots")


def report(results: dict) -> str:
    """All tables of what bench.json holds."""
    failed = errors(results)
    parts = [", ".join(f"{k} {v}" for k, v in results["machine"].items())]
    parts += [f"FAIL {name}: {why}" for name, why in failed.items()]
    if results["ratios"]:
        rows = [[name, *values.values()] for name, values in results["ratios"].items()]
        parts.append(_table("ratio|min|median|max", rows))
    if results["goals"]:
        goals = [[*row.values()] for row in results["goals"]]
        rows = [[*row, "yes" if met else "no"] for *row, met in goals]
        parts.append(_table("figure|median|goal|met", rows))
    for name, text_of in _TEXTS.items():
        # A part that failed may have nothing else to show.
        if name in results and (name not in failed or len(results[name]) > 1):
            parts += text_of(results)
    return "\n\n".join([*parts, f"measured in {results['seconds']:.0f} s"])


def errors(results: dict) -> dict[str, str]:
    """What went wrong, by part."""
    parts = {name: results[name] for name in SECTIONS if name in results}
    return {name: part["error"] for name, part in parts.items() if "error" in part}


def draw(results: dict, path: Path) -> None:
    """Draw the ratios with their goals, and memory against audio."""
    figure = matplotlib_figure.Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    goals = {row["name"]: float(row["goal"].split()[1]) for row in results["goals"]}
    for place, (name, one) in enumerate(results["ratios"].items()):
        left.plot([one["min"], one["max"]], [place] * 2, color=plots.COLOURS[0], lw=2)
        left.plot(one["median"], place, "o", color=plots.COLOURS[0])
        if name in goals:
            left.plot(goals[name], place, "|", color=plots.COLOURS[1], ms=16, mew=2)
    left.set_yticks(range(len(results["ratios"])), list(results["ratios"]))
    left.set_xlabel("ratio: least, median, greatest; goal in orange")
    left.invert_yaxis()
    points = results.get("memory", {}).get("points", {})
    for colour, (name, rows) in zip(plots.COLOURS, points.items(), strict=False):
        amounts = [row["audio"] for row in rows]
        right.plot(amounts, [r["peak"] / 1e9 for r in rows], "o-", color=colour)
        right.annotate(
            name, (amounts[-1], rows[-1]["peak"] / 1e9), (-4, 6),
            textcoords="offset points", ha="right", color=colour,
        )  # fmt: skip
    right.set_xlabel("audio in a step, both tasks (s)")
    right.set_ylabel("peak memory (GB)")
    for axes in (left, right):
        plots.dress(axes)
    plots.save(figure, path)


def _table(names, rows):
    """A table in Markdown; numbers with three digits."""
    shown = [
        [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in rows
    ]
    lines = [names.split("|"), ["---"] * (names.count("|") + 1), *shown]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _steps(results):
    peak = results["machine"]["peak_tflops"]
    rows = []
    for row in results["steps"]["rows"]:
        for phase, systems in row["seconds"].items():
            for name, seconds in systems.items():
                rate = row["tflops"].get(name) if phase == "main" else None
                rows.append(
                    [row["crop"], row["audio_seconds"], phase, name]
                    + [1 / seconds["median"], seconds["median"]]
                    + ([rate, rate / peak] if rate else ["-", "-"])
                )
    names = "crop s|audio s|phase|step|steps/s|s/step|TFLOP/s|of the peak"
    yield _table(names, rows)
    for row in results["steps"]["rows"]:
        compilations = row.get("compilations")
        yield (
            f"crop {row['crop']:g} s: 100 k steps in {row['hours_of_100k']:.3g} h "
            "without validation and loading"
            + ("" if compilations is None else f", {compilations} compilations")
        )


def _memory(results):
    rows = [
        [name, row["audio"], row["peak"] / 1e9, row["seconds"]]
        for name, points in results["memory"]["points"].items()
        for row in points
    ]
    yield _table("step|audio s|peak GB|s/step", rows)


def _loading(results):
    rate = results["loading"]["audio_per_second"]
    line = f"loading alone: {rate:.4g} s of audio per second"
    for row in results.get("steps", {}).get("rows", []):
        times = row["seconds"]["main"]
        best = times.get("compiled", times["ours"])["median"]
        line += f"; crop {row['crop']:g} s needs {row['audio_seconds'] / best:.4g}"
    yield line


def _evaluation(results):
    part = results["evaluation"]
    rates = part["utterances_per_second"]
    yield (
        f"evaluation: {rates['batched']:.3g} utterances/s in batches of "
        f"{part['batch_seconds']:g} s, {rates['single']:.3g} one at a time; lowest "
        f"cosine {part['lowest_cosine']:.9f}, {part['other_transcripts']} other "
        "transcripts"
    )


def _scoring(results):
    part = results["scoring"]
    yield (
        f"scoring: {part['trials']:,} trials of {part['utterances']:,} utterances in "
        f"{part['seconds']:.3g} s, {part['trials_per_second']:.3g} trials/s"
    )
    yield _table("trials|EER s", [row.values() for row in part["eer_growth"]])


def _preparation(results):
    part = results["preparation"]
    rows = [row.values() for row in part["rows"]]
    yield _table("corpus|utterances|full utt/s|by header utt/s", rows)
    growth = [row.values() for row in part["growth"]]
    if growth:
        yield _table("utterances|CSV load s|prepared by header s", growth)


#: The texts of each part, in the order of the report.
_TEXTS = {
    "steps": _steps,
    "memory": _memory,
    "loading": _loading,
    "evaluation": _evaluation,
    "scoring": _scoring,
    "preparation": _preparation,
    "startup": lambda results: [f"startup: {json.dumps(results['startup'])}"],
    "scaling": lambda results: [f"scaling: {json.dumps(results['scaling'])}"],
}
