"""The table of settings: every key has a row, and no wrong value passes."""

import argparse
import re

import pytest
import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.run_opts import RunOptions

from lobes.errors import UserError
from lobes.runs import ledger
from lobes.runs.command_line import REFUSED_RUN_OPTIONS
from lobes.runs.variants import BASE, load_variant, value_of
from lobes.settings import checks, kinds, yamls
from lobes.settings import table as settings
from lobes.settings.changes import changed_settings
from lobes.system.checkout import ROOT
from tests.helpers import hostile, tiny

YAMLS = [ROOT / "hparams/base.yaml"]
YAMLS += sorted(ROOT.glob("recipes/*/*/hparams/*.yaml"))


def rows(tree, path=()):
    """Dotted key and row of every setting of a tree of the project's."""
    for key, node in tree.items():
        names = (*path, key)
        row = settings.find(names)
        # What a name stands for is the user's: tasks, sets, entries of mappings.
        yield names, row
        inner = row is None or isinstance(row.kind, kinds.Object)
        if inner and isinstance(node, dict):
            yield from rows(node, names)


@pytest.mark.parametrize(
    "path", YAMLS, ids=lambda path: f"{path.parts[-4]}-{path.stem}"
)
def test_every_key_of_the_project_has_a_row(path):
    """Or it is an argument whose kind is that of its value in the base."""
    free = {"test_sets.speaker.voxceleb1"}
    tree = load_variant(path)[0]
    missing = {".".join(n) for n, row in rows(tree) if row is None}
    told = {k for k in missing if "." in k and checks.kind_like(value_of(tree, k))}
    assert missing - told <= free


@pytest.mark.parametrize("given", ["banana", "[1]", "null", "0.5"])
def test_a_setting_without_a_row_is_of_the_base_s_kind(tmp_path, given):
    """A new one of the encoder needs its signature, its docstring and the base."""
    (tmp_path / "base.yaml").write_text(
        "encoder: !new:lobes.model.encoder.Wav2Vec2Encoder\n    brand_new: 0.0\n"
    )
    variant = tmp_path / "variant.yaml"
    variant.write_text(f"base: base.yaml\nencoder.brand_new: {given}\n")
    if given in ("null", "0.5"):
        load_variant(variant)
        return
    with pytest.raises(UserError, match="encoder.brand_new must be a number"):
        load_variant(variant)


def test_every_run_option_with_a_value_has_a_row():
    """Those of ours that take none, or several, are the others."""
    parser = RunOptions._create_parser()
    valued = {
        action.dest
        for action in parser._actions
        if action.option_strings and action.nargs is None
    }
    assert valued - set(REFUSED_RUN_OPTIONS) <= set(settings.SETTINGS)


def test_no_row_is_of_a_key_that_is_nowhere():
    """Neither in a YAML nor a run option nor an argument that a variant may give."""
    known = set(RunOptions().keys())
    for path in YAMLS:
        known.update(names[-1] for names, _ in rows(load_variant(path)[0]))
    sources = " ".join(p.read_text("utf-8") for p in ROOT.glob("lobes/**/*.py"))
    for key in settings.SETTINGS:
        last = key.split(".")[-1]
        given = re.search(rf"\b{last}\b", sources) or last in (
            "weight_decay",
            "amsgrad",
        )
        assert last in known or last == "base" or given, key


def told(text, file="x.yaml"):
    """The message about a YAML text, or None."""
    try:
        checks.check_file(yamls.load(text, file), file)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


@pytest.mark.parametrize("word", ["no", "off", "yes", "on", "None", "False", "'True'"])
@pytest.mark.parametrize(
    "key",
    [
        "encoder.freeze_cnn",
        "encoder.gradient_checkpointing",
        "schedule.relative_ends",
        "strict",
    ],
)
@pytest.mark.fault(
    "D1",
    "a switch written no, off, yes, on or None, or in quotes",
    "\"x.yaml, line 2: encoder.freeze_cnn must be True or False, not 'no': write True "
    'or False, without quotes"',
)
def test_a_switch_in_words_of_yaml_1_1_is_refused(key, word):
    message = told(f"lr: 1.0\n{key}: {word}\n")
    if word == "False":
        assert message is None
        return
    text = word.strip("'")
    assert message == (
        f"x.yaml, line 2: {key} must be True or False, not '{text}': write True or "
        "False, without quotes"
    )


