"""Variants, overrides, output folders, and how every mistake is told."""

import os
import subprocess
import sys
import types
from argparse import Namespace
from pathlib import Path

import pytest
import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.run_opts import RunOptions

from lobes.errors import UserError
from lobes.runs import command_line as recipe
from lobes.runs.command_line import parse_arguments
from lobes.runs.experiment import start_experiment
from lobes.runs.variants import load_variant, value_of
from lobes.system.checkout import ROOT
from recipes.LibriSpeech_VoxCeleb.MTL import train

MTL = ROOT / "recipes" / "LibriSpeech_VoxCeleb" / "MTL" / "hparams" / "mtl.yaml"
YAMLS = sorted(ROOT.glob("recipes/**/hparams/*.yaml"))
FOLDERS = ("librispeech", "voxceleb2", "voxceleb1")
SMALL = (
    "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, "
    "intermediate_size: 16, conv_dim: [8, 8, 8, 8, 8, 8, 8], "
    "num_conv_pos_embeddings: 16, num_conv_pos_embedding_groups: 2}"
)

BASE = """\
seed: 7
data_folder: !PLACEHOLDER   # where the corpus is
output_folder: null
prepared_folder: null
csv_folder: !ref <prepared_folder>/X
lr: 1.0e-4
steps: 100
name: base
shuffle: True
threads: null
tensorboard: False
splits: [a, b]
size: 3
sizes: {x: 1}
nothing: null
thing: !new:types.SimpleNamespace
    lr: !ref <lr>
user: !new:types.SimpleNamespace
    thing: !ref <thing>
maker: !name:types.SimpleNamespace
    lr: 1
"""


@pytest.fixture
def write(tmp_path):
    """Write YAML files below ``rec/hparams``; returns the path of the last."""

    def write(**files):
        folder = tmp_path / "rec" / "hparams"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path = folder / f"{name}.yaml"
            path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def base(write):
    """A small YAML with a value of every kind."""
    return write(base=BASE)


@pytest.fixture(autouse=True)
def unchanged_process():
    """Undo what loading a recipe changes in this process."""
    path, threads = list(sys.path), torch.get_num_threads()
    yield
    sys.path[:] = path
    torch.set_num_threads(threads)


def load(path, *options, changes=None):
    """The hparams of a command line, its placeholder filled."""
    argv = [str(path), "--data_folder=d", *options]
    return parse_arguments(argv, changes)[0]


def problem(path, *options):
    """The one-line message of a wrong command line."""
    with pytest.raises(UserError) as caught:
        load(path, *options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Loading --------------------------------------------------------------------


def test_values_run_options_and_settings(base):
    argv = [str(base), "--data_folder=d", "--lr=2e-3", "--precision=bf16"]
    hparams, run_opts, settings = parse_arguments(argv)
    assert hparams["lr"] == 2e-3 and hparams["thing"].lr == 2e-3
    assert hparams["user"].thing is hparams["thing"]
    assert run_opts["precision"] == "bf16" and "precision" in run_opts.overridden_args
    assert run_opts["eval_precision"] == "fp32"
    stored = load_hyperpyyaml(settings)
    for key in ("lr", "data_folder", "output_folder", "prepared_folder", "csv_folder"):
        assert stored[key] == hparams[key]
    assert stored["thing"] == hparams["thing"]


def test_prepared_folder_lies_below_the_checkout(base):
    assert load(base)["csv_folder"] == str(ROOT / "results" / "prepared" / "X")
    assert load(base, "--prepared_folder=/p")["csv_folder"] == "/p/X"


def test_changes_of_the_calling_program_win(base):
    found = load(base, "--lr=1", changes={"lr": 3.0, "sizes": {"z": [1]}})
    assert found["lr"] == 3.0 and found["sizes"] == {"z": [1]}


def test_help_ends_the_command(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--precision" in text and "--jit" not in text


def test_help_after_a_yaml_lists_its_settings(base, write, capsys):
    path = write(v="base: base.yaml\nlr: 0.5\n")
    with pytest.raises(SystemExit):
        parse_arguments([str(path), "--help"])
    text = capsys.readouterr().out
    assert "--lr=0.5 " in text and "a number above 0, at most 10\n" in text
    assert "--name=base\n" in text and "--seed=" in text and "--thing" not in text


def test_a_whole_number_may_be_written_as_a_power_of_ten(base):
    assert load(base, "--seed=1e3")["seed"] == 1000


@pytest.mark.parametrize("argv", [["--lr=1"], ["none.yaml"], ["."]])
def test_the_first_argument_must_be_a_yaml(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="YAML"):
        parse_arguments(argv)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "word\n"])
def test_a_file_without_keys(write, text):
    assert "holds no keys" in problem(write(x=text))


