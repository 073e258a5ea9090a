"""Grids: what is made of files and command lines, and what is refused."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pandas
import pytest
import ruamel.yaml

from lobes.errors import UserError
from lobes.runs import ledger
from lobes.runs.grids import Member, members, read_grid, same_but
from lobes.system.checkout import ROOT
from tests.helpers import tiny

FOLDERS = [f"--{n}_folder=x" for n in ("librispeech", "voxceleb1", "voxceleb2")]
MTL_3S = tiny.MTL.with_name("mtl_3s.yaml")


def grid(*words, only=None, **options):
    paths = [word for word in words if not str(word).startswith("--")]
    overrides = [word for word in words if str(word).startswith("--")]
    return members(read_grid(paths, [*FOLDERS, *overrides], only), **options)


def test_all_values_of_all_files():
    found = grid(tiny.MTL, MTL_3S, "--lr=1e-5,1e-4", "--seed=1,2,3", "--precision=bf16")
    assert len(found) == 12 and len({member.key for member in found}) == 12
    first, last = found[0], found[-1]
    assert first.name == "mtl, lr=1e-5, seed=1" and first.seed == 1
    assert first.changes == {"lr": 1e-5, "precision": "bf16"} and first.lr == 1e-5
    assert first.recipe == "LibriSpeech_VoxCeleb/MTL" and first.variant == "mtl"
    assert first.output_folder.endswith("MTL/mtl,lr=1e-05,precision=bf16/1")
    assert last.name == "mtl_3s, lr=1e-4, seed=3"
    assert last.changes == {"lr": 1e-4, "precision": "bf16"}
    python, script, yaml, *arguments = last.command("ledger.jsonl")
    assert script.endswith("MTL/train.py") and yaml == str(MTL_3S)
    assert {"--lr=1e-4", "--seed=3", "--precision=bf16"} <= set(arguments)
    # Seeds share the settings, rates and files do not.
    assert len({member.settings for member in found}) == 4


def test_brackets_and_single_values_are_no_axes():
    found = grid(tiny.MTL, "--librispeech_test_splits=[test-other, test-clean]")
    assert len(found) == 1
    config = "--encoder.config={conv_dim: [1, 2], hidden_size: 3}"
    assert len(grid(tiny.MTL, config)) == 1
    found = grid(tiny.MTL, "--librispeech.tr_splits=[a, b],[c]")
    assert [m.values["librispeech.tr_splits"] for m in found] == ["[a, b]", "[c]"]


def test_a_file_names_runs_axes_and_options(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "runs:\n"
        "    LibriSpeech_VoxCeleb/MTL:\n"
        "        base: hparams/mtl.yaml\n"
        "        both: hparams/pool_first_cls.yaml --base=hparams/branch_3.yaml\n"
        "    LibriSpeech/ASR:\n"
        "        speech: hparams/asr.yaml --freeze_steps=7\n"
        "axes: {lr: [1.0e-5, 2.0e-5]}\n"
        "options: --steps=50 --precision=bf16\n"
    )
    # What is about a corpus goes to the recipes that have it.
    given = ["--librispeech_folder=x", "--voxceleb2_folder=y"]
    found = members(read_grid([path], given), fill=True)
    assert given[1] in found[0].arguments and given[1] not in found[4].arguments
    assert given[0] in found[4].arguments
    with pytest.raises(UserError, match="--librispeech_foldre=x is a setting of none"):
        members(read_grid([path], ["--librispeech_foldre=x"]), fill=True)
    assert [m.run for m in found[::2]] == ["base", "both", "speech"]
    assert found[2].changes["base"] == "branch_3" and found[2].steps == 50
    assert found[4].recipe == "LibriSpeech/ASR"
    assert found[4].changes == {
        "freeze_steps": 7,
        "lr": 1e-5,
        "precision": "bf16",
        "steps": 50,
    }
    # The command line replaces an axis and wins over the options.
    found = members(read_grid([path], ["--lr=3e-5", "--steps=9"], ["base"]), fill=True)
    assert [(m.run, m.lr, m.steps) for m in found] == [("base", 3e-5, 9)]
    arguments = found[0].arguments
    assert len({word.partition("=")[0] for word in arguments}) == len(arguments)


def test_random_values_are_drawn_within_their_range_and_again_the_same():
    words = [tiny.MTL, "--lr=log:1e-6:1e-3", "--steps=int:10:20", "--seed=1,2"]
    found = grid(*words, draws=8)
    assert len(found) == 16
    rates = [member.lr for member in found[::2]]
    assert rates == [member.lr for member in found[1::2]], "seeds have other rates"
    assert all(1e-6 <= rate <= 1e-3 for rate in rates)
    assert min(rates) < 3e-5 < max(rates), "not logarithmic"
    assert all(10 <= member.steps <= 20 for member in found)
    assert found == grid(*words, draws=8) != grid(*words, draws=8, draw_seed=1)


WRONG = {
    "setting": (["--lrr=1,2"], "mtl, lrr=1: --lrr is neither a key"),
    "value": (["--lr=1e-4,fast"], "mtl, lr=fast: --lr must be a number"),
    "twice": (["--lr=1e-5,0.00001"], "are the same training"),
    "folder": (["--output_folder=a", "--lr=1e-5,1e-4"], "write to a"),
    "place": (["--num_workers=1,2"], "are the same training"),
    "range": (["--lr=log:1e-6:1e-3"], "lr is a range; say how many to draw"),
    "no file": (["x.yaml"], "x.yaml does not exist"),
    "the same file": ([tiny.MTL], "the run 'mtl' stands twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case):
    words, message = WRONG[case]
    with pytest.raises(UserError) as error:
        grid(tiny.MTL, *words)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_more_that_is_wrong(tmp_path):
    for words, message in (
        (["--lr=1,2"], "there are only 2 different values"),
        (["--lr=log:0:1"], "log:0:1 is no range"),
        ([], "--random needs an axis"),
    ):
        with pytest.raises(UserError, match=message):
            grid(tiny.MTL, *words, draws=5)
    with pytest.raises(UserError, match="needs librispeech_folder"):
        members(read_grid([tiny.MTL]))
    path = tmp_path / "grid.yaml"
    for text, message in (
        ("runs: {}\nseeds: [1]\n", "seeds is no part of a grid"),
        ("runs: {MTL: {a: mtl.yaml}}\n", "MTL is no recipe"),
        ("runs: [mtl.yaml]\n", "runs must be a mapping"),
        ("runs: {\n", "correct the YAML"),
        ("- a\n", "holds no keys; name a grid"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_grid([path])
    with pytest.raises(UserError, match="no run 'x'; there are \\['mtl'\\]"):
        read_grid([tiny.MTL], only=["x"])


GRID = "runs: {LibriSpeech_VoxCeleb/MTL: {a: hparams/mtl.yaml}}\n"

#: Text of a grid, and what is said about it.
GARBAGE = {
    "runs: 5": "runs must be a mapping of names, not 5",
    "runs: {LibriSpeech_VoxCeleb/MTL: null}": "MTL must be a mapping of names",
    "runs: {LibriSpeech_VoxCeleb/MTL: {a: 5}}": "MTL: a must be text, .*, not 5",
    "runs: {LibriSpeech_VoxCeleb/MTL: {a: null}}": "MTL: a must be text, .*, not None",
    "runs: {LibriSpeech_VoxCeleb/MTL: {a: '--lr=1'}}": "must begin with a YAML file",
    'runs: {LibriSpeech_VoxCeleb/MTL: {a: "m.yaml \'"}}': "no closing quotation in",
    "runs: {LibriSpeech_VoxCeleb/MTL: {5: m.yaml}}": "5 is no name; put it into quotes",
    f"{GRID}options: 5": "options must be text, words of a command line, not 5",
    f"{GRID}options: --a='": "options: no closing quotation in",
    f"{GRID}axes: 5": "axes must be a mapping of names, not 5",
    f"{GRID}axes: {{lr: []}}": "axes: lr has no values; give some",
}


@pytest.mark.fault(
    "C5",
    "grids with 5, null, an unclosed quote",
    "one line with the file and the key: runs: .../MTL: a must be text, words of a "
    "command line, not 5",
)
@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_in_a_grid_is_named(text, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=GARBAGE[text]) as error:
        read_grid([path])
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.fault(
    "C5",
    "--steps=int:1.2:1.8",
    "steps: int:1.2:1.8 is no range from low to high with a whole number in it",
)
def test_an_empty_range_is_named():
    for text in ("int:1.2:1.8", "lin:1:inf", "log:0:1", "lin:nan:1", "int:2:1"):
        with pytest.raises(UserError, match=f"steps: {text} is no range"):
            grid(tiny.MTL, f"--steps={text}", draws=2)


def test_the_notes_have_every_system_with_and_without_regularisation():
    """With the same settings in every recipe."""
    runs = read_grid([ROOT / "grids" / "notes.yaml"]).runs
    plain = [n for n in runs if not n.endswith(("regularised", "of speech"))]
    assert len(plain) == 10
    variant = tiny.MTL.with_name("regularised_notes.yaml")
    settings = ruamel.yaml.YAML().load(variant)
    assert settings.pop("base") == "mtl.yaml"
    for name in plain:
        yaml, *rest = runs[name]
        expected = [str(variant), f"--base={yaml}", *rest]
        if tiny.MTL.parent != Path(yaml).parent:
            expected = [*runs[name], *(f"--{k}={v}" for k, v in settings.items())]
        assert runs[f"{name}, regularised"] == expected


def test_what_counts_as_the_same_but_for_its_rate():
    low, high, other = grid(tiny.MTL, "--lr=1e-5,2e-5", "--steps=7") + grid(
        tiny.MTL, "--steps=8"
    )
    rows = [vars(member) for member in (low, high, other)]
    assert len({same_but(row, {"lr"}) for row in rows}) == 2
    assert same_but(vars(low), {"lr"}) != same_but(vars(low), {"steps"})


#: Runs of every grid of the repository.
GRIDS = {
    "demo": 12,
    "demo_transcripts": 2,
    "demo_variants": 46,
    "figure3": 26,
    "figure4": 52,
    "notes": 144,
    "table1_long": 12,
    "table4": 36,
    "table5": 36,
    "table6": 18,
}


def test_the_grids_of_the_repository():
    """Their settings exist, and the paper's rates are those of its tables."""
    folder = ROOT / "grids"
    assert {path.stem for path in folder.glob("*.yaml")} == set(GRIDS)
    for name, count in GRIDS.items():
        found = read_grid([folder / f"{name}.yaml"])
        assert len(found.runs) * math.prod(map(len, found.axes.values())) == count
        # One value of each axis is enough to see that all settings exist.
        axes = {axis: values[:1] for axis, values in found.axes.items()}
        first = members(dataclasses.replace(found, axes=axes), fill=True)
        if name in ("table4", "table5", "table6"):
            table = pandas.read_csv(ROOT / "docs" / "paper" / f"{name}.csv")
            pairs = zip(table["variant"], table["lr"], strict=True)
            rates = map(float, found.axes["lr"])
            variants = [member.variant for member in first]
            assert set(itertools.product(variants, rates)) == set(pairs)


def test_a_member_and_its_ledger_line_have_one_key():
    member = grid(tiny.MTL, "--lr=5e-5", "--seed=4")[0]
    assert isinstance(member, Member)
    line = {n: getattr(member, n) for n in ("recipe", "variant", "changes", "seed")}
    assert ledger.key(json.loads(json.dumps(line))) == member.key
