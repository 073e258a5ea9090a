"""Three training steps that tools/bench.py compares.

The three train the same weights with the same heads, losses and weighting on the same
batches. ``Ours`` is the project's Brain; ``Stock`` is what one would write with
SpeechBrain's own wav2vec2 wrapper; ``Paper`` does what the paper's code does in a step.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.utils.edit_distance import wer_details_for_batch
from torch.nn.utils.rnn import pad_sequence
from transformers import Wav2Vec2Model

from lobes.data.audio import SAMPLE_RATE
from lobes.data.streams import TrainStream
from lobes.data.utterances import Batch
from lobes.model.encoder import Frames
from lobes.runs.command_line import parse_arguments
from lobes.system.checkout import ROOT
from lobes.training.brain import SpeechSpeakerBrain
from tools.benchmark.corpora import TINY, text

MTL = ROOT / "recipes" / "LibriSpeech_VoxCeleb" / "MTL" / "hparams" / "mtl.yaml"

@dataclass(frozen=True)
class Setup:
    """What a system is built from; processes of their own get it handed over.

    ``seconds`` is the audio per task and step, ``crop`` the speaker crop's length.
    """

    folder: str
    size: str = "base"
    device: str = "cpu"
    precision: str = "fp32"
    seconds: float = 20.0
    crop: float = 3.0
    workers: int = 0
    threads: int | None = None
    compile: bool = False

    @property
    def scale(self):
        """What this size multiplies all lengths with."""
        return TINY if self.size == "tiny" else 1.0

    @property
    def encoder(self):
        """Folder of the encoder's weights."""
        return f"{self.folder}/encoder-{self.size}"

    def but(self, **changes):
        """Another setup that differs in these."""
        return replace(self, **changes)


def arguments(setup):
    """The command line of the base run for a setup."""
    settings = {
        "librispeech_folder": f"{setup.folder}/LibriSpeech",
        "voxceleb2_folder": f"{setup.folder}/VoxCeleb2",
        "voxceleb1_folder": "unused",
        "prepared_folder": f"{setup.folder}/prepared",
        "librispeech_csv_folder": f"{setup.folder}/prepared/LibriSpeech",
        "voxceleb_csv_folder": f"{setup.folder}/prepared/VoxCeleb",
        "output_folder": f"{setup.folder}/run",
        "encoder.source": setup.encoder,
        "max_batch_samples": round(setup.seconds * SAMPLE_RATE),
        "crop_seconds": setup.crop,
        "num_workers": setup.workers,
        "precision": setup.precision,
        "freeze_steps": 0,
        "threads": "null" if setup.threads is None else setup.threads,
        # From random weights: a step must not lead to infinity.
        "lr": 1e-6,
    }
    argv = [str(MTL), *(f"--{key}={value}" for key, value in settings.items())]
    argv += [f"--device={setup.device}", "--noprogressbar"]
    return argv + ["--compile"] * setup.compile


def load(setup):
    """The base run's hparams and run options for a setup."""
    Path(setup.folder, "run").mkdir(parents=True, exist_ok=True)
    hparams, run_opts, _ = parse_arguments(arguments(setup))
    return hparams, run_opts


def train_batches(setup, hparams, count):
    """An opened ``TrainStream`` over both corpora of so many steps.

    The tasks are not asked whether it fits: the head has the paper's 5,994 speakers.
    """
    for stream in hparams["train_streams"].values():
        stream.open()
    pinned = torch.device(setup.device).type == "cuda"
    return TrainStream(hparams["train_streams"], count, count, pinned)


class Ours(SpeechSpeakerBrain):
    """The project's Brain, ready for its first step."""

    def __init__(self, setup):
        hparams, run_opts = load(setup)
        super().__init__(hparams, run_opts)
        self.on_fit_start()
        self.modules.train()


