"""The estimates against counts by hand, real passes on CPU, and measured figures."""

import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from lobes.data.streams import LengthBuckets, RandomCrops
from lobes.model.encoder import Wav2Vec2Encoder
from lobes.model.pooling import MeanPooling
from lobes.model.tasks import SpeakerRecognition, SpeechRecognition
from lobes.runs import cost
from lobes.system.checkout import ROOT
from tests.helpers import tiny

DOCUMENT = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")

#: wav2vec2-base: channels, inner channels of a layer, layers, CNN channels.
C, F, LAYERS, CNN = 768, 3072, 12, 512


@pytest.fixture
def ten_seconds(monkeypatch):
    """Twenty utterances and twenty crops, 200 s each, 499 frames a piece."""
    monkeypatch.setattr(cost, "UTTERANCE_SECONDS", 10.0)
    return ["--crop_seconds=10"]


def stock(hparams):
    """Autograd goes through the frozen CNN, as in SpeechBrain's wrapper."""
    encoder = hparams["encoder"]
    encoder.freeze_cnn = False
    cnn = encoder.model.feature_extractor.requires_grad_(False)
    cnn.conv_layers[0].conv.weight.requires_grad_(True)
    return hparams


@pytest.mark.fault(
    "A11",
    "a test on VoxCeleb1's three lists",
    "the disk estimate holds their scores, 105 MB",
)
@pytest.mark.parametrize(
    "path, overrides, total, trained",
    [
        (tiny.MTL, [], 98_999_712, 94_799_264),
        (tiny.MTL, ["--encoder.shared_layers=3"], 162_790_560, 158_590_112),
        (tiny.MTL, ["--encoder.speaker_dims=192"], 95_541_024, 91_340_576),
        (tiny.ASR, ["--steps=320000"], 94_396_320, 90_195_872),
        (tiny.SPEAKER, [], 98_975_104, 94_774_656),
    ],
)
def test_parameters_and_what_follows_from_them(path, overrides, total, trained):
    found = cost.estimate(path, overrides)
    assert (found["parameters"], found["trained"]) == (total, trained)
    assert found["checkpoint"] == 4 * total + 8 * trained
    assert found["results"] == (0 if path == tiny.ASR else 90 * 1_168_323)
    steps = 320_000 if path == tiny.ASR else 100_000
    run = 10_000 * found["frozen_flops"] + (steps - 10_000) * found["flops"]
    assert found["run_flops"] == run
    _, peak = cost.trace(cost.load(path, overrides))
    for card, (factor, needed) in found["cards"].items():
        expected = 1.1 * (4 * total + 12 * trained + peak / factor) + 1e9
        assert needed == pytest.approx(expected) and needed <= card * 1e9
        assert factor == 1 or card == 12


def test_operations_equal_a_count_by_hand(ten_seconds):
    seconds, frames = 400, 40 * 499
    cnn, rate = 0, 3200
    for layer, kernel in enumerate([10, 3, 3, 3, 3, 2, 2]):
        rate = rate if layer == 0 else rate / 2
        cnn += 2 * rate * kernel * CNN * (CNN if layer else 1) * seconds
    projection = 2 * frames * CNN * C
    position = 2 * frames * 128 * C * C // 16
    attention = LAYERS * frames * 4 * 499 * C
    linear = LAYERS * frames * 2 * (4 * C * C + 2 * C * F)
    forward = cnn + projection + position + attention + linear
    # The CNN has no gradient, its output neither; attention is computed again.
    backward = projection + 2 * (position + linear) + 2.5 * attention
    hparams = cost.load(tiny.MTL, ten_seconds)
    assert cost.trace(hparams)[0] == pytest.approx(forward + backward, rel=0.002)
    assert cost.trace(hparams, frozen=True)[0] == pytest.approx(forward, rel=0.002)


@pytest.mark.parametrize(
    "overrides, change, teraflops",
    [
        ([], None, 13.4),
        ([], stock, 15.3),
        (["--encoder.gradient_checkpointing=True"], stock, 21.1),
    ],
    ids=["ours", "stock", "paper"],
)
def test_operations_are_those_published(
    ten_seconds, overrides, change, teraflops, monkeypatch
):
    """Of 200 s + 200 s through wav2vec2-base, in three ways of training it."""
    hparams = cost.load(tiny.MTL, [*ten_seconds, *overrides])
    if change is not None:
        hparams = change(hparams)
        # Ours keeps the CNN in evaluation mode: no checkpointing there.
        monkeypatch.setattr(Wav2Vec2Encoder, "train", nn.Module.train)
    flops, peak = cost.trace(hparams)
    assert flops / 1e12 == pytest.approx(teraflops, rel=0.05)
    if change is not None and not overrides:
        assert peak / 1e9 == pytest.approx(25, rel=0.05)  # fp32, measured
    if change is None:
        frozen, _ = cost.trace(hparams, frozen=True)
        assert frozen / 1e12 == pytest.approx(5.8, rel=0.05)