def test_a_yaml_that_is_no_recipe(write):
    path = write(x="data_folder: null\n")
    assert "no key output_folder" in problem(path)


def test_a_yaml_in_another_encoding(write):
    path = write(x=BASE)
    path.write_bytes(BASE.replace("base", "b\xe4se").encode("latin-1"))
    assert "UTF-8" in problem(path)


def test_all_placeholders_are_listed_with_the_options(write):
    path = write(x=BASE + "other_folder: !PLACEHOLDER\n")
    with pytest.raises(UserError) as caught:
        parse_arguments([str(path)])
    message = str(caught.value)
    assert "--data_folder=... --other_folder=..." in message and str(path) in message


def test_corpora_need_no_folder_where_nothing_is_prepared(write):
    needed = "other: !PLACEHOLDER\nmy_transcripts: !PLACEHOLDER\n"
    path = str(write(x=f"{BASE}{needed}skip_prep: False\n"))
    with pytest.raises(UserError, match="needs data_folder, other, my_transcripts; "):
        parse_arguments([path])
    with pytest.raises(UserError, match="needs other; give --other=...$"):
        parse_arguments([path, "--skip_prep=True"])
    hparams = parse_arguments([path, "--skip_prep=True", "--other=x"])[0]
    assert hparams["data_folder"] is hparams["my_transcripts"] is None
    assert load(path, "--skip_prep=True", "--other=x")["data_folder"] == "d"


def test_a_class_may_lie_beside_the_yaml(write):
    path = write(x=BASE + "mine: !new:my_unusual_module.Thing\n")
    module = path.parent / "my_unusual_module.py"
    module.write_text("class Thing:\n    size = 5\n")
    try:
        assert load(path)["mine"].size == 5
    finally:
        sys.modules.pop("my_unusual_module", None)


# Variants -------------------------------------------------------------------


def test_a_variant_replaces_values_and_the_references_follow(base, write):
    found = load(write(v="base: base.yaml\nlr: 5.0\nname: v\n"))
    assert found["lr"] == found["thing"].lr == 5.0
    assert found["name"] == "v" and found["steps"] == 100
    assert "base" not in found


def test_a_variant_replaces_whole_nodes_tags_included(base, write):
    """HyperPyYAML's own overrides would keep the class and merge the arguments."""
    variant = "base: base.yaml\nthing: !new:argparse.Namespace\n    y: 2\n"
    found = load(write(v=variant))
    assert type(found["thing"]) is Namespace
    assert vars(found["thing"]) == {"y": 2}
    assert found["user"].thing is found["thing"]


def test_a_variant_replaces_an_object_by_a_value_and_the_reverse(base, write):
    variant = "base: base.yaml\nthing: null\nname: !new:types.SimpleNamespace\n    z: 1"
    found = load(write(v=variant))
    assert found["thing"] is None and found["user"].thing is None
    assert found["name"] == types.SimpleNamespace(z=1)


def test_mappings_are_replaced_not_merged(base, write):
    assert load(write(v="base: base.yaml\nsizes: {y: 2}\n"))["sizes"] == {"y": 2}


def test_a_variant_may_fill_a_placeholder(base, write):
    path = write(v="base: base.yaml\ndata_folder: here\n")
    assert parse_arguments([str(path)])[0]["data_folder"] == "here"


def test_a_dotted_key_replaces_or_adds_an_entry_or_an_argument(base, write):
    variant = (
        "base: base.yaml\nsizes.y: 2\nthing.lr: 7.0\nthing.z: {deep: 1}\n"
        "thing.z.more: !ref <lr>\n"
    )
    found = load(write(v=variant))
    assert found["sizes"] == {"x": 1, "y": 2}
    assert vars(found["user"].thing) == {"lr": 7.0, "z": {"deep": 1, "more": 1e-4}}
    assert not any("." in key for key in found)


def test_entries_that_are_references_share_their_objects(base, write):
    variant = (
        "base: base.yaml\nsizes.a: &made !new:types.SimpleNamespace\n    n: 1\n"
        "sizes.b: !ref <sizes[a]>\nsizes.c: [*made]\n"
    )
    sizes = load(write(v=variant))["sizes"]
    assert sizes["b"] is sizes["a"] and sizes["c"][0] is sizes["a"]


def test_a_dotted_key_through_a_reference_names_the_node(base, write):
    variant = "base: v.yaml\nsizes.a.n: 2\n"
    write(v="base: base.yaml\nsizes.a: !ref <lr>\n")
    message = problem(write(w=variant))
    assert "a is only a reference to <lr>" in message and "change that node" in message


@pytest.mark.parametrize(
    "key, named", [("sizez.y", "sizez is no mapping"), ("lr.x", "lr is no mapping")]
)
def test_a_dotted_key_into_nothing(base, write, key, named):
    message = problem(write(v=f"base: base.yaml\n{key}: 5\n"))
    assert named in message and ("sizes" in message) == (key == "sizez.y")


