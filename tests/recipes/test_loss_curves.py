"""200 steps against plain float32 training: checkpointing, bfloat16, compilation.

The plain run is HuggingFace's model of ``test_reference_step.py``, one utterance at a
time and so without any padding, with a graph through the CNN's frozen weights and
torch's Adam, one parameter after another.
"""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from tests.helpers import tiny
from tests.recipes.test_reference_step import NORMS, Reference

STEPS, FREEZE_STEPS = 200, 40

#: What the command line adds, and how far the mean of 20 steps may be from the plain
#: one: rounding that 200 steps carry on, measured as 1e-6 and 8e-3. bfloat16 rounds to
#: 1 / 256.
WAYS = {
    "fp32": ((), {}, 1e-4),
    "checkpointing": ((), {"gradient_checkpointing": True}, 1e-4),
    "bf16": (("--precision=bf16",), {}, 2e-2),
}
COMPILED = {
    "compiled": (("--compile",), {}, 1e-4),
    "compiled bf16": (("--compile", "--precision=bf16"), {}, 2e-2),
}


class OneAtATime(Reference):
    """The reference without padding, its gradient through the CNN too."""

    def __init__(self, system, norm):
        super().__init__(system, norm)
        self.speech_model.feature_extractor.requires_grad_(True)

    def frames(self, model, wavs, lengths):
        rows = [
            super(OneAtATime, self).frames(model, wav[None, :length], length[None])
            for wav, length in zip(wavs, lengths, strict=True)
        ]
        hidden = pad_sequence([row[1][0] for row in rows], batch_first=True)
        return None, hidden, torch.cat([row[2] for row in rows])


@pytest.fixture(scope="module")
def run(tiny_corpus, tmp_path_factory):
    """A Brain about to train, on one norm and in one way."""

    def run(name, norm, options=(), **settings):
        output = tmp_path_factory.mktemp("curves") / name
        settings |= {"steps": STEPS, "freeze_steps": FREEZE_STEPS, "lr": 3e-3}
        settings |= {"valid_interval": STEPS, "max_batch_samples": 48_000}
        return lambda: tiny.brain(
            tiny_corpus, output, tiny.MTL, NORMS[norm], options, **settings
        )

    return run


@pytest.fixture(scope="module", params=NORMS)
def plain(request, run):
    """The norm, and the losses (speech, speaker) of every step of plain training."""
    system = run("plain", request.param)()
    stream = system.prepare_training()
    system.on_fit_start()
    reference = OneAtATime(system, NORMS[request.param])
    trained = {
        name: parameter
        for name, parameter in reference.parameters.items()
        if parameter.requires_grad and "feature_extractor" not in name
    }
    optimizer = torch.optim.Adam(trained.values(), foreach=False, fused=False)
    losses = []
    for step, batches in enumerate(stream):
        optimizer.param_groups[0]["lr"] = system.hparams.schedule(step)
        speech, speaker = batches["speech"], batches["speaker"]
        both = (
            reference.speech_loss(
                speech.wavs, speech.lengths, *speech.labels["letters"]
            ),
            reference.speaker_loss(
                speaker.wavs, speaker.lengths, speaker.labels["speaker"]
            ),
        )
        reference.total(*both)[0].backward()
        for name, parameter in trained.items():
            if step < FREEZE_STEPS and name.startswith("encoder."):
                parameter.grad = None
        optimizer.step()
        optimizer.zero_grad()
        losses.append([loss.detach() for loss in both])
    cnn = reference.speech_model.feature_extractor.parameters()
    assert all(parameter.grad is not None for parameter in cnn)
    losses = torch.tensor(losses)
    assert len(losses) == STEPS
    assert (losses[-20:].mean(0) < 0.7 * losses[:20].mean(0)).all(), "both learn"
    return request.param, losses


def losses_of(system):
    """The losses of every step of a training."""
    rows = [row for row in tiny.fit(system) if row["stage"] == "train"]
    return torch.tensor([[row["speech_loss"], row["speaker_loss"]] for row in rows])


def alike(found, expected, tolerance):
    """Equal means over 20 steps; a single step may be five times as far off."""
    torch.testing.assert_close(found, expected, rtol=5 * tolerance, atol=0)
    means = (losses.unflatten(0, (-1, 20)).mean(1) for losses in (found, expected))
    torch.testing.assert_close(*means, rtol=tolerance, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_curve_of_plain_training(way, plain, run):
    norm, expected = plain
    options, settings, tolerance = WAYS[way]
    found = losses_of(run(way, norm, options, **settings)())
    alike(found, expected, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("way", COMPILED)
def test_the_curve_compiled(way, plain, run):
    """With torch's own compiler, which needs a C++ one on a CPU, for every length."""
    norm, expected = plain
    torch._dynamo.reset()
    options, settings, tolerance = COMPILED[way]
    build = run(way, norm, options, **settings)
    found = losses_of(build())
    alike(found, expected, tolerance)
    resumed = build()
    resumed.compile = False
    resumed.prepare_training()
    resumed.on_fit_start()
    assert resumed.optimizer_step == STEPS, "its checkpoint is an ordinary one"
