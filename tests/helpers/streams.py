"""A small corpus of noise, streams over it, and comparisons of their batches."""

import itertools
import math

import numpy as np
import pandas
import soundfile
import torch

from lobes.data.labels import Categories, Letters
from lobes.data.streams import (
    LengthBuckets,
    RandomCrops,
)

CROP = 1600


CROP_SECONDS = CROP / 16000


#: Crop-1, crop and crop+1 samples first; the others vary over a factor of six.
LENGTHS = (1599, 1600, 1601, *(800 + 173 * i for i in range(20)))


class Corpus:
    """A folder with wavs and CSVs; ``waves`` holds the raw samples by ID."""

    def __init__(self, folder):
        self.folder = folder
        self.waves = {}

    def write(self, name, lengths, statistics=True):
        """Write ``<name>.csv`` with utterances ``<name>-00`` ...; returns its path."""
        random = np.random.default_rng(len(lengths))
        rows = []
        for number, length in enumerate(lengths):
            identity = f"{name}-{number:02}"
            wave = random.normal(0.1, 0.05 + 0.01 * number, length).astype(np.float32)
            rows.append(self.row(identity, wave, statistics))
        path = self.folder / f"{name}.csv"
        pandas.DataFrame(rows).to_csv(path, index=False)
        return str(path)

    def row(self, identity, wave, statistics=True):
        """Write one wav; returns its CSV row."""
        path = self.folder / f"{identity}.wav"
        soundfile.write(path, wave, 16000, subtype="FLOAT")
        self.waves[identity] = wave
        row = {
            "ID": identity,
            "duration": len(wave) / 16000,
            "wav": path.name,
            "spk_id": f"s{len(self.waves) % 3}",
            "wrd": "A CAT"[: 1 + 2 * (len(self.waves) % 3)],
        }
        if statistics:
            wave = wave.astype(np.float64)
            row |= {"mean": repr(float(wave.mean())), "std": repr(float(wave.std()))}
        return row

    def normalised(self, identity):
        """The whole utterance with zero mean and unit variance."""
        wave = self.waves[identity].astype(np.float64)
        return (wave - wave.mean()) / math.sqrt(wave.var() + 1e-7)


def make(
    corpus, kind, csv=None, rank=0, world_size=1, parts=1, budget=None, **settings
):
    """An opened stream of either kind."""
    csv = csv or corpus.csv
    if kind == "buckets":
        labels = {"letters": Letters()}
        stream = LengthBuckets(csv, labels, budget or 16_000, **settings)
    else:
        labels = {"speaker": Categories(csv)}
        budget = budget or 5 * CROP
        stream = RandomCrops(csv, labels, CROP_SECONDS, budget, **settings)
    stream.open(rank, world_size, parts)
    return stream


def take(stream, count):
    """The next batches, and the position after each."""
    batches, positions = [], []
    for batch in itertools.islice(stream.batches(), count):
        batches.append(batch)
        positions.append(stream.position)
    return batches, positions


def passes(batches, size):
    """IDs of consecutive batches, cut into passes of ``size`` utterances."""
    ids = [i for batch in batches for i in batch.ids]
    return [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]


def identical(ours, theirs):
    """Whether two batches hold the same utterances, samples and labels."""
    return (
        ours.ids == theirs.ids
        and torch.equal(ours.wavs, theirs.wavs)
        and torch.equal(ours.lengths, theirs.lengths)
        and ours.columns == theirs.columns
        and str(ours.labels) == str(theirs.labels)
    )


def crops_by_id(stream, count):
    """(samples, length) of every crop by utterance ID."""
    crops = {}
    for batch in take(stream, count)[0]:
        for identity, wav, length in zip(
            batch.ids, batch.wavs, batch.lengths, strict=True
        ):
            crops.setdefault(identity, []).append((wav.numpy(), int(length)))
    return crops