def test_bases_may_form_a_chain(base, write):
    write(middle="base: base.yaml\nlr: 2.0\nsteps: 5\n")
    path = write(top="base: middle.yaml\nlr: 3.0\n")
    found = load(path, "--name=mine")
    assert (found["lr"], found["steps"], found["name"]) == (3.0, 5, "mine")
    assert load_variant(path)[1].name == "base.yaml"


def test_the_base_is_relative_to_the_variant(base, tmp_path, monkeypatch):
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "v.yaml").write_text("base: ../rec/hparams/base.yaml\nlr: 9.0\n")
    monkeypatch.chdir(other)
    assert load("v.yaml")["lr"] == 9.0


def test_an_unknown_key_in_a_variant(base, write):
    message = problem(write(v="base: base.yaml\nstep: 5\n"))
    assert "v.yaml" in message and "key step" in message and "steps" in message


def test_a_missing_base_names_both_files(write):
    message = problem(write(v="base: gone.yaml\n"))
    assert "v.yaml" in message and "gone.yaml" in message


@pytest.mark.parametrize("ring", [{"a": "a"}, {"b": "a", "a": "b"}])
def test_bases_in_a_ring(write, ring):
    path = write(**{name: f"base: {below}.yaml\n" for name, below in ring.items()})
    assert "variant of this file" in problem(path)


def test_settings_of_a_variant_are_complete(base, write):
    path = write(v="base: base.yaml\nthing: !new:argparse.Namespace\n    y: 2\n")
    _, _, settings = parse_arguments([str(path), "--data_folder=d"])
    assert "base:" not in settings
    stored = load_hyperpyyaml(settings)
    assert stored["thing"] == Namespace(y=2) and stored["steps"] == 100


# Another base ---------------------------------------------------------------

TOP = "base: base.yaml\nlr: 2.0\nname: top\nthing: !new:argparse.Namespace\n    y: 2\n"
OTHER = "base: base.yaml\nlr: 3.0\nsteps: 5\nsizes.y: 2\n"


def test_another_base_gives_the_keys_of_both_and_the_top_wins(base, write):
    other, top = write(other=OTHER), write(top=TOP)
    found = load(top, f"--base={other}")
    assert (found["lr"], found["name"], found["steps"]) == (2.0, "top", 5)
    assert found["sizes"] == {"x": 1, "y": 2} and found["user"].thing == Namespace(y=2)
    assert "base" not in found
    assert load(other, f"--base={top}")["lr"] == 3.0
    assert load(top, f"--base={other}", "--lr=4")["lr"] == 4.0


def test_another_base_may_be_a_chain_and_go_below_one(base, write):
    write(middle="base: base.yaml\nlr: 7.0\nsteps: 6\nshuffle: False\n")
    write(other=OTHER)
    top = write(top="base: middle.yaml\nname: top\n")
    other = write(below="base: other.yaml\nsteps: 8\nthreads: 1\n")
    found = load(top, f"--base={other}")
    expected = ("top", 7.0, 6, False, 1, {"x": 1, "y": 2})
    keys = ("name", "lr", "steps", "shuffle", "threads", "sizes")
    assert tuple(found[key] for key in keys) == expected


def test_two_other_bases_lie_one_below_the_other(base, write):
    last = write(last="base: base.yaml\nlr: 9.0\nsteps: 7\nshuffle: False\n")
    other, top = write(other=OTHER), write(top=TOP)
    found = load(top, f"--base={other}+{last}")
    keys = ("lr", "steps", "shuffle", "sizes")
    assert tuple(found[k] for k in keys) == (2.0, 5, False, {"x": 1, "y": 2})
    assert folder(top, f"--base={other}+{last}") == Path("rec/top,base=other+last/7")


def test_another_base_is_relative_to_the_working_directory(
    base, write, tmp_path, monkeypatch
):
    write(other=OTHER)
    top = write(top=TOP)
    monkeypatch.chdir(tmp_path)
    assert load(top, "--base=rec/hparams/other.yaml")["steps"] == 5
    monkeypatch.chdir(top.parent)
    assert load("top.yaml", "--base", "other.yaml")["steps"] == 5


def test_another_base_is_part_of_the_folder_s_name(base, write):
    other, top = write(other=OTHER), write(top=TOP)
    assert folder(top, f"--base={other}") == Path("rec/top,base=other/7")
    found = folder(top, f"--base={other}", "--steps=9")
    assert found == Path("rec/top,base=other,steps=9/7")


