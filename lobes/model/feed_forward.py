"""A transformer's feed-forward block that keeps less for its backward pass."""

import torch
from torch.nn import functional
from transformers.activations import GELUActivation
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeedForward


class LeanFeedForward(Wav2Vec2FeedForward):
    """HuggingFace's block, which computes the GELU again instead of storing its output.

    That output is four times as wide as a frame: a quarter of what a layer stores.
    Outputs and gradients are the same numbers.
    """

    @classmethod
    def replace(cls, model: torch.nn.Module) -> None:
        """Give the blocks of a model this class; the names of their weights stay."""
        for module in model.modules():
            if type(module) is Wav2Vec2FeedForward:
                if isinstance(module.intermediate_act_fn, GELUActivation):
                    module.__class__ = cls

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., channel] to [..., channel]."""
        if self.training and self.intermediate_dropout.p > 0:
            return super().forward(hidden)
        hidden = self.intermediate_dense(hidden)
        weight, bias = self.output_dense.weight, self.output_dense.bias
        # Autocast does this for a linear layer, but cannot see into ours.
        weight, bias = weight.to(hidden.dtype), bias.to(hidden.dtype)
        return self.output_dropout(_GeluLinear.apply(hidden, weight, bias))


class _GeluLinear(torch.autograd.Function):
    """``linear(gelu(inputs))``, which stores only the inputs."""

    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(inputs, weight)
        return functional.linear(functional.gelu(inputs), weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        inputs, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        for_weight = for_bias = None
        if ctx.needs_input_grad[1]:
            for_weight = rows.T @ functional.gelu(inputs).flatten(0, -2)
        if ctx.needs_input_grad[2]:
            for_bias = rows.sum(0)
        for_inputs = torch.ops.aten.gelu_backward(gradient @ weight, inputs)
        return for_inputs, for_weight, for_bias
