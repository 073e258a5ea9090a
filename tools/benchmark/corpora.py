"""Made-up corpora, and weights of an encoder, for tools/bench.py."""

import os
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from lobes.data.audio import SAMPLE_RATE

#: Fields of a ``Wav2Vec2Config``. Nothing is dropped or masked, as in the paper.
DROPOUTS = ("hidden", "attention", "activation", "feat_proj")
REGULARISATION = {"layerdrop": 0.0, **{f"{name}_dropout": 0.0 for name in DROPOUTS}}
ENCODERS = {
    "base": {},
    # wav2vec2-base's structure, hardly any weight.
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "conv_dim": [16] * 7,
    },
}

#: LibriSpeech's utterances in seconds: mean, deviation, shortest, longest.
SPEECH_SECONDS = (12.3, 3.84, 1.4, 35.0)

#: VoxCeleb2's: none is shorter, and the mean of what they have beyond that.
SPEAKER_SECONDS = (4.0, 3.8)

#: At tiny size utterances, and crops, are so much shorter.
TINY = 0.1

LETTERS_PER_SECOND = 14.5  # with word boundaries; LibriSpeech's mean
WORDS = "THE OF AND HIS THAT WAS WITH HAD FOR NOT UPON SHOULD LITTLE BEFORE BETWEEN"


def prepare(setup, utterances):
    """Write the encoder's weights and both corpora's trees into the setup's folder."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(**ENCODERS[setup.size], **REGULARISATION)
    Wav2Vec2Model(config).save_pretrained(setup.encoder)
    # The streams normalise already; the wrapper would do it again, over padding.
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(setup.encoder)
    random = np.random.default_rng(0)
    longest = min(SPEECH_SECONDS[3] * setup.scale, setup.seconds)
    lengths = speech_lengths(random, utterances, setup.scale, longest)
    write_librispeech(Path(setup.folder, "LibriSpeech"), random, lengths)
    write_voxceleb(Path(setup.folder, "VoxCeleb2"), random, utterances, setup.scale)


def speech_lengths(random, count, scale, longest):
    """Seconds [count] distributed as LibriSpeech's, none above ``longest``.

    One has ``longest``, which a corpus of this size may not draw by chance.
    """
    mean, deviation, shortest, _ = (scale * value for value in SPEECH_SECONDS)
    drawn = random.normal(mean, deviation, 20 * count + 100)
    drawn = drawn[(drawn >= shortest) & (drawn <= longest)][:count]
    drawn[0] = longest
    return drawn


def write_librispeech(folder, random, lengths):
    """``train-clean-100`` with utterances of so many seconds, 8 to a chapter."""
    for number, seconds in enumerate(lengths):
        chapter, place = divmod(number, 8)
        speaker = 100 + chapter // 2
        path = folder / "train-clean-100" / f"{speaker}" / f"{chapter}"
        path.mkdir(parents=True, exist_ok=True)
        name, transcripts = f"{speaker}-{chapter}-{place:04d}", f"{speaker}-{chapter}"
        _write_audio(path / f"{name}.flac", random, seconds)
        with open(path / f"{transcripts}.trans.txt", "a", encoding="utf-8") as stream:
            stream.write(f"{name} {text(random, seconds)}\n")


def write_voxceleb(folder, random, utterances, scale, sources=64):
    """``dev/wav``, two utterances a video, six a speaker; ``sources`` are distinct."""
    shortest, beyond = (scale * value for value in SPEAKER_SECONDS)
    for number in range(utterances):
        video, place = divmod(number, 2)
        path = folder / "dev" / "wav" / f"id{video // 3:05d}" / f"{video:06d}"
        path.mkdir(parents=True, exist_ok=True)
        source = folder / "sources" / f"{number % sources}.wav"
        if number < sources:
            source.parent.mkdir(exist_ok=True)
            _write_audio(source, random, shortest + random.exponential(beyond))
        os.link(source, path / f"{place:05d}.wav")


def text(random, seconds):
    """Words as long as a reader's of so many seconds."""
    words = WORDS.split()
    chosen = [words[random.integers(len(words))]]
    while len(" ".join(chosen)) < LETTERS_PER_SECOND * seconds - 5:
        chosen.append(words[random.integers(len(words))])
    return " ".join(chosen)


def _write_audio(path, random, seconds):
    """16-bit noise that swells as syllables do."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = random.normal(0, 3000, len(time)) * (0.2 + np.sin(9 * time) ** 2)
    wave = noise.clip(-32768, 32767).astype(np.int16)
    soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