def test_the_stored_settings_have_no_base_of_any_kind(base, write):
    other, top = write(other=OTHER), write(top=TOP)
    argv = [str(top), "--data_folder=d", f"--base={other}"]
    hparams, _, settings = parse_arguments(argv)
    stored = load_hyperpyyaml(settings)
    assert "base" not in stored and (stored["lr"], stored["steps"]) == (2.0, 5)
    assert stored["output_folder"] == hparams["output_folder"]


def test_another_base_below_a_file_without_one(base, write):
    message = problem(base, f"--base={write(other=OTHER)}")
    assert message.startswith("--base: ") and "base.yaml has no base" in message
    assert "name a variant" in message


def test_another_base_that_is_no_variant_of_the_same_file(base, write):
    write(base2=BASE)
    strange = write(strange="base: base2.yaml\nlr: 9.0\n")
    top = write(top=TOP)
    message = problem(top, f"--base={strange}")
    assert f"{strange} is no variant of {base}" in message and "top.yaml" in message


def test_another_base_that_does_not_exist(base, write):
    assert "gone.yaml" in problem(write(top=TOP), "--base=gone.yaml")


def test_a_variant_of_the_paper_on_the_demo(monkeypatch):
    """The command of the READMEs; only where data and encoder are is the demo's."""
    hparams = MTL.parent
    demo = load_variant(hparams / "demo.yaml")[0]
    plain = load_variant(hparams / "pool_first_cls.yaml")[0]
    both, base = load_variant(hparams / "pool_first_cls.yaml", hparams / "demo.yaml")
    assert base.resolve() == MTL
    mtl = load_variant(MTL)[0]
    keys = ("encoder.source", "steps", "speaker.n_speakers", "lr", "librispeech_folder")
    for key in keys:
        assert value_of(both, key) == value_of(demo, key) != value_of(mtl, key)
    for tree in (both, plain):
        assert tree["encoder"]["class_token"] == "constant"
    assert both["pooling"].tag.value == "!new:lobes.model.pooling.ClassTokenPooling"
    monkeypatch.setattr(recipe, "_load", lambda path, settings: None)
    argv = [str(hparams / "pool_first_cls.yaml"), f"--base={hparams / 'demo.yaml'}"]
    _, _, settings = parse_arguments([*argv, "--encoder.shared_layers=2"])
    name = f"pool_first_cls,base=demo,encoder.shared_layers=2/{both['seed']}"
    assert f"output_folder: {ROOT}/results/LibriSpeech_VoxCeleb/MTL/{name}" in settings


# Includes -------------------------------------------------------------------

FRAGMENT = "!new:types.SimpleNamespace\nrate: 1.0\nsize: 2\n"


def test_an_include_gets_its_knobs(write):
    write(part=FRAGMENT)
    text = "inside: !include:part.yaml\n    rate: !ref <lr>\n"
    path = write(x=BASE + text)
    hparams, _, settings = parse_arguments([str(path), "--data_folder=d", "--lr=4"])
    assert hparams["inside"] == types.SimpleNamespace(rate=4.0, size=2)
    assert "!include" not in settings
    assert load_hyperpyyaml(settings)["inside"] == hparams["inside"]


def test_an_include_without_a_body(write):
    write(part=FRAGMENT)
    found = load(write(x=BASE + "inside: !include:part.yaml\n"))
    assert found["inside"].rate == 1.0


def test_includes_within_nodes_do_not_depend_on_the_working_directory(
    write, tmp_path, monkeypatch
):
    write(part=FRAGMENT)
    text = "deep:\n    er: !include:part.yaml\n        size: 3\n"
    text += "many: [!include:part.yaml ]\n"
    path = write(x=BASE + text)
    monkeypatch.chdir(tmp_path)
    found = load(path)
    assert found["deep"]["er"].size == 3 and found["many"][0].size == 2


def test_an_include_of_a_variant_is_relative_to_the_variant(base, write, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "mine.yaml").write_text(FRAGMENT)
    path = other / "v.yaml"
    path.write_text("base: ../rec/hparams/base.yaml\nthing: !include:mine.yaml\n")
    assert load(path)["thing"].size == 2


def test_a_misspelt_knob(write):
    write(part=FRAGMENT)
    message = problem(write(x=BASE + "inside: !include:part.yaml\n    sise: 3\n"))
    assert "part.yaml has no knob sise" in message and "size" in message


def test_a_missing_include(write):
    assert "gone.yaml" in problem(write(x=BASE + "inside: !include:gone.yaml\n"))


