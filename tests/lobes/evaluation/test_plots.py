"""Figures: what they draw, and that they are written."""

import struct

import matplotlib
import numpy as np
import pandas
import pytest
from scipy.special import ndtr

from lobes.data.trials import Trials, write_scores
from lobes.errors import UserError
from lobes.evaluation.plots import (
    COLOURS,
    curves_figure,
    det_figure,
    learning_rates_figure,
    plot_curves,
    plot_trials,
    save,
    score_histogram_figure,
)
from lobes.evaluation.verification import detection_errors, equal_error_rate


def trials(count, shift=0.4, seed=0):
    """Scores and labels of a plausible system."""
    generator = np.random.default_rng(seed)
    labels = generator.random(count) < 0.5
    return generator.normal(0.1, 0.15, count) + shift * labels, labels


def errors(*arguments):
    """The error rates of such a system."""
    return detection_errors(*trials(*arguments))


def run(steps, tasks=("speech", "speaker"), every=10):
    """Training and validation tables of a run with these tasks."""
    generator = np.random.default_rng(0)
    step = np.arange(1, steps + 1)
    training = pandas.DataFrame({"step": step, "lr": 1e-4 * step / steps})
    validation = pandas.DataFrame({"step": step[every - 1 :: every]})
    decay = np.exp(-validation["step"] / steps)
    for task in tasks:
        noise = generator.gamma(20, 1 / 20, steps)
        training[f"{task}_loss"] = (0.1 + 10 * np.exp(-5 * step / steps)) * noise
        training[f"{task}_weight"] = generator.uniform(0.5, 1.5, steps)
        validation[f"{task}_loss"] = 10 * decay
    metrics = {"speech": "wer", "speaker": "eer"}
    for task in tasks:
        validation[metrics[task]] = 50 * decay
    validation["score"] = decay
    return training, validation


def panels(figure):
    """Axes by the name of their vertical axis."""
    return {axes.get_ylabel(): axes for axes in figure.axes}


def line(axes, label):
    """The one line of ``axes`` whose legend entry starts with ``label``."""
    (found,) = [x for x in axes.get_lines() if x.get_label().startswith(label)]
    return found


