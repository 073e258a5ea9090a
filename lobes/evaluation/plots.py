"""Figures of a run: training curves, DET curves, score distributions.

Every ``*_figure`` function returns a ``matplotlib.figure.Figure`` and every
``plot_*`` function writes some as PNG. Figures are made without pyplot, so a
training process keeps its back end, style and open figures.
"""

import io
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    ScalarFormatter,
)
from scipy.special import ndtri

from lobes.data.trials import read_scores
from lobes.errors import UserError
from lobes.evaluation.metrics import CHANCE, LOWER_IS_BETTER, heading
from lobes.evaluation.progress import best_step
from lobes.evaluation.verification import DetectionErrors, detection_errors
from lobes.system.files import write_atomically

#: Okabe and Ito's palette (2008): distinct with every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

_LINE_STYLES = ("-", "--", "-.", ":")
_GREY = "#555555"
_DPI = 120

# The same task has the same colour in every figure.
_TASK_COLOURS = {"speech": COLOURS[0], "speaker": COLOURS[1]}

# The markers of validations.
_MARKS = {
    "marker": "o",
    "markersize": 4.5,
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
}

# Error rates in percent that may be labelled on a DET axis.
_DET_TICKS = np.array(
    [0.001, 0.005, 0.02, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 40, 50]
    + [60, 70, 80, 90, 95, 98, 99, 99.8, 99.95]
)

# Whole steps at round numbers, a single one if the run is that short.
_STEP_TICKS = {"nbins": 9, "steps": [1, 2, 5, 10], "integer": True, "min_n_ticks": 1}

# Points drawn per curve at most: more cannot be told apart at this size.
_POINTS = 1000


def plot_trials(folder: str | Path, names: Iterable[str]) -> None:
    """Draw the scores in a folder: ``histogram_<list>.png``, and ``det.png`` of all.

    ``names`` are those of the trial lists, with a ``scores_<list>.txt`` each.
    """
    folder, curves = Path(folder), {}
    for name in names:
        trials, scores = read_scores(folder / f"scores_{name}.txt")
        curves[name] = detection_errors(scores, trials.labels)
        figure = score_histogram_figure(scores, trials.labels, curves[name], name)
        save(figure, folder / f"histogram_{name}.png")
    if curves:
        save(det_figure(curves), folder / "det.png")


def plot_curves(
    path: str | Path, training: pandas.DataFrame, validation: pandas.DataFrame
) -> None:
    """Write ``curves_figure(training, validation)`` as PNG to ``path``."""
    save(curves_figure(training, validation), path)


def plot_learning_rates(
    path: str | Path, table: pandas.DataFrame, clip: Mapping[str, float] | None = None
) -> None:
    """Write ``learning_rates_figure(table, clip)`` as PNG to ``path``."""
    save(learning_rates_figure(table, clip), path)


def dress(axes: Axes, grid: str = "both") -> None:
    """Give a panel what all share: a pale grid and no box."""
    axes.grid(True, axis=grid, color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9.5, color=_GREY)


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure as PNG, complete or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    write_atomically(path, picture.getvalue())