@pytest.mark.parametrize("precision, per_channel", [("fp32", 48), ("bf16", 32)])
def test_memory_equals_a_count_by_hand(precision, per_channel):
    """Bytes that a post-LN layer keeps for the way back, per frame and channel.

    fp32: inputs of both norms and of the attention and feed-forward block 16, query,
    key, value and attention output 16, the GELU's input 16. bf16: norms and their
    outputs stay fp32 (8; an output is kept as half-precision copies for query, key,
    value and the feed-forward block, 8), the rest is half of the above, 16.
    """
    encoder = {"--encoder.source": "null", "--precision": precision}
    peaks = []
    for layers in (18, 12):  # With fewer the CNN has the peak.
        given = {**encoder, "--encoder.config": f"{{num_hidden_layers: {layers}}}"}
        hparams = cost.load(tiny.MTL, [f"{k}={v}" for k, v in given.items()])
        peaks.append(cost.trace(hparams)[1])
    frames = 16 * 624 + 22 * 449
    expected = 6 * frames * per_channel * C
    # On top: attention's normalisers, and half-precision copies of the weights.
    assert peaks[0] - peaks[1] == pytest.approx(expected, rel=0.07)
    assert peaks[0] - peaks[1] > expected


#: Small, but most of the memory lies in the transformer, as in the real one.
SMALL = {**tiny.ENCODER, "hidden_size": 96, "num_hidden_layers": 8}


def small_system(device):
    """Encoder, tasks and streams as a YAML's, on a device."""
    torch.manual_seed(1)
    with torch.device(device):
        encoder = Wav2Vec2Encoder(config={**SMALL, "intermediate_size": 384})
        tasks = {
            "speech": SpeechRecognition(encoder),
            "speaker": SpeakerRecognition(encoder, MeanPooling(), n_speakers=5),
        }
    streams = {
        "speech": LengthBuckets("unused.csv", {}, max_batch_samples=800_000),
        "speaker": RandomCrops("unused.csv", {}, 3.0, max_batch_samples=480_000),
    }
    return {
        "encoder": encoder,
        "tasks": tasks,
        "train_streams": streams,
        "precision": "fp32",
    }


def test_operations_and_memory_are_those_of_a_real_pass():
    flops, peak = cost.trace(small_system("meta"))
    real = small_system("cpu")
    encoder, kept, outputs = real["encoder"].train(), {}, []
    parameters = {p.untyped_storage().data_ptr() for p in encoder.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    aten = torch.ops.aten
    counts = {  # What torch does not count on CPU, or not right.
        aten.convolution_backward: cost.meters.convolution_backward,
        aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    counter = FlopCounterMode(display=False, custom_mapping=counts)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with counter, hooks:
        for name, count, samples in (("speech", 4, 200_000), ("speaker", 10, 48_000)):
            lengths = torch.full((count,), samples)
            lengths[-1] -= 4_000 if name == "speech" else 0
            frames = encoder(torch.randn(count, samples), lengths)
            output = real["tasks"][name](frames)
            outputs.append(output[0] if name == "speech" else output)
        sum(output.sum() for output in outputs).backward()
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    saved = sum(storage.nbytes() for storage in kept.values())
    assert peak == pytest.approx(saved, rel=0.15)


def test_bytes_are_counted_from_the_first_to_the_last_use():
    weight = torch.empty(1000, 1000, device="meta")
    batch = torch.empty(500, 1000, device="meta")
    with cost.meters.Allocations() as memory:
        output = batch @ weight.t()  # 2 MB; what it comes from was there before
        output = output.relu()  # 2 MB more, until the first ones go
        assert (memory.live, memory.peak) == (2_000_000, 4_000_000)
        output.t().t()
        assert memory.peak == 4_000_000
        del output
    assert memory.live == 0


def test_one_batch_for_two_tasks_goes_through_the_encoder_once():
    system = small_system("meta")
    both, _ = cost.trace(system)
    system["train_streams"]["speaker"] = system["train_streams"]["speech"]
    joint, _ = cost.trace(system)
    del system["train_streams"]["speaker"]
    speech, _ = cost.trace(system)
    assert speech == pytest.approx(joint, rel=0.01)
    assert both > 1.3 * joint


def test_accumulation_leaves_the_step_as_it_is():
    short = ["--crop_seconds=2", "--steps=10", "--freeze_steps=0"]
    parts = ["--max_batch_samples=800000", "--grad_accumulation_factor=4"]
    whole, divided = (cost.estimate(tiny.MTL, short + p) for p in ([], parts))
    assert divided["flops"] == pytest.approx(whole["flops"], rel=0.01)
    assert divided["run_flops"] == 10 * divided["flops"]
    for card, (factor, needed) in whole["cards"].items():
        assert divided["cards"][card][0] == factor
        assert divided["cards"][card][1] == pytest.approx(needed, rel=0.05)


def test_the_document_s_commands_load(monkeypatch):
    monkeypatch.chdir(tiny.MTL.parents[1])
    pattern = r"(?<![\w./])([\w.]+\.yaml)((?: --[\w.]+=[\w./]+)+)"
    commands = re.findall(pattern, DOCUMENT)
    assert len(commands) >= 6
    for name, overrides in commands:
        (path,) = ROOT.glob(f"recipes/*/*/hparams/{name}")
        cost.load(path, overrides.split())
    assert cost.load(tiny.MTL, ["--lr=1.78e-5"])["lr"] == 1.78e-5
    yamls = re.findall(r"\| `([\w.]+)`[^|]* \| [\d,]+ \|", DOCUMENT)
    yamls += re.findall(r"`([\w.]+)`[,;.\n]", DOCUMENT.partition("As `mtl`:")[2])
    named = {*yamls, "demo", "demo_scratch", "demo_pretrain", "small_corpus"}
    found = {path.stem for path in ROOT.glob("recipes/*/*/hparams/*.yaml")}
    assert found <= named
