"""Poolings: a sequence of speaker frames to one embedding.

Every pooling is an ``nn.Module`` called with ``lobes.encoder.Frames``; it names
the views it needs in ``need`` and the size of its embedding in
``output_size(channels)``.
"""

from torch import nn


class MeanPooling(nn.Module):
    """Mean over the valid speaker frames (paper section 3.1.1).

    Example
    -------
    >>> from lobes.encoder import Frames
    >>> hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    >>> mask = torch.tensor([[True, True, False]])
    >>> MeanPooling()(Frames(hidden, hidden, torch.tensor([2]), mask))
    tensor([[2.]])
    """

    need = ("speaker",)

    def output_size(self, channels):
        """Size of the embedding for frames of so many channels."""
        return channels

    def forward(self, frames):
        """Embeddings [batch, channel], float32."""
        return masked_mean(frames.speaker, frames.mask)


def masked_mean(frames, mask):
    """Mean over time of [batch, time, channel] where ``mask`` [batch, time] is True.

    None stands for a mask that is True everywhere. Accumulates in float32.
    """
    frames = frames.float()
    if mask is None:
        return frames.mean(1)
    # Not a product: 0 x inf in a padded place would spoil the sum.
    frames = frames.masked_fill(~mask[:, :, None], 0.0)
    return frames.sum(1) / mask.sum(1, keepdim=True)
