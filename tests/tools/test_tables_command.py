"""Tables: selection, the paper's figures, comparison, and documents that are not stale.

Most ledgers here hold the paper's own results: ours must then equal the paper's.
"""

import json

import numpy as np
import pandas
import pytest
from PIL import Image

from lobes.errors import UserError
from lobes.runs import ledger
from lobes.runs.grids import members, read_grid
from lobes.system.checkout import ROOT
from tools import tables

MTL = "LibriSpeech_VoxCeleb/MTL"


def run(
    variant, lr=1e-4, seed=1, recipe=MTL, valid=(10.0, 3.0), test=(11.0, 5.0), **more
):
    """A ledger's line."""
    changes = more.pop("changes", {})
    given = {"wer": test[0], "eer": test[1]}
    return {
        "kind": "training",
        "state": "finished",
        "recipe": recipe,
        "variant": variant,
        "changes": {"lr": lr, **changes},
        "seed": seed,
        "lr": lr,
        "steps": 100_000,
        "seconds": 3600.0,
        "parameters": 98_999_712,
        "settings": "s",
        "score": valid[0] / 4 + valid[1],
        "validation": {"wer": valid[0], "eer": valid[1]},
        "sets": {"speech": {"test-other": given}},
        "output_folder": f"results/{recipe}/{variant},lr={lr:g}/{seed}",
        **given,
        **more,
    }


def write(path, rows):
    for row in rows:
        ledger.append(path, row)
    return path


@pytest.fixture(scope="module")
def paper_runs():
    """The paper's search as if it were ours, test results as its Tables 1 to 3."""
    tests = tables.paper_results()
    rows = []
    for name in ("table4", "table5", "table6"):
        table = pandas.read_csv(tables.PAPER / f"{name}.csv")
        for variant, lines in table.groupby("variant", sort=False):
            found = tests[MTL, variant, 100_000]
            test = found["wer"], found["eer"]
            yaml = ROOT / f"recipes/{MTL}/hparams/{variant}.yaml"
            # The YAML's own rate is no change of the run that has it.
            rates = f"--lr={','.join(map(str, lines['lr']))}"
            grid = members(read_grid([yaml], [rates]), fill=True)
            for line, member in zip(lines.to_dict("records"), grid, strict=True):
                valid = line["wer"], line["eer"]
                state = "diverged" if line["wer"] == 100 else "finished"
                row = run(variant, line["lr"], valid=valid, test=test, state=state)
                changes = {**member.changes, "precision": "bf16"}
                assert member.lr == line["lr"]
                rows.append({**row, "changes": changes})
    assert len(rows) == 90
    return ledger.trainings(rows)


def test_the_selection_is_the_paper_s():
    """WER / 4 + EER on validation finds the rates that section 3 of the paper names."""
    rates = {
        "static_0.5_3s": 5.62e-5,
        "static_0.88_3s": 1e-4,
        "mtl_3s": 5.62e-5,
        "static_0.5_9s": 3.16e-5,
        "static_0.88_9s": 5.62e-5,
        "mtl": 1e-4,
    }
    table = pandas.read_csv(tables.PAPER / "table4.csv")
    for variant, rate in rates.items():
        lines = table[table["variant"] == variant].to_dict("records")
        rows = [run(variant, x["lr"], valid=(x["wer"], x["eer"])) for x in lines]
        assert [row["lr"] for row in tables.selected(rows)] == [rate]
        for row, line in zip(rows, lines, strict=True):
            assert row["score"] == pytest.approx(line["score"], abs=0.01)


def test_ours_equal_the_paper_s_where_ours_are_the_paper_s(paper_runs):
    for name, count in (("table4", 36), ("table5", 36), ("table6", 18)):
        table = tables.paper_table(name, paper_runs)
        assert len(table) == count and (table["seeds"] == 1).all()
        for metric in ("wer", "eer"):
            assert (table[f"difference_{metric}"] == 0).all()
        assert table["difference_score"].abs().max() < 0.01
        assert table["diverged"].sum() == {"table4": 2, "table5": 3, "table6": 3}[name]
    best = {"mtl": 1e-4, "branch_3": 5.62e-5, "split_192": 5.62e-5}
    for name in ("table2", "table3"):
        table = tables.paper_table(name, paper_runs)
        ours = table[table["seeds"] > 0]
        assert len(ours) >= 4
        assert (ours["difference_wer"] == 0).all() & (ours["difference_eer"] == 0).all()
    by_layers = table.set_index("shared_layers")
    assert by_layers.loc["3", "lr"] == best["branch_3"]
    assert by_layers.loc["12", "lr"] == best["mtl"]
    # Counted from the models; the paper prints millions of those that train.
    assert by_layers.loc["3", "parameters"] == 162_790_560
    assert by_layers.loc["0 (speaker)", "parameters"] == 98_975_104


