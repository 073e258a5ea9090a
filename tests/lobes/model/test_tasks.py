"""Heads and losses against values computed by hand (paper, section 6 of the facts)."""

import math
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

from lobes.data.labels import Categories, Letters
from lobes.data.utterances import Batch
from lobes.data.vocabulary import ctc_frames
from lobes.errors import UserError
from lobes.evaluation.plots import plot_trials
from lobes.model.encoder import Frames
from lobes.model.pooling import MeanPooling, MeanStdPooling, masked_mean
from lobes.model.tasks import SpeakerRecognition, SpeechRecognition
from tests.helpers import tiny


class Sizes:
    """Stands where a task asks the encoder for the size of its frames."""

    def __init__(self, size):
        self.speech_size = self.speaker_size = size


def frames_of(hidden, lengths=None):
    lengths = lengths or [hidden.shape[1]] * len(hidden)
    lengths = torch.tensor(lengths)
    mask = None
    if (lengths != hidden.shape[1]).any():
        mask = torch.arange(hidden.shape[1]) < lengths[:, None]
    return Frames(hidden, hidden, lengths, mask)


def speech_batch(*texts):
    labels = {"letters": Letters().encode(texts)}
    ids = [f"u{i}" for i in range(len(texts))]
    wavs = torch.zeros(len(texts), 400)
    return Batch(ids, wavs, torch.full((len(texts),), 400), labels, {"wrd": [*texts]})


def speaker_batch(*speakers):
    ids = [f"u{i}" for i in range(len(speakers))]
    wavs = torch.zeros(len(speakers), 400)
    labels = {"speaker": torch.tensor(speakers)}
    return Batch(ids, wavs, torch.full((len(speakers),), 400), labels)


def test_parameters_of_the_paper():
    """Facts section 1: totals of the three systems for 5,994 speakers."""
    with torch.device("meta"):
        speech = SpeechRecognition(Sizes(768))
        speaker = SpeakerRecognition(Sizes(768), MeanPooling(), 5994)
    count = {t: sum(p.numel() for p in t.parameters()) for t in (speech, speaker)}
    assert (count[speech], count[speaker]) == (24_608, 4_603_392)
    assert count[speech] + count[speaker] == 4_628_000
    assert 94_371_712 + count[speech] == 94_396_320
    assert 94_371_712 + count[speaker] == 98_975_104
    assert 94_371_712 + count[speech] + count[speaker] == 98_999_712


def test_ctc_by_enumeration():
    """Three frames for the letter E: the sum over every path, by hand."""
    torch.manual_seed(0)
    task = SpeechRecognition(Sizes(4))
    output = task(frames_of(torch.randn(1, 3, 4)))
    p = output[0].detach().exp()[0]
    e, blank = 5, 0
    paths = [(e, e, e), (e, e, blank), (blank, e, e), (e, blank, blank)]
    paths += [(blank, e, blank), (blank, blank, e)]
    total = sum(math.prod(float(p[t, s]) for t, s in enumerate(path)) for path in paths)
    loss = task.loss(output, speech_batch("E"))
    assert float(loss.detach()) == pytest.approx(-math.log(total), rel=1e-5)


def test_ctc_divides_by_letters_then_averages():
    torch.manual_seed(0)
    task = SpeechRecognition(Sizes(8))
    hidden = torch.randn(2, 30, 8)
    both = task.loss(task(frames_of(hidden, [30, 20])), speech_batch("A CAT", "GO"))
    single = [
        task.loss(task(frames_of(hidden[i : i + 1, :n])), speech_batch(text))
        for i, (n, text) in enumerate([(30, "A CAT"), (20, "GO")])
    ]
    assert float(both.detach()) == pytest.approx(
        float(sum(single).detach()) / 2, rel=1e-5
    )
    log_probabilities = task(frames_of(hidden[:1]))[0].transpose(0, 1)
    targets = Letters().encode(["A CAT"])
    stock = torch.nn.functional.ctc_loss(
        log_probabilities,
        targets[0],
        torch.tensor([30]),
        targets[1],
        zero_infinity=True,
    )
    assert float(single[0]) == pytest.approx(float(stock), rel=1e-6)


def test_ctc_with_too_few_frames_is_zero_not_infinite():
    task = SpeechRecognition(Sizes(4))
    hidden = torch.randn(1, 3, 4, requires_grad=True)
    loss = task.loss(task(frames_of(hidden)), speech_batch("SEE IT"))
    loss.backward()
    assert float(loss) == 0 and torch.isfinite(hidden.grad).all()


def test_frames_that_ctc_needs():
    assert ctc_frames([5, 6]) == 2
    assert ctc_frames([5, 5, 5]) == 5
    assert ctc_frames([]) == 0


def test_padding_never_reaches_the_speech_loss():
    torch.manual_seed(0)
    task = SpeechRecognition(Sizes(8)).eval()
    hidden = torch.randn(1, 30, 8)
    wrong = torch.cat([hidden, torch.full((1, 10, 8), 1e4)], 1)
    short = task.loss(task(frames_of(hidden)), speech_batch("GO"))
    padded = task.loss(task(frames_of(wrong, [30])), speech_batch("GO"))
    assert torch.equal(short, padded)


