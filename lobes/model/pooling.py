"""Poolings: a sequence of speaker frames to one embedding.

Every pooling is an ``nn.Module`` called with ``lobes.model.encoder.Frames``; it names
the views it needs in ``need`` and the size of its embedding in
``output_size(channels)``, and returns embeddings [batch, size] in float32.
"""

import torch
from speechbrain.lobes.models.ECAPA_TDNN import AttentiveStatisticsPooling
from torch import nn

from lobes.system.distributed import summed


class Pooling(nn.Module):
    """What most poolings have in common: speaker frames in, one frame's size out."""

    need = ("speaker",)

    def output_size(self, channels):
        """Size of the embedding for frames of so many channels."""
        return channels

    def forward(self, frames):
        """Embeddings [batch, size], float32."""
        raise NotImplementedError


class MeanPooling(Pooling):
    """Mean over the valid speaker frames (paper section 3.1.1).

    Example
    -------
    >>> from lobes.model.encoder import Frames
    >>> hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    >>> mask = torch.tensor([[True, True, False]])
    >>> MeanPooling()(Frames(hidden, hidden, torch.tensor([2]), mask))
    tensor([[2.]])
    """

    def forward(self, frames):
        """See the module's docstring."""
        return masked_mean(frames.speaker, frames.mask)


class ClassTokenPooling(Pooling):
    """The output at the class token: ``first+cls`` (paper section 3.1.2).

    The encoder must have one: ``class_token`` in the YAML.
    """

    need = ("cls",)

    def forward(self, frames):
        """See the module's docstring."""
        return frames.cls.float()


class FirstPooling(Pooling):
    """The first speaker frame."""

    def forward(self, frames):
        """See the module's docstring."""
        return frames.speaker[:, 0].float()


class MaxPooling(Pooling):
    """Every channel's maximum over the valid speaker frames."""

    def forward(self, frames):
        """See the module's docstring."""
        hidden = frames.speaker.float()
        if frames.mask is not None:
            hidden = hidden.masked_fill(~frames.mask[:, :, None], -torch.inf)
        return hidden.amax(1)


class MeanStdPooling(Pooling):
    """Mean and standard deviation over the valid speaker frames, concatenated."""

    def output_size(self, channels):
        """Twice the channels."""
        return 2 * channels

    def forward(self, frames):
        """See the module's docstring."""
        mean = masked_mean(frames.speaker, frames.mask)
        centred = frames.speaker.float() - mean[:, None]
        variance = masked_mean(centred.square(), frames.mask)
        # The root has no finite gradient at 0, say with a single frame.
        return torch.cat([mean, variance.clamp(min=1e-7).sqrt()], dim=1)


class FrameNorm(nn.BatchNorm1d):
    """Batch norm of [batch, channel, time] over the valid frames of all processes.

    SpeechBrain's takes padded frames along, and those of one process only, so that its
    running statistics would differ between processes. ``mask`` [batch, time] is set
    before each call; None: all frames are valid.
    """

    mask = None

    def forward(self, hidden):
        """See the class; in evaluation the running statistics count."""
        if not self.training:
            return super().forward(hidden)
        mask = self.mask
        if mask is None:
            mask = torch.ones_like(hidden[:, 0], dtype=torch.bool)
        padded = ~mask[:, None]
        count = summed(mask.sum().to(hidden.dtype))
        mean = summed(hidden.masked_fill(padded, 0.0).sum((0, 2))) / count
        centred = (hidden - mean[:, None]).masked_fill(padded, 0.0)
        variance = summed(centred.square().sum((0, 2))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_var.lerp_(unbiased, self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale[:, None] + self.bias[:, None]


class AttentivePooling(Pooling):
    """SpeechBrain's attentive statistics pooling (of its ECAPA-TDNN).

    Its batch norm is ours: padding is no part of its statistics.

    Arguments
    ---------
    encoder : lobes.model.encoder.Wav2Vec2Encoder
        Asked for ``speaker_size``.
    attention_channels : int
        Size of the attention's hidden layer.
    """

    def __init__(self, encoder, attention_channels=128):
        super().__init__()
        self.statistics = AttentiveStatisticsPooling(
            encoder.speaker_size, attention_channels=attention_channels
        )
        self._norm.__class__ = FrameNorm

    @property
    def _norm(self):
        return self.statistics.tdnn.norm.norm

    def output_size(self, channels):
        """Twice the channels: mean and standard deviation."""
        return 2 * channels

    def forward(self, frames):
        """See the module's docstring."""
        hidden = frames.speaker.float().transpose(1, 2)
        shares = None
        if frames.mask is not None:
            # Half a frame less: SpeechBrain multiplies them by the length again, and
            # rounding up there would let a padded frame in.
            shares = (frames.mask.sum(1) - 0.5) / frames.mask.shape[1]
        self._norm.mask = frames.mask
        return self.statistics(hidden, shares).squeeze(2)


class CTCPooling(Pooling):
    """Mean over the frames that say a blank, or a letter (paper section 3.1.1).

    The letters are the most likely symbols of the speech head on the same
    utterances; it gets no gradient from here. An utterance without such a frame
    gives the mean over all its valid frames.

    Arguments
    ---------
    speech : lobes.model.tasks.SpeechRecognition
        The speech head.
    blank : bool
        True takes the frames whose symbol is the CTC blank (``ctc_blank``), False
        those with any other symbol (``ctc_nonblank``).
    """

    need = ("speaker", "letters")

    def __init__(self, speech, blank):
        super().__init__()
        # In a tuple: the head's parameters are the speech task's, not ours.
        self._speech = (speech,)
        self.blank = blank

    @property
    def speech(self):
        """The speech head."""
        return self._speech[0]

    def forward(self, frames):
        """See the module's docstring."""
        with torch.no_grad():
            symbols = self.speech.linear(frames.speech.float()).argmax(-1)
            chosen = (symbols == self.speech.vocabulary.blank_index) == self.blank
            if frames.mask is not None:
                chosen = chosen & frames.mask
            found = chosen.any(1, keepdim=True)
            everything = True if frames.mask is None else frames.mask
            chosen = torch.where(found, chosen, everything)
        return masked_mean(frames.speaker, chosen)


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
