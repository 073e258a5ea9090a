"""One training step of every MTL variant against a plain re-computation.

The reference stands in this file: HuggingFace's model with the same weights, torch's
CTC, AAM-softmax from its formula, poolings and weights written out utterance by
utterance. It calls no code of the project. The regularised variants draw random
numbers and are the same model otherwise.
"""

import copy
import math

import pytest
import speechbrain as sb
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from lobes.data.utterances import Batch
from lobes.runs.command_line import parse_arguments
from lobes.runs.variants import load_variant
from lobes.training.brain import SpeechSpeakerBrain
from tests.helpers import tiny

HPARAMS = tiny.MTL.parent
NORMS = {"group": {}, "layer": tiny.LAYER_NORM}

#: Losses of the steps before this one, more than DWA remembers.
PAST = [(4.0, 15.0), (3.5, 15.2), (3.9, 14.0), (2.0, 13.9), (1.5, 14.1)] * 3

#: Variant, what the command line adds, and what the reference makes of it.
CASES = {
    "mean": ("mtl", {}, {}),
    "3s": ("mtl_3s", {}, {}),
    "static": ("static_0.88_9s", {}, {"weights": (0.88, 0.12)}),
    "max": ("dynamic_max", {}, {"weights": "max"}),
    "dwa at first": ("dwa", {}, {"weights": "dwa"}),
    "dwa later": ("dwa", {}, {"weights": "dwa", "past": PAST}),
    "cls": ("pool_first_cls", {}, {"pool": "cls"}),
    "blank": ("pool_ctc_blank", {}, {"pool": "blank"}),
    "nonblank": ("pool_ctc_nonblank", {}, {"pool": "nonblank"}),
    "first": ("pool_first", {}, {"pool": "first"}),
    "max pool": ("pool_max", {}, {"pool": "max"}),
    "mean std": ("pool_mean_std", {}, {"pool": "mean std"}),
    "attentive": ("pool_attentive", {}, {"pool": "attentive"}),
    "split": ("split_192", {"speaker_dims": 8}, {"dims": 8}),
    "branch": ("branch_3", {"shared_layers": 1}, {"shared": 1}),
    "no shared": ("branch_3", {"shared_layers": 0}, {"shared": 0}),
    # Half of the channels each, where the published code read the wrong half.
    "split blank": (
        "pool_ctc_blank",
        {"speaker_dims": 16},
        {"pool": "blank", "dims": 16},
    ),
    "split nonblank": (
        "pool_ctc_nonblank",
        {"speaker_dims": 16},
        {"pool": "nonblank", "dims": 16},
    ),
    "branch blank": (
        "pool_ctc_blank",
        {"shared_layers": 1},
        {"pool": "blank", "shared": 1},
    ),
    "branch nonblank": (
        "pool_ctc_nonblank",
        {"shared_layers": 1},
        {"pool": "nonblank", "shared": 1},
    ),
    "branch cls": (
        "pool_first_cls",
        {"shared_layers": 1},
        {"pool": "cls", "shared": 1},
    ),
    "split cls": ("pool_first_cls", {"speaker_dims": 8}, {"pool": "cls", "dims": 8}),
    "branch split blank": (
        "pool_ctc_blank",
        {"shared_layers": 1, "speaker_dims": 16},
        {"pool": "blank", "shared": 1, "dims": 16},
    ),
    "small corpus": (
        "small_corpus",
        {"hidden_dropout": 0.0, "freeze_cnn": True},
        {"pool": "mean std", "weights": (1.0, 0.2), "shared": 1},
    ),
}


# The reference ----------------------------------------------------------------