def test_other_settings_do_not_count(paper_runs):
    """The long runs are other runs, and so are those with other batches."""
    rows = dict(paper_runs)
    more = [
        run("mtl", test=(1, 1), valid=(1, 1), changes={"max_batch_samples": 5000}),
        run(
            "mtl", test=(2, 2), valid=(1, 1), changes={"steps": 320_000}, steps=320_000
        ),
        run("mtl", test=(3, 3), valid=(1, 1), state="failed", changes={"base": "x"}),
    ]
    rows.update(ledger.trainings(more))
    table = tables.paper_table("table1", rows)
    ours = table[(table["network"] == "mtl") & (table["speaker_seconds"] == "9")]
    ours = ours[ours["weighting"] == "dynamic"].set_index("steps")["our_wer"]
    assert ours.to_dict() == {100_000: 10.63, 320_000: 2.0}
    found = tables._runs_of(rows, MTL, "mtl", ("--max_batch_samples=5000",))
    assert [row["wer"] for row in found] == [1.0]


def test_seeds_give_means_and_deviations():
    """The selected rate is the one with the best mean, not the best seed."""
    rows = [
        run("mtl", 1e-5, 1, valid=(10, 1), test=(10, 3)),
        run("mtl", 1e-5, 2, valid=(10, 9), test=(12, 4)),
        run("mtl", 2e-5, 1, valid=(10, 2), test=(20, 5)),
        run("mtl", 2e-5, 2, valid=(10, 3), test=(24, 8)),
        run("mtl", 3e-5, 1, valid=(0, 0), score=None, state="diverged"),
    ]
    chosen = tables.selected(rows)
    assert [row["lr"] for row in chosen] == [2e-5, 2e-5]
    found = tables.summary(chosen, "test")
    assert (found["wer"], found["eer"], found["seeds"]) == (22, 6.5, 2)
    assert found["wer_std"] == pytest.approx(np.std([20, 24], ddof=1))
    assert tables.summary(chosen, "valid")["eer"] == 2.5
    text = tables.markdown(tables.grid_tables({"x": rows})["selected"])
    assert "| x | 2e-5 | 22.00 ± 2.83 | 6.50 ± 2.12 |" in text
    assert "| 100,000 | 2 |" in text


def test_a_diverged_run_wins_no_selection():
    """Neither with what its earlier checkpoint had, nor because a seed is left out."""
    rows = [
        run("mtl", 1e-5, 1, valid=(10, 5)),
        run("mtl", 1e-5, 2, valid=(10, 5)),
        run("mtl", 2e-5, 1, valid=(1, 1)),
        run("mtl", 2e-5, 2, valid=(1, 1), state="diverged"),
        run("mtl", 3e-5, 1, valid=(1, 1)),
        run("mtl", 3e-5, 2, score=None),
    ]
    assert tables.selected(rows) == rows[:2]
    # Where there is nothing else, it is said.
    rows[0]["state"] = rows[1]["state"] = "diverged"
    assert tables.selected(rows[:4]) == rows[2:4]
    text = tables.markdown(tables.grid_tables({"x": rows[:4]})["selected"])
    assert "| 2e-5 |" in text and "| 2 (1 diverged) |" in text
    assert tables.selected(rows[:2]) == rows[:2] and tables.selected([]) == []


def test_a_diverged_run_is_at_the_figure_s_edge(tmp_path, monkeypatch):
    """Whatever its validation was; one seed of two does not make a triangle."""
    drawn = {}
    monkeypatch.setattr(
        tables.plots, "plot_learning_rates", lambda _, t, clip: drawn.update(found=t)
    )
    rows = [
        run("asr", 1e-5, validation={"wer": 9.0}),
        run("asr", 2e-5, validation={"wer": 8.0}, state="diverged"),
        run("asr", 3e-5, 1, validation={"wer": 7.0}),
        run("asr", 3e-5, 2, validation={"wer": 9.0}, state="diverged"),
    ]
    tables._plot(tmp_path / "x.png", tables.all_rates({"x": rows}))
    assert drawn["found"]["wer"].tolist() == [9, 100, 8]
    assert drawn["found"]["eer"].isna().all()


def test_what_was_not_run_is_a_dash():
    table = tables.paper_table("table3", {})
    lines = tables.markdown(table).splitlines()
    assert lines[0].startswith("| shared layers | parameters as printed | paper WER |")
    expected = (
        "| 3 | 159M | 10.03 | - | - | 4.44 | - | - | - | 100,000 | - | 162,790,560 |"
    )
    assert expected in lines
    # What a single task cannot have is left blank.
    assert any(
        line.startswith("| 0 (speech) | 94M | 10.04 | - | - |  |  |  |")
        for line in lines
    )


