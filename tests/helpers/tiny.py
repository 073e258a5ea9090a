"""A system small enough to train in a test: its corpus, settings and Brain."""

import functools
from collections import Counter

import numpy as np
import pandas
import soundfile
import torch

from lobes.runs import command_line
from lobes.runs.command_line import parse_arguments
from lobes.runs.experiment import start_experiment
from lobes.runs.variants import load_variant
from lobes.system.checkout import ROOT
from lobes.training.brain import SpeechSpeakerBrain

MTL = ROOT / "recipes" / "LibriSpeech_VoxCeleb" / "MTL" / "hparams" / "mtl.yaml"
ASR = ROOT / "recipes" / "LibriSpeech" / "ASR" / "hparams" / "asr.yaml"
SPEAKER = ROOT / "recipes" / "VoxCeleb" / "SpeakerRec" / "hparams" / "speaker.yaml"

#: wav2vec2-base's structure (post-LN, group norm, 20 ms frames), hardly any weight.
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "conv_dim": [16] * 7,
}

#: The other family: pre-LN and layer norm in the CNN, as wav2vec2-large has.
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}

SPEAKERS = 5
SENTENCES = ("A CAT", "NO DOG", "IT'S", "TWO BIRDS", "ONE", "SEE IT", "GO", "THE END")


def write_corpus(folder):
    """CSVs of both corpora with made-up audio: a chord per letter and per speaker."""
    random = np.random.default_rng(5)
    speech, speakers = [], []
    for number in range(16):
        text = SENTENCES[number % len(SENTENCES)]
        speech.append(_utterance(folder, f"s-{number:02}", random, text, 200))
    for speaker in range(SPEAKERS):
        for number in range(4):
            name = f"id{speaker}--v{number // 2}--{number}"
            pitch = 300 + 170 * speaker
            row = _utterance(folder, name, random, "ABCDE"[: 3 + number % 3], pitch)
            speakers.append({**row, "spk_id": f"id{speaker}"})
    readers = [
        {**row, "spk_id": f"s{number % SPEAKERS}"}
        for number, row in enumerate(speech[:12])
    ]
    tables = {
        "LibriSpeech/train": speech[:12],
        "LibriSpeech/train_speakers": readers,
        "LibriSpeech/valid_speakers": readers,
        "LibriSpeech/dev-other": speech[12:],
        "LibriSpeech/test-other": speech[12:],
        "VoxCeleb/train": speakers,
        "VoxCeleb/train_transcribed": speakers[:18],
        "VoxCeleb/valid": speakers,
        "VoxCeleb/test": speakers,
    }
    for name, rows in tables.items():
        path = folder / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        pandas.DataFrame(rows).to_csv(path, index=False)
    lists = {
        "LibriSpeech/valid_speakers_trials": readers,
        "VoxCeleb/valid_trials": speakers,
        "VoxCeleb/veri_test2": speakers,
    }
    for name, rows in lists.items():
        trials = [
            f"{int(a['spk_id'] == b['spk_id'])} {a['ID']} {b['ID']}"
            for i, a in enumerate(rows)
            for b in rows[:i]
        ]
        path = folder / f"{name}.txt"
        path.write_text("\n".join(trials) + "\n", encoding="utf-8")
    return folder


def _utterance(folder, name, random, text, pitch):
    """Write one wav of about a second; returns its CSV row."""
    pieces = []
    for letter in text:
        time = np.arange(2000 + random.integers(400)) / 16000
        tone = sum(
            np.sin(2 * np.pi * frequency * time + random.uniform(0, 6))
            for frequency in (pitch, 400 + 90 * (ord(letter) - 32))
        )
        pieces.append(tone * np.hanning(len(time)))
    wave = np.concatenate(pieces) * 0.2 + random.normal(0, 0.005, sum(map(len, pieces)))
    path = folder / f"{name}.wav"
    soundfile.write(path, wave.astype(np.float32), 16000, subtype="FLOAT")
    wave = wave.astype(np.float32).astype(np.float64)
    return {
        "ID": name,
        "duration": len(wave) / 16000,
        "wav": str(path),
        "start": 0,
        "stop": len(wave),
        "spk_id": name.split("-")[0],
        "wrd": text,
        "mean": repr(float(wave.mean())),
        "std": repr(float(wave.std())),
    }


def arguments(corpus, output, yaml=MTL, encoder=None, **changes):
    """Command line of a tiny run of ``yaml`` on ``write_corpus``'s folder.

    ``changes`` may name an argument of an object by its last name: ``shared_layers``.
    """
    keys, base = _keys(yaml)
    encoder = {**ENCODER, **(encoder or {})}
    headlines = {ASR: "{wer: test-other}", SPEAKER: "{eer: veri_test2}"}
    settings = {
        "librispeech_folder": "unused",
        "voxceleb2_folder": "unused",
        "voxceleb1_folder": "unused",
        "librispeech_test_splits": "[test-other]",
        "voxceleb_trial_lists": "[veri_test2.txt]",
        "headline_sets": headlines.get(base, "{wer: test-other, eer: veri_test2}"),
        "prepared_folder": corpus,
        "output_folder": output,
        "ledger": f"{output}/ledger.jsonl",
        "skip_prep": True,
        # It validates and tests on what it trains on.
        "allow_leaks": True,
        "encoder.source": "null",
        "encoder.config": str(encoder).replace("'", ""),
        "n_speakers": SPEAKERS,
        "max_batch_samples": 64000,
        "crop_seconds": 0.4,
        "steps": 6,
        "freeze_steps": 2,
        "valid_interval": 3,
        "lr": 1e-3,
        "num_workers": 0,
        "log_interval": 1,
        "threads": 1,
        # An untrained model's CTC loss would count as divergence.
        "stopping.limits.speech_loss": 1e9,
        **changes,
    }
    known = [key for key in settings if key in keys]
    return [str(yaml), *(f"--{keys[key]}={settings[key]}" for key in known)]


@functools.cache
def _keys(yaml):
    """Settings of a YAML file by name, and the file of its recipe."""
    tree, base = load_variant(yaml)
    dotted = list(command_line.keys_of(tree))
    ends = Counter(key.split(".")[-1] for key in dotted)
    short = {key.split(".")[-1]: key for key in dotted}
    short = {name: key for name, key in short.items() if ends[name] == 1}
    return {**short, **{key: key for key in dotted}}, base


def brain(corpus, output, yaml=MTL, encoder=None, options=(), **changes):
    """A Brain with its output folder made, as train.py builds it."""
    argv = [*arguments(corpus, output, yaml, encoder, **changes), *options]
    argv += ["--device=cpu", "--noprogressbar"]
    hparams, run_opts, settings = parse_arguments(argv)
    start_experiment(hparams, run_opts, settings)
    return SpeechSpeakerBrain(hparams, run_opts, hparams["checkpointer"])


def fit(system):
    """Train as train.py does; returns the rows of the progress log."""
    system.train()
    return system.progress.rows()


def parameters(system):
    """Copies of all parameters by name."""
    state = system.modules.state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def flat(system):
    """All weights and buffers as one vector.

    Without the biases that a softmax ignores: their gradient is rounding noise, of
    which Adam makes steps.
    """
    state = system.modules.state_dict()
    ignored = ("k_proj.bias", "statistics.conv.conv.bias")
    names = [name for name in sorted(state) if not name.endswith(ignored)]
    return torch.cat([state[name].flatten().double() for name in names])