class Reference:
    """The model of a case, with the weights of a Brain.

    ``parameters`` holds them under the Brain's names; only their ``grad`` is ours.
    """

    def __init__(
        self, system, norm, weights="min", pool="mean", dims=None, shared=None, past=()
    ):
        self.weights, self.pool, self.dims, self.past = weights, pool, dims, past
        state = {
            name: tensor.detach().clone()
            for name, tensor in system.modules.state_dict().items()
        }
        # In evaluation mode nothing is dropped or masked.
        config = {**tiny.ENCODER, **norm}
        self.speech_model = Wav2Vec2Model(Wav2Vec2Config(**config)).eval()
        prefix = "encoder.model."
        self.speech_model.load_state_dict(
            {n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)}
        )
        self.speech_model.feature_extractor.requires_grad_(False)
        names = {f"{prefix}{n}": p for n, p in self.speech_model.named_parameters()}
        self.speaker_model = self.speech_model
        if shared is not None:
            self.speaker_model = self._second_tower(state, shared, names)
        heads = [n for n in state if n.startswith(("speech.", "speaker."))]
        for name in heads:
            names[name] = state[name].requires_grad_(state[name].is_floating_point())
        self.parameters = names

    def _second_tower(self, state, shared, names):
        """Another model that has everything up to layer ``shared`` in common."""
        other = copy.deepcopy(self.speech_model)
        ours, theirs = other.encoder, self.speech_model.encoder
        other.feature_extractor = self.speech_model.feature_extractor
        other.feature_projection = self.speech_model.feature_projection
        ours.pos_conv_embed = theirs.pos_conv_embed
        for layer in range(shared):
            ours.layers[layer] = theirs.layers[layer]
        own = {}
        for layer in range(shared, len(ours.layers)):
            own[f"encoder.speaker_layers.{layer - shared}."] = ours.layers[layer]
        if self.speech_model.config.do_stable_layer_norm:
            # Its layer norm comes last, after the branches; the other's before them.
            own["encoder.speaker_norm."] = ours.layer_norm
        else:
            ours.layer_norm = theirs.layer_norm
        for prefix, module in own.items():
            for name, parameter in module.named_parameters():
                parameter.data = state[prefix + name]
                names[prefix + name] = parameter
        return other

    def frames(self, model, wavs, lengths):
        """Output of one tower and the valid frames; its class token, or None, first."""
        mask = None
        if len(set(lengths.tolist())) > 1:
            mask = torch.arange(wavs.shape[1]) < lengths[:, None]
        if self.pool != "cls":
            hidden = model(wavs, attention_mask=mask).last_hidden_state
            token = None
        else:
            with torch.no_grad():
                features = model.feature_extractor(wavs).transpose(1, 2)
            tokens, _ = model.feature_projection(features)
            tokens = torch.cat([torch.ones_like(tokens[:, :1]), tokens], dim=1)
            if mask is not None:
                mask = model._get_feature_vector_attention_mask(
                    tokens.shape[1] - 1, mask
                )
                mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1).bool()
            output = model.encoder(tokens, attention_mask=mask).last_hidden_state
            token, hidden = output[:, 0], output[:, 1:]
        return token, hidden, model._get_feat_extract_output_lengths(lengths)

    def speech_part(self, hidden):
        return hidden if self.dims is None else hidden[:, :, self.dims :]

    def speaker_part(self, hidden):
        return hidden if self.dims is None else hidden[..., : self.dims]

    def logits(self, hidden):
        weight = self.parameters["speech.linear.weight"]
        return hidden @ weight.T + self.parameters["speech.linear.bias"]

    def speech_loss(self, wavs, lengths, letters, counts):
        _, hidden, frames = self.frames(self.speech_model, wavs, lengths)
        scores = self.logits(self.speech_part(hidden)).log_softmax(-1)
        return torch.nn.functional.ctc_loss(
            scores.transpose(0, 1), letters, frames, counts, blank=0, zero_infinity=True
        )

    def letters(self, wavs, lengths):
        """Arg-max of the speech head on every valid frame, by utterance."""
        with torch.no_grad():
            _, hidden, frames = self.frames(self.speech_model, wavs, lengths)
            best = self.logits(self.speech_part(hidden)).argmax(-1)
        return [row[:n] for row, n in zip(best, frames, strict=True)]

    def embeddings(self, wavs, lengths):
        token, hidden, frames = self.frames(self.speaker_model, wavs, lengths)
        if self.pool == "cls":
            return self.speaker_part(token)
        hidden = self.speaker_part(hidden)
        rows = [row[:n] for row, n in zip(hidden, frames, strict=True)]
        if self.pool == "attentive":
            return torch.stack(self._attentive(rows))
        if self.pool in ("blank", "nonblank"):
            letters = self.letters(wavs, lengths)
            chosen = [(row == 0) == (self.pool == "blank") for row in letters]
            rows = [r[c] if c.any() else r for r, c in zip(rows, chosen, strict=True)]
        pool = {
            "first": lambda row: row[0],
            "max": lambda row: row.max(0).values,
            "mean std": lambda row: torch.cat([row.mean(0), row.std(0, correction=0)]),
        }.get(self.pool, lambda row: row.sum(0) / len(row))
        return torch.stack([pool(row) for row in rows])

    def _attentive(self, rows):
        """ECAPA-TDNN's attention with global context; batch norm over the batch."""
        weights = {
            name.removeprefix("speaker.pooling.statistics."): tensor
            for name, tensor in self.parameters.items()
        }

        def linear(name, hidden):
            weight = weights[f"{name}.conv.weight"].squeeze(2)
            return hidden @ weight.T + weights[f"{name}.conv.bias"]

        inputs = [
            torch.cat(
                [row, *(s.expand_as(row) for s in statistics(row, 1 / len(row)))], 1
            )
            for row in rows
        ]
        hidden = linear("tdnn.conv", torch.cat(inputs)).relu()
        variance, mean = torch.var_mean(hidden, 0, correction=0)
        hidden = (hidden - mean) / (variance + 1e-5).sqrt()
        scale = weights["tdnn.norm.norm.weight"], weights["tdnn.norm.norm.bias"]
        hidden = (hidden * scale[0] + scale[1]).tanh()
        shares = linear("conv", hidden).split([len(row) for row in rows])
        return [
            torch.cat(statistics(row, share.softmax(0)))
            for row, share in zip(rows, shares, strict=True)
        ]

    def speaker_loss(self, wavs, lengths, speakers):
        embeddings = self.embeddings(wavs, lengths)
        embeddings = embeddings / embeddings.norm(dim=1, keepdim=True)
        classes = self.parameters["speaker.weight"]
        cosines = embeddings @ (classes / classes.norm(dim=1, keepdim=True)).T
        losses = []
        for row, speaker in zip(cosines, speakers.tolist(), strict=True):
            cosine, logits = row[speaker], 30 * row
            if cosine > math.cos(math.pi - 0.2):
                own = torch.cos(torch.acos(cosine) + 0.2)
            else:
                own = cosine - 0.2 * math.sin(math.pi - 0.2)
            others = torch.cat([logits[:speaker], logits[speaker + 1 :]])
            losses.append(torch.cat([30 * own[None], others]).logsumexp(0) - 30 * own)
        return sum(losses) / len(losses)

    def total(self, speech, speaker):
        """The weighted sum, and the weights."""
        s, k = float(speech.detach()), float(speaker.detach())
        if self.weights == "min":
            weights = min(s, k) / s, min(s, k) / k
        elif self.weights == "max":
            weights = max(s, k) / s, max(s, k) / k
        elif self.weights == "dwa":
            recent = self.past[-10:]
            ratios = [1.0, 1.0]
            if len(recent) > 1:
                half = len(recent) // 2
                older, newer = (
                    [sum(losses) / len(part) for losses in zip(*part, strict=True)]
                    for part in (recent[:half], recent[half:])
                )
                ratios = [newer[0] / older[0], newer[1] / older[1]]
            powers = [math.exp(ratio / 2) for ratio in ratios]
            weights = [power / sum(powers) for power in powers]
        else:
            weights = self.weights
        return weights[0] * speech + weights[1] * speaker, weights


