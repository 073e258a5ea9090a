"""The shared wav2vec2 encoder: waveforms to frames for every task."""

import copy
import logging
import os
import pickle
import sys
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices
from transformers.utils.logging import disable_progress_bar

from lobes.errors import UserError
from lobes.model.feed_forward import LeanFeedForward
from lobes.model.source_check import check_source

logger = logging.getLogger(__name__)

#: Families whose models are wav2vec2's, weight for weight and frame for frame.
SAME_MODELS = ("wav2vec2", "hubert", "unispeech", "unispeech-sat")


@dataclass
class Frames:
    """What the encoder gives to the tasks.

    Attributes:
        speech: Frames for the speech task [batch, time, channel].
        speaker: Frames for the speaker task [batch, time, channel]. A fully shared
            encoder gives the same tensor as ``speech``, a branched one only what is
            needed.
        lengths: Valid frames of each utterance [batch], int64, on the host.
        mask: True at valid frames [batch, time]; None when nothing is padded.
        cls: The speaker's output at the class token [batch, channel], if there is one;
            ``speech`` and ``speaker`` leave it out.
    """

    speech: torch.Tensor | None
    speaker: torch.Tensor | None
    lengths: torch.Tensor
    mask: torch.Tensor | None = None
    cls: torch.Tensor | None = None