def prepare(task, texts, frames):
    """Show the task training data of so many frames; returns its letters' bias."""
    utterances = SimpleNamespace(
        table=pandas.DataFrame({"wrd": texts}),
        lengths=np.array(frames),
        ids=[f"u{row}" for row in range(len(texts))],
    )
    stream = SimpleNamespace(utterances=utterances, csv="train.csv")
    encoder = SimpleNamespace(frame_lengths=lambda samples: samples)
    task.prepare(stream, encoder)
    return dict(zip(task.vocabulary.symbols, task.linear.bias.tolist(), strict=True))


#: In the two texts below; seven letters in thirty frames.
COUNTS = {"A": 2, "|": 1, "C": 1, "T": 1, "G": 1, "O": 1}


def test_the_log_prior_of_letters():
    """The rest of the frames are blanks; what never occurs counts once."""
    task = SpeechRecognition(Sizes(4), letter_prior="log")
    found = prepare(task, ["A CAT", "GO"], [20, 10])
    for symbol, value in found.items():
        share = {**COUNTS, "<pad>": 23}.get(symbol, 1) / 30
        assert value == pytest.approx(math.log(share)), symbol


def test_the_follow_up_s_prior_of_letters():
    """Their shares of the text as they are, and 10 for the blank."""
    task = SpeechRecognition(Sizes(4), letter_prior="relative")
    found = prepare(task, ["A CAT", "GO"], [20, 10])
    for symbol, value in found.items():
        expected = 10 if symbol == "<pad>" else COUNTS.get(symbol, 0) / 7
        assert value == pytest.approx(expected), symbol


def test_a_prior_is_finite_with_more_letters_than_frames():
    task = SpeechRecognition(Sizes(4), letter_prior="log")
    found = prepare(task, ["A CAT"], [3])
    assert all(map(math.isfinite, found.values()))


def test_without_a_prior_the_bias_stays():
    task = SpeechRecognition(Sizes(4))
    before = task.linear.bias.tolist()
    assert list(prepare(task, ["A CAT", "GO"], [20, 10]).values()) == before


def test_a_prior_that_is_none_of_them():
    with pytest.raises(UserError, match="letter_prior is 'flat'; it is log, relative"):
        SpeechRecognition(Sizes(4), letter_prior="flat")


@pytest.mark.parametrize("prior", ["log", "relative"])
def test_a_resumed_run_keeps_the_bias_that_it_had_learnt(prior, tiny_corpus, tmp_path):
    """The prior is where it starts, not what a checkpoint is overwritten with."""

    def brain():
        output = tmp_path / "run"
        return tiny.brain(tiny_corpus, output, letter_prior=prior, lr=0.1)

    first = brain()
    bias = first.tasks["speech"].linear.bias
    random = bias.detach().clone()
    first.prepare_training()
    start = bias.detach().clone()
    assert (start - random).abs().max() > 0.5
    tiny.fit(first)
    assert (bias - start).abs().max() > 0.05
    second = brain()
    second.prepare_training()
    assert torch.equal(second.tasks["speech"].linear.bias, start)
    second.on_fit_start()
    assert torch.equal(second.tasks["speech"].linear.bias, bias)


@pytest.mark.fault("B5", "a validation", "CER and the share of blank frames beside WER")
def test_wer_is_corpus_level():
    task = SpeechRecognition(Sizes(4))
    symbols = Letters().vocabulary
    hypotheses = {"u0": "A CAT SAT", "u1": "GO"}
    references = ["A CAT SAT", "NO"]
    scores = torch.full((2, 40, 32), -50.0)
    for row, text in enumerate(hypotheses.values()):
        for time, symbol in enumerate(symbols.encode(text)):
            scores[row, 2 * time, symbol] = 0.0
            scores[row, 2 * time + 1, 0] = 0.0
        scores[row, 2 * len(text) :, 0] = 0.0
    task.start()
    task.update((scores, torch.tensor([40, 40])), speech_batch(*references))
    metrics = task.results("valid", None)["valid"]
    # One wrong word of four; the mean of the utterances' rates would be 50 %.
    assert metrics["wer"] == 25.0
    assert (metrics["substitutions"], metrics["words"]) == (1, 4)
    # One letter of "A CAT SAT" and "NO"; 11 of 80 frames hold one.
    assert metrics["cer"] == pytest.approx(100 / 11) and metrics["letters"] == 11
    assert metrics["blank_frames"] == 100 * 69 / 80 and metrics["frames"] == 80
    task.start()
    assert task.collected == {}


def angle_task(degrees, **settings):
    """A classifier of which class 0 lies at an angle from the embedding (1, 0)."""
    task = SpeakerRecognition(Sizes(2), MeanPooling(), 2, **settings)
    radians = math.radians(degrees)
    rows = [[math.cos(radians), math.sin(radians)], [0.0, 1.0]]
    task.weight.data = torch.tensor(rows)
    return task


