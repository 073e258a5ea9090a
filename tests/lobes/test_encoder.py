"""The encoder: no graph through frozen parts, and padding without effect."""

import pytest
import torch

from lobes.encoder import Wav2Vec2Encoder
from lobes.errors import UserError
from tests.tiny import ENCODER, LAYER_NORM

NORMS = pytest.mark.parametrize("norm", [{}, LAYER_NORM], ids=["group", "layer"])


@pytest.fixture
def make():
    def make(norm=None, **settings):
        torch.manual_seed(0)
        return Wav2Vec2Encoder(config={**ENCODER, **(norm or {})}, **settings)

    return make


def padded_batch(*lengths):
    torch.manual_seed(1)
    wavs = torch.zeros(len(lengths), max(lengths))
    for row, length in zip(wavs, lengths, strict=True):
        row[:length] = torch.randn(length)
    return wavs, torch.tensor(lengths)


@pytest.mark.parametrize(
    "seconds, frames", [(1, 49), (2, 99), (3, 149), (9, 449), (10, 499)]
)
def test_frame_counts_of_the_paper(make, seconds, frames):
    encoder = make()
    assert encoder.frame_lengths(16000 * seconds) == frames
    lengths = torch.tensor([16000 * seconds])
    assert encoder.frame_lengths(lengths).tolist() == [frames]


def test_wav2vec2_base_has_the_paper_s_parameters():
    with torch.device("meta"):
        encoder = Wav2Vec2Encoder()
    counts = [p.numel() for p in encoder.parameters()]
    trainable = [p.numel() for p in encoder.parameters() if p.requires_grad]
    assert (sum(counts), sum(trainable)) == (94_371_712, 90_171_264)


@NORMS
def test_same_frames_as_the_model_of_huggingface(make, norm):
    encoder = make(norm).eval()
    wavs, lengths = padded_batch(16000, 16000)
    with torch.no_grad():
        frames = encoder(wavs, lengths)
        expected = encoder.model(wavs).last_hidden_state
    assert frames.mask is None
    torch.testing.assert_close(frames.speech, expected, rtol=0, atol=0)


def test_padded_frames_equal_those_of_huggingface_with_its_mask(make):
    """Layer norm only: with group norm HuggingFace's padding changes the output."""
    encoder = make(LAYER_NORM).eval()
    wavs, lengths = padded_batch(16000, 9000)
    mask = torch.arange(16000) < lengths[:, None]
    with torch.no_grad():
        ours = encoder(wavs, lengths)
        theirs = encoder.model(wavs, attention_mask=mask).last_hidden_state
    valid = ours.mask
    torch.testing.assert_close(ours.speech[valid], theirs[valid], rtol=0, atol=1e-6)


@NORMS
def test_an_utterance_alone_equals_itself_in_a_padded_batch(make, norm):
    encoder = make(norm).eval()
    wavs, lengths = padded_batch(16000, 8200, 12345)
    with torch.no_grad():
        batch = encoder(wavs, lengths)
        for row, length in enumerate(lengths):
            alone = encoder(wavs[row : row + 1, :length], lengths[row : row + 1])
            count = int(alone.lengths)
            assert int(batch.mask[row].sum()) == count == int(batch.lengths[row])
            torch.testing.assert_close(
                batch.speech[row, :count], alone.speech[0], rtol=0, atol=5e-6
            )


def test_an_unmasked_group_norm_would_not_pass_that(make):
    """The test above can fail: plain zero padding moves the frames visibly."""
    encoder = make().eval()
    wavs, lengths = padded_batch(16000, 8200)
    with torch.no_grad():
        alone = encoder(wavs[1:, :8200], lengths[1:]).speech[0]
        plain = encoder.model(wavs).last_hidden_state[1, : len(alone)]
    assert (plain - alone).abs().max() > 0.01


def test_the_cnn_builds_no_graph_and_gradients_stay_the_same(make):
    encoder = make()
    wavs, lengths = padded_batch(8000, 8000)
    inputs = []
    projection = encoder.model.feature_projection
    projection.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    encoder(wavs, lengths).speech.square().mean().backward()
    assert not inputs[0].requires_grad
    ours = {n: p.grad for n, p in encoder.model.named_parameters()}
    encoder.zero_grad()
    # The stock way: autograd runs through the CNN, whose gradient nobody uses.
    encoder.model.feature_extractor.requires_grad_(True)
    encoder.model(wavs).last_hidden_state.square().mean().backward()
    for name, parameter in encoder.model.named_parameters():
        if "feature_extractor" in name:
            assert ours[name] is None and parameter.grad is not None
        elif parameter.grad is not None:
            assert torch.equal(ours[name], parameter.grad), name