def _system_style(index):
    """Colour and line of the system or list number ``index``."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": _LINE_STYLES[index // len(COLOURS) % len(_LINE_STYLES)],
    }


# Learning rates ------------------------------------------------------------------


def learning_rates_figure(
    table: pandas.DataFrame, clip: Mapping[str, float] | None = None
) -> Figure:
    """Learning rate against validation WER and EER (paper, Figures 3 and 4).

    One panel for each metric that has values; diverged runs are drawn as triangles at
    the upper edge. Where the paper's values are known, they are pale and dashed.

    Arguments:
        table: Columns ``system``, ``lr``, and any of ``wer`` and ``eer`` (percent, NaN
            where absent), ``wer_std``, ``eer_std``, ``paper_wer``, ``paper_eer``.
        clip: Metric to the percentage above which values are clipped. By default those
            that are not better than chance are clipped, when there are others.

    Raises ``UserError`` when there are no values.
    """
    metrics = [
        m
        for m in ("wer", "eer")
        if any(c in table and table[c].notna().any() for c in (m, f"paper_{m}"))
    ]
    if not metrics:
        raise UserError("there are no runs to plot learning rates of; run some first")
    systems = list(dict.fromkeys(table["system"]))
    height = 4.2 + 0.25 * math.ceil(len(systems) / 3)
    figure = Figure(figsize=(5.2 * len(metrics) + 0.6, height), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        columns = [c for c in (metric, f"paper_{metric}") if c in table]
        values = table[columns].to_numpy(np.float64).ravel()
        limit = (clip or {}).get(metric) or _clip(values, CHANCE[metric])
        for index, system in enumerate(systems):
            rows = table[table["system"] == system].sort_values("lr")
            for column in columns:
                look = {"linewidth": 1.8, "markersize": 5.5, "label": system}
                look |= _system_style(index)
                if column != metric:
                    look.update(linewidth=1.1, linestyle="--", alpha=0.5, markersize=4)
                    look["label"] = f"{system}, paper"
                _draw_rates(axes, rows[rows[column].notna()], column, limit, look)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel(f"validation {heading(metric)}")
        if limit is not None:
            axes.set_ylim(top=limit * 1.03)
        dress(axes)
    # The legend has one line for each system, whatever panels it is in.
    handles = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(3, len(handles)),
        fontsize=9.5,
        frameon=False,
    )
    return figure


def _clip(values, chance):
    """Where to clip: a little above the values that are better than chance."""
    values = values[np.isfinite(values)]
    learnt = values[values < chance]
    if not len(learnt) or len(learnt) == len(values):
        return None
    return 1.15 * learnt.max()


def _draw_rates(axes, rows, column, limit, look):
    """One system's metric over the learning rate, clipped at ``limit``."""
    if not len(rows):
        return
    rates = rows["lr"].to_numpy(np.float64)
    values = rows[column].to_numpy(np.float64)
    drawn = values if limit is None else np.minimum(values, limit)
    line = axes.plot(rates, drawn, marker="o", **look)[0]
    colour, clipped = line.get_color(), values > drawn
    spread = rows.get(f"{column}_std")
    if spread is not None and spread.notna().any():
        axes.errorbar(
            rates[~clipped],
            drawn[~clipped],
            yerr=spread.fillna(0.0)[~clipped],
            fmt="none",
            ecolor=colour,
            capsize=3,
            linewidth=1,
        )
    triangles = {"linestyle": "none", "marker": "^", "markersize": 9}
    axes.plot(
        rates[clipped],
        drawn[clipped],
        color=colour,
        alpha=line.get_alpha(),
        **triangles,
    )


# Verification --------------------------------------------------------------------


def det_figure(curves: Mapping[str, DetectionErrors]) -> Figure:
    """Detection error trade-off of one or more systems or trial lists, by name.

    Both axes are normal deviates (Martin et al., Eurospeech 1997) labelled in
    percent: normally distributed scores give straight lines. Rates of 0 or 1
    lie at infinity and are drawn as half an error. A dot marks each EER.

    Raises ``UserError`` without curves.
    """
    if not curves:
        raise UserError("there are no scores to plot a DET curve of; evaluate first")
    # One line of the legend below the axes is 0.25 inches high.
    figure = Figure(figsize=(6.4, 6.4 + 0.25 * len(curves)), layout="constrained")
    axes = figure.add_subplot()
    lowest, highest = 0.4, 0.5
    for index, (name, errors) in enumerate(curves.items()):
        rates = _drawable_rates(errors)
        eer = _draw_det(axes, name, errors, rates, _system_style(index))
        highest = max(highest, eer)
        # Only the part of a curve on the axes counts: far along one axis the other
        # rate is near to 1.
        for one, other in (rates, rates[::-1]):
            lowest = min(lowest, one[other <= highest].min(initial=lowest))
    ticks = _DET_TICKS / 100
    # Both axes end just beyond a labelled rate on either side of the curves.
    low = ndtri(ticks[ticks <= max(lowest, ticks[0])].max() * 0.8)
    high = ndtri(ticks[ticks >= min(highest, ticks[-1])].min()) + 0.05
    axes.plot([low, high], [low, high], color="#AAAAAA", linewidth=0.8, zorder=1)
    ticks = ticks[(ndtri(ticks) >= low) & (ndtri(ticks) <= high)]
    names = [f"{100 * tick:g}" for tick in ticks]
    axes.set_xticks(ndtri(ticks), names)
    axes.set_yticks(ndtri(ticks), names)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("false acceptances (% of different-speaker trials)")
    axes.set_ylabel("false rejections (% of same-speaker trials)")
    dress(axes)
    figure.legend(loc="outside lower center", fontsize=10, frameon=False)
    return figure