@pytest.mark.parametrize("word", ["None", "no", "off", "nil"])
@pytest.mark.fault("D1", "None in place of null", '"write null for none"')
def test_another_word_for_null_is_refused(word):
    assert "write null for none" in told(f"init_from: {word}\n")
    with pytest.raises(UserError, match="write --encoder.class_token=null for none"):
        checks.parse("encoder.class_token", word)
    assert told("init_from: ./None\nstopping.patience_steps: null\n") is None


@pytest.mark.parametrize(
    "text, line, said",
    [
        ("lr: abc", 1, "lr must be a number above 0, at most 10, not 'abc'"),
        ("a: 1\nsteps: 5.5", 2, "steps must be a whole number from 1 to 1e10"),
        ("strict:", 1, "strict must be True or False; it is empty or null"),
        ("1: x", 1, "the key 1 is no text; quote it"),
        ("a: !foo x", 1, "the tag !foo is unknown"),
        ("a: b\nc: &x [*x]", 2, "*x holds itself"),
        ("seed: " + "9" * 400, 1, "(400 letters)"),
        ("lr: 0x" + "f" * 5000, 1, "not a number of thousands of digits"),
        ("crop_seconds: null", 1, "crop_seconds must be a number from 0.025 to 3,600"),
        ("weighting: !new:lobes.model.weighting.X\n weights: {a: -1}", 2, "a is wrong"),
        ("encoder.layerdrop: 2", 1, "encoder.layerdrop must be a number from 0, below"),
        ("librispeech_valid_split: 2024", 1, "put it into quotes"),
        ("output_folder: x/<seed>", 1, "<seed> would be read as a reference"),
        ("pooling: mean", 1, "pooling must be an object (!new:...)"),
        ("opt_class.betas: (0.9, 2)", 1, "opt_class.betas must be a list with 2"),
    ],
)
@pytest.mark.fault(
    "C2",
    "wrong values, keys, tags, cycles and huge numbers in a YAML",
    "\"x.yaml, line 1: lr must be a number above 0, at most 10, not 'abc'\", before "
    "anything is built",
)
def test_a_wrong_value_of_a_file_is_named_with_key_and_line(text, line, said):
    message = told(text)
    assert message.startswith(f"x.yaml, line {line}: ") and said in message
    assert len(message) < 300


def test_a_user_s_own_values_are_left_alone():
    text = (
        "sizes: {lr: -1, 5: x}\nmine: !new:my_module.Thing\n    lr: -1\n    2: no\n"
        "steps: 1e5\nlr: !ref <sizes>\nfreeze_cnn: !PLACEHOLDER\n"
    )
    assert told(text) is None
    assert "mine" not in str(told(f"{text}strict: no\n"))