def statistics(row, weight):
    """Weighted mean and standard deviation over time of [time, channel]."""
    mean = (weight * row).sum(0)
    return mean, (weight * (row - mean) ** 2).sum(0).sqrt()


# The system under test --------------------------------------------------------


def batches(padded):
    """A batch of each task; different lengths, or equal ones."""
    random = torch.Generator().manual_seed(3)
    made = {}
    speech = [9000, 7100, 8200] if padded else [9000] * 3
    speaker = [6400, 4000, 6400, 5100] if padded else [6400] * 4
    for task, lengths in {"speech": speech, "speaker": speaker}.items():
        wavs = torch.zeros(len(lengths), max(lengths))
        for row, length in zip(wavs, lengths, strict=True):
            row[:length] = torch.randn(length, generator=random)
        ids = [f"{task}-{row}" for row in range(len(lengths))]
        made[task] = Batch(ids, wavs, torch.tensor(lengths))
    letters = torch.tensor([[5, 8, 8, 4], [11, 6, 0, 0], [7, 10, 9, 0]])
    made["speech"].labels["letters"] = letters, torch.tensor([4, 2, 3])
    made["speaker"].labels["speaker"] = torch.tensor([2, 0, 2, 4])
    return made


def hear_letters(system, batch):
    """Let the untrained speech head hear a blank in half of the batch's frames."""
    head = system.modules.speech.linear
    with torch.no_grad():
        frames = system.modules.encoder(batch.wavs, batch.lengths, {"speech"})
        hidden = frames.speech
        hidden = hidden.flatten(0, 1) if frames.mask is None else hidden[frames.mask]
        head.weight *= 5
        scores = head(hidden)
        lead = (scores[:, 1:].amax(1) - scores[:, 0]).sort().values
        middle = len(lead) // 2
        # Between two frames: rounding decides nowhere.
        assert lead[middle] - lead[middle - 1] > 1e-4
        head.bias[0] += lead[middle - 1 : middle + 1].mean()


@pytest.fixture
def build(tiny_corpus, tmp_path):
    """A Brain ready for its first step, its batches, and the reference."""

    def build(case, norm):
        variant, options, settings = CASES[case]
        yaml, output = HPARAMS / f"{variant}.yaml", tmp_path / "run"
        options = {"freeze_steps": 0, **options}
        argv = tiny.arguments(tiny_corpus, output, yaml, NORMS[norm], **options)
        hparams, run_opts, _ = parse_arguments([*argv, "--device=cpu"])
        system = SpeechSpeakerBrain(hparams, run_opts)
        # As after some training: branches that differ, attention that attends.
        torch.manual_seed(11)
        for name, parameter in system.modules.encoder.named_parameters():
            if "feature_extractor" not in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        # A padded group norm is ours alone.
        given = batches(padded=norm == "layer")
        hear_letters(system, given["speaker"])
        for speech, speaker in settings.get("past", ()):
            past = {"speech": torch.tensor(speech), "speaker": torch.tensor(speaker)}
            system.modules.weighting(past, 0)
        system.on_fit_start()
        system.modules.train()
        return system, given, Reference(system, NORMS[norm], **settings)

    return build