def _draw_det(axes, name, errors, rates, style):
    """One curve with the dot of its EER; returns where the dot is, as a fraction."""
    eer = errors.equal_error_rate()[0]
    dot = {
        "marker": "o",
        "markersize": 8,
        "markeredgecolor": "white",
        "markeredgewidth": 1.2,
    }
    axes.plot(
        *_thinned(*map(ndtri, rates)),
        label=f"{name}: EER {eer:.2f} %",
        linewidth=1.8,
        # The legend shows the dot; on the curve it is drawn below.
        markevery=[],
        **dot,
        **style,
    )
    # An EER of 0 or 100 % is off the axes; the curve's end stands for it.
    lowest, highest = max(r.min() for r in rates), min(r.max() for r in rates)
    place = np.clip(eer / 100, lowest, highest)
    axes.plot(*[[ndtri(place)]] * 2, color=style["color"], zorder=3, **dot)
    return place


def _drawable_rates(errors):
    """False acceptances and rejections, moved half an error off 0 and 1."""
    return [
        np.clip(rate, 0.5 / count, 1 - 0.5 / count)
        for rate, count in (
            (errors.false_acceptance, errors.negatives),
            (errors.false_rejection, errors.positives),
        )
    ]


def _thinned(x, y):
    """The points of a DET curve without those that fall on the same spot."""
    # Finer than a pixel: the axes are about 600 pixels for 5 normal deviates.
    spots = np.round(np.stack([x, y]) * 500)
    kept = np.r_[True, (np.diff(spots, axis=1) != 0).any(axis=0)]
    return x[kept], y[kept]


def score_histogram_figure(
    scores: np.ndarray, labels: np.ndarray, errors: DetectionErrors, title: str
) -> Figure:
    """Score distributions of same- and different-speaker trials.

    ``scores`` and ``labels`` are ``[trials]``, with True for the same speaker. A line
    marks the threshold of their EER, which comes from their ``errors``.
    """
    eer, threshold = errors.equal_error_rate()
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    count = int(np.clip(math.sqrt(len(scores)), 10, 100))
    bins = np.histogram_bin_edges(scores, bins=count)
    for name, kind, colour, hatch in (
        ("different speakers", ~labels, COLOURS[1], None),
        ("same speaker", labels, COLOURS[0], "////"),
    ):
        density, _ = np.histogram(scores[kind], bins=bins, density=True)
        axes.stairs(
            density,
            bins,
            fill=True,
            facecolor=(colour, 0.2),
            edgecolor=(colour, 0.5),
            linewidth=0,
            hatch=hatch,
        )
        label = f"{name} ({int(kind.sum()):,} trials)"
        axes.stairs(density, bins, color=colour, linewidth=1.6, label=label)
    label = f"threshold {threshold:.3f} at EER {eer:.2f} %"
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1.4, label=label)
    axes.set_title(title, fontsize=12)
    axes.set_xlabel("score (cosine similarity)")
    axes.set_ylabel("density (per unit of score)")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    dress(axes, grid="y")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9.5, frameon=False)
    return figure


# Training ------------------------------------------------------------------------


