"""Starting from another run's weights (``init_from``)."""

import json
import shutil

import pytest
import torch

from lobes.errors import UserError
from lobes.model.pooling import MeanPooling
from lobes.model.tasks import SpeakerRecognition
from lobes.runs.command_line import parse_arguments
from lobes.runs.evaluate import main as evaluate
from lobes.runs.experiment import start_experiment
from lobes.runs.variants import load_variant
from lobes.training.brain import SpeechSpeakerBrain
from lobes.training.checkpoints import MANIFEST
from lobes.training.initial_weights import load_initial_weights
from tests.helpers import tiny

HPARAMS = tiny.MTL.parent


@pytest.fixture
def make(tiny_corpus, tmp_path):
    """A Brain of a variant in the folder ``name``; with ``start``, from that run."""

    def make(name, variant="mtl", start=None, norm=None, options=(), **changes):
        yaml = HPARAMS / f"{variant}.yaml"
        changes = {"steps": 3, "freeze_steps": 0, **changes}
        argv = tiny.arguments(tiny_corpus, tmp_path / name, yaml, norm, **changes)
        if start is not None:
            # It gives the encoder.
            given = ("--encoder.source=", "--encoder.config=")
            argv = [word for word in argv if not word.startswith(given)]
            argv.append(f"--init_from={tmp_path / start}")
        argv += [*options, "--device=cpu", "--noprogressbar"]
        hparams, run_opts, settings = parse_arguments(argv)
        start_experiment(hparams, run_opts, settings)
        return SpeechSpeakerBrain(hparams, run_opts, hparams["checkpointer"])

    return make


@pytest.fixture
def old(make):
    """A run, the last checkpoint of which is not its best; returns the best weights."""

    def old(trained=False, **settings):
        system = make("old", **settings)
        if trained:
            tiny.fit(system)
        else:
            started(system)
            move(system)
            system.checkpointer.save_checkpoint(meta={"score": 1.0, "step": 3})
        move(system)
        system.checkpointer.save_checkpoint(meta={"score": 1e9, "step": 4})
        return best(system)

    return old


def move(system):
    """Change all weights, as training does."""
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in system.modules.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def best(system):
    """The tensors of the best checkpoint, by their names in the Brain."""
    folder = system.checkpointer.find_checkpoint(min_key="score").path
    tensors = {}
    for name in ("encoder", *system.tasks):
        stored = torch.load(folder / f"{name}.ckpt", weights_only=True)
        tensors.update({f"{name}.{key}": tensor for key, tensor in stored.items()})
    return tensors


def started(system):
    """The weights before the first step, as ``fit`` has them."""
    system.prepare_training()
    system.on_fit_start()
    return tiny.parameters(system)


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in theirs
    )