# Overrides ------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, value",
    [
        ("lr=5e-5", 5e-5),
        ("lr=1", 1.0),
        ("steps=3", 3),
        ("shuffle=False", False),
        ("name=007", "007"),
        ("name=a b: c", "a b: c"),
        ("name=@odd", "@odd"),
        ("name=x=y", "x=y"),
        ("name=null", None),
        ("splits=[c]", ["c"]),
        ("splits=[]", []),
        ("sizes={y: 2}", {"y": 2}),
        ("nothing=5", 5),
        ("nothing=[1, 2]", [1, 2]),
        ("csv_folder=1e5", "1e5"),
        ("output_folder=2024", "2024"),
        ("output_folder=/a/b #1", "/a/b #1"),
    ],
)
def test_overrides_have_the_kind_of_the_value_they_replace(base, option, value):
    key = option.partition("=")[0]
    found = load(base, f"--{option}")[key]
    assert found == value and type(found) is type(value)


def test_a_placeholder_folder_is_text(base):
    found = parse_arguments([str(base), "--data_folder=123"])[0]
    assert found["data_folder"] == "123"


@pytest.mark.parametrize(
    "option, kind",
    [
        ("lr=abc", "a number"),
        ("lr=True", "a number"),
        ("steps=1.5", "a whole number"),
        ("steps=True", "a whole number"),
        ("shuffle=yes", "True or False"),
        ("shuffle=1", "True or False"),
        ("tensorboard=on", "True or False"),
        ("splits=a", "a list"),
        ("splits={a: 1}", "a list"),
        ("sizes=3", "a mapping"),
        ("sizes=[1]", "a mapping"),
    ],
)
def test_an_override_of_another_kind(base, option, kind):
    key, _, text = option.partition("=")
    message = problem(base, f"--{option}")
    assert f"--{key} must be {kind}" in message and repr(text) in message


@pytest.mark.parametrize("text", ["[a", "!new:os.system", "{a: 1"])
def test_an_override_that_is_no_yaml(base, text):
    assert "not a YAML value" in problem(base, f"--nothing={text}")


@pytest.mark.parametrize("key, tag", [("thing", "!new:"), ("maker", "!name:")])
def test_objects_are_not_replaced_on_the_command_line(base, key, tag):
    message = problem(base, f"--{key}=3")
    assert f"{key} holds an object ({tag}" in message and "variant" in message


def test_a_value_may_follow_its_key(base):
    found = load(base, "--lr", "3e-4", "--size", "-5", "--device", "cpu")
    assert found["lr"] == 3e-4 and found["size"] == -5


def test_the_last_value_of_a_key_wins(base):
    assert load(base, "--lr=1", "--lr=2")["lr"] == 2.0


@pytest.mark.parametrize("options", [["--lr"], ["--lr", "1", "2"], ["--lr", "--steps"]])
def test_a_key_needs_exactly_one_value(base, options):
    assert "--lr needs one value" in problem(base, *options)


def test_a_word_that_belongs_to_nothing(base):
    argv = [str(base), "word"]
    with pytest.raises(UserError, match="'word' is neither"):
        parse_arguments(argv)


def test_an_unknown_key_with_a_suggestion(base):
    message = problem(base, "--stepz=5")
    assert "--stepz is neither a key" in message and "steps" in message


def test_an_unknown_key_without_anything_near(base):
    assert "did you mean" not in problem(base, "--qqqqqqqq=5")


@pytest.mark.parametrize("option", ["--prec=bf16", "--devic=cpu", "--debug_b=3"])
def test_abbreviated_run_options_are_refused(base, option):
    """argparse would take them and nobody would notice a misspelt key."""
    assert "is neither a key" in problem(base, option)


@pytest.mark.parametrize("option", sorted(recipe.REFUSED_RUN_OPTIONS))
def test_run_options_without_a_meaning_are_refused(base, option):
    message = problem(base, f"--{option}")
    reason = recipe.REFUSED_RUN_OPTIONS[option]
    assert message == f"--{option} is not supported: {reason}"


def test_refused_run_options_exist():
    assert set(recipe.REFUSED_RUN_OPTIONS) <= set(RunOptions().keys())


@pytest.mark.parametrize("options", [["--debug", "False"], ["--debug=False"]])
def test_a_flag_takes_no_value(base, options):
    """`--debug False` would turn debugging on."""
    assert "flag --debug takes no value" in problem(base, *options)


def test_words_after_a_run_option_are_not_dropped(base):
    assert "--device needs one value" in problem(base, "--device", "cpu", "x")
    words = "--compile_module_keys", "a", "--noprogressbar", "x"
    assert "flag --noprogressbar takes no value" in problem(base, *words)


def test_no_key_is_a_prefix_of_a_run_option():
    """argparse would swallow such a key (DESIGN section 4)."""
    options = set(RunOptions().keys())
    assert YAMLS
    for path in YAMLS:
        for key in load_variant(path)[0]:
            longer = {o for o in options if o != key and o.startswith(key)}
            assert not longer, f"{path}: {key} is a prefix of {longer}"


def test_threads_reach_torch(base):
    load(base, "--threads=1")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("threads", ["many", "0", "1.5"])