def curves_figure(training: pandas.DataFrame, validation: pandas.DataFrame) -> Figure:
    """Losses, task weights, learning rate and validation metrics over a run.

    One panel each above a common axis of optimizer steps; panels without
    numbers are left out, as are the weights of a single task. Training values
    of a long run are drawn pale with their running mean on top. A vertical
    line marks the validation with the lowest ``score``.

    Arguments:
        training: Column ``step``, and any of ``<task>_loss``, ``<task>_weight``,
            ``lr``; NaN where a value is absent.
        validation: Column ``step``, any ``<task>_loss``, and metrics (``wer`` and
            ``eer`` in percent, ``score``, others), one panel each.

    Raises ``UserError`` when neither table holds a number.
    """
    training, validation = _numbers(training), _numbers(validation)
    panels = _panels(training, validation)
    if not panels:
        raise UserError("there are no values to plot yet; train some steps first")
    # Losses get more room.
    heights = [2.2 if draw.func is _draw_losses else 1.3 for draw in panels]
    figure = Figure(figsize=(9, 1.35 * sum(heights) + 0.8), layout="constrained")
    all_axes = figure.subplots(
        len(panels), sharex=True, squeeze=False, height_ratios=heights
    )[:, 0]
    best = best_step(validation)
    for axes, draw in zip(all_axes, panels, strict=True):
        draw(axes)
        if best is not None:
            axes.axvline(best, color=_GREY, linestyle=":", linewidth=1.2, zorder=1)
        dress(axes)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(
                fontsize=9,
                frameon=False,
                loc="upper left",
                bbox_to_anchor=(1.0, 1.02),
                borderaxespad=0.3,
            )
    all_axes[-1].set_xlabel("optimizer step")
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(**_STEP_TICKS))
    all_axes[-1].xaxis.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}"))
    if best is not None:
        all_axes[0].annotate(
            "lowest score",
            (best, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=_GREY,
        )
    figure.align_ylabels(all_axes)
    figure.get_layout_engine().set(h_pad=0.08)
    return figure


def _numbers(table):
    """The table with numeric columns only, sorted by step, no empty columns."""
    if not len(table):
        return pandas.DataFrame({"step": []})
    if "step" not in table:
        raise UserError("the table to plot has no column `step`; add it")
    table = table.apply(pandas.to_numeric, errors="coerce")
    table = table.replace([np.inf, -np.inf], np.nan).dropna(subset="step")
    table = table.dropna(axis="columns", how="all")
    return table.sort_values("step", kind="stable", ignore_index=True)


def _panels(training, validation):
    """What draws each panel, from top to bottom."""
    losses = [c for c in (*training, *validation) if c.endswith("_loss")]
    tasks = list(dict.fromkeys(c.removesuffix("_loss") for c in losses))
    colours = _task_colours(tasks)
    panels = []
    if tasks:
        panels.append(
            partial(
                _draw_losses, training=training, validation=validation, tasks=colours
            )
        )
    weighted = {t: c for t, c in colours.items() if f"{t}_weight" in training}
    if len(weighted) > 1:
        panels.append(partial(_draw_weights, training=training, tasks=weighted))
    if "lr" in training:
        panels.append(partial(_draw_learning_rate, training=training))
    metrics = [c for c in validation if c != "step" and c not in losses]
    for index, metric in enumerate(metrics):
        colour = COLOURS[(index + 2) % len(COLOURS)]
        values = validation[["step", metric]].dropna()
        panels.append(
            partial(_draw_metric, values=values, metric=metric, colour=colour)
        )
    return panels


def _task_colours(tasks):
    """Each task's own colour; unknown tasks get the next that are free."""
    others = [name for name in tasks if name not in _TASK_COLOURS]
    free = {name: COLOURS[(2 + i) % len(COLOURS)] for i, name in enumerate(others)}
    return {name: {**_TASK_COLOURS, **free}[name] for name in tasks}


def _draw_losses(axes, training, validation, tasks):
    """Training losses as lines, validation losses as dotted markers."""
    drawn = []
    for task, colour in tasks.items():
        column = f"{task}_loss"
        if column in training:
            values = training[["step", column]].dropna()
            _draw_noisy(axes, values, column, colour, f"{task}, training")
            drawn.append(values[column])
        if column in validation:
            values = validation[["step", column]].dropna()
            axes.plot(
                values["step"],
                values[column],
                linestyle=":",
                linewidth=1.3,
                color=colour,
                label=f"{task}, validation",
                zorder=3,
                **_MARKS,
            )
            drawn.append(values[column])
    _scale(axes, pandas.concat(drawn))
    axes.set_ylabel("loss")


def _draw_weights(axes, training, tasks):
    """Weight of each task's loss in the sum."""
    for task, colour in tasks.items():
        values = training[["step", f"{task}_weight"]].dropna()
        _draw_noisy(axes, values, f"{task}_weight", colour, task)
    if training[[f"{task}_weight" for task in tasks]].min().min() >= 0:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("task weight")


def _draw_learning_rate(axes, training):
    """Learning rate, exact: it has no noise to smooth."""
    values = training[["step", "lr"]].dropna()
    marker = "o" if len(values) == 1 else None
    axes.plot(values["step"], values["lr"], color="black", linewidth=1.6, marker=marker)
    axes.set_ylim(bottom=0)
    formatter = ScalarFormatter(useMathText=True)
    formatter.set_powerlimits((-2, 3))
    axes.yaxis.set_major_formatter(formatter)
    axes.set_ylabel(heading("lr"))


def _draw_metric(axes, values, metric, colour):
    """One validation metric; its lowest value is named where lower is better."""
    axes.plot(values["step"], values[metric], color=colour, linewidth=1.6, **_MARKS)
    if metric in LOWER_IS_BETTER:
        lowest = values.loc[values[metric].idxmin()]
        axes.plot(
            lowest["step"],
            lowest[metric],
            linestyle="none",
            marker="o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=colour,
            markeredgewidth=1.6,
            label=f"lowest: {lowest[metric]:.2f}\nat step {lowest['step']:,.0f}",
        )
    _scale(axes, values[metric])
    if metric in LOWER_IS_BETTER and axes.get_yscale() == "linear":
        # Half a percent point must not fill the panel.
        lowest, highest = values[metric].min(), values[metric].max()
        axes.set_ylim(min(0.0, lowest), max(1.12 * highest, 1.0))
    axes.set_ylabel(heading(metric))


def _draw_noisy(axes, table, column, colour, label):
    """A noisy training value: pale as it is, with its running mean on top."""
    steps, values = table["step"].to_numpy(), table[column].to_numpy()
    if len(values) < 100:
        marker = "o" if len(values) == 1 else None
        style = {"linewidth": 1.6, "marker": marker}
    else:
        axes.plot(*_extremes(steps, values), color=colour, alpha=0.25, linewidth=0.8)
        smooth = pandas.Series(values).rolling(
            len(values) // 50, center=True, min_periods=1
        )
        last = len(values) - 1
        kept = np.unique(np.linspace(0, last, _POINTS).round().astype(int))
        steps, values = steps[kept], smooth.mean().to_numpy()[kept]
        style = {"linewidth": 1.8}
    axes.plot(steps, values, color=colour, label=label, **style)


def _extremes(steps, values):
    """The points, or of a long run the lowest and highest of each stretch."""
    if len(values) <= 2 * _POINTS:
        return steps, values
    kept = []
    for stretch in np.array_split(np.arange(len(values)), _POINTS):
        part = values[stretch]
        kept.extend(sorted({stretch[part.argmin()], stretch[part.argmax()]}))
    return steps[kept], values[kept]


def _scale(axes, values):
    """Logarithmic axis for positive values that span more than a factor of five."""
    if not len(values) or values.min() <= 0 or values.max() <= 5 * values.min():
        return
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    # Over a few decades 2 and 5 have names, too; over many these would collide.
    wide = values.max() > 1e3 * values.min()
    # Within one and a half decades more names show that the steps are unequal.
    narrow = values.max() < 30 * values.min()
    axes.yaxis.get_minor_locator().set_params(subs=(2, 3, 5, 7) if narrow else (2, 5))
    axes.yaxis.set_minor_formatter(NullFormatter() if wide else plain)
