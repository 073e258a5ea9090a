"""Poolings: hand values, padding, sizes, and no loop over utterances or frames."""

import pytest
import torch

from lobes.model.encoder import Frames
from lobes.model.pooling import (
    AttentivePooling,
    ClassTokenPooling,
    CTCPooling,
    FirstPooling,
    FrameNorm,
    MaxPooling,
    MeanPooling,
    MeanStdPooling,
)
from lobes.model.tasks import SpeechRecognition
from tests.helpers.operations import Operations

CHANNELS = 6


class Sizes:
    """Stands where a module asks the encoder for the size of its frames."""

    speech_size = speaker_size = CHANNELS


@pytest.fixture
def head():
    """A speech head that hears a blank where a frame's first channel is below 0."""
    head = SpeechRecognition(Sizes())
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.fill_(-100.0)
        head.linear.bias[:6] = 0.0
        head.linear.weight[0, 0] = -1.0
        head.linear.weight[5, 0] = 1.0
    return head


@pytest.fixture
def make(head):
    """A pooling by its name in the variants, in evaluation mode."""

    def make(name):
        torch.manual_seed(0)
        return {
            "mean": MeanPooling,
            "cls": ClassTokenPooling,
            "first": FirstPooling,
            "max": MaxPooling,
            "mean_std": MeanStdPooling,
            "attentive": lambda: AttentivePooling(Sizes(), attention_channels=4),
            "ctc_blank": lambda: CTCPooling(head, blank=True),
            "ctc_nonblank": lambda: CTCPooling(head, blank=False),
        }[name]().eval()

    return make


EVERY = pytest.mark.parametrize(
    "name",
    ["mean", "cls", "first", "max", "mean_std", "attentive", "ctc_blank"]
    + ["ctc_nonblank"],
)


def frames_of(hidden, lengths, speech=None):
    """Frames of an encoder with a class token; ``lengths`` None: nothing is padded."""
    speech = hidden if speech is None else speech
    mask = None
    if lengths is not None:
        mask = torch.arange(hidden.shape[1]) < torch.tensor(lengths)[:, None]
    lengths = torch.tensor(lengths or [hidden.shape[1]] * len(hidden))
    return Frames(speech, hidden, lengths, mask, cls=7 * hidden[:, 0])


def some(batch, time, lengths=None):
    """Random frames; what is padded would spoil any sum or maximum."""
    torch.manual_seed(batch + time)
    hidden = torch.randn(batch, time, CHANNELS)
    for row, length in enumerate(lengths or ()):
        hidden[row, length:] = 1e4
    return frames_of(hidden, lengths)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mean", [1.0, 4.0]),
        ("cls", [-14.0, 7.0]),
        ("first", [-2.0, 1.0]),
        ("max", [4.0, 6.0]),
        # Deviations -3, 0, 3 and -3, 1, 2.
        ("mean_std", [1.0, 4.0, 6**0.5, (14 / 3) ** 0.5]),
        ("ctc_blank", [-2.0, 1.0]),
        ("ctc_nonblank", [2.5, 5.5]),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_hand_values(name, expected, padded, make):
    """Three frames, of which the first says a blank."""
    hidden = torch.zeros(1, 3, CHANNELS)
    hidden[0, :, :2] = torch.tensor([[-2.0, 1.0], [1.0, 5.0], [4.0, 6.0]])
    if padded:
        hidden = torch.cat([hidden, torch.full((1, 2, CHANNELS), 9.0)], 1)
    found = make(name)(frames_of(hidden, [3] if padded else None))
    parts = found.view(-1, CHANNELS)[:, :2].flatten()
    torch.testing.assert_close(parts, torch.tensor(expected))


def test_attention_that_attends_to_everything_alike_is_mean_and_std(make):
    attentive = make("attentive")
    torch.nn.init.zeros_(attentive.statistics.conv.conv.weight)
    frames = some(3, 13, [13, 7, 5])
    torch.testing.assert_close(attentive(frames), make("mean_std")(frames))