def close(ours, theirs):
    """To 1e-5, relative to a number, and to the largest one of a tensor."""
    scale = float(theirs.detach().abs().max())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(scale, 0.1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", CASES)
def test_one_step(case, norm, build):
    system, given, reference = build(case, norm)
    speech, speaker = given["speech"], given["speaker"]
    losses = {
        "speech": reference.speech_loss(
            speech.wavs, speech.lengths, *speech.labels["letters"]
        ),
        "speaker": reference.speaker_loss(
            speaker.wavs, speaker.lengths, speaker.labels["speaker"]
        ),
    }
    total, weights = reference.total(*losses.values())
    total.backward()
    expected = {
        n: p.grad for n, p in reference.parameters.items() if p.grad is not None
    }

    found = {}
    system.optimizer.register_step_pre_hook(
        lambda *_: found.update(
            {
                name: parameter.grad.clone()
                for name, parameter in system.modules.named_parameters()
                if parameter.grad is not None
            }
        )
    )
    system.step = 1
    loss = system.fit_batch(dict(given))
    close(loss, total.detach())
    for (task, value), weight in zip(losses.items(), weights, strict=True):
        close(system.step_values[f"{task}_loss"], value.detach())
        close(system.step_values[f"{task}_weight"], torch.tensor(weight))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        close(found[name], gradient)


def combined(*names):
    """The cases of CTC pooling whose speech and speaker frames differ."""
    return [case for case in CASES if "blank" in case and any(n in case for n in names)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", combined("split", "branch"))
def test_the_speaker_s_own_frames_would_give_other_letters(case, norm, build):
    """The published code read them there; a test that cannot tell is none."""
    _, given, reference = build(case, norm)
    wavs, lengths = given["speaker"].wavs, given["speaker"].lengths
    letters = torch.cat(reference.letters(wavs, lengths))
    assert 0.3 < (letters == 0).float().mean() < 0.7
    embeddings = reference.embeddings(wavs, lengths)
    if "split" in case:
        reference.speech_part = reference.speaker_part
    else:
        reference.speech_model = reference.speaker_model
    wrong = reference.embeddings(wavs, lengths)
    assert (wrong - embeddings).abs().max() > 0.01


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", ["blank", *combined("split", "branch")])
def test_the_speaker_loss_leaves_the_speech_head_alone(case, norm, build):
    system, given, reference = build(case, norm)
    batch = {"speaker": given["speaker"]}
    outputs = system.compute_forward(dict(batch), sb.Stage.TRAIN)
    system.compute_objectives(outputs, batch, sb.Stage.TRAIN).backward()
    found = {n for n, p in system.modules.named_parameters() if p.grad is not None}
    speaker = given["speaker"]
    loss = reference.speaker_loss(
        speaker.wavs, speaker.lengths, speaker.labels["speaker"]
    )
    loss.backward()
    expected = {n for n, p in reference.parameters.items() if p.grad is not None}
    assert found == expected and "speaker.weight" in found
    assert not any(name.startswith("speech.") for name in found)
    own = "encoder.model.encoder.layers.1."
    assert any(n.startswith(own) for n in found) == ("branch" not in case)


def kind(tree):
    """What of a variant decides which model and which loss it is."""
    # A system without speakers has no pooling: it is a part of the one with both tasks.
    whole = load_variant(tiny.MTL)[0]
    objects = [tree.get("pooling", whole["pooling"]), tree["weighting"]]
    knobs = ("shared_layers", "speaker_dims", "class_token")
    return (
        *(node.tag.value for node in objects),
        *(
            node.get(n)
            for n, node in zip(("blank", "reference"), objects, strict=True)
            if isinstance(node, dict)
        ),
        *(tree["encoder"][knob] is None for knob in knobs),
    )


def test_no_variant_is_left_out():
    """Data, rates, crops and regularisation aside."""
    trees = {p.stem: load_variant(p)[0] for p in HPARAMS.glob("*.yaml")}
    here = {kind(trees[variant]) for variant, _, _ in CASES.values()}
    # A system without speakers has no pooling: its loss is one of those above.
    assert {n for n in trees if "pooling" not in trees[n]} == {"asr_vox"}
    del trees["asr_vox"]
    assert [name for name, tree in trees.items() if kind(tree) not in here] == []
