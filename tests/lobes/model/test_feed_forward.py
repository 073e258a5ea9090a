"""The lean feed-forward block gives HuggingFace's numbers."""

import copy

import pytest
import torch
from transformers import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeedForward

from lobes.model.feed_forward import LeanFeedForward


def blocks(**settings):
    """HuggingFace's block and ours, of the same weights."""
    torch.manual_seed(3)
    config = Wav2Vec2Config(hidden_size=24, intermediate_size=96, **settings)
    plain = torch.nn.Sequential(Wav2Vec2FeedForward(config))
    lean = copy.deepcopy(plain)
    LeanFeedForward.replace(lean)
    return plain, lean


def outcome(block, dtype=None):
    """Output, gradients, and the bytes stored for the backward pass, for one input."""
    torch.manual_seed(4)
    hidden = torch.randn(2, 7, 24, requires_grad=True)
    stored = {}

    def pack(tensor):
        stored[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype is not None),
    ):
        output = block(hidden)
        output.float().square().sum().backward()
    gradients = [hidden.grad, *(p.grad for p in block.parameters())]
    return output, gradients, sum(stored.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_outputs_and_gradients_are_the_same(dtype, dropout):
    settings = {"activation_dropout": dropout, "hidden_dropout": 0.2}
    plain, lean = (outcome(block.train(), dtype) for block in blocks(**settings))
    assert torch.equal(plain[0], lean[0]) and plain[0].dtype == lean[0].dtype
    for theirs, ours in zip(plain[1], lean[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    wide = 2 * 7 * 96 * (2 if dtype else 4)
    assert plain[2] - lean[2] >= (wide if dropout == 0 else 0)


def test_frozen_weights_get_no_gradient():
    _, lean = blocks()
    lean.requires_grad_(False)
    _, gradients, _ = outcome(lean)
    assert gradients[0] is not None and gradients[1:] == [None] * 4


def test_another_activation_stays_as_it_is():
    _, block = blocks(hidden_act="relu")
    assert type(block[0]) is Wav2Vec2FeedForward
    _, block = blocks()
    assert type(block[0]) is LeanFeedForward
