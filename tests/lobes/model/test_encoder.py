"""The encoder: frozen parts, padding, class token, split and branches."""

import json

import numpy as np
import pytest
import torch
import transformers
from transformers import Wav2Vec2Config, Wav2Vec2Model

from lobes.errors import UserError
from lobes.model.encoder import Wav2Vec2Encoder
from lobes.model.pooling import ClassTokenPooling, MeanPooling
from lobes.model.tasks import SpeakerRecognition, SpeechRecognition
from tests.helpers import tiny
from tests.helpers.operations import Operations
from tests.helpers.tiny import ENCODER, LAYER_NORM

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


def assert_same_frames(encoder, model):
    """Both give the same frames, to the last bit, for two utterances of one length."""
    wavs, lengths = padded_batch(16000, 16000)
    with torch.no_grad():
        expected = model(wavs).last_hidden_state
        assert torch.equal(encoder(wavs, lengths).speech, expected)


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


@pytest.mark.fault(
    "F33", "an utterance alone and in a padded batch: its frames", "equal frames"
)
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


@pytest.mark.parametrize("lengths", [(16000, 16000), (16000, 9000, 12345)])
def test_masks_are_huggingface_s(make, lengths):
    """The same masks from the same random numbers, and the same gradients."""
    settings = {"mask_time_length": 4, "mask_feature_length": 4}
    encoder = make(mask_time_prob=0.4, mask_feature_prob=0.2, **settings).train()
    frames = encoder.frame_lengths(torch.tensor(lengths))
    tokens = torch.randn(len(lengths), int(frames.max()), 32)
    mask = torch.arange(tokens.shape[1]) < frames[:, None]
    padded = len(set(lengths)) > 1
    found = []
    for augment, given in (
        (encoder.augment, {"lengths": frames}),
        (encoder.model._mask_hidden_states, {"attention_mask": mask} if padded else {}),
    ):
        np.random.seed(3)
        inputs = tokens.clone().requires_grad_()
        result = augment(inputs * 1, **given)
        encoder.zero_grad()
        (result * tokens).sum().backward()
        found.append((result, inputs.grad, encoder.model.masked_spec_embed.grad))
    assert (found[0][0] != tokens).any() and (found[0][1] == 0).any()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.fault(
    "D5",
    "a batch whose clips are all shorter than mask_time_length",
    "no time mask in it, as HuggingFace gives short clips of a mixed batch",
)
@pytest.mark.fault("A11", "a batch with fewer frames than a mask is long", "no mask")
@pytest.mark.parametrize("wider", [0, 8000])
def test_clips_shorter_than_a_mask_have_none(make, wider):
    settings = {"mask_time_prob": 0.6, "mask_time_length": 20}
    encoder, plain = make(LAYER_NORM, **settings).train(), make(LAYER_NORM).train()
    wavs, lengths = padded_batch(6000, 3000)  # 18 and 9 frames
    wavs = torch.nn.functional.pad(wavs, (0, wider))
    with torch.no_grad():
        found, expected = encoder(wavs, lengths), plain(wavs, lengths)
        valid = found.mask
        assert torch.equal(found.speech[valid], expected.speech[valid])
        # 24 frames: one of two clips is long enough.
        wavs, lengths = padded_batch(8000, 3000)
        found, expected = encoder(wavs, lengths), plain(wavs, lengths)
    assert not torch.equal(found.speech[0], expected.speech[0])
    torch.testing.assert_close(found.speech[1, :9], expected.speech[1, :9])


@pytest.mark.fault(
    "D5",
    "mask_feature_length above the channels",
    "refused at the start: `mask_feature_length is 64, but a frame has 32 channels`",
)
def test_a_mask_of_more_channels_than_there_are_is_refused(make):
    make(mask_feature_length=64)
    make(mask_feature_prob=0.1, mask_feature_length=32)
    with pytest.raises(UserError, match="is 64, but a frame has 32 channels"):
        make(mask_feature_prob=0.1)