class Wav2Vec2Encoder(nn.Module):
    """A HuggingFace wav2vec2 model whose frozen parts build no graph.

    The CNN never trains (paper section 4.2) and runs without a graph. After
    ``freeze(True)`` the projection, positional convolution and transformer do the
    same, in evaluation mode.

    An utterance has the same frames alone and in a padded batch: the group norm of the
    first convolution takes its statistics over the valid frames only, and the
    transformer ignores padded frames.

    Arguments:
        source: Model on the HuggingFace hub, or a folder written by
            ``save_pretrained``: a wav2vec2, HuBERT, UniSpeech or UniSpeech-SAT, with or
            without a head. Only the architecture in its configuration counts, not its
            regularisation, gradient checkpointing, precision or attention kernels. None
            builds a model with random weights from ``config``.
        config: ``Wav2Vec2Config`` fields of a model with random weights; the defaults
            are wav2vec2-base. Empty when ``source`` is given.
        layerdrop, hidden_dropout, attention_dropout, activation_dropout: Regularisation
            inside the transformer.
        input_dropout: Dropout of the transformer's input; None: as ``hidden_dropout``.
        feat_proj_dropout: Dropout after the projection of the CNN's features.
        mask_time_prob, mask_feature_prob: Share of frames, and of channels, that start
            a mask, times the mask's length (HuggingFace's definition; masks overlap).
        mask_time_length, mask_feature_length: Length of a mask in frames, and in
            channels. Utterances of fewer frames have no time mask.
        shared_layers: Transformer layers that both tasks share. Those above exist
            twice, with the same initial weights (paper section 3.3). None shares all.
        speaker_dims: Explicit split (paper section 3.1.3): this many first channels of
            a frame are the speaker task's alone, the others the speech task's. None
            shares all.
        class_token: ``constant``: a vector of ones stands before the first frame, after
            the projection and the masks (paper section 3.1.2). ``learnt``: it starts as
            ones and trains with the encoder. None: there is no such vector.
        gradient_checkpointing: Recompute activations in the backward pass instead of
            storing them.
        freeze_cnn: The paper's CNN never trains. False trains it with the rest, for an
            encoder that starts from random weights.

    Raises:
        UserError: The model cannot be found, it is of another family, the stored
            weights do not fill it, or it has too few layers or channels for the
            branches, the split or the masks.

    Example:
        >>> encoder = Wav2Vec2Encoder(config={"hidden_size": 48, "num_hidden_layers": 2,
        ...     "num_attention_heads": 4, "intermediate_size": 96})
        >>> frames = encoder(torch.randn(2, 16000), torch.tensor([16000, 16000]))
        >>> frames.speech.shape
        torch.Size([2, 49, 48])
    """

    #: A subclass may name those of a model with the same parts, such as HuBERT.
    model_class, config_class = Wav2Vec2Model, Wav2Vec2Config

    def __init__(
        self,
        source: str | None = None,
        config: dict | None = None,
        layerdrop: float = 0.0,
        hidden_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        input_dropout: float | None = None,
        feat_proj_dropout: float = 0.0,
        mask_time_prob: float = 0.0,
        mask_time_length: int = 10,
        mask_feature_prob: float = 0.0,
        mask_feature_length: int = 64,
        shared_layers: int | None = None,
        speaker_dims: int | None = None,
        class_token: str | None = None,
        gradient_checkpointing: bool = False,
        freeze_cnn: bool = True,
    ):
        super().__init__()
        settings = {
            "layerdrop": layerdrop,
            "hidden_dropout": hidden_dropout,
            "attention_dropout": attention_dropout,
            "activation_dropout": activation_dropout,
            "feat_proj_dropout": feat_proj_dropout,
            "mask_time_length": mask_time_length,
            "mask_feature_length": mask_feature_length,
            # HuggingFace makes the mask embedding, which checkpoints hold, only when
            # this is above zero. The real share follows below.
            "mask_time_prob": 0.05,
            "attn_implementation": "sdpa",
        }
        self.model = self._build(source, config or {}, settings)
        if input_dropout is not None:
            self.model.encoder.dropout.p = input_dropout
        width = self.model.config.hidden_size
        if mask_feature_prob > 0 and mask_feature_length > width:
            raise UserError(
                f"mask_feature_length is {mask_feature_length}, but a frame has "
                f"{width} channels; lower it, or set mask_feature_prob to 0"
            )
        LeanFeedForward.replace(self.model)
        self.model.config.mask_time_prob = mask_time_prob
        self.model.config.mask_feature_prob = mask_feature_prob
        if gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            # The stored configuration of wav2vec2-base would switch it on.
            self.model.activation_checkpointing_disable()
        self.freeze_cnn = freeze_cnn
        self.model.feature_extractor.requires_grad_(not freeze_cnn)
        self.frozen = False
        self._add_branch(shared_layers)
        self._add_class_token(class_token)
        whole = type(speaker_dims) is int and 0 < speaker_dims < width
        if speaker_dims is not None and not whole:
            raise UserError(
                f"speaker_dims is {speaker_dims}; a frame has {width} channels and "
                f"both tasks need some: give 1 to {width - 1}, or null for no split"
            )
        self.speaker_dims = speaker_dims

    def _build(self, source, config, settings):
        """The model with the weights of ``source``, or with random ones."""
        if source is None:
            _check_config(config, "encoder.config", self.config_class)
            return self.model_class(self.config_class(**{**config, **settings}))
        if config:
            raise UserError(
                "encoder.config describes a model with random weights, encoder.source "
                f"one with trained weights ({source}); give one of them, the other "
                "empty"
            )
        return _load_pretrained(self.model_class, source, settings)

    def _add_branch(self, shared_layers):
        """Copy the layers that the speaker task has for itself."""
        layers = self.model.encoder.layers
        if shared_layers is None:
            shared_layers = len(layers)
        if type(shared_layers) is not int or not 0 <= shared_layers <= len(layers):
            raise UserError(
                f"shared_layers is {shared_layers}; the encoder has {len(layers)} "
                f"layers: give 0 to {len(layers)}, or null for all"
            )
        self.shared_layers = shared_layers
        self.speaker_layers = copy.deepcopy(layers[shared_layers:])
        self.speaker_norm = None
        if self.speaker_layers and self._norm_comes_last:
            self.speaker_norm = copy.deepcopy(self.model.encoder.layer_norm)

    def _add_class_token(self, kind):
        """Make the vector that stands before the frames."""
        if kind not in (None, "constant", "learnt"):
            raise UserError(
                f"class_token is {kind!r}; it is constant, learnt or null (none)"
            )
        token = None if kind is None else torch.ones(self.model.config.hidden_size)
        if kind == "learnt":
            self.class_token = nn.Parameter(token)
        else:
            self.register_buffer("class_token", token, persistent=False)

    @property
    def _norm_comes_last(self):
        """Whether the layers are pre-LN, as those of wav2vec2-large."""
        return self.model.config.do_stable_layer_norm

    @property
    def speech_size(self) -> int:
        """Channels of ``Frames.speech``."""
        return self.model.config.hidden_size - (self.speaker_dims or 0)

    @property
    def speaker_size(self) -> int:
        """Channels of ``Frames.speaker``, and of ``Frames.cls``."""
        return self.speaker_dims or self.model.config.hidden_size

    def frame_lengths(self, samples: int | torch.Tensor) -> int | torch.Tensor:
        """Number of frames that a number of samples gives.

        wav2vec2's convolutions take no padding: 16,000 samples give 49 frames.
        """
        config = self.model.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def never_trained(self) -> list[nn.Parameter]:
        """Parameters that no optimizer may hold: those of a frozen CNN."""
        return list(self.model.feature_extractor.parameters()) * self.freeze_cnn

    def freeze(self, frozen: bool) -> None:
        """Freeze or thaw the encoder; with ``freeze_cnn`` the CNN stays frozen."""
        if frozen == self.frozen:
            return
        self.frozen = frozen
        self.requires_grad_(not frozen)
        self.model.feature_extractor.requires_grad_(not (frozen or self.freeze_cnn))
        self.train(self.training)

    def train(self, mode: bool = True):
        """Set training mode, except for frozen parts, which stay in eval mode."""
        super().train(mode and not self.frozen)
        self.training = mode
        # The CNN has no dropout. In training mode HuggingFace would checkpoint its
        # gradients, but recomputing its cheap layers does not repay.
        self.model.feature_extractor.eval()
        return self

    def forward(
        self,
        wavs: torch.Tensor,
        lengths: torch.Tensor,
        need: Collection[str] = ("speech", "speaker"),
    ) -> Frames:
        """Encode a batch.

        Arguments:
            wavs: Normalised waveforms [batch, samples], zero padded.
            lengths: Samples of each [batch], int64, on the host.
            need: Views of the frames that the batch's tasks use: ``speech``,
                ``speaker``, ``cls``, and ``letters``, which is ``speech`` without a
                gradient. A shared encoder always gives all; a branched one runs only
                the towers it needs.
        """
        frame_lengths = self.frame_lengths(lengths)
        if int(frame_lengths.min()) < 1:
            raise UserError(
                f"an utterance of {int(lengths.min())} samples is too short for one "
                "frame; remove utterances under 25 ms"
            )
        graph = torch.is_grad_enabled() and not self.frozen
        with torch.set_grad_enabled(graph and not self.freeze_cnn):
            features, mask = self.features(wavs, lengths, frame_lengths)
        with torch.set_grad_enabled(graph):
            tokens = self.model.feature_projection(features)[0]
            if self.model.training:
                tokens = self.augment(tokens, frame_lengths)
            speech, speaker = self._towers(tokens, mask, need)
        cls = None
        if self.class_token is not None:
            cls = None if speaker is None else speaker[:, 0, : self.speaker_dims]
            speech, speaker = (
                hidden if hidden is None else hidden[:, 1:]
                for hidden in (speech, speaker)
            )
        if self.speaker_dims is not None:
            speech = None if speech is None else speech[..., self.speaker_dims :]
            speaker = None if speaker is None else speaker[..., : self.speaker_dims]
        return Frames(speech, speaker, frame_lengths, mask, cls)

    def _towers(self, tokens, mask, need):
        """The last layer for speech and for speaker, each [batch, time, channel].

        The class token comes first. Without branches both are one tensor.
        """
        encoder = self.model.encoder
        if mask is not None:
            tokens = tokens.masked_fill(~mask[:, :, None], 0.0)
        if self.class_token is not None:
            first = self.class_token.to(tokens.dtype).expand(len(tokens), 1, -1)
            tokens = torch.cat([first, tokens], dim=1)
            if mask is not None:
                mask = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        attention = None if mask is None else _attention_bias(mask, tokens.dtype)
        hidden = tokens + encoder.pos_conv_embed(tokens)
        if not self._norm_comes_last:
            hidden = encoder.layer_norm(hidden)
        hidden = encoder.dropout(hidden)
        layers = list(encoder.layers)
        shared, own = layers[: self.shared_layers], layers[self.shared_layers :]
        norm = encoder.layer_norm if self._norm_comes_last else None
        if not self.speaker_layers:
            hidden = self._layers(shared, hidden, attention, norm)
            return hidden, hidden
        hidden = self._layers(shared, hidden, attention)
        speech = speaker = None
        if "speech" in need or "letters" in need:
            with torch.set_grad_enabled(torch.is_grad_enabled() and "speech" in need):
                speech = self._layers(own, hidden, attention, norm)
        if "speaker" in need or "cls" in need:
            own, norm = self.speaker_layers, self.speaker_norm
            speaker = self._layers(own, hidden, attention, norm)
        return speech, speaker

    def _layers(self, layers, hidden, attention, norm=None):
        """Run some layers, and a norm if one ends them; LayerDrop leaves out some."""
        layerdrop = self.model.config.layerdrop if self.model.training else 0.0
        for layer in layers:
            # Draw on the host, so that it need not wait for a device.
            if layerdrop > 0 and torch.rand([]) < layerdrop:
                continue
            hidden = layer(hidden, attention_mask=attention)
        return hidden if norm is None else norm(hidden)

    def augment(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Mask frames and channels of [batch, time, channel] (SpecAugment).

        Draws as HuggingFace does, but on the host from the ``lengths`` in frames, and
        masks without indices, so that a GPU is never waited for.
        """
        config = self.model.config
        batch, time, channels = tokens.shape
        if config.mask_time_prob > 0:
            chosen = _spans(config, "time", (batch, time), lengths)
            chosen = chosen.to(tokens.device, non_blocking=True)[:, :, None]
            embedding = self.model.masked_spec_embed.to(tokens.dtype)
            tokens = torch.where(chosen, embedding, tokens)
        if config.mask_feature_prob > 0:
            chosen = _spans(config, "feature", (batch, channels))
            chosen = chosen.to(tokens.device, non_blocking=True)[:, None]
            tokens = tokens.masked_fill(chosen, 0.0)
        return tokens

    def features(
        self, wavs: torch.Tensor, lengths: torch.Tensor, frame_lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The CNN's output [batch, time, channel], and its mask or None."""
        padded = bool((lengths != wavs.shape[1]).any())
        hidden = wavs[:, None]
        for layer in self.model.feature_extractor.conv_layers:
            if padded and isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                hidden = layer.conv(hidden)
                lengths = lengths.to(hidden.device, non_blocking=True)
                kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
                valid = _mask((lengths - kernel) // stride + 1, hidden.shape[2])
                hidden = _masked_group_norm(layer.layer_norm, hidden, valid)
                hidden = layer.activation(hidden)
            else:
                hidden = layer(hidden)
        mask = None
        if padded:
            on_device = frame_lengths.to(hidden.device, non_blocking=True)
            mask = _mask(on_device, hidden.shape[2])
        return hidden.transpose(1, 2), mask


# Attention could make this bias of a bool mask by itself, in every layer. But in a
# compiled graph torch 2.11 keeps the layout of the length it was compiled for, and the
# backward pass fails at the next length (tests/recipes/test_loss_curves.py).
@torch.compiler.disable
def _attention_bias(mask, dtype):
    """0 where a frame may be attended to, else -inf: [batch, 1, 1, time]."""
    batch, time = mask.shape
    # A GPU's kernels would copy rows that are no multiple of 8, in every layer.
    shape = batch, 1, 1, -(-time // 8) * 8
    bias = torch.zeros(shape, dtype=dtype, device=mask.device)[..., :time]
    return bias.masked_fill_(~mask[:, None, None], -torch.inf)


# The compiler would replace numpy's random numbers with its own.
@torch.compiler.disable
def _spans(config, axis, shape, lengths=None):
    """HuggingFace's random spans of a mask, bool [batch, place], on the host.

    ``axis``, ``time`` or ``feature``, names the settings to use.
    """
    names = ("prob", "length", "min_masks")
    share, length, least = (getattr(config, f"mask_{axis}_{name}") for name in names)
    if length > shape[1]:
        # HuggingFace raises here, but masks no such row in a batch with longer ones.
        return torch.zeros(shape, dtype=torch.bool)
    valid = None if lengths is None else _mask(lengths, shape[1])
    return torch.from_numpy(
        _compute_mask_indices(shape, share, length, valid, min_masks=least)
    )


def _mask(lengths, time):
    """True at the first ``lengths`` of ``time`` places: [batch, time]."""
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def _masked_group_norm(norm, hidden, valid):
    """Group norm of [batch, channel, time] with statistics over valid frames.

    Each group has one channel, as in wav2vec2. Padded places come out arbitrary.
    """
    # This is the largest tensor of a step: pass over it and copy it seldom.
    hidden = hidden.float()
    valid = valid[:, None]
    count = valid.sum(-1, keepdim=True)
    mean = (hidden * valid).sum(-1, keepdim=True) / count
    centred = hidden - mean if hidden.requires_grad else hidden.sub_(mean)
    root = torch.linalg.vector_norm(centred * valid, dim=-1, keepdim=True)
    variance = root.square() / count
    scale = torch.rsqrt(variance + norm.eps) * norm.weight[:, None]
    return torch.addcmul(norm.bias[:, None], centred, scale)


def _check_config(config, name, config_class):
    """Raise ``UserError`` for a configuration (dict) of another kind of model."""
    kind = config.get("model_type")
    ours = config_class is Wav2Vec2Config
    known = SAME_MODELS if ours else (config_class.model_type,)
    if kind is not None and kind not in known:
        raise UserError(
            f"{name} is a model of the kind {kind}, which has other parts; supported "
            f"are {', '.join(known)}"
        )
    for key in ("add_adapter", "quantization_config"):
        if config.get(key):
            raise UserError(
                f"{name}: its configuration sets {key}, which is not supported; name a "
                "model without it"
            )


#: HuggingFace's defaults of what a stored configuration must not decide either.
DEFAULTS = {
    "mask_time_min_masks": 2,
    "mask_feature_min_masks": 0,
    "output_attentions": False,
    "output_hidden_states": False,
}


def _load_pretrained(model_class, source, settings):
    """The model with all its weights from the hub or a folder."""
    source = check_source(source, model_class)
    try:
        config, _ = model_class.config_class.get_config_dict(source)
        _check_config(config, f"source: {source}", model_class.config_class)
        if not sys.stderr.isatty():
            # Its bar would stand in the log.
            disable_progress_bar()
        model, report = model_class.from_pretrained(
            source,
            output_loading_info=True,
            trust_remote_code=False,
            # Weights stored in half precision would otherwise train in it.
            dtype=torch.float32,
            **DEFAULTS,
            **settings,
        )
    except pickle.UnpicklingError as error:
        # torch's own words tell how to run the code in it.
        raise UserError(
            f"source: the weights in {source} hold more than tensors, maybe code, and "
            "were not loaded; take them from where you trust them"
        ) from error
    except (OSError, ValueError, RuntimeError, EOFError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        where = "folder" if os.path.isdir(source) else "hub model or folder"
        raise UserError(
            f"source: no {model_class.config_class.model_type} model can be loaded "
            f"from the {where} {source!r} ({reason}); name a folder written by "
            "save_pretrained with --encoder.source=FOLDER"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing == ["masked_spec_embed"]:
        # A model that was fine-tuned without masks has none.
        logger.warning(
            "source: %s has no masked_spec_embed, what masked frames become; it starts "
            "at random",
            source,
        )
        missing = []
    if missing:
        # HuggingFace would fill them with random numbers and only warn.
        raise UserError(
            f"source: {source} has no weights for {len(missing)} parts of the "
            f"encoder ({missing[0]}, ...); use the weights of a wav2vec2 model"
        )
    parts = {name.partition(".")[0] for name in model.state_dict()}
    foreign = sorted(
        name for name in report["unexpected_keys"] if name.partition(".")[0] in parts
    )
    if foreign:
        # Heads may be left over, parts of the encoder not.
        raise UserError(
            f"source: {source} has weights for {len(foreign)} parts that this encoder "
            f"lacks ({foreign[0]}, ...); use the weights of a wav2vec2 model"
        )
    return model