class Stock(sb.Brain):
    """A Brain around SpeechBrain's wrapper, with the stock recipes' two optimizers.

    As there, gradients are clipped to SpeechBrain's default norm of 5, and in the
    warm-up the encoder's optimizer is left out of the step.
    """

    def __init__(self, setup):
        hparams, run_opts = load(setup)
        modules = {
            "encoder": self.build_encoder(setup.encoder),
            "weighting": hparams["weighting"],
            **hparams["tasks"],
        }
        self.frame_lengths = hparams["encoder"].frame_lengths
        # Its weights would stay in memory.
        hparams["encoder"].model.feature_extractor.conv_layers = torch.nn.ModuleList()
        hparams["encoder"].model.encoder.layers = torch.nn.ModuleList()
        self.tasks = list(hparams["tasks"])
        needed = {name: hparams[name] for name in ("freeze_steps", "lr")}
        options = {"device": run_opts["device"], "precision": setup.precision}
        options["noprogressbar"] = True
        super().__init__(modules, hparams=needed, run_opts=options)
        # As in ours: it would pay for each of the many lengths.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.on_fit_start()
        self.modules.train()

    def build_encoder(self, folder):
        """The encoder with the weights in a folder."""
        return Wav2Vec2(folder, folder, freeze_feature_extractor=True)

    def encode(self, batch):
        """Frames [batch, time, channel]."""
        shares = batch.lengths / batch.wavs.shape[1]
        shares = shares.to(self.device, non_blocking=True)
        return self.modules.encoder(batch.wavs, shares)

    def init_optimizers(self):
        """Adam for the encoder, and one for what stands on it."""
        lr = self.hparams.lr
        heads = [self.modules[task] for task in self.tasks]
        self.optimizers_dict = {
            "encoder": torch.optim.Adam(self.modules.encoder.parameters(), lr=lr),
            "heads": torch.optim.Adam(torch.nn.ModuleList(heads).parameters(), lr=lr),
        }

    def freeze_optimizers(self, optimizers):
        """As the stock recipes' warm-up does it."""
        if self.optimizer_step < self.hparams.freeze_steps:
            return {"heads": optimizers["heads"]}
        return optimizers

    def compute_forward(self, batches, stage):
        """Outputs of the heads by task; these compute in float32, as ours do."""
        outputs = {}
        for task, batch in batches.items():
            batch = batches[task] = batch.to(self.device)
            hidden = self.encode(batch)
            lengths = self.frame_lengths(batch.lengths)
            places = torch.arange(hidden.shape[1], device=hidden.device)
            on_device = lengths.to(hidden.device, non_blocking=True)
            mask = places < on_device[:, None]
            with torch.autocast(hidden.device.type, enabled=False):
                frames = Frames(hidden, hidden, lengths, mask)
                outputs[task] = self.modules[task](frames)
        return outputs

    def compute_objectives(self, outputs, batches, stage):
        """The weighted sum of the losses."""
        with torch.autocast(torch.device(self.device).type, enabled=False):
            losses = {
                task: self.modules[task].loss(output, batches[task])
                for task, output in outputs.items()
            }
            return self.modules.weighting(losses, self.optimizer_step)[0]