@NORMS
def test_the_input_has_a_dropout_of_its_own(make, norm):
    """The published runs without regularisation had dropout in the layers only."""
    wavs, lengths = padded_batch(8000, 5000)
    for given, expected in ((None, 0.3), (0.0, 0.0), (0.7, 0.7)):
        encoder = make(norm, hidden_dropout=0.3, input_dropout=given)
        assert encoder.model.encoder.dropout.p == expected
        layers = encoder.model.encoder.layers
        assert {layer.dropout.p for layer in layers} == {0.3}
    encoder = make(norm, input_dropout=0.7).train()
    assert not torch.equal(encoder(wavs, lengths).speech, encoder(wavs, lengths).speech)


def test_masked_frames_equal_those_of_huggingface(make):
    """Of padded utterances: nothing but their own frames is masked."""
    encoder = make(LAYER_NORM, mask_time_prob=0.6, mask_time_length=3).train()
    wavs, lengths = padded_batch(16000, 9000)
    mask = torch.arange(16000) < lengths[:, None]
    with torch.no_grad():
        np.random.seed(3)
        ours = encoder(wavs, lengths)
        np.random.seed(3)
        theirs = encoder.model(wavs, attention_mask=mask).last_hidden_state
        plain = encoder.eval()(wavs, lengths)
    valid = ours.mask
    torch.testing.assert_close(ours.speech[valid], theirs[valid], rtol=0, atol=1e-6)
    assert (ours.speech[valid] - plain.speech[valid]).abs().max() > 0.01