def test_it_starts_with_the_best_weights_and_nothing_else(make, old, tmp_path):
    weights = old(trained=True, lr=1e-2, steps=6, valid_interval=6)
    system = make("new", start="old")
    assert same(started(system), weights)
    log = (tmp_path / "new" / "log.txt").read_text()
    assert "random at the start: nothing" in log
    assert system.optimizer_step == 0 and not system.optimizer.state
    rows = [row for row in tiny.fit(system) if row["stage"] == "train"]
    fresh = make("fresh")
    expected = [row for row in tiny.fit(fresh) if row["stage"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["lr"] for row in rows] == [row["lr"] for row in expected]
    assert rows[0]["speech_loss"] < expected[0]["speech_loss"]


@pytest.mark.fault(
    "C7",
    "init_from a run without weights of an encoder",
    "init_from: ... holds no weights of an encoder (encoder.ckpt)",
)
def test_an_encoder_without_weights_is_refused(make, old, tmp_path):
    old()
    saves = tmp_path / "old" / "save"
    for path in saves.glob("CKPT*"):
        (path / "encoder.ckpt").unlink()
        manifest = path / MANIFEST
        content = json.loads(manifest.read_text())
        del content["encoder.ckpt"]
        manifest.write_text(json.dumps(content))
    system = make("new", start="old")
    with pytest.raises(UserError, match="holds no weights of an encoder .encoder.ckpt"):
        started(system)


def test_a_weighting_starts_anew(make, old):
    old(variant="dwa", trained=True)
    system = make("new", "dwa", "old")
    started(system)
    assert int(system.modules.weighting.count) == 0


def test_it_goes_on_from_its_own_checkpoint(make, old):
    """The command is the same; the other run's weights are only the start."""
    old()
    first = make("new", start="old", options=["--optimizer_step_limit=2"])
    tiny.fit(first)
    second = make("new", start="old")
    assert same(started(second), tiny.parameters(first))
    assert second.optimizer_step == 2 and second.optimizer.state


def test_a_head_of_another_size_stays_random_and_is_named(make, old, tmp_path):
    weights = old()
    system = make("new", "pool_mean_std", "old")
    random = system.tasks["speaker"].weight.detach().clone()
    assert random.shape != weights["speaker.weight"].shape
    found = started(system)
    log = (tmp_path / "new" / "log.txt").read_text()
    assert "random at the start: speaker.weight\n" in log
    assert torch.equal(found.pop("speaker.weight"), random)
    weights.pop("speaker.weight")
    assert same(found, weights)


def test_a_classifier_of_other_speakers_stays_random(make, old, tmp_path):
    weights = old()
    system = make("other")
    speaker = SpeakerRecognition(system.modules.encoder, MeanPooling(), 7)
    random = speaker.weight.detach().clone()
    modules = {"encoder": system.modules.encoder, "speaker": speaker}
    load_initial_weights(tmp_path / "old", modules)
    assert torch.equal(speaker.weight, random)
    layer = system.modules.encoder.model.encoder.layers[0].attention.q_proj.weight
    name = "encoder.model.encoder.layers.0.attention.q_proj.weight"
    assert torch.equal(layer, weights[name])


@pytest.mark.parametrize("norm", [{}, tiny.LAYER_NORM], ids=["group", "layer"])
@pytest.mark.parametrize("shared", [0, 1])
def test_a_branch_starts_as_the_layers_of_a_run_without(make, old, norm, shared):
    weights = old(norm=norm)
    system = make("new", "branch_3", "old", shared_layers=shared)
    found = started(system)
    copies = {name for name in found if name.startswith("encoder.speaker_")}
    assert (
        len({name.split(".")[2] for name in copies if "layers" in name}) == 2 - shared
    )
    assert any("speaker_norm" in name for name in copies) == bool(norm)
    for name in copies:
        place = name.replace(
            "encoder.speaker_norm.", "encoder.model.encoder.layer_norm."
        )
        if "speaker_layers" in name:
            _, _, number, rest = name.split(".", 3)
            place = f"encoder.model.encoder.layers.{shared + int(number)}.{rest}"
        assert torch.equal(found[name], weights[place]), name
    assert same({n: t for n, t in found.items() if n not in copies}, weights)


def test_a_branched_run_starts_one_of_its_kind(make, old):
    settings = {"variant": "branch_3", "shared_layers": 1}
    weights = old(**settings)
    assert same(started(make("new", start="old", **settings)), weights)


@pytest.mark.parametrize(
    "then, now",
    [
        ({"shared_layers": 1}, {"shared_layers": 0}),
        # Layer 0 of the speaker would become its layer 1.
        ({"shared_layers": 0}, {"shared_layers": 1}),
        # The speaker's layers would be lost.
        ({"shared_layers": 1}, {}),
        ({}, {"class_token": "learnt"}),
        # What the run had learnt would be ones again.
        ({"class_token": "learnt"}, {"class_token": "constant"}),
    ],
)
def test_an_encoder_that_the_weights_do_not_fill_is_refused(make, old, then, now):
    old(**then)
    system = make("new", start="old", **now)
    with pytest.raises(UserError, match="shared_layers and class_token") as caught:
        system.prepare_training()
    assert "\n" not in str(caught.value)


def test_the_tasks_that_both_have(make, old, tiny_corpus, tmp_path):
    """From both tasks to one, as fine-tuning on one corpus does."""
    weights = old()
    asr = tiny.arguments(tiny_corpus, tmp_path / "new", tiny.ASR, steps=3)
    given = ("--encoder.source=", "--encoder.config=")
    asr = [word for word in asr if not word.startswith(given)]
    argv = [*asr, f"--init_from={tmp_path / 'old'}", "--device=cpu"]
    hparams, run_opts, _ = parse_arguments(argv)
    system = SpeechSpeakerBrain(hparams, run_opts, hparams["checkpointer"])
    shared = {n: t for n, t in weights.items() if not n.startswith("speaker.")}
    assert same(started(system), shared)


@pytest.mark.parametrize("option", ["--encoder.source=x", "--encoder.config={}"])
def test_another_source_is_refused(make, old, option):
    old()
    with pytest.raises(UserError, match="init_from gives the encoder; leave out"):
        make("new", start="old", options=[option])


def test_the_new_run_is_built_from_the_old_one_s_configuration(make, old, tmp_path):
    """Whatever the YAML's source is: no hub is asked."""
    old(norm={"hidden_size": 24, "num_attention_heads": 3})
    system = make("new", start="old")
    assert system.modules.encoder.model.config.hidden_size == 24
    stored = load_variant(tmp_path / "new" / "hyperparams.yaml")[0]["encoder"]
    assert stored["source"] is None and stored["config"]["hidden_size"] == 24
    assert load_variant(tiny.MTL)[0]["encoder"]["source"] is not None


def test_a_folder_that_is_no_run(make, tmp_path):
    with pytest.raises(UserError, match="init_from: .*nothing has no encoder_config"):
        make("new", start="nothing")


def test_a_run_without_a_checkpoint(make):
    make("old")
    system = make("new", start="old")
    with pytest.raises(UserError, match="init_from: .*save holds no checkpoint"):
        system.prepare_training()


def test_the_new_run_is_evaluated_without_the_old_folder(make, old, tmp_path):
    old()
    tiny.fit(make("new", start="old"))
    shutil.rmtree(tmp_path / "old")
    evaluate([str(tmp_path / "new"), "--device=cpu", "--noprogressbar"])
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert results["step"] == 3 and {"wer", "eer"} <= set(results)