def test_a_cnn_that_is_not_frozen_trains(make):
    encoder = make(freeze_cnn=False).train()
    wavs, lengths = padded_batch(8000, 6000)
    encoder(wavs, lengths).speech.square().mean().backward()
    first = encoder.model.feature_extractor.conv_layers[0].conv.weight
    assert first.grad is not None and first.grad.abs().max() > 0
    assert not encoder.never_trained()
    encoder.freeze(True)
    assert not encoder(wavs, lengths).speech.requires_grad
    encoder.freeze(False)
    assert first.requires_grad


def test_frozen_means_no_graph_no_gradient_and_eval_mode(make):
    encoder = make(hidden_dropout=0.5, mask_time_prob=0.5).train()
    encoder.freeze(True)
    wavs, lengths = padded_batch(8000, 8000)
    first, second = encoder(wavs, lengths), encoder(wavs, lengths)
    assert not first.speech.requires_grad
    assert torch.equal(first.speech, second.speech), "dropout or masks were active"
    assert not any(p.requires_grad for p in encoder.parameters())
    encoder.train()
    assert not encoder.model.encoder.training, "train() thawed a frozen encoder"
    encoder.freeze(False)
    assert encoder.model.encoder.training
    assert not torch.equal(
        encoder(wavs, lengths).speech, encoder(wavs, lengths).speech
    ), "dropout and masks are off after the thaw"
    trainable = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert trainable and not any("feature_extractor" in name for name in trainable)


def test_masks_and_dropout_act_in_training_only(make):
    wavs, lengths = padded_batch(8000, 8000)
    masked = make(mask_time_prob=0.5, mask_feature_prob=0.2, mask_feature_length=4)
    plain = make()
    with torch.no_grad():
        assert not torch.equal(
            masked.train()(wavs, lengths).speech, plain(wavs, lengths).speech
        )
        assert torch.equal(
            masked.eval()(wavs, lengths).speech, plain.eval()(wavs, lengths).speech
        )


def test_default_has_no_regularisation(make):
    """Paper section 4.2 disables all of it; HuggingFace's defaults do not."""
    encoder = make().train()
    config = encoder.model.config
    assert config.layerdrop == config.mask_time_prob == config.mask_feature_prob == 0
    dropouts = [m.p for m in encoder.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts and set(dropouts) == {0.0}
    assert {layer.attention.dropout for layer in encoder.model.encoder.layers} == {0.0}


def test_gradient_checkpointing_keeps_the_gradients(make):
    wavs, lengths = padded_batch(8000, 6000)
    gradients = []
    for checkpointing in (False, True):
        encoder = make(gradient_checkpointing=checkpointing).train()
        encoder(wavs, lengths).speech.square().mean().backward()
        gradients.append(encoder.model.encoder.layers[0].attention.q_proj.weight.grad)
    torch.testing.assert_close(*gradients)


@NORMS
def test_a_saved_model_loads_from_its_folder(make, norm, tmp_path):
    saved = make(norm)
    # Group norm's weight-normed positional convolution is what transformers
    # versions name differently; a silent mismatch would leave it random.
    saved.model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded = Wav2Vec2Encoder(source=str(tmp_path), hidden_dropout=0.3)
    for name, parameter in saved.model.state_dict().items():
        assert torch.equal(parameter, loaded.model.state_dict()[name]), name
    assert loaded.model.config.hidden_dropout == 0.3


def test_missing_weights_are_refused(make, tmp_path):
    saved = make()
    state = saved.model.state_dict()
    del state["encoder.pos_conv_embed.conv.parametrizations.weight.original1"]
    saved.model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match="has no weights for 1 parts"):
        Wav2Vec2Encoder(source=str(tmp_path))


def test_errors_name_the_source_and_the_remedy(make, tmp_path):
    with pytest.raises(UserError, match=r"folder .*save_pretrained"):
        Wav2Vec2Encoder(source=str(tmp_path))
    with pytest.raises(UserError, match="encoder_config"):
        Wav2Vec2Encoder(source=str(tmp_path), config=ENCODER)
    with pytest.raises(UserError, match="too short for one frame"):
        make()(torch.zeros(1, 399), torch.tensor([399]))


def test_stored_half_precision_and_switched_off_masks_do_not_survive(make, tmp_path):
    saved = make()
    saved.model.config.apply_spec_augment = False
    saved.model.half().save_pretrained(tmp_path)
    loaded = Wav2Vec2Encoder(source=str(tmp_path), mask_time_prob=0.5).train()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    wavs, lengths = padded_batch(8000, 8000)
    assert not torch.equal(loaded(wavs, lengths).speech, loaded(wavs, lengths).speech)