@pytest.mark.fault(
    "F33", "an utterance alone and in a padded batch: its embedding", "equal embedding"
)
@EVERY
@pytest.mark.parametrize("time", [13, 149])
def test_padding_never_changes_an_embedding(name, time, make):
    """7 of 13: in float32 7 / 13 x 13 is above 7."""
    lengths = [time, 7, 1, time // 2, time - 1]
    frames = some(len(lengths), time, lengths)
    pooling = make(name)
    together = pooling(frames)
    for row, length in enumerate(lengths):
        alone = pooling(frames_of(frames.speaker[row : row + 1, :length], None))
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("blank", [True, False])
@pytest.mark.parametrize("lengths", [None, [9, 4]])
def test_without_a_frame_of_the_kind_it_is_the_plain_mean(blank, lengths, make):
    """Also where a padded frame would be of the kind; other rows keep their own."""
    hidden = some(2, 9).speaker
    hidden[0, :, 0] = hidden[0, :, 0].abs() * (1 if blank else -1)
    hidden[0, 4:, 0] *= -1 if lengths else 1
    lengths = lengths and lengths[::-1]
    frames = frames_of(hidden, lengths)
    found = make("ctc_blank" if blank else "ctc_nonblank")(frames)
    torch.testing.assert_close(found[0], make("mean")(frames)[0], rtol=0, atol=0)
    chosen = (hidden[1, :, 0] < 0) == blank
    assert chosen.any() and not chosen.all()
    torch.testing.assert_close(found[1], hidden[1, chosen].mean(0))


def test_letters_are_those_of_the_speech_frames(make):
    """And neither they nor their head get a gradient."""
    speech = torch.zeros(1, 4, CHANNELS)
    speech[0, :, 0] = torch.tensor([-1.0, 1.0, 1.0, -1.0])
    speech.requires_grad_()
    speaker = torch.randn(1, 4, CHANNELS, requires_grad=True)
    pooling = make("ctc_blank")
    found = pooling(frames_of(speaker, None, speech))
    torch.testing.assert_close(found, (speaker[:, 0] + speaker[:, 3]) / 2)
    found.sum().backward()
    assert speaker.grad is not None and speech.grad is None
    assert all(p.grad is None for p in pooling.speech.parameters())
    assert list(pooling.parameters()) == [], "they are the speech task's"


@EVERY
def test_the_caller_s_tensors_stay_as_they_are(name, make):
    frames = some(3, 11, [11, 5, 2])
    before = {n: (t.clone(), t._version) for n, t in vars(frames).items()}
    make(name)(frames)
    for field, (value, version) in before.items():
        tensor = getattr(frames, field)
        assert torch.equal(tensor, value) and tensor._version == version, field


@EVERY
def test_sizes_and_precision(name, make):
    """Embeddings are float32 whatever the frames are."""
    pooling = make(name)
    frames = some(3, 11, [11, 5, 2])
    expected = {"mean_std": 2 * CHANNELS, "attentive": 2 * CHANNELS}
    assert pooling.output_size(CHANNELS) == expected.get(name, CHANNELS)
    assert pooling(frames).shape == (3, pooling.output_size(CHANNELS))
    for field in ("speech", "speaker", "cls"):
        setattr(frames, field, getattr(frames, field).bfloat16())
    assert pooling(frames).dtype == torch.float32


@EVERY
def test_gradients_are_finite(name, make):
    """A single frame, and channels that never change, have no deviation."""
    hidden = torch.ones(2, 8, CHANNELS, requires_grad=True)
    make(name)(frames_of(hidden, [8, 1])).square().sum().backward()
    assert torch.isfinite(hidden.grad).all() and hidden.grad.abs().max() > 0
    assert not hidden.grad[1, 1:].any(), "a padded frame has a gradient"


@EVERY
def test_no_loop_over_utterances_or_frames(name, make):
    pooling, counts = make(name), set()
    for batch, time in [(2, 5), (2, 300), (40, 5)]:
        frames = some(batch, time, [time] + [3] * (batch - 1))
        with Operations() as operations:
            pooling(frames)
        counts.add(operations.count)
    assert len(counts) == 1 and max(counts) < 60


def test_the_batch_norm_is_torch_s_where_nothing_is_padded():
    torch.manual_seed(2)
    ours, theirs = FrameNorm(4).train(), torch.nn.BatchNorm1d(4).train()
    theirs.weight.data.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(3):
        first = torch.randn(3, 4, 7, requires_grad=True)
        second = first.detach().clone().requires_grad_()
        out = ours(first), theirs(second)
        torch.testing.assert_close(*out)
        out[0].square().sum().backward()
        out[1].square().sum().backward()
        torch.testing.assert_close(first.grad, second.grad)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    torch.testing.assert_close(ours.eval()(first), theirs.eval()(first))


@pytest.mark.fault(
    "A10", "padded frames before batch norm", "no part of its statistics"
)
def test_padding_is_no_part_of_the_statistics():
    torch.manual_seed(2)
    ours, theirs = FrameNorm(4).train(), torch.nn.BatchNorm1d(4).train()
    hidden = torch.randn(2, 4, 7)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    ours.mask = mask
    found = ours(hidden)
    valid = torch.cat([hidden[0].T, hidden[1].T[:4]])
    expected = theirs(valid)
    torch.testing.assert_close(found.transpose(1, 2)[mask], expected)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(hidden).transpose(1, 2)[mask], theirs(valid))