def assert_picture(path):
    """``path`` is a PNG of a useful size that is not blank."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 600 and height > 300
    assert len(content) > 10_000


def test_every_figure_is_written(tmp_path):
    scores, labels = trials(500)
    names, others = ([f"{side}{i}" for i in range(500)] for side in "uv")
    write_scores(tmp_path / "scores_demo.txt", Trials(labels, names, others), scores)
    plot_trials(tmp_path, ["demo"])
    save(det_figure({"demo": errors(500)}), tmp_path / "new" / "det.png")
    plot_curves(tmp_path / "curves.png", *run(200))
    for name in ("new/det.png", "det.png", "histogram_demo.png", "curves.png"):
        assert_picture(tmp_path / name)


def test_the_process_keeps_its_matplotlib_settings(tmp_path):
    before = dict(matplotlib.rcParams)
    save(det_figure({"demo": errors(50)}), tmp_path / "det.png")
    plot_curves(tmp_path / "curves.png", *run(20))
    assert dict(matplotlib.rcParams) == before


def test_det_marks_each_eer_and_names_it():
    systems = {"weak": trials(3000, 0.2), "strong": trials(3000, 0.5)}
    figure = det_figure({n: detection_errors(*pair) for n, pair in systems.items()})
    (axes,) = figure.axes
    for index, (name, pair) in enumerate(systems.items()):
        eer = equal_error_rate(*pair)[0]
        curve = line(axes, f"{name}: EER {eer:.2f} %")
        assert curve.get_color() == COLOURS[index]
        (mark,) = [
            x
            for x in axes.get_lines()
            if len(x.get_xdata()) == 1 and x.get_color() == COLOURS[index]
        ]
        assert 100 * ndtr(mark.get_xdata()[0]) == pytest.approx(eer)
        assert mark.get_xdata()[0] == mark.get_ydata()[0]
    assert len(figure.legends[0].get_texts()) == 2
    for text, tick in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True):
        assert float(text.get_text()) == pytest.approx(100 * ndtr(tick))


def test_det_points_are_the_error_rates():
    scores, labels = trials(300)
    (axes,) = det_figure({"demo": detection_errors(scores, labels)}).axes
    curve = line(axes, "demo")
    drawn = set(zip(curve.get_xdata(), curve.get_ydata(), strict=True))
    assert len(drawn) > 50
    limits = [(0.5 / n, 1 - 0.5 / n) for n in (sum(~labels), sum(labels))]
    expected = set()
    for threshold in [*scores, np.inf]:
        far = np.clip(np.mean(scores[~labels] >= threshold), *limits[0])
        frr = np.clip(np.mean(scores[labels] < threshold), *limits[1])
        expected.add((round(far, 9), round(frr, 9)))
    assert {(round(ndtr(x), 9), round(ndtr(y), 9)) for x, y in drawn} <= expected


def test_det_of_many_trials_is_thinned_without_being_moved():
    scores, labels = trials(300_000)
    (axes,) = det_figure({"many": detection_errors(scores, labels)}).axes
    x, y = line(axes, "many").get_data()
    assert 500 < len(x) < 20_000
    # Same-speaker scores are shifted by 0.4 at a deviation of 0.15.
    middle = (np.abs(x) < 2) & (np.abs(y) < 2)
    assert np.abs(x + y + 0.4 / 0.15)[middle].max() < 0.05


@pytest.mark.parametrize("direction", [1.0, -1.0, 0.0])
def test_det_of_perfect_inverse_and_constant_scores(direction, tmp_path):
    labels = np.arange(40) % 2 == 0
    extreme = detection_errors(direction * labels, labels)
    save(det_figure({"extreme": extreme}), tmp_path / "det.png")
    assert_picture(tmp_path / "det.png")


def test_histograms_are_densities_of_their_class():
    scores, labels = trials(2000)
    found = detection_errors(scores, labels)
    figure = score_histogram_figure(scores, labels, found, "VoxCeleb1-O")
    (axes,) = figure.axes
    assert axes.get_title() == "VoxCeleb1-O"
    outlines = {p.get_label(): p.get_data() for p in axes.patches if not p.get_fill()}
    assert len(outlines) == 2
    for name, chosen in (("same speaker", labels), ("different speakers", ~labels)):
        values, edges, _ = outlines[f"{name} ({chosen.sum():,} trials)"]
        assert np.sum(values * np.diff(edges)) == pytest.approx(1)
        centre = np.sum(values * np.diff(edges) * (edges[1:] + edges[:-1]) / 2)
        assert centre == pytest.approx(scores[chosen].mean(), abs=0.02)
    eer, score = equal_error_rate(scores, labels)
    threshold = line(axes, f"threshold {score:.3f} at EER {eer:.2f} %")
    assert list(threshold.get_xdata()) == [score, score]


def test_figures_of_scores_refuse_what_has_no_error_rate(tmp_path):
    with pytest.raises(UserError, match="scores are NaN"):
        detection_errors([0.1, np.nan], [0, 1])
    (tmp_path / "scores_demo.txt").write_text("1 a b 0.1\n1 a c 0.2\n")
    with pytest.raises(UserError, match="all 2 trials are same-speaker"):
        plot_trials(tmp_path, ["demo"])
    with pytest.raises(UserError, match="no scores"):
        det_figure({})
    assert not list(tmp_path.glob("*.png"))


def test_curves_of_two_tasks():
    training, validation = run(80)
    figure = curves_figure(training, validation)
    drawn = panels(figure)
    assert list(drawn) == [
        "loss",
        "task weight",
        "learning rate",
        "WER (%)",
        "EER (%)",
        "selection score",
    ]
    for task in ("speech", "speaker"):
        for kind, table in (("training", training), ("validation", validation)):
            x, y = line(drawn["loss"], f"{task}, {kind}").get_data()
            np.testing.assert_array_equal(x, table["step"])
            np.testing.assert_array_equal(y, table[f"{task}_loss"])
        weights = line(drawn["task weight"], task).get_ydata()
        np.testing.assert_array_equal(weights, training[f"{task}_weight"])
    assert drawn["loss"].get_yscale() == "log"
    assert line(drawn["loss"], "speech, validation").get_linestyle() == ":"
    (rate, *_) = drawn["learning rate"].get_lines()
    np.testing.assert_array_equal(rate.get_ydata(), training["lr"])
    lowest = line(drawn["WER (%)"], "lowest: ")
    assert lowest.get_data() == ([80], [validation["wer"].iloc[-1]])
    assert figure.axes[-1].get_xlabel() == "optimizer step"
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


@pytest.mark.parametrize(
    ("task", "metric", "colour"),
    [("speech", "WER (%)", COLOURS[0]), ("speaker", "EER (%)", COLOURS[1])],
)
def test_curves_of_one_task_have_no_empty_panel(task, metric, colour):
    training, validation = run(50, tasks=(task,))
    other = {"speech": "speaker", "speaker": "speech"}[task]
    training[f"{other}_loss"] = np.nan
    training[f"{other}_weight"] = np.nan
    drawn = panels(curves_figure(training, validation))
    assert list(drawn) == ["loss", "learning rate", metric, "selection score"]
    assert line(drawn["loss"], f"{task}, training").get_color() == colour


def test_absent_values_leave_gaps_out():
    training, validation = run(50)
    training.loc[3:6, "speech_loss"] = np.nan
    training.loc[7, "speech_loss"] = np.inf
    drawn = panels(curves_figure(training, validation))
    x, y = line(drawn["loss"], "speech, training").get_data()
    assert np.isfinite(y).all()
    assert list(x) == [1, 2, 3, *range(9, 51)]


def test_long_runs_show_the_running_mean_over_pale_extremes():
    training, validation = run(30_000, every=1000)
    training["speech_loss"] = np.random.default_rng(0).uniform(1, 3, len(training))
    training.loc[12_345, "speech_loss"] = 90.0
    axes = panels(curves_figure(training, validation))["loss"]
    x, mean = line(axes, "speech, training").get_data()
    assert len(x) <= 1000
    assert np.abs(mean - 2).max() < 0.35
    pale = [item for item in axes.get_lines() if item.get_alpha()]
    (speech,) = [item for item in pale if item.get_color() == COLOURS[0]]
    assert len(speech.get_xdata()) <= 2000
    assert speech.get_ydata().max() == 90.0
    assert speech.get_xdata()[speech.get_ydata().argmax()] == 12_346
    assert (np.diff(speech.get_xdata()) > 0).all()


def test_the_lowest_score_is_marked_in_every_panel():
    training, validation = run(50)
    validation["score"] = [5.0, 2.0, 3.0, np.nan, 4.0]
    figure = curves_figure(training, validation)
    for axes in figure.axes:
        verticals = [list(x.get_xdata()) for x in axes.get_lines()]
        assert [20.0, 20.0] in verticals


def test_tables_put_together_from_parts_are_drawn_in_order():
    training, validation = run(50)
    parts = [validation.iloc[3:], validation.iloc[:3]]
    shuffled = pandas.concat([part.reset_index(drop=True) for part in parts])
    drawn = panels(curves_figure(training.iloc[::-1], shuffled))
    assert list(drawn["WER (%)"].get_lines()[0].get_xdata()) == [10, 20, 30, 40, 50]
    assert line(drawn["WER (%)"], "lowest: ").get_data()[0] == [50]
    steps = line(drawn["loss"], "speech, training").get_xdata()
    assert (np.diff(steps) == 1).all()


@pytest.mark.parametrize("rows", [1, 2, 99, 100, 101])
def test_short_runs(rows, tmp_path):
    training, validation = run(rows, every=1)
    plot_curves(tmp_path / "curves.png", training, validation.iloc[:1])
    assert_picture(tmp_path / "curves.png")


@pytest.mark.parametrize("empty", [pandas.DataFrame(), run(20)[1].iloc[:0]])
def test_before_the_first_validation(empty, tmp_path):
    training, _ = run(20)
    drawn = panels(curves_figure(training, empty))
    assert list(drawn) == ["loss", "task weight", "learning rate"]
    plot_curves(tmp_path / "curves.png", training, empty)
    assert_picture(tmp_path / "curves.png")


def test_validation_alone_and_unknown_columns():
    _, validation = run(50, tasks=("speech",))
    validation["gender_accuracy"] = 0.5
    validation["note"] = "text"
    drawn = panels(curves_figure(pandas.DataFrame(), validation))
    assert list(drawn) == ["loss", "WER (%)", "selection score", "gender accuracy"]
    assert drawn["gender accuracy"].get_legend() is None


def test_losses_at_or_below_zero_stay_on_a_linear_axis():
    training, validation = run(50)
    training.loc[0, "speech_loss"] = 0.0
    assert panels(curves_figure(training, validation))["loss"].get_yscale() == "linear"


def test_nothing_to_plot_is_an_error():
    with pytest.raises(UserError, match="no values to plot"):
        curves_figure(pandas.DataFrame(), pandas.DataFrame())
    with pytest.raises(UserError, match="no column `step`"):
        curves_figure(pandas.DataFrame({"lr": [1.0]}), pandas.DataFrame())


# Learning rates ---------------------------------------------------------------


RATES = pandas.DataFrame(
    {
        "system": ["a", "a", "a", "b", "b"],
        "lr": [1e-4, 1e-5, 1e-3, 1e-5, 1e-4],
        "wer": [10.0, 12.0, 100.0, 20.0, 18.0],
        "wer_std": [1.0, np.nan, 0.0, 2.0, np.nan],
        "paper_wer": [11.0, 11.5, 100.0, np.nan, np.nan],
    }
)


def test_learning_rates_are_drawn_in_order_and_clipped():
    """Diverged runs as triangles at the edge, better ones as they are."""
    figure = learning_rates_figure(RATES)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "validation WER (%)"
    lines = {line.get_label(): line for line in axes.lines}
    assert np.allclose(lines["a"].get_xdata(), [1e-5, 1e-4, 1e-3])
    limit = 1.15 * 20
    assert np.allclose(lines["a"].get_ydata(), [12, 10, limit])
    assert np.allclose(lines["b"].get_ydata(), [20, 18])
    assert np.allclose(lines["a, paper"].get_ydata(), [11.5, 11, limit])
    triangles = [x for x in axes.lines if x.get_marker() == "^" and len(x.get_xdata())]
    assert [x.get_ydata().tolist() for x in triangles] == [[pytest.approx(limit)]] * 2
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["a", "a, paper", "b"]
    found = learning_rates_figure(RATES, {"wer": 15.5}).axes[0]
    assert max(max(x.get_ydata()) for x in found.lines if len(x.get_ydata())) == 15.5


def test_learning_rates_of_two_metrics_without_what_is_absent(tmp_path):
    table = RATES.assign(eer=[1.0, 2.0, 3.0, np.nan, np.nan]).drop(columns="paper_wer")
    figure = learning_rates_figure(table)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "validation WER (%)",
        "validation EER (%)",
    ]
    # No value is at chance: nothing is clipped, and b has no EER.
    lines = [x for x in figure.axes[1].lines if len(x.get_xdata())]
    assert [x.get_label() for x in lines] == ["a"]
    with pytest.raises(UserError, match="no runs to plot"):
        learning_rates_figure(table.assign(wer=np.nan, eer=np.nan))


# Found by trying -----------------------------------------------------------------


@pytest.mark.fault(
    "B10",
    "a validation WER of 100.0 to 100.5 %",
    "the axis begins at 0 and ends above the markers",
)
def test_half_a_percent_point_does_not_fill_a_panel():
    training, validation = run(50)
    validation["wer"] = np.linspace(100.5, 100.0, len(validation))
    axes = panels(curves_figure(training, validation))["WER (%)"]
    low, high = axes.get_ylim()
    assert low == 0 and 105 < high < 130


@pytest.mark.fault(
    "B10",
    "a DET of an EER of 11 % with 4,000 trials",
    "the curve's part below 50 % goes from edge to edge",
)
def test_det_axes_end_where_the_curves_do():
    random = np.random.default_rng(0)
    labels = np.arange(4000) % 2 == 0
    scores = 2.45 * labels + random.normal(size=4000)
    figure = det_figure({"a": detection_errors(scores, labels)})
    low, high = figure.axes[0].get_xlim()
    (curve, *_) = figure.axes[0].get_lines()
    drawn = np.stack(curve.get_data())
    drawn = drawn[:, (drawn <= high).all(axis=0)]
    assert drawn.min() - low < 0.25 * (high - low)
