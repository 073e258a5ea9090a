"""Poolings: a sequence of speaker frames to one embedding.

A pooling is an ``nn.Module`` that takes ``lobes.model.encoder.Frames`` and returns
embeddings [batch, size] in float32. ``need`` names the views that it uses, and
``output_size(channels)`` gives the size of its embedding.
"""

import torch
from speechbrain.lobes.models.ECAPA_TDNN import AttentiveStatisticsPooling
from torch import nn

from lobes.model.encoder import Frames, Wav2Vec2Encoder
from lobes.system.distributed import summed


class Pooling(nn.Module):
    """What most poolings share: they take speaker frames and keep a frame's size."""

    need = ("speaker",)
    #: Numbers that each channel gives.
    values = 1

    def output_size(self, channels: int) -> int:
        """Size of the embedding of frames with this many channels."""
        return self.values * channels

    def forward(self, frames: Frames) -> torch.Tensor:
        """Embeddings [batch, size], float32."""
        raise NotImplementedError


class MeanPooling(Pooling):
    """Mean over the valid speaker frames (paper section 3.1.1).

    Example:
        >>> hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
        >>> mask = torch.tensor([[True, True, False]])
        >>> MeanPooling()(Frames(hidden, hidden, torch.tensor([2]), mask))
        tensor([[2.]])
    """

    def forward(self, frames: Frames) -> torch.Tensor:
        return masked_mean(frames.speaker, frames.mask)


class ClassTokenPooling(Pooling):
    """The output at the class token: ``first+cls`` (paper section 3.1.2).

    The encoder must have one: ``class_token`` in the YAML.
    """

    need = ("cls",)

    def forward(self, frames: Frames) -> torch.Tensor:
        return frames.cls.float()


class FirstPooling(Pooling):
    """The first speaker frame."""

    def forward(self, frames: Frames) -> torch.Tensor:
        return frames.speaker[:, 0].float()


class MaxPooling(Pooling):
    """Every channel's maximum over the valid speaker frames."""

    def forward(self, frames: Frames) -> torch.Tensor:
        hidden = frames.speaker.float()
        if frames.mask is not None:
            hidden = hidden.masked_fill(~frames.mask[:, :, None], -torch.inf)
        return hidden.amax(1)


class MeanStdPooling(Pooling):
    """Mean and standard deviation over the valid speaker frames, concatenated."""

    values = 2

    def forward(self, frames: Frames) -> torch.Tensor:
        mean = masked_mean(frames.speaker, frames.mask)
        centred = frames.speaker.float() - mean[:, None]
        variance = masked_mean(centred.square(), frames.mask)
        # At 0, say with a single frame, the root's gradient would be infinite.
        return torch.cat([mean, variance.clamp(min=1e-7).sqrt()], dim=1)


class FrameNorm(nn.BatchNorm1d):
    """Batch norm of [batch, channel, time] over the valid frames of all processes.

    SpeechBrain's counts padded frames, and only those of one process: its running
    statistics would differ between processes. The caller sets ``mask`` [batch, time]
    before each call; None: all frames are valid.
    """

    mask: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """See the class. Evaluation uses the running statistics."""
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

    It gives mean and standard deviation. ``FrameNorm`` replaces its batch norm: padding
    is no part of the statistics.

    Arguments:
        encoder: Gives the size of its speaker frames.
        attention_channels: Size of the attention's hidden layer.
    """

    values = 2

    def __init__(self, encoder: Wav2Vec2Encoder, attention_channels: int = 128):
        super().__init__()
        self.statistics = AttentiveStatisticsPooling(
            encoder.speaker_size, attention_channels=attention_channels
        )
        self._norm.__class__ = FrameNorm

    @property
    def _norm(self):
        return self.statistics.tdnn.norm.norm

    def forward(self, frames: Frames) -> torch.Tensor:
        hidden = frames.speaker.float().transpose(1, 2)
        shares = None
        if frames.mask is not None:
            # Half a frame less, because SpeechBrain multiplies by the length again:
            # rounding up there would let a padded frame in.
            shares = (frames.mask.sum(1) - 0.5) / frames.mask.shape[1]
        self._norm.mask = frames.mask
        return self.statistics(hidden, shares).squeeze(2)


class CTCPooling(Pooling):
    """Mean over the frames of blanks, or of letters (paper section 3.1.1).

    The speech head tells each frame's most likely symbol, and gets no gradient from
    here. An utterance without such a frame gives the mean over all its valid frames.

    Arguments:
        speech: The speech head.
        blank: True takes the frames of the CTC blank (``ctc_blank``), False those of
            any other symbol (``ctc_nonblank``).
    """

    need = ("speaker", "letters")

    def __init__(self, speech: nn.Module, blank: bool):
        super().__init__()
        # This hides the head from torch: its parameters are the speech task's.
        object.__setattr__(self, "speech", speech)
        self.blank = blank

    def forward(self, frames: Frames) -> torch.Tensor:
        with torch.no_grad():
            symbols = self.speech.linear(frames.speech.float()).argmax(-1)
            chosen = (symbols == self.speech.vocabulary.blank_index) == self.blank
            if frames.mask is not None:
                chosen = chosen & frames.mask
            valid = True if frames.mask is None else frames.mask
            chosen = torch.where(chosen.any(1, keepdim=True), chosen, valid)
        return masked_mean(frames.speaker, chosen)


def masked_mean(frames: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over time of [batch, time, channel] where ``mask`` [batch, time] is True.

    None stands for a mask that is True everywhere. The mean is float32.
    """
    frames = frames.float()
    if mask is None:
        return frames.mean(1)
    # A product with the mask would not do: 0 x inf in a padded place is NaN.
    frames = frames.masked_fill(~mask[:, :, None], 0.0)
    return frames.sum(1) / mask.sum(1, keepdim=True)