def test_wrong_threads(base, threads):
    assert "threads must be" in problem(base, f"--threads={threads}")


def test_missing_tensorboard_is_told_at_once(base, monkeypatch):
    monkeypatch.setattr(recipe.importlib.util, "find_spec", lambda name: None)
    message = problem(base, "--tensorboard=True")
    assert "pip install -e .[tensorboard]" in message
    load(base)


# Mistakes within the YAML ---------------------------------------------------


@pytest.mark.parametrize(
    "text, line",
    [("a: [1\nb: 2\n", 2), ("lr: 3\n", 1), ("\tx: 1\n", 1), ("a: 'b\n", 2)],
)
def test_broken_yaml_is_named_with_its_line(write, text, line):
    message = problem(write(x=BASE + text))
    assert f"x.yaml, line {BASE.count(chr(10)) + line}: " in message


@pytest.mark.parametrize(
    "text, named",
    [
        ("a: !new:no_such_module.X\n", "no_such_module"),
        ("a: !new:lobes.data.vocabulary.Vocabularies\n", "Vocabularies"),
        ("a: !new:lobes.data.vocabulary.Vocabulary\n    symbolz: 1\n", "symbolz"),
        ("a: !new:lobes.data.vocabulary.Vocabulary\n    symbols: 1\n", "iterable"),
        ("a: !ref <nowhere>\n", "nowhere"),
        ("a: {b: !PLACEHOLDER }\n", "needs a.b; give --a.b=..."),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(write, text, named):
    message = problem(write(x=BASE + text))
    assert "x.yaml" in message and named in message


def test_user_errors_of_a_class_stay_as_they_are(write):
    text = "a: !new:lobes.data.streams.RandomCrops\n    csv: x\n    labels: {}\n"
    assert "crop_seconds" in problem(write(x=BASE + text + "    crop_seconds: 0\n"))


# Output folder --------------------------------------------------------------


def folder(path, *options):
    """The computed output folder, relative to ``results``."""
    return Path(load(path, *options)["output_folder"]).relative_to(ROOT / "results")


def test_the_folder_names_recipe_variant_and_seed(base, write):
    assert folder(base) == Path("rec/base/7")
    assert folder(write(v="base: base.yaml\nseed: 8\n")) == Path("rec/v/8")
    assert folder(base, "--seed=9") == Path("rec/base/9")


def test_the_folder_does_not_depend_on_the_working_directory(base, monkeypatch):
    monkeypatch.chdir(base.parent)
    assert folder("base.yaml") == Path("rec/base/7")


def test_the_folder_names_the_overrides_in_order(base):
    expected = Path("rec/base,lr=0.001,name=x-y/7")
    assert folder(base, "--name=x/y", "--lr=1e-3") == expected
    assert folder(base, "--lr=0.001", "--name=x/y") == expected


def test_every_value_that_counts_has_its_own_folder(base, write):
    path = write(x=BASE + "valid_interval: 5\n")
    options = ["--lr=1", "--lr=2", "--steps=2", "--splits=[a]", "--valid_interval=9"]
    assert len({folder(path, option) for option in options}) == len(options)


def test_paths_run_options_and_ways_of_running_are_left_out(base, write):
    path = write(x=BASE + "num_workers: 0\nlog_interval: 5\nskip_prep: False\n")
    options = [
        "--prepared_folder=/p", "--csv_folder=/q", "--num_workers=3", "--threads=1",
        "--log_interval=9", "--skip_prep=True", "--test_only", "--precision=bf16",
    ]  # fmt: skip
    assert folder(path, *options) == Path("rec/x/7")


def test_long_names_are_hashed_and_stay_different(base):
    names = {folder(base, f"--name={'n' * 150}{i}").parent.name for i in range(3)}
    assert len(names) == 3
    for name in names:
        assert len(name) <= 100 and name.startswith("base,name=nnn")
    again = folder(base, f"--name={'n' * 150}0").parent.name
    assert again in names


def test_an_explicit_folder_wins(base):
    found = load(base, "--lr=3", "--output_folder=/mine")
    assert found["output_folder"] == "/mine"


def test_recipes_of_the_repository_keep_their_place():
    tree, base = load_variant(MTL)
    found = recipe._output_folder(MTL, base, tree, {})
    expected = f"results/LibriSpeech_VoxCeleb/MTL/mtl/{tree['seed']}"
    assert found == ROOT / expected


def test_a_variant_outside_the_repository_belongs_to_its_base(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {MTL}\nlr: 1.0e-3\n")
    tree, base = load_variant(path)
    found = recipe._output_folder(path, base, tree, {})
    assert found.parent == ROOT / "results/LibriSpeech_VoxCeleb/MTL/mine"


# Packages of other checkouts ------------------------------------------------


@pytest.mark.parametrize("name", ["recipes", "tools"])
@pytest.mark.parametrize("kind", ["package", "namespace", "module"])
def test_a_foreign_package_is_refused(base, tmp_path, name, kind):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    if kind == "module":
        (foreign / f"{name}.py").write_text("")
    else:
        (foreign / name).mkdir()
        if kind == "package":
            (foreign / name / "__init__.py").write_text("")
    found = str(foreign / (f"{name}.py" if kind == "module" else name))
    module = types.ModuleType(name)
    module.__file__ = found
    if kind != "module":
        module.__path__ = [found]
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        message = problem(base)
    finally:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
    assert f"{name!r} comes from {foreign}" in message and str(ROOT) in message


def test_a_foreign_checkout_on_pythonpath_is_refused(base, tmp_path):
    (tmp_path / "other" / "recipes").mkdir(parents=True)
    (tmp_path / "other" / "recipes" / "__init__.py").write_text("")
    code = "import sys; sys.path.insert(1, sys.argv.pop(1));"
    code += "import lobes.runs.command_line as r;"
    code += "from lobes.errors import user_errors_exit as e; e(r.parse_arguments)()"
    paths = [str(tmp_path / "other"), str(ROOT)]
    result = subprocess.run(
        [sys.executable, "-c", code, paths[0], str(base)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert "error: the package 'recipes' comes from" in result.stderr
    assert "Traceback" not in result.stderr


# The real recipe ------------------------------------------------------------


@pytest.fixture(scope="module")
def mtl(tmp_path_factory):
    """mtl.yaml loaded with a tiny encoder: hparams, run options, settings."""
    output = tmp_path_factory.mktemp("mtl") / "out"
    argv = [str(MTL), *(f"--{name}_folder=x" for name in FOLDERS)]
    argv += ["--encoder.source=null", f"--encoder.config={SMALL}"]
    argv += [f"--output_folder={output}"]
    return parse_arguments([*argv, "--device=cpu", "--lr=1e-3"])


def same(ours, theirs):
    """Whether two loaded values agree, objects by class and plain attributes."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(
            same(ours[key], theirs[key]) for key in ours
        )
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, (str, int, float, bool, type(None))):
        return ours == theirs
    if type(ours) is not type(theirs):
        return False
    plain = {k: v for k, v in vars(ours).items() if isinstance(v, (str, int, float))}
    return all(getattr(theirs, key) == value for key, value in plain.items())


def test_the_stored_settings_load_without_us_and_equal(mtl):
    hparams, _, settings = mtl
    stored = load_hyperpyyaml(settings)
    assert stored.keys() == hparams.keys()
    assert [key for key in hparams if not same(hparams[key], stored[key])] == []
    for name, tensor in hparams["encoder"].state_dict().items():
        assert torch.equal(tensor, stored["encoder"].state_dict()[name])


def test_references_of_the_recipe_share_their_objects(mtl):
    hparams = mtl[0]
    streams, tasks = hparams["train_streams"], hparams["tasks"]
    assert streams["speaker"].labels["speaker"] is hparams["speakers"]
    assert tasks["speaker"].pooling is hparams["pooling"]
    assert hparams["epoch_counter"].stopping is hparams["stopping"]
    assert hparams["schedule"].lr == 1e-3


def test_the_paper_is_the_default_of_the_recipe():
    """PAPER_FACTS section 3: the base run."""
    tree = load_variant(MTL)[0]
    expected = {
        "seed": 42133724, "lr": 1e-4, "steps": 100_000, "freeze_steps": 10_000,
        "schedule.initial_lr": 5e-6, "schedule.final_lr": 5e-6,
        "schedule.warmup": 0.1, "schedule.hold": 0.4,
        "max_grad_norm": 0, "crop_seconds": 9, "max_batch_samples": 3_200_000,
        "valid_interval": 5_000, "stopping.patience_steps": 20_000,
        "stopping.limits": {"speech_loss": 10}, "speaker.scale": 30,
        "speaker.margin": 0.2, "speaker.n_speakers": 5994, "encoder.layerdrop": 0,
        "encoder.hidden_dropout": 0, "encoder.mask_time_prob": 0,
        "encoder.mask_feature_prob": 0, "encoder.source": "facebook/wav2vec2-base",
        "selection": {"wer": 0.25, "eer": 1.0},
    }  # fmt: skip
    assert {key: value_of(tree, key) for key in expected} == expected


def test_the_single_task_recipes_differ_from_the_base_where_they_must():
    asr = load_variant(ROOT / "recipes/LibriSpeech/ASR/hparams/asr.yaml")[0]
    speaker = load_variant(ROOT / "recipes/VoxCeleb/SpeakerRec/hparams/speaker.yaml")[0]
    mtl = load_variant(MTL)[0]
    assert (asr["lr"], speaker["lr"]) == (5.62e-5, 3.16e-5)
    assert speaker["crop_seconds"] == 3.0
    different = {"lr", "crop_seconds", "headline_sets", "tasks", "train_streams"}
    different |= {"valid_sets", "test_sets", "selection", "stopping", "encoder"}
    different |= {"voxceleb", "librispeech"}
    for tree in (asr, speaker):
        assert set(tree) <= set(mtl)
        changed = {k for k in tree if _text(tree[k]) != _text(mtl[k])}
        assert changed <= different


def _text(node):
    """A YAML node without its comments, to compare."""
    if isinstance(node, dict):
        return [(key, _text(value)) for key, value in node.items()]
    if isinstance(node, list):
        return [_text(value) for value in node]
    tag = getattr(node, "tag", None)
    return str(getattr(node, "value", node)), str(tag)


def test_every_yaml_stands_as_one_document():
    for path in YAMLS:
        ruamel.yaml.YAML().load(path.read_text(encoding="utf-8"))


def test_start_experiment_writes_what_an_evaluation_needs(mtl, monkeypatch):
    monkeypatch.setattr("speechbrain.utils.logger.setup_logging", lambda *a, **k: None)
    start_experiment(*mtl)
    output = Path(mtl[0]["output_folder"])
    assert (output / "hyperparams.yaml").read_text(encoding="utf-8") == mtl[2]
    assert '"hidden_size": 16' in (output / "encoder_config.json").read_text()
    assert "torch==" in (output / "env.log").read_text()


IMPOSSIBLE = {
    "all channels the speaker's": (
        "mtl", "encoder.speaker_dims=16", "give 1 to 15, or null"
    ),
    "none": ("mtl", "encoder.speaker_dims=0", "a whole number from 1"),
    "a word": ("mtl", "encoder.speaker_dims=half", "a whole number from 1"),
    "half a channel": ("mtl", "encoder.speaker_dims=7.5", "a whole number from 1"),
    "a switch": ("mtl", "encoder.speaker_dims=True", "a whole number from 1"),
    "more layers than there are": (
        "mtl", "encoder.shared_layers=2", "give 0 to 1, or null"
    ),
    "fewer than none": ("mtl", "encoder.shared_layers=-1", "a whole number from 0"),
    "layers in words": ("mtl", "encoder.shared_layers=all", "a whole number from 0"),
    "half a layer": ("mtl", "encoder.shared_layers=0.5", "a whole number from 0"),
    "a token of no kind": (
        "mtl", "encoder.class_token=ones", "constant, learnt or null"
    ),
    "no token": (
        "pool_first_cls", "encoder.class_token=null", "class_token is null; set it to"
    ),
    "a prior of no kind": ("mtl", "speech.letter_prior=flat", "log, relative or null"),
    "no speech task": ("alone", "lr=1", "asks the speech head, which is not among"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_is_refused_before_any_data_are_read(case, tmp_path, capsys):
    """Naming the key and what it may be; none of the folders exists."""
    name, option, expected = IMPOSSIBLE[case]
    yaml = MTL.with_name(f"{name}.yaml")
    if name == "alone":
        yaml = tmp_path / "alone.yaml"
        base = MTL.with_name("pool_ctc_blank.yaml")
        yaml.write_text(
            f"base: {base}\ntasks: {{speaker: !ref <speaker>}}\n"
            "train_streams.speaker.csv: !ref <librispeech_csv_folder>/train.csv\n"
        )
    argv = [str(yaml), *(f"--{name}_folder=x" for name in FOLDERS), "--device=cpu"]
    argv += ["--encoder.source=null", f"--encoder.config={SMALL}"]
    argv += [f"--output_folder={tmp_path / 'out'}", f"--{option}"]
    with pytest.raises(SystemExit) as caught:
        train.main(argv)
    message = capsys.readouterr().err.strip()
    assert caught.value.code == 2
    assert message.startswith("error: ") and "\n" not in message
    assert expected in message
    key = option.partition("=")[0].split(".")[-1]
    assert {"alone": "pooling"}.get(name, key) in message
    assert not (tmp_path / "out" / "hyperparams.yaml").exists()


def test_start_experiment_needs_no_git(mtl, monkeypatch, tmp_path):
    monkeypatch.setattr("speechbrain.utils.logger.setup_logging", lambda *a, **k: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    start_experiment(*mtl)
    env = Path(mtl[0]["output_folder"]) / "env.log"
    assert "Commit unknown" in env.read_text()


def test_an_output_folder_that_cannot_be_written(mtl, tmp_path):
    (tmp_path / "file").write_text("")
    hparams = {**mtl[0], "output_folder": str(tmp_path / "file" / "run")}
    with pytest.raises(UserError, match="--output_folder"):
        start_experiment(hparams, *mtl[1:])