class Paper(Stock):
    """A step with what the paper's code spends beyond it (its model and batches alike).

    Autograd goes through the frozen CNN; CNN and layers are computed again on the way
    back; the loss, the batch's letters and their WER come to the host in every step;
    Adam takes one parameter after another. No clipping.
    """

    def build_encoder(self, folder):
        """HuggingFace's model with gradient checkpointing and a frozen CNN."""
        model = Wav2Vec2Model.from_pretrained(folder, apply_spec_augment=False)
        model.feature_extractor.requires_grad_(False)
        model.gradient_checkpointing_enable()
        return model

    def encode(self, batch):
        """Frames [batch, time, channel]."""
        places = torch.arange(batch.wavs.shape[1], device=batch.wavs.device)
        lengths = batch.lengths.to(places.device, non_blocking=True)
        mask = places < lengths[:, None]
        return self.modules.encoder(batch.wavs, mask.long()).last_hidden_state

    def init_optimizers(self):
        """One Adam, in a loop."""
        trained = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=self.hparams.lr, foreach=False)

    def fit_batch(self, batches):
        """Forward, backward, step, and a look at what came out."""
        with self.training_ctx:
            outputs = self.compute_forward(batches, sb.Stage.TRAIN)
            loss = self.compute_objectives(outputs, batches, sb.Stage.TRAIN)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.optimizer_step += 1
        self.seen = loss.item(), self.word_errors(outputs["speech"], batches["speech"])
        return loss.detach()

    def word_errors(self, output, batch):
        """Word errors of the batch, decoded greedily."""
        vocabulary = self.modules.speech.vocabulary
        best = output[0].detach().argmax(-1).cpu()
        lengths = output[1].tolist()
        rows = [row[:n].tolist() for row, n in zip(best, lengths, strict=True)]
        found = [vocabulary.decode(row).split() for row in rows]
        wanted = [row.split() for row in batch.columns["wrd"]]
        details = wer_details_for_batch(batch.ids, wanted, found)
        return sum(row["num_edits"] for row in details)


def step(system, batches, frozen=False):
    """One optimizer step of any system, as ``Brain.fit`` takes it; returns the loss."""
    system.step += 1
    system.hparams.freeze_steps = math.inf if frozen else 0
    return system.fit_batch(dict(batches))


def trimmed(batches):
    """The batches without padding: every waveform as long as the shortest.

    Only there does the stock wrapper's group norm see what it sees of one utterance.
    """
    return {task: _trim(batch) for task, batch in batches.items()}


def _trim(batch):
    shortest = int(batch.lengths.min())
    lengths = torch.full_like(batch.lengths, shortest)
    labels, columns = batch.labels, batch.columns
    return Batch(batch.ids, batch.wavs[:, :shortest], lengths, labels, columns)


def plain_batches(hparams, setup):
    """Noise under both tasks, ``setup.seconds`` each: what a step's memory grows with.

    Speech in utterances of 5 s, every second one 5 % shorter; speakers in crops.
    """
    random = np.random.default_rng(1)
    utterance = round(5.0 * setup.scale * SAMPLE_RATE)
    crop = round(setup.crop * SAMPLE_RATE)
    samples = round(setup.seconds * SAMPLE_RATE)
    rows = range(samples // utterance)
    lengths = {
        "speech": [utterance - (row % 2) * utterance // 20 for row in rows],
        "speaker": [crop] * (samples // crop),
    }
    batches = {}
    for task, values in lengths.items():
        waves = [torch.from_numpy(random.normal(size=n)).float() for n in values]
        ids = [f"{task}-{row}" for row in range(len(values))]
        wavs = pad_sequence(waves, batch_first=True)
        batches[task] = Batch(ids, wavs, torch.tensor(values))
    texts = [text(random, n / SAMPLE_RATE) for n in lengths["speech"]]
    batches["speech"].labels["letters"] = hparams["letters"].encode(texts)
    batches["speech"].columns["wrd"] = texts
    speakers = torch.arange(len(lengths["speaker"]))
    batches["speaker"].labels["speaker"] = speakers
    return batches


def share(batches, rank, ranks):
    """One of 1 or 2 ranks' part of the batches without padding.

    As many utterances on each; a last odd one is left out, also of a single rank's.
    """
    parts = {}
    for task, batch in trimmed(batches).items():
        count = len(batch) // 2 * 2 // ranks
        rows = slice(rank * count, (rank + 1) * count)
        labels = {
            name: tuple(t[rows] for t in label)
            if isinstance(label, tuple)
            else label[rows]
            for name, label in batch.labels.items()
        }
        parts[task] = Batch(
            batch.ids[rows], batch.wavs[rows], batch.lengths[rows], labels
        )
    return parts


def audio_seconds(batches):
    """Seconds that a step computes on, padding included."""
    return sum(batch.wavs.numel() for batch in batches.values()) / SAMPLE_RATE


SYSTEMS = {"ours": Ours, "stock": Stock, "paper": Paper}