def test_padding_beyond_the_longest_changes_no_frame(make):
    """A grid of lengths pads batches further, equal lengths too."""
    encoder = make().eval()
    for lengths in ((16000, 12345), (9000, 9000)):
        wavs, lengths = padded_batch(*lengths)
        wider = torch.nn.functional.pad(wavs, (0, 24000 - wavs.shape[1]))
        with torch.no_grad():
            narrow, wide = encoder(wavs, lengths), encoder(wider, lengths)
        assert wide.speech.shape[1] == 74 and torch.equal(wide.lengths, narrow.lengths)
        for row, count in enumerate(narrow.lengths):
            torch.testing.assert_close(
                wide.speech[row, :count], narrow.speech[row, :count], rtol=0, atol=5e-6
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


def stored(folder, **keys):
    """Change a saved model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def checkpointed(model):
    return sum(getattr(m, "gradient_checkpointing", False) for m in model.modules())


@pytest.mark.fault(
    "A1",
    'a config.json with `"gradient_checkpointing": true`, as facebook/wav2vec2-base\'s',
    "it is off unless the setting is on",
)
def test_stored_gradient_checkpointing_is_switched_off(make, tmp_path):
    make().model.save_pretrained(tmp_path)
    stored(tmp_path, gradient_checkpointing=True)
    assert checkpointed(Wav2Vec2Model.from_pretrained(tmp_path)) > 0
    assert checkpointed(Wav2Vec2Encoder(source=tmp_path)) == 0
    asked = Wav2Vec2Encoder(source=tmp_path, gradient_checkpointing=True)
    assert checkpointed(asked) > 0
    config = {**ENCODER, "gradient_checkpointing": True}
    assert checkpointed(Wav2Vec2Encoder(config=config)) == 0


@pytest.mark.fault(
    "A1",
    "a config.json with other dropouts, masks, LayerDrop, precision, attention kernel",
    "the settings count: frames, training and parameters are the same",
)
@pytest.mark.parametrize(
    "keys",
    [
        {"layerdrop": 0.9},
        {"hidden_dropout": 0.9, "attention_dropout": 0.9, "activation_dropout": 0.9},
        {"feat_proj_dropout": 0.9, "final_dropout": 0.9, "feat_quantizer_dropout": 0.9},
        {"mask_time_prob": 0.9, "mask_feature_prob": 0.9, "mask_time_length": 2},
        {"mask_time_min_masks": 9, "mask_feature_min_masks": 9},
        {"apply_spec_augment": False},
        {"dtype": "float16"},
        {"torch_dtype": "bfloat16"},
        {"attn_implementation": "eager"},
        {"_attn_implementation": "flash_attention_2"},
        {"output_hidden_states": True, "output_attentions": True},
        {"use_weighted_layer_sum": True, "num_adapter_layers": 7},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_no_key_of_a_stored_configuration_acts_behind_the_settings(
    make, keys, tmp_path
):
    make().model.save_pretrained(tmp_path)
    settings = {"mask_time_prob": 0.3, "mask_time_length": 3, "hidden_dropout": 0.2}
    settings |= {"mask_feature_prob": 0.2, "mask_feature_length": 4}
    wavs, lengths = padded_batch(16000, 9000)
    found = []
    for change in ({}, keys):
        stored(tmp_path, **change)
        encoder = Wav2Vec2Encoder(source=tmp_path, **settings).train()
        torch.manual_seed(3), np.random.seed(3)
        with torch.no_grad():
            frames = encoder(wavs, lengths).speech
        sizes = {n: (p.shape, p.dtype) for n, p in encoder.named_parameters()}
        found.append((frames, encoder.eval()(wavs, lengths).speech, sizes))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


@pytest.mark.fault(
    "A1",
    "a config.json with add_adapter or quantization_config",
    "refused in one line that names the key",
)
@pytest.mark.parametrize(
    "keys", [{"add_adapter": True}, {"quantization_config": {"load_in_8bit": True}}]
)
def test_a_stored_configuration_with_other_parts_is_refused(make, keys, tmp_path):
    make().model.save_pretrained(tmp_path)
    stored(tmp_path, **keys)
    key = next(iter(keys))
    with pytest.raises(UserError, match=f"sets {key}, which is not supported"):
        Wav2Vec2Encoder(source=tmp_path)
    with pytest.raises(UserError, match=f"encoder.config: .* sets {key}"):
        Wav2Vec2Encoder(config={**ENCODER, **keys})


@pytest.mark.parametrize("dimensions", [None, 4])
def test_attention_adapters_are_part_of_the_model(tmp_path, dimensions):
    torch.manual_seed(0)
    settings = {**ENCODER, **LAYER_NORM, "adapter_attn_dim": dimensions}
    model = Wav2Vec2Model(Wav2Vec2Config(**settings)).eval()
    model.save_pretrained(tmp_path)
    encoder = Wav2Vec2Encoder(source=tmp_path).eval()
    assert_same_frames(encoder, model)


@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert", "UniSpeech", "UniSpeechSat"])
@NORMS
def test_the_families_that_are_wav2vec2_load_as_what_they_are(family, norm, tmp_path):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**ENCODER, **norm)
    model = getattr(transformers, f"{family}Model")(config).eval()
    model.save_pretrained(tmp_path)
    encoder = Wav2Vec2Encoder(source=tmp_path).eval()
    assert_same_frames(encoder, model)


@pytest.mark.fault(
    "A2",
    "source: a WavLM or Data2VecAudio model",
    "refused: `a model of the kind wavlm, which has other parts; supported are ...`",
)
@pytest.mark.parametrize("family", ["WavLM", "Data2VecAudio"])
def test_other_families_are_refused_by_name(family, tmp_path):
    config = getattr(transformers, f"{family}Config")(**ENCODER)
    getattr(transformers, f"{family}Model")(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="supported are wav2vec2, hubert") as caught:
        Wav2Vec2Encoder(source=tmp_path)
    assert f"of the kind {config.model_type}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.fault(
    "A2",
    "weights with parts of the encoder that the model lacks",
    "refused: `has weights for 1 parts that this encoder lacks`",
)
def test_left_over_weights_are_refused(make, tmp_path):
    saved = make()
    state = saved.model.state_dict()
    state["encoder.layers.0.attention.bias"] = torch.ones(2)
    saved.model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match="weights for 1 parts that this encoder lacks"):
        Wav2Vec2Encoder(source=tmp_path)


@pytest.mark.fault(
    "A3",
    "source: a Wav2Vec2ForCTC folder without masked_spec_embed",
    "loaded; `it starts at random` is logged",
)
def test_a_fine_tuned_model_comes_without_a_mask_embedding(tmp_path, caplog):
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(
        Wav2Vec2Config(**ENCODER, mask_time_prob=0.0)
    ).eval()
    assert not hasattr(model.wav2vec2, "masked_spec_embed")
    model.save_pretrained(tmp_path)
    encoder = Wav2Vec2Encoder(source=tmp_path, mask_time_prob=0.5)
    assert "no masked_spec_embed" in caplog.text and "at random" in caplog.text
    embedding = encoder.model.masked_spec_embed
    assert embedding.isfinite().all() and embedding.std() > 0.1
    wavs, lengths = padded_batch(16000, 16000)
    with torch.no_grad():
        expected = model.wav2vec2(wavs).last_hidden_state
        assert torch.equal(encoder.eval()(wavs, lengths).speech, expected)


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
    with pytest.raises(UserError, match="encoder.config"):
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


# Class token, split, branches -------------------------------------------------


def moved(modules):
    """The modules' parameters, each elsewhere: as after some training."""
    torch.manual_seed(7)
    for parameter in modules.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


def calls(*modules):
    """How often each is called from now on."""
    counts = [0] * len(modules)

    def count(place):
        def hook(*_):
            counts[place] += 1

        return hook

    for place, module in enumerate(modules):
        module.register_forward_hook(count(place))
    return counts


@NORMS
@pytest.mark.parametrize("lengths", [(8000, 8000), (8000, 5000)])
def test_a_class_token_comes_on_top_of_the_frames(make, norm, lengths):
    """Letters for T frames, not T + 1; the CNN and the mask know nothing of it."""
    wavs, lengths = padded_batch(*lengths)
    encoder = make(norm, class_token="constant").eval()
    with torch.no_grad():
        frames, plain = encoder(wavs, lengths), make(norm).eval()(wavs, lengths)
    assert frames.speech.shape == plain.speech.shape == (2, 24, 32)
    assert frames.lengths.tolist() == plain.lengths.tolist()
    assert (frames.mask is None) == (plain.mask is None)
    assert frames.mask is None or torch.equal(frames.mask, plain.mask)
    assert frames.cls.shape == (2, 32) and plain.cls is None
    output = SpeechRecognition(encoder).eval()(frames)
    assert output[0].shape[1] == 24 and output[1].tolist() == frames.lengths.tolist()
    # It is attended to, and is not the first frame.
    assert (frames.speech - plain.speech).abs().max() > 1e-5
    assert (frames.cls - frames.speech[:, 0]).abs().max() > 1e-3


@pytest.mark.fault(
    "F33",
    "an utterance alone and in a padded batch: its class token",
    "equal embedding",
)
@NORMS
@pytest.mark.parametrize("kind", ["constant", "learnt"])
def test_the_class_token_of_an_utterance_does_not_depend_on_padding(make, norm, kind):
    wavs, lengths = padded_batch(8000, 5000)
    encoder = make(norm, class_token=kind).eval()
    with torch.no_grad():
        together = encoder(wavs, lengths)
        alone = encoder(wavs[1:, :5000], lengths[1:])
    torch.testing.assert_close(together.cls[1:], alone.cls, rtol=0, atol=5e-6)
    count = int(alone.lengths)
    torch.testing.assert_close(
        together.speech[1:, :count], alone.speech, rtol=0, atol=5e-6
    )


def test_a_constant_class_token_is_no_parameter_and_in_no_checkpoint(make):
    """The published code's became trainable when the encoder was unfrozen."""
    encoder = make(class_token="constant").train()
    encoder.freeze(True)
    encoder.freeze(False)
    assert not encoder.class_token.requires_grad
    assert torch.equal(encoder.class_token, torch.ones(32))
    plain = make()
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    names = [name for name, _ in encoder.named_parameters()]
    assert names == [name for name, _ in plain.named_parameters()]


def test_a_learnt_class_token_trains_with_the_encoder(make):
    encoder = make(class_token="learnt").train()
    assert "class_token" in encoder.state_dict()
    wavs, lengths = padded_batch(8000, 5000)
    encoder.freeze(True)
    assert not encoder.class_token.requires_grad
    encoder.freeze(False)
    encoder(wavs, lengths).cls.square().sum().backward()
    assert encoder.class_token.grad.abs().max() > 0
    assert torch.equal(encoder.class_token, torch.ones(32))


@pytest.mark.parametrize("kind", ["constant", "learnt"])
def test_the_class_token_through_a_run(kind, tiny_corpus, tmp_path):
    """Frozen for two steps of six; the checkpoint has a learnt one, as it became."""
    yaml = tiny.MTL.with_name("pool_first_cls.yaml")
    options = {"yaml": yaml, "class_token": kind}
    system = tiny.brain(tiny_corpus, tmp_path / "run", **options)
    tiny.fit(system)
    token = system.modules.encoder.class_token.detach()
    held = system.checkpointer.find_checkpoint().path / "encoder.ckpt"
    held = torch.load(held, weights_only=True)
    if kind == "constant":
        assert torch.equal(token, torch.ones(32)) and "class_token" not in held
    else:
        assert (token - 1).abs().max() > 1e-5
        assert torch.equal(held["class_token"], token)
        again = tiny.brain(tiny_corpus, tmp_path / "run", **options)
        again.prepare_training()
        again.on_fit_start()
        assert torch.equal(again.modules.encoder.class_token, token)


@NORMS
@pytest.mark.parametrize("token", [None, "constant"])
def test_split_channels_reach_one_task_only(make, norm, token):
    """Facts section 6: the first 8 move no letter, the others no embedding."""
    encoder = make(norm, speaker_dims=8, class_token=token).eval()
    assert (encoder.speech_size, encoder.speaker_size) == (24, 8)
    inner = encoder.model.encoder
    last = inner.layer_norm if norm else inner.layers[-1]
    added = torch.zeros(32)
    last.register_forward_hook(lambda module, args, output: output + added)
    speech = SpeechRecognition(encoder).eval()
    pooling = ClassTokenPooling() if token else MeanPooling()
    speaker = SpeakerRecognition(encoder, pooling, 5).eval()

    def outputs():
        with torch.no_grad():
            frames = encoder(*padded_batch(8000, 5000))
            return speech(frames)[0], speaker(frames)

    letters, embeddings = outputs()
    assert embeddings.shape == (2, 8)
    added[8:] = 1 + torch.arange(24.0)
    moved_letters, same_embeddings = outputs()
    assert torch.equal(same_embeddings, embeddings)
    assert (moved_letters - letters).abs().max() > 0.1
    added[8:] = 0
    added[:8] = 1 + torch.arange(8.0)
    same_letters, moved_embeddings = outputs()
    assert torch.equal(same_letters, letters)
    assert (moved_embeddings - embeddings).abs().min() > 0.1


@NORMS
@pytest.mark.parametrize("lengths", [(8000, 8000), (8000, 5000)])
@pytest.mark.parametrize("shared", [0, 1, 2])
def test_branches_start_as_the_unbranched_encoder(make, norm, lengths, shared):
    """Facts section 6, whether or not anything is padded."""
    wavs, lengths = padded_batch(*lengths)
    plain, encoder = make(norm).eval(), make(norm, shared_layers=shared).eval()
    assert len(encoder.speaker_layers) == 2 - shared
    with torch.no_grad():
        frames, expected = encoder(wavs, lengths), plain(wavs, lengths)
    assert (frames.speech is frames.speaker) == (shared == 2)
    for found in (frames.speech, frames.speaker):
        torch.testing.assert_close(found, expected.speech, rtol=0, atol=1e-5)


@NORMS
def test_branches_are_copies_not_the_same_layers(make, norm):
    wavs, lengths = padded_batch(8000, 5000)
    encoder = make(norm, shared_layers=1).eval()
    before = encoder(wavs, lengths)
    moved(encoder.speaker_layers)
    if norm:
        moved(encoder.speaker_norm)
    after = encoder(wavs, lengths)
    assert torch.equal(after.speech, before.speech)
    assert (after.speaker - before.speaker).abs().max() > 0.01
    assert (encoder.speaker_norm is None) == (not norm)


@NORMS
@pytest.mark.parametrize(
    "need, towers",
    [
        ({"speech"}, (1, 0)),
        ({"speaker"}, (0, 1)),
        ({"cls"}, (0, 1)),
        ({"speaker", "letters"}, (1, 1)),
        ({"speech", "speaker"}, (1, 1)),
        ({"speech", "speaker", "letters"}, (1, 1)),
    ],
)
def test_only_the_towers_that_a_batch_needs_run(make, norm, need, towers):
    encoder = make(norm, shared_layers=1, class_token="constant").train()
    shared, own = encoder.model.encoder.layers
    counts = calls(shared, own, encoder.speaker_layers[0])
    frames = encoder(*padded_batch(8000, 5000), need)
    assert counts == [1, *towers]
    assert (frames.speech is not None, frames.speaker is not None) == towers
    assert (frames.cls is not None) == (frames.speaker is not None)


@NORMS
def test_letters_build_no_graph(make, norm):
    """The tower that hears them on a speaker batch costs no backward pass."""
    wavs, lengths = padded_batch(8000, 5000)
    encoder = make(norm, shared_layers=1).train()
    frames = encoder(wavs, lengths, {"speaker", "letters"})
    assert frames.speaker.requires_grad and not frames.speech.requires_grad
    frames.speaker.square().mean().backward()
    own = encoder.model.encoder.layers[1].parameters()
    assert all(parameter.grad is None for parameter in own)
    shared = encoder.model.encoder.layers[0].attention.v_proj.weight
    assert shared.grad.abs().max() > 0
    joint = encoder(wavs, lengths, {"speech", "speaker", "letters"})
    assert joint.speech.requires_grad
    with torch.no_grad():
        assert not encoder(wavs, lengths, {"speech"}).speech.requires_grad


def test_frozen_branches_stay_in_eval_mode(make):
    encoder = make(shared_layers=1, hidden_dropout=0.5).train()
    encoder.freeze(True)
    wavs, lengths = padded_batch(8000, 8000)
    first, second = (encoder(wavs, lengths).speaker for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    encoder.freeze(False)
    trainable = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert any(name.startswith("speaker_layers.0.") for name in trainable)
    first, second = (encoder(wavs, lengths).speaker for _ in range(2))
    assert not torch.equal(first, second), "dropout is off in the speaker's tower"


@pytest.mark.parametrize(
    "settings",
    [
        {"shared_layers": 1},
        {"speaker_dims": 8},
        {"class_token": "learnt"},
        {"shared_layers": 1, "speaker_dims": 8, "class_token": "constant"},
    ],
)
def test_no_loop_over_utterances_or_frames(make, settings):
    encoder, counts = make(**settings).eval(), set()
    for lengths in [(8000, 5000), (32000, 5000), (8000,) + (5000,) * 9]:
        wavs, lengths = padded_batch(*lengths)
        with Operations() as operations:
            encoder(wavs, lengths, {"speaker", "letters"})
        counts.add(operations.count)
    assert len(counts) == 1 and min(counts) > 50


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"speaker_dims": 32}, "speaker_dims is 32; .*give 1 to 31, or null"),
        ({"speaker_dims": 0}, "speaker_dims is 0; .*give 1 to 31, or null"),
        ({"shared_layers": 3}, "shared_layers is 3; .*give 0 to 2, or null"),
        ({"shared_layers": -1}, "shared_layers is -1; .*give 0 to 2, or null"),
        ({"class_token": "random"}, "class_token is 'random'; .*constant, learnt or"),
    ],
)
def test_what_the_encoder_cannot_be_is_refused(make, settings, named):
    with pytest.raises(UserError, match=named) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)