def test_aam_at_sixty_degrees():
    """cos(60 degrees + 0.2) = 0.317981; the other class is at 90 degrees."""
    # At scale 1: at 30 the loss is too small to show the margin in float32.
    loss = angle_task(60.0, scale=1.0).loss(
        torch.tensor([[7.0, 0.0]]), speaker_batch(0)
    )
    expected = math.log(math.exp(0.317981) + 1) - 0.317981
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_aam_beyond_pi_minus_margin():
    """Not the easy margin: past pi - m the logit is cos - m sin(pi - m)."""
    task = angle_task(175.0)
    loss = task.loss(torch.tensor([[1.0, 0.0]]), speaker_batch(0))
    logit = 30 * (math.cos(math.radians(175)) - 0.2 * math.sin(math.pi - 0.2))
    assert float(loss) == pytest.approx(math.log(math.exp(logit) + 1) - logit, rel=1e-5)


def test_aam_at_random_initialisation():
    torch.manual_seed(0)
    task = SpeakerRecognition(Sizes(768), MeanPooling(), 5994)
    speakers = torch.randint(5994, (200,)).tolist()
    loss = task.loss(torch.randn(200, 768), speaker_batch(*speakers))
    assert float(loss.detach()) == pytest.approx(15.4, abs=0.3)


@pytest.mark.fault("F16", "cos = 1 and cos = -1 in AAM", "finite gradient")
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_aam_gradient_is_finite_at_the_ends(sign):
    task = angle_task(0.0)
    embedding = torch.tensor([[sign, 0.0]], requires_grad=True)
    task.loss(embedding, speaker_batch(0)).backward()
    assert torch.isfinite(embedding.grad).all()
    assert torch.isfinite(task.weight.grad).all()


def test_the_classifier_s_size_follows_the_pooling():
    task = SpeakerRecognition(Sizes(8), MeanStdPooling(), 5)
    assert task.weight.shape == (5, 16)
    output = task(frames_of(torch.randn(2, 20, 8)))
    assert output.shape == (2, 16) and task.loss(output, speaker_batch(0, 4)) > 0


def test_the_classifier_starts_with_xavier_normal():
    torch.manual_seed(0)
    task = SpeakerRecognition(Sizes(768), MeanPooling(), 5994)
    assert float(task.weight.std()) == pytest.approx(
        math.sqrt(2 / (768 + 5994)), rel=0.01
    )


def test_mean_pooling_ignores_padding():
    torch.manual_seed(0)
    hidden = torch.randn(3, 20, 8)
    lengths = [20, 7, 1]
    for row, length in enumerate(lengths):
        hidden[row, length:] = math.inf
    pooled = MeanPooling()(frames_of(hidden, lengths))
    for row, length in enumerate(lengths):
        expected = hidden[row, :length].mean(0)
        torch.testing.assert_close(pooled[row], expected, rtol=0, atol=1e-6)
    assert torch.equal(masked_mean(hidden[:1], None), hidden[:1].mean(1))


def test_embeddings_are_collected_and_scored(tmp_path):
    from lobes.data.trials import Trials

    task = SpeakerRecognition(Sizes(2), MeanPooling(), 2)
    task.start()
    batch = speaker_batch(0, 0, 1, 1)
    task.update(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), batch)

    class Evaluation:
        trials = {
            "own": Trials(
                np.array([True, True, False, False]),
                ["u0", "u2", "u0", "u1"],
                ["u1", "u3", "u2", "u3"],
            )
        }

    results = task.results("own", Evaluation, tmp_path)
    assert results["own"]["eer"] == 0.0
    assert {path.name for path in tmp_path.iterdir()} == {"scores_own.txt"}
    plot_trials(tmp_path, results)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"scores_own.txt", "histogram_own.png", "det.png"}
    task.collected["u3"] = np.array([math.nan, 0.0], np.float32)
    with pytest.raises(UserError, match="u3"):
        task.results("own", Evaluation)


@pytest.mark.fault(
    "B10", "a validation on speakers of the training", "its speaker_loss is noted"
)
def test_the_speaker_loss_of_a_validation():
    """The training's loss, of all utterances; none where a speaker is no class."""
    task = angle_task(60.0).eval()
    vectors = torch.randn(6, 2)
    ids = [f"u{i}" for i in range(6)]
    table = pandas.DataFrame({"ID": ids, "spk_id": ["b", "a", "a", "b", "b", "a"]})
    task.speakers = Categories("none.csv")
    task.speakers._index = {"a": 0, "b": 1}
    collected = dict(zip(ids, vectors.numpy(), strict=True))
    found = SimpleNamespace(utterances=SimpleNamespace(table=table))
    loss = task.loss(vectors, speaker_batch(1, 0, 0, 1, 1, 0)).item()
    assert task._valid_loss(collected, found)["speaker_loss"] == pytest.approx(loss)
    table.loc[0, "spk_id"] = "unheard"
    assert task._valid_loss(collected, found) == {}
    assert angle_task(60.0)._valid_loss(collected, found) == {}
