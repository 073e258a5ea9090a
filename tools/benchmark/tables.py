"""What tools/bench.py shows: tables as text, and a figure."""

import json

from lobes.system.lazy import lazy
from tools.benchmark.measures import SECTIONS

matplotlib_figure = lazy("matplotlib.figure")
pandas = lazy("pandas")
plots = lazy("lobes.evaluation.plots")
torch = lazy("torch")


def table(names, rows):
    """A table in Markdown; numbers with three digits."""
    shown = [
        [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in rows
    ]
    lines = [names, ["---"] * len(names), *shown]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(found):
    """All tables as text."""
    parts = [", ".join(f"{k} {v}" for k, v in found["machine"].items())]
    failed = errors(found)
    parts += [f"FAIL {name}: {why}" for name, why in failed.items()]
    if found["ratios"]:
        rows = [[name, *values.values()] for name, values in found["ratios"].items()]
        parts.append(table(["ratio", "min", "median", "max"], rows))
    if found["goals"]:
        rows = [
            [*list(row.values())[:-1], "yes" if row["met"] else "no"]
            for row in found["goals"]
        ]
        parts.append(table(["figure", "median", "goal", "met"], rows))
    # A part that failed may have nothing else to show.
    found = {k: v for k, v in found.items() if k not in failed or len(v) > 1}
    if "steps" in found:
        peak = found["machine"]["peak_tflops"]
        rows = []
        for row in found["steps"]["rows"]:
            for phase, values in row["seconds"].items():
                for name, one in values.items():
                    rate = row["tflops"].get(name) if phase == "main" else None
                    rows.append(
                        [row["crop"], row["audio_seconds"], phase, name]
                        + [1 / one["median"], one["median"]]
                        + ([rate, rate / peak] if rate else ["-", "-"])
                    )
        names = ["crop s", "audio s", "phase", "step", "steps/s", "s/step"]
        parts.append(table([*names, "TFLOP/s", "of the peak"], rows))
        parts += [
            f"crop {row['crop']:g} s: 100 k steps in {row['hours_of_100k']:.3g} h "
            "without validation and loading"
            + (f", {row['compilations']} compilations" if "compilations" in row else "")
            for row in found["steps"]["rows"]
        ]
    if "memory" in found:
        rows = [
            [name, row["audio"], row["peak"] / 1e9, row["seconds"]]
            for name, points in found["memory"]["points"].items()
            for row in points
        ]
        parts.append(table(["step", "audio s", "peak GB", "s/step"], rows))
    if "loading" in found:
        given = found["loading"]["audio_per_second"]
        line = f"loading alone: {given:.4g} s of audio per second"
        for row in found.get("steps", {}).get("rows", []):
            times = row["seconds"]["main"]
            best = times.get("compiled", times["ours"])["median"]
            line += f"; crop {row['crop']:g} s needs {row['audio_seconds'] / best:.4g}"
        parts.append(line)
    if "evaluation" in found:
        one = found["evaluation"]
        rates = one["utterances_per_second"]
        parts.append(
            f"evaluation: {rates['batched']:.3g} utterances/s in batches of "
            f"{one['batch_seconds']:g} s, {rates['single']:.3g} one at a time; lowest "
            f"cosine {one['lowest_cosine']:.9f}, {one['other_transcripts']} other "
            "transcripts"
        )
    if "scoring" in found:
        one = found["scoring"]
        parts.append(
            f"scoring: {one['trials']:,} trials of {one['utterances']:,} utterances in "
            f"{one['seconds']:.3g} s, {one['trials_per_second']:.3g} trials/s"
        )
        rows = [list(row.values()) for row in one["eer_growth"]]
        parts.append(table(["trials", "EER s"], rows))
    if "preparation" in found:
        rows = [list(row.values()) for row in found["preparation"]["rows"]]
        names = ["corpus", "utterances", "full utt/s", "by header utt/s"]
        parts.append(table(names, rows))
        rows = [list(row.values()) for row in found["preparation"]["growth"]]
        if rows:
            names = ["utterances", "CSV load s", "prepared by header s"]
            parts.append(table(names, rows))
    for name in ("startup", "scaling"):
        if name in found:
            parts.append(f"{name}: {json.dumps(found[name])}")
    parts.append(f"measured in {found['seconds']:.0f} s")
    return "\n\n".join(parts)


def errors(found):
    """What went wrong, by part."""
    parts = {name: found[name] for name in SECTIONS if name in found}
    return {name: part["error"] for name, part in parts.items() if "error" in part}


def draw(found, path):
    """The ratios with their goals, and memory against audio."""
    figure = matplotlib_figure.Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    goals = {row["name"]: float(row["goal"].split()[1]) for row in found["goals"]}
    for place, (name, one) in enumerate(found["ratios"].items()):
        left.plot([one["min"], one["max"]], [place] * 2, color=plots.COLOURS[0], lw=2)
        left.plot(one["median"], place, "o", color=plots.COLOURS[0])
        if name in goals:
            left.plot(goals[name], place, "|", color=plots.COLOURS[1], ms=16, mew=2)
    left.set_yticks(range(len(found["ratios"])), list(found["ratios"]))
    left.set_xlabel("ratio: least, median, greatest; goal in orange")
    left.invert_yaxis()
    points = found.get("memory", {}).get("points", {})
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