@pytest.fixture
def small_grid(tmp_path):
    """A grid of two systems, three rates and two seeds, and its ledger."""
    path = tmp_path / "grid.yaml"
    path.write_text(
        "runs: {LibriSpeech_VoxCeleb/MTL: {a: hparams/mtl.yaml, b: hparams/dwa.yaml}}\n"
        "axes: {lr: [1.0e-5, 2.0e-5, 3.0e-5], seed: [1, 2]}\n"
    )
    rows = []
    for member in members(read_grid([path]), fill=True):
        rate = member.lr * 1e5
        valid = (90 + rate, 49.0) if rate == 3 else (20 - rate, 9 - rate)
        row = run(member.variant, member.lr, member.seed, valid=valid)
        folder = tmp_path / member.variant / f"{rate:g}" / str(member.seed)
        folder.mkdir(parents=True)
        with open(folder / "progress.jsonl", "w") as stream:
            for step in (1, 2):
                for line in (
                    {"stage": "train", "step": step, "speech_loss": 3 / step},
                    {"stage": "valid", "step": step, "wer": 9, "eer": 2, "score": 4},
                ):
                    stream.write(json.dumps(line) + "\n")
        rows.append({**row, "changes": member.changes, "output_folder": str(folder)})
    return path, write(tmp_path / "ledger.jsonl", rows), tmp_path / "out"


def test_a_grid_s_tables_and_pictures(small_grid, capsys):
    path, lines, out = small_grid
    tables.main(["grid", str(path), f"--ledger={lines}", f"--output={out}"])
    printed = capsys.readouterr().out
    assert "## Selected" in printed and "## Validation" in printed
    selected = pandas.read_csv(out / "grid_selected.csv").set_index("system")
    assert selected["lr"].to_dict() == {"a": 2e-5, "b": 2e-5}
    assert (selected["seeds"] == 2).all() and (selected["minutes"] == 60).all()
    assert len(pandas.read_csv(out / "grid_validation.csv")) == 6
    assert len(list((out / "curves").glob("*.png"))) == 12
    with Image.open(out / "learning_rates.png") as picture:
        assert picture.width > picture.height > 300
    assert (out / "grid.md").read_text() in printed


def test_the_paper_s_tables_are_written(tmp_path, paper_runs, capsys):
    lines = write(tmp_path / "ledger.jsonl", paper_runs.values())
    more = [
        run(v, lr, recipe=r, valid=valid, validation=validation, changes=changes)
        for lr, valid in ((1.78e-5, (9, 2)), (3.16e-5, (8, 3)), (1e-3, (100, 50)))
        for r, v, validation, changes in (
            ("LibriSpeech/ASR", "asr", {"wer": valid[0]}, {}),
            ("VoxCeleb/SpeakerRec", "speaker_9s", {"eer": valid[1]}, {}),
        )
    ]
    write(lines, more)
    out = tmp_path / "out"
    tables.main(["paper", f"--ledger={lines}", f"--output={out}"])
    for name in tables.TITLES:
        assert len(pandas.read_csv(out / f"{name}.csv")) >= 6
        assert tables.TITLES[name] in (out / "paper.md").read_text()
    for name in ("figure3", "figure4", "table4", "table5", "table6"):
        assert (out / f"{name}.png").stat().st_size > 10_000


def test_runs_of_another_precision_are_in_figures(small_grid, capsys):
    """Unless it is what the grid goes through; a figure without runs is named."""
    path, lines, out = small_grid
    rows = ledger.read(lines)
    for row in rows:
        row["changes"]["precision"] = "bf16"
    runs = ledger.trainings(rows)
    found = tables.systems(runs, read_grid([path]))
    assert {name: len(rows) for name, rows in found.items()} == {"a": 6, "b": 6}
    found = tables.systems(runs, read_grid([path], ["--precision=fp32,bf16"]))
    assert {name: len(rows) for name, rows in found.items()} == {
        "a, precision=fp32": 0,
        "a, precision=bf16": 6,
        "b, precision=fp32": 0,
        "b, precision=bf16": 6,
    }
    lines.unlink()
    tables.main(["grid", str(path), f"--ledger={lines}", f"--output={out}"])
    assert "learning_rates.png is not drawn: the ledger" in capsys.readouterr().out
    assert not (out / "learning_rates.png").exists()