def test_values_are_brought_into_their_kind(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    tree = yamls.load("steps: 1.0e5\noutput_folder: ~/x\ncsv: ~/y\nlr: 1\n")
    checks.check_file(tree, "x.yaml")
    assert dict(tree) == {
        "steps": 100_000,
        "output_folder": "/home/me/x",
        "csv": "~/y",
        "lr": 1,
    }
    assert type(tree["steps"]) is int


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("init_from", "/r/run #2", "/r/run #2"),
        ("ledger", "#x", "#x"),
        ("output_folder", "a: b", "a: b"),
        ("output_folder", "~", "/home/me"),
        ("prepared_folder", "~/x", "/home/me/x"),
        ("encoder.source", "null", None),
        ("voxceleb.transcripts", "[a, b c]", ["a", "b c"]),
        ("voxceleb.transcripts", "a #b", "a #b"),
        ("voxceleb.transcripts", "~", "/home/me"),
        ("steps", "1e3", 1000),
        ("lr", "1", 1.0),
        ("strict", "True", True),
    ],
)
@pytest.mark.fault(
    "C2",
    "`--init_from='/r/run #2'`, `--ledger='#x'`, `--output_folder=~/x`",
    "text as it stands, whatever stands in the YAML; ~ is the home folder",
)
def test_text_of_the_command_line_stays_as_it_is(key, text, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = checks.parse(key, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("key", ["strict", "init_from", "lr", "voxceleb_trial_lists"])
@pytest.mark.fault(
    "C2",
    "`--strict=`, an unset variable of the shell",
    '"--strict must be True or False; it is empty (an unset variable of the shell?): '
    'give a value"; where null is allowed, it is to be written',
)
def test_an_empty_value_is_refused(key):
    with pytest.raises(UserError) as caught:
        checks.parse(key, "")
    null = settings.SETTINGS[key].null
    assert "it is empty" in str(caught.value)
    assert (f"or --{key}=null for none" in str(caught.value)) == null


@pytest.mark.parametrize("text", ["\ud800", "a\nb", "a\x1b[31m", " ", "(a)"])
def test_text_that_cannot_be_stored_is_refused(text):
    with pytest.raises(UserError):
        checks.parse("librispeech_valid_split", text)


def test_what_settings_must_be_to_each_other(tmp_path):
    def said(text):
        with pytest.raises(UserError) as caught:
            checks.check_together(yamls.load(text), "x.yaml")
        return str(caught.value)

    assert "warmup 0.7 and hold 0.4" in said("schedule: {warmup: 0.7, hold: 0.4}\n")
    nested = "hold: 0.4\nschedule: !new:x.Y\n    warmup: 0.7\n    hold: !ref <hold>\n"
    assert "warmup 0.7 and hold 0.4" in said(nested)
    checks.check_together(yamls.load("schedule: {warmup: 0.7, hold: 0.3}\n"), "x.yaml")
    masks = "mask_feature_prob: 0.1, mask_feature_length: 64"
    small = "source: null, config: {hidden_size: 32}"
    assert "the encoder has 32 channels" in said(f"encoder: {{{masks}, {small}}}\n")
    (tmp_path / "config.json").write_text('{"hidden_size": 48}')
    assert "has 48 channels" in said(f"encoder: {{{masks}, source: {tmp_path}}}\n")
    for source in ("a/hub", "null"):
        tree = yamls.load(f"encoder: {{{masks}, source: {source}}}\n")
        checks.check_together(tree, "x.yaml")


def test_a_reference_to_a_wrong_value_of_a_user_s_key():
    tree = yamls.load(
        "mine: -1\nlr: 1\nopt_class: !name:torch.optim.X\n    lr: !ref <mine>"
    )
    checks.check_file(tree, "x.yaml")
    with pytest.raises(UserError, match="x.yaml: <mine> as opt_class.lr must be a num"):
        checks.check_references(tree, "x.yaml")


# What a key counts for --------------------------------------------------------------


def test_what_counts_for_a_name_a_resume_and_a_table():
    """As the lists of names did that the table has replaced."""
    ways = {
        "output_folder", "num_workers", "threads", "log_interval", "ledger",
        "skip_prep", "voxceleb_trial_lists", "headline_sets", "checkpoints_to_keep",
        "strict", "librispeech_test_splits", "valid_batch_samples",
        "nonfinite_patience",
    }  # fmt: skip
    for key in ways:
        assert not any(
            settings.counts(key, c) for c in ("named", "resumed", "compared")
        ), key
    for key in ("lr", "steps", "init_from", "selection", "my_own"):
        assert all(settings.counts(key, c) for c in ("named", "resumed", "compared"))
    assert not settings.counts("seed", "named") and settings.counts("seed", "resumed")
    half = ("encoder.gradient_checkpointing", "skip_budget", "encoder.config")
    for key in half:
        assert settings.counts(key, "named") and not settings.counts(key, "resumed")
    assert not settings.counts("my_folder", "named")
    assert not settings.counts(("train_streams", "speech", "csv"), "resumed")


def test_a_change_anywhere_is_told_only_where_it_counts():
    old, new = load_variant(tiny.MTL)[0], load_variant(tiny.MTL)[0]
    new["train_streams"]["speech"]["timeout"] = 5
    new["ledger"] = new["train_streams"]["speech"]["csv"] = "elsewhere"
    assert changed_settings(old, new) == []
    new["train_streams"]["speech"]["length_jitter"] = 0.5
    new["lr"] = 2.0
    lines = changed_settings(old, new)
    assert [line.partition(":")[0] for line in lines] == [
        "train_streams.speech.length_jitter",
        "lr",
    ]
    assert old["ledger"] is None and "csv" in old["train_streams"]["speech"]


# Tools ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e400", "x", "", "-0.0"])
@pytest.mark.fault(
    "C2",
    "cost, grid and doctor with negative numbers, nan and 0",
    "\"argument --tflops: must be a number above 0, at most 1e12, not 'nan'\"",
)
def test_numbers_of_tools_are_refused_alike(text, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--tflops", type=settings.POSITIVE)
    parser.add_argument("--jobs", type=settings.COUNT)
    parser.add_argument(
        "--num_workers", type=settings.option("voxceleb", "num_workers")
    )
    for option in ("--tflops", "--jobs", "--num_workers"):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args([f"{option}={text}"])
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert f"argument {option}: must be a" in said and "not" in said
    given = parser.parse_args(["--tflops=1.5", "--jobs=2", "--num_workers=1"])
    assert (given.tflops, given.jobs, given.num_workers) == (1.5, 2, 1)


# YAML before and after HyperPyYAML ------------------------------------------------


@pytest.mark.fault(
    "C5",
    "a YAML read again after HyperPyYAML has changed ruamel",
    "the same tree, text and hash: no grid says that its YAMLs changed",
)
def test_a_yaml_is_read_alike_before_and_after_hyperpyyaml():
    text = BASE.read_text(encoding="utf-8")

    def read():
        tree = load_variant(tiny.MTL)[0]
        return ledger.settings_hash(tree), yamls.dump(tree)

    resolvers = ruamel.yaml.resolver.implicit_resolvers
    kept = list(resolvers)
    # As in a fresh process.
    resolvers[:] = [one for one in resolvers if one[1] != "!tuple"]
    try:
        assert "(0.9, 0.999)" in text and isinstance(plain_betas(text), str)
        before = read()
        assert load_hyperpyyaml("a: (0.9, 0.999)\n")["a"] == (0.9, 0.999)
        assert not isinstance(plain_betas(text), str), "nothing is tested here"
        assert read() == before
    finally:
        resolvers[:] = kept
    assert "betas: (0.9, 0.999)\n" in before[1]


def plain_betas(text):
    """What a reader without care gives."""
    return ruamel.yaml.YAML().load(text)["opt_class"]["betas"]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "holds no keys"),
        (b"- a\n", "holds no keys"),
        (b"a: \xe4", "is not UTF-8"),
        (b"[" * 5000, "nested too deeply"),
        (b"a: " + b"9" * 5000, "correct the YAML"),
        (b"a: 1\na: 2\n", "line 2: found duplicate key"),
    ],
)
@pytest.mark.fault(
    "C5",
    "hyperparams.yaml empty, not UTF-8, cut or nested for ever",
    '"hyperparams.yaml holds no keys; ..." and its like, in one line',
)
def test_a_damaged_yaml_is_told_in_one_line(content, said, tmp_path):
    path = tmp_path / "hyperparams.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        yamls.read(path, "name another folder")
    assert said in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Hostile inputs ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.fault(
    "C2",
    "60 drawn values on the command line, in variants and in whole YAMLs",
    "what the table's ranges allow is taken, all else refused in one line",
)
@pytest.mark.fault(
    "C1", "known wrong names and values, broken files, YAMLs of other recipes",
    "each refused in one line before data are read",
)  # fmt: skip
def test_hostile_inputs(tmp_path):
    trial = hostile.Trial(tmp_path)
    wrong, expectations = [], set()
    for _, title, expected, words, corpora in hostile.attempts(trial, 60, seed=1):
        outcome, message = trial.outcome(words, corpora)
        expectations.add((expected, outcome))
        if hostile.verdict(outcome, expected):
            wrong.append((title, outcome, message))
    assert not wrong
    assert {(True, "accepted"), (False, "refused")} <= expectations


