"""Variants of YAML files: what they replace, their bases, tasks and includes."""

import re
import types
from argparse import Namespace
from pathlib import Path

import pytest
import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml

from lobes.runs import command_line as recipe
from lobes.runs.command_line import parse_arguments
from lobes.runs.variants import load_variant, value_of
from lobes.system.checkout import ROOT
from tests.helpers.small_yamls import BASE, MTL, folder, load, problem

YAMLS = sorted(ROOT.glob("recipes/**/hparams/*.yaml"))


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


# The recipes ----------------------------------------------------------------


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


# Tasks ------------------------------------------------------------------------

CHOICE = """\
seed: 1
output_folder: x
one_csv_folder: one
two_csv_folder: two
size: 3
both: 4
first: !new:types.SimpleNamespace {size: !ref <both>}
helper: !new:types.SimpleNamespace {size: !ref <size>}
second: !new:types.SimpleNamespace {helper: !ref <helper>, both: !ref <both>}
tasks: {first: !ref <first>, second: !ref <second>}
train_streams: {first: !ref <one_csv_folder>, second: !ref <two_csv_folder>}
valid_sets: {second: 1}
test_sets: {}
unused: 5
"""


def test_what_only_absent_tasks_need_is_left_out(write):
    whole = load_variant(write(base=CHOICE))[0]
    chosen = write(one="base: base.yaml\ntasks: {first: !ref <first>}\n")
    tree = load_variant(chosen)[0]
    gone = {"second", "helper", "size", "two_csv_folder"}
    assert set(whole) - set(tree) == gone
    assert list(tree["train_streams"]) == ["first"] and not tree["valid_sets"]


def test_an_object_that_another_task_refers_to_stays(write):
    write(base=CHOICE)
    chosen = "base: base.yaml\ntasks: {second: !ref <second>}\n"
    uses = "second.helper: !ref <first>\n"
    tree = load_variant(write(two=chosen + uses))[0]
    assert "first" in tree and "one_csv_folder" not in tree


def test_a_stream_of_no_task_stays_to_be_refused(write):
    tree = load_variant(write(base=f"{CHOICE}train_streams.frist: 1\n"))[0]
    assert "train_streams.frist" in tree
    text = CHOICE.replace("train_streams: {first", "train_streams: {frist: 1, first")
    assert "frist" in load_variant(write(base=text))[0]["train_streams"]


@pytest.mark.parametrize(
    "name, corpora",
    [
        ("LibriSpeech/ASR/hparams/asr", {"librispeech"}),
        ("VoxCeleb/SpeakerRec/hparams/speaker", {"voxceleb"}),
        ("LibriSpeech_VoxCeleb/MTL/hparams/mtl", {"librispeech", "voxceleb"}),
        ("LibriSpeech_VoxCeleb/MTL/hparams/asr_vox", {"librispeech", "voxceleb"}),
        ("LibriSpeech_VoxCeleb/MTL/hparams/speaker_ls", {"librispeech", "voxceleb"}),
    ],
)
def test_the_recipes_are_short_and_have_what_their_tasks_need(name, corpora):
    path = ROOT / "recipes" / f"{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.stem in ("asr_vox", "speaker_ls"):
        assert len(lines) <= 12
    else:
        assert len(lines) <= 40
        assert f"python train.py hparams/{path.name} --" in "".join(lines[:8])
    tree = load_variant(path)[0]
    assert corpora == {"librispeech", "voxceleb"} & set(tree)
    tasks = set(tree["tasks"])
    for key in ("train_streams", "valid_sets", "test_sets"):
        assert set(tree[key]) == tasks
    heads = {"speech", "speaker"} & set(tree)
    assert heads == tasks
    assert ("letters" in tree) == ("speech" in tasks)
    assert ("speakers" in tree) == ("pooling" in tree) == ("speaker" in tasks)
    folders = {k for k in tree if re.fullmatch(r"(libri|vox).*\d?_folder", k)}
    assert {k.startswith("libri") for k in folders} == {
        corpus == "librispeech" for corpus in corpora
    }