def evaluation(folder, wrong, noise):
    """What an evaluation leaves of 200 utterances and trials."""
    folder.mkdir(parents=True)
    rows = [
        {"ID": f"u{i}", "reference": "A B", "hypothesis": "A" if i < wrong else "A B"}
        for i in range(200)
    ]
    pandas.DataFrame(rows).to_csv(folder / "transcripts_test-other.csv", index=False)
    random = np.random.default_rng(3)
    scores = [(i % 2, i % 2 + noise * random.normal()) for i in range(200)]
    text = "".join(f"{label} u{i} v{i} {s}\n" for i, (label, s) in enumerate(scores))
    (folder / "scores_veri_test2.txt").write_text(text)
    (folder / "hyperparams.yaml").write_text(f"lr: {noise}\nseed: {wrong}\nsteps: 5\n")
    return str(folder)


def test_two_runs_are_compared(tmp_path, capsys):
    """Settings, metrics, and whether the difference is more than chance."""
    folders = [
        evaluation(tmp_path / f"mtl,lr={rate:g}" / "1", wrong, noise)
        for rate, wrong, noise in ((1e-5, 80, 1.0), (2e-5, 40, 0.3))
    ]
    rows = [
        run("mtl", rate, test=test, output_folder=folder)
        for rate, test, folder in zip(
            (1e-5, 2e-5), ((20, 30), (10, 5)), folders, strict=True
        )
    ]
    rows.append(run("mtl", 1e-5, 2, test=(24, 30)))
    rows[-1]["output_folder"] = str(tmp_path / "mtl,lr=1e-05" / "2")
    lines = write(tmp_path / "ledger.jsonl", rows)
    out = tmp_path / "out"
    common = [f"--ledger={lines}", f"--output={out}"]
    tables.main(["compare", "mtl,lr=1e-05", folders[1], *common])
    text = (out / "compare.md").read_text()
    assert text in capsys.readouterr().out
    assert "| lr | 1.0 | 0.3 |" in text and "seed |" not in text
    assert "| test-other | wer | 22.00 ± 2.83 | 10.00 | -12.00 |" in text
    assert "Seeds: 1, 2 and 1." in text
    assert "| test-other | WER | -10.00 |" in text and "| 200 utterances |" in text
    assert "| test-other | CER | -13.33 |" in text and "| 300 groups |" in text
    significance = [
        x for x in text.splitlines() if x.startswith("| veri_test2 | EER |")
    ]
    assert float(significance[0].split("|")[5]) < 0.01
    for name, message in (
        ("mtl,lr=3", "no run in the ledger is mtl,lr=3; there are mtl,lr=1e-05"),
        ("1", "1 fits several systems"),
    ):
        with pytest.raises(SystemExit):
            tables.main(["compare", name, folders[1], *common])
        assert message in capsys.readouterr().err


def test_the_documents_are_not_stale(capsys):
    """`python tools/tables.py readme` writes them."""
    assert tables.readme(check=True) == 0, capsys.readouterr().out


def test_a_stale_document_is_named_and_written_again(tmp_path, monkeypatch, capsys):
    text = (
        "| `mtl.yaml` | x | 10.63 / 4.23 | 9.99 / 9.99 |\n| `demo.yaml` | y | below |\n"
    )
    path = tmp_path / "README.md"
    path.write_text(text)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(
        tables, "documents", lambda: {path: tables._with_ours(text, MTL, {})}
    )
    monkeypatch.setattr(tables, "_runs_of", lambda runs, *_: list(runs))
    assert tables.readme(check=True) == 1
    assert "README.md: stale" in capsys.readouterr().out
    assert path.read_text() == text
    assert tables.readme() == 0
    assert path.read_text() == text.replace("9.99 / 9.99", "-")
    ours = tables._with_ours(text, MTL, [run("mtl", test=(1, 2))])
    assert "10.63 / 4.23 | 1.00 / 2.00 |" in ours and "| y | below |" in ours


def test_the_readmes_quote_the_paper_rightly():
    """Wherever a table's row names a YAML of the paper and its results."""
    quoted = 0
    for (recipe, variant, steps), values in tables.paper_results().items():
        known = [f"{v:.2f}" for v in values.values() if not pandas.isna(v)]
        path = ROOT / "recipes" / recipe / "README.md"
        rows = [
            x for x in path.read_text().splitlines() if f"| `{variant}.yaml` |" in x
        ]
        if steps == 100_000:
            assert len(rows) == 1 and f"| {' / '.join(known)} " in rows[0], rows
            quoted += 1
    assert quoted == 21


def test_what_is_refused(capsys):
    for words, message in (
        (["compare", "a", "b", "--steps=5"], "--steps=5 is no option of compare"),
        (["paper", "--stesp=5"], "--stesp is neither a key"),
    ):
        with pytest.raises(SystemExit) as stop:
            tables.main(words)
        assert stop.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(UserError, match="no runs to plot"):
        tables.plots.learning_rates_figure(pandas.DataFrame({"system": [], "lr": []}))