@pytest.mark.slow
@pytest.mark.fault(
    "C6",
    "`--checkpoints_to_keep=0`",
    '"--checkpoints_to_keep must be a whole number from 1 to 1,000,000"',
)
def test_the_real_commands_refuse_in_one_line(tmp_path):
    trial = hostile.Trial(tmp_path)
    for yaml, word in (
        (tiny.SPEAKER, "--checkpoints_to_keep=0"),
        (tiny.ASR, "--selection={wer: 1, eerr: 1}"),
    ):
        status, said = hostile.in_a_process(yaml, word, trial)
        assert status == 2 and "Traceback" not in said
        key = word[2:].partition("=")[0]
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and key in errors[0]


def test_the_oracle_sees_a_wrong_row():
    """It takes the ranges from the table, and the rest from nowhere near it."""
    row = settings.Setting(kinds.Number(0, below=1), null=True)
    for text, good in {
        "0": True, "0.5": True, "1": False, "-1": False, ".nan": False, "True": False,
        "null": True, "None": False, "abc": False, "[1]": False,
    }.items():  # fmt: skip
        for channel in ("command line", "variant"):
            assert hostile.allowed(row, text, channel) is good, (text, channel)
    assert hostile.verdict("accepted", False) == "silent"
    assert hostile.verdict("refused", True) == "wrongly refused"
    assert hostile.verdict("refused", None) is hostile.verdict("accepted", None) is None
