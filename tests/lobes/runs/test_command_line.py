"""Command lines: overrides, output folders, and how every mistake is told."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.run_opts import RunOptions

from lobes.errors import UserError
from lobes.runs import command_line as recipe
from lobes.runs.command_line import parse_arguments
from lobes.runs.variants import load_variant
from lobes.system.checkout import ROOT
from tests.helpers.small_yamls import BASE, FOLDERS, MTL, folder, load, problem

YAMLS = sorted(ROOT.glob("recipes/**/hparams/*.yaml"))


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


# Dotted keys ------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, key, value",
    [
        ("thing.lr=2", "thing", 2.0),
        ("sizes.x=7", "sizes", {"x": 7}),
        ("maker.lr=3", "maker", 3),
    ],
)
def test_a_dotted_key_sets_an_entry_or_an_argument(base, option, key, value):
    found = load(base, f"--{option}")[key]
    found = found.lr if key == "thing" else found().lr if key == "maker" else found
    assert found == value


@pytest.mark.parametrize(
    "option, told",
    [
        ("thing.lrr=2", "--thing.lrr is neither a key of"),
        ("thingy.lr=2", "thingy is no mapping"),
        ("size.x=1", "size is no mapping"),
        ("user.thing.lr=1", "thing is only a reference to <thing>"),
        ("sizes.x=big", "--sizes.x must be a whole number"),
        ("data_folder.x=1", "data_folder is no mapping"),
    ],
)
def test_a_wrong_dotted_key(base, option, told):
    assert told in problem(base, f"--{option}")


def test_the_last_name_alone_hints_at_the_dotted_key():
    argv = [str(MTL), *(f"--{name}_folder=x" for name in FOLDERS)]
    with pytest.raises(UserError, match="did you mean encoder.layerdrop[?]"):
        parse_arguments([*argv, "--layerdrop=0.1"])


@pytest.mark.parametrize(
    "option, told",
    [
        ("encoder.layerdrop=2", "--encoder.layerdrop must be a number from 0, below 1"),
        ("selection.wer=.nan", "--selection.wer must be a number"),
        ("weighting.scale=0", "--weighting.scale must be a number above 0"),
        ("opt_class.weight_decay=2", "--opt_class.weight_decay must be a number"),
        ("train_streams.speech.max_utterance_seconds=0", "must be a number from 0.025"),
    ],
)
def test_dotted_keys_of_the_recipe_pass_the_table(option, told):
    argv = [str(MTL), *(f"--{name}_folder=x" for name in FOLDERS), f"--{option}"]
    with pytest.raises(UserError) as caught:
        recipe.resolve(argv)
    assert told in str(caught.value)


def test_an_entry_of_a_mapping_may_be_added_but_the_whole_must_be_right():
    argv = [str(MTL), *(f"--{name}_folder=x" for name in FOLDERS)]
    tree = recipe.resolve([*argv, "--stopping.limits.speaker_loss=40"])[2]
    assert tree["stopping"]["limits"] == {"speech_loss": 10.0, "speaker_loss": 40}
    with pytest.raises(UserError, match="selection must be .* not all 0"):
        recipe.resolve([*argv, "--selection.wer=0", "--selection.eer=0"])


def test_dotted_keys_name_the_folder(base):
    assert str(folder(base, "--thing.lr=2")) == "rec/base,thing.lr=2.0/7"


def test_the_help_lists_dotted_keys(capsys):
    with pytest.raises(SystemExit):
        parse_arguments([str(MTL), "--help"])
    said = capsys.readouterr().out
    assert "--encoder.layerdrop=0.0" in said and "--lr=0.0001" in said


# Encoders from a configuration --------------------------------------------------


@pytest.mark.parametrize(
    "encoder, expected",
    [
        ("{source: a/hub, config: {}}", {"source": None, "config": {"size": 3}}),
        ("{layers: 2}", {"layers": 2}),
    ],
)
def test_an_encoder_takes_a_configuration_if_it_takes_a_source(base, encoder, expected):
    base.write_text(f"{BASE}encoder: !new:types.SimpleNamespace {encoder}\n")
    argv = [str(base), "--data_folder=d"]
    found = parse_arguments(argv, config={"size": 3})[0]["encoder"]
    assert vars(found) == expected


def test_an_encoder_without_arguments_takes_no_configuration(base):
    base.write_text(f"{BASE}encoder: !new:types.SimpleNamespace\n")
    argv = [str(base), "--data_folder=d"]
    assert not vars(parse_arguments(argv, config={"size": 3})[0]["encoder"])
