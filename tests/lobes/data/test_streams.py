"""Streams and evaluation sets: budgets, order, crops, resuming, bad files."""

import itertools
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
from speechbrain.utils.checkpoints import Checkpointer

from lobes.data.audio import audio_statistics, encode_audio
from lobes.data.evaluation_sets import (
    EvaluationSet,
    EvaluationStream,
    evaluation_sets,
)
from lobes.data.labels import Categories, Letters
from lobes.data.streams import (
    LengthBuckets,
    RandomCrops,
    TrainStream,
    divided,
    pack,
)
from lobes.errors import UserError
from tests.lobes.data.test_audio import write_m4a
from tools.make_shards import make_shards

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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    corpus = Corpus(tmp_path_factory.mktemp("streams"))
    corpus.csv = corpus.write("u", LENGTHS)
    corpus.bare_csv = corpus.write("n", LENGTHS, statistics=False)
    corpus.small_csv = corpus.write("few", (1000, 3000))
    return corpus


@pytest.fixture(params=["buckets", "crops"])
def kind(request):
    """The two kinds of streams."""
    return request.param


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


# Budgets --------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_no_speech_batch_exceeds_the_budget(corpus, world_size):
    """All processes together; a part exceeds its share by an utterance at most."""
    ranks = [
        take(make(corpus, "buckets", rank=rank, world_size=world_size), 24)[0]
        for rank in range(world_size)
    ]
    for parts in zip(*ranks, strict=True):
        longest = max(int(batch.lengths.max()) for batch in parts)
        assert sum(map(len, parts)) * longest <= 16_000
        for batch in parts:
            assert batch.wavs.shape == (len(batch), int(batch.lengths.max()))
            assert batch.wavs.numel() <= 16_000 // world_size + longest


def test_speech_batches_fill_the_budget(corpus):
    """Half-empty batches would slow the training down."""
    stream = make(corpus, "buckets", length_jitter=0.0)
    rows = stream.batches_of_pass(0)
    assert len(rows) <= math.ceil(sum(LENGTHS) / 16_000) + 2


@pytest.mark.parametrize(
    "seconds, crops", [(3.0, 66), (9.0, 22), (2.0, 100), (10.0, 20)]
)
def test_speaker_batch_sizes_of_the_paper(seconds, crops):
    assert RandomCrops("x.csv", {}, seconds).batch_size == crops


def test_speaker_batches_hold_floor_of_budget_by_crop(corpus):
    for budget, crops in ((5 * CROP, 5), (5 * CROP - 1, 4)):
        batch = take(make(corpus, "crops", budget=budget), 1)[0][0]
        assert len(batch) == crops and batch.wavs.numel() <= budget


def test_a_grid_of_lengths_gives_few_shapes_within_the_budget(tmp_path):
    """Of 20,000 utterances as long as LibriSpeech's, parts of one long file."""
    random = np.random.default_rng(4)
    lengths = random.normal(12.3, 3.84, 20_000).clip(1.3, 35) * 16000
    rows = {"ID": map(str, range(len(lengths))), "wav": "long.flac", "start": 0}
    soundfile.write(tmp_path / "long.flac", np.zeros(35 * 16000), 16000)
    rows |= {"stop": lengths.astype(int), "wrd": "A", "duration": lengths / 16000}
    pandas.DataFrame(rows).to_csv(tmp_path / "train.csv", index=False)
    shapes, filled = {}, {}
    for grid in (0.0, 1.0):
        stream = LengthBuckets(tmp_path / "train.csv", {}, length_grid_seconds=grid)
        stream.open()
        batches = stream.batches_of_pass(0) + stream.batches_of_pass(1)
        widths = [int(stream.padded[rows].max()) for rows in batches]
        assert all(w % max(1, 16000 * grid) == 0 for w in widths)
        sizes = [len(rows) * w for rows, w in zip(batches, widths, strict=True)]
        assert max(sizes) <= 3_200_000
        shapes[grid] = {(len(r), w) for r, w in zip(batches, widths, strict=True)}
        filled[grid] = 2 * stream.utterances.lengths.sum() / sum(sizes)
    assert len(shapes[0.0]) > 1500 and len(shapes[1.0]) < 80
    assert filled[0.0] > 0.9 and filled[1.0] > 0.87, "so much less is padding"


def test_a_grid_pads_what_is_read(corpus, kind):
    budget = 2 * CROP if kind == "crops" else None
    plain = make(corpus, kind, budget=budget)
    grid = make(corpus, kind, budget=budget, length_grid_seconds=0.01)
    for batch in take(grid, 12)[0]:
        wanted = CROP if kind == "crops" else -(-int(batch.lengths.max()) // 160) * 160
        assert batch.wavs.shape[1] == wanted
        for row, length in zip(batch.wavs, batch.lengths, strict=True):
            assert row[length - 1] != 0 and not row[length:].any()
    assert any(b.wavs.shape[1] % 160 for b in take(plain, 12)[0])
    with pytest.raises(UserError, match="length_grid_seconds is -1"):
        make(corpus, kind, length_grid_seconds=-1)


def test_padding_counts_where_an_utterance_is_over_the_budget(corpus):
    settings = {"length_grid_seconds": 0.5, "budget": max(LENGTHS) + 100}
    with pytest.raises(UserError, match=r"with padding 8000; .*length_grid"):
        make(corpus, "buckets", **settings)


@pytest.mark.fault(
    "F27",
    "an utterance longer than a training batch",
    "refused before the first step, by name",
)
def test_an_utterance_over_the_budget_is_refused_by_name(corpus):
    longest = max(LENGTHS)
    name = f"u-{LENGTHS.index(longest):02}"
    make(corpus, "buckets", budget=longest)
    with pytest.raises(UserError) as caught:
        make(corpus, "buckets", budget=longest - 1)
    message = str(caught.value)
    for part in (corpus.csv, name, str(longest), str(longest - 1)):
        assert part in message
    with pytest.raises(UserError, match=name):
        make(corpus, "buckets", budget=2 * longest - 1, world_size=2)


def test_a_budget_below_one_crop_is_refused(corpus):
    with pytest.raises(UserError, match="max_batch_samples"):
        make(corpus, "crops", budget=CROP - 1)
    with pytest.raises(UserError, match="2 processes"):
        make(corpus, "crops", budget=CROP, world_size=2)


def test_a_crop_shorter_than_one_frame_is_refused():
    RandomCrops("x.csv", {}, 0.025)
    for seconds in (0.0, 0.0249):
        with pytest.raises(UserError, match="crop_seconds"):
            RandomCrops("x.csv", {}, seconds)


def test_pack_by_hand():
    lengths = np.array([3, 1, 2, 5, 4])
    assert pack([1, 2, 0, 4, 3], lengths, 6) == [[1, 2], [0], [4], [3]]
    assert pack([3, 4, 0, 2, 1], lengths, 10) == [[3, 4], [0, 2, 1]]
    assert pack([1, 0], lengths, 0) == [[1], [0]]
    assert pack([], lengths, 6) == []


# Order ----------------------------------------------------------------------


def test_every_pass_visits_every_utterance_once_in_a_new_order(corpus, kind):
    found = passes(take(make(corpus, kind), 60)[0], len(LENGTHS))
    assert len(found) >= 4
    for ids in found:
        assert sorted(ids) == sorted(f"u-{i:02}" for i in range(len(LENGTHS)))
    assert len({tuple(ids) for ids in found}) == len(found)


def test_the_order_is_a_function_of_the_seed(corpus, kind):
    first, again, other = (
        [b.ids for b in take(make(corpus, kind, seed=s), 12)[0]] for s in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_jitter_changes_the_neighbours_and_none_keeps_them(corpus):
    def batches(jitter, number):
        stream = make(corpus, "buckets", length_jitter=jitter)
        return {frozenset(map(int, rows)) for rows in stream.batches_of_pass(number)}

    assert batches(0.0, 0) == batches(0.0, 1)
    assert batches(0.2, 0) != batches(0.2, 1)


def test_utterances_of_similar_length_stand_together(corpus):
    batches = take(make(corpus, "buckets"), 20)[0]
    real = sum(int(b.lengths.sum()) for b in batches)
    assert real > 0.75 * sum(b.wavs.numel() for b in batches)


def test_batches_are_not_sorted_by_length(corpus):
    longest = [int(b.lengths.max()) for b in take(make(corpus, "buckets"), 5)[0]]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


@pytest.mark.fault(
    "F29", "one corpus ten times smaller", "reshuffled on passes of its own"
)
def test_a_corpus_ten_times_smaller_is_reshuffled_on_its_own_passes(corpus):
    streams = {
        "speech": make(corpus, "buckets"),
        "speaker": make(corpus, "crops", csv=corpus.small_csv, budget=CROP),
    }
    stream = TrainStream(streams, steps=24, epoch_length=24)
    batches = list(stream)
    few = passes([b["speaker"] for b in batches], 2)
    assert len(few) == 12
    assert all(sorted(ids) == ["few-00", "few-01"] for ids in few)
    assert len({tuple(ids) for ids in few}) == 2
    many = passes([b["speech"] for b in batches], len(LENGTHS))
    assert len(many) >= 2 and all(len(set(ids)) == len(LENGTHS) for ids in many)


def test_a_corpus_smaller_than_a_batch_fills_it_over_several_passes(corpus):
    batch = take(make(corpus, "crops", csv=corpus.small_csv), 1)[0][0]
    assert sorted(batch.ids[:2]) == sorted(batch.ids[2:4]) == ["few-00", "few-01"]


def test_the_global_random_states_are_left_alone(corpus, kind):
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    take(make(corpus, kind, num_workers=1), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_the_order_does_not_depend_on_the_global_random_state(corpus, kind):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append([b.ids for b in take(make(corpus, kind), 3)[0]])
    assert found[0] == found[1]


# Resuming -------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_every_position_continues_bit_identically(corpus, kind, workers):
    """More than two passes, so that positions stand on both sides of a boundary."""
    total = 18
    whole, positions = take(make(corpus, kind), total)
    # Workers cost a tenth of a second to start.
    for done in range(0, total, 1 if workers == 0 else 5):
        stream = make(corpus, kind, num_workers=workers)
        if done:
            stream.position = json.loads(json.dumps(positions[done - 1]))
        rest, later = take(stream, min(total - done, 7))
        for ours, theirs in zip(rest, whole[done:], strict=False):
            assert identical(ours, theirs)
        assert [list(np.ravel(p)) for p in later] == [
            list(np.ravel(p)) for p in positions[done : done + len(later)]
        ]


def test_the_position_is_of_the_batch_handed_out_not_of_the_one_read_ahead(
    corpus, kind
):
    single, double = (make(corpus, kind, num_workers=n) for n in (0, 2))
    assert take(single, 4)[1] == take(double, 4)[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_resume_from_one_position(corpus, kind, workers):
    for rank in range(2):
        whole, positions = take(make(corpus, kind, rank=rank, world_size=2), 14)
        stream = make(corpus, kind, rank=rank, world_size=2, num_workers=workers)
        stream.position = positions[6]
        for ours, theirs in zip(take(stream, 7)[0], whole[7:], strict=True):
            assert identical(ours, theirs)


# Several processes ----------------------------------------------------------


def test_both_ranks_stand_at_the_same_position(corpus, kind):
    """Rank 0 alone writes checkpoints."""
    ranks = [take(make(corpus, kind, rank=r, world_size=2), 12)[1] for r in range(2)]
    assert ranks[0] == ranks[1]


def test_two_ranks_together_take_the_crops_of_one_process(corpus):
    one = take(make(corpus, "crops", budget=6 * CROP), 10)[0]
    two = [
        take(make(corpus, "crops", budget=6 * CROP, rank=r, world_size=2), 10)[0]
        for r in range(2)
    ]
    for whole, left, right in zip(one, *two, strict=True):
        assert whole.ids == left.ids + right.ids
        parts = [
            wav[:length]
            for batch in (left, right)
            for wav, length in zip(batch.wavs, batch.lengths, strict=True)
        ]
        for wav, length, part in zip(whole.wavs, whole.lengths, parts, strict=True):
            assert torch.equal(wav[:length], part)


#: Processes, and parts that gradients are accumulated over.
DIVISIONS = [(2, 1), (4, 1), (1, 2), (1, 4), (2, 3), (3, 2)]


def steps_of(corpus, kind, world_size, parts, count, budget):
    """IDs of every step: those of each process and part, as lists."""
    budget //= parts
    ranks = [
        take(make(corpus, kind, None, r, world_size, parts, budget), count * parts)[0]
        for r in range(world_size)
    ]
    return [
        [batches[step * parts + part] for part in range(parts) for batches in ranks]
        for step in range(count)
    ]


@pytest.mark.fault(
    "A5",
    "more processes, or gradients accumulated over more parts",
    "the same batch for every step, divided evenly: no step is smaller",
)
@pytest.mark.parametrize("world_size, parts", DIVISIONS)
def test_a_step_is_the_same_however_it_is_divided(corpus, kind, world_size, parts):
    budget = 12 * (CROP if kind == "crops" else max(LENGTHS))
    one = take(make(corpus, kind, budget=budget), 8)[0]
    several = steps_of(corpus, kind, world_size, parts, 8, budget)
    fewest = world_size * parts
    alike = 0
    for whole, batches in zip(one, several, strict=True):
        ids = [identity for batch in batches for identity in batch.ids]
        sizes = [len(batch) for batch in batches]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
        assert len(set(ids)) == len(ids) or kind == "crops"
        if len(whole) >= fewest:
            assert ids == whole.ids
            alike += 1
        else:  # the last of a pass, filled up
            assert ids[-len(whole) :] == whole.ids and len(ids) == fewest
        shares = [batch.share for batch in batches[::world_size]]
        assert sum(shares) == pytest.approx(1)
        for part, share in enumerate(shares):
            now = sizes[part * world_size : (part + 1) * world_size]
            assert share == pytest.approx(sum(now) / len(ids))
        waves = [
            wav[:length]
            for batch in batches
            for wav, length in zip(batch.wavs, batch.lengths, strict=True)
        ][-len(whole) :]
        for wav, length, part in zip(whole.wavs, whole.lengths, waves, strict=True):
            assert torch.equal(wav[:length], part)
    assert alike >= 6


@pytest.mark.fault(
    "A5",
    "mtl.yaml with 1, 2, 4, 8 processes or a factor of 1, 2, 4; mtl_100h.yaml",
    "22 and 66 crops per step with each of them",
)
@pytest.mark.parametrize("division", [(1, 1), (2, 1), (8, 1), (1, 2), (1, 4), (4, 2)])
def test_the_paper_s_crops_in_every_division(corpus, division):
    world_size, parts = division
    for seconds, crops in ((9.0, 22), (3.0, 66)):
        stream = RandomCrops(
            corpus.csv, {"speaker": Categories(corpus.csv)}, seconds, 3_200_000 // parts
        )
        stream.open(0, world_size, parts)
        assert len(next(stream.requests(0))[1]) == crops


def test_a_position_between_two_parts_is_that_before_their_step(corpus, kind):
    """Gradients that were accumulated so far are in no checkpoint."""
    budget = 6 * (CROP if kind == "crops" else max(LENGTHS))
    batches, positions = take(make(corpus, kind, parts=3, budget=budget // 3), 9)
    single = take(make(corpus, kind, budget=budget), 3)[1]
    start = [0, 0] if kind == "buckets" else 0
    for step, end in enumerate([start, *single][:3]):
        for part in range(2):
            assert np.array_equal(positions[3 * step + part], end)
        assert positions[3 * step + 2] == single[step]
    stream = make(corpus, kind, parts=3, budget=budget // 3)
    stream.position = json.loads(json.dumps(positions[5]))
    for ours, theirs in zip(take(stream, 3)[0], batches[6:], strict=True):
        assert identical(ours, theirs)


def test_too_few_utterances_for_all_parts_are_refused(corpus):
    budget = 4 * max(LENGTHS)
    settings = {"csv": corpus.small_csv, "budget": budget}
    make(corpus, "buckets", world_size=2, **settings)
    with pytest.raises(UserError, match="2 utterances are too few for 1 processes"):
        make(corpus, "buckets", parts=3, **settings)


def test_divided_by_hand():
    assert divided([1, 2, 3, 4, 5, 6, 7], 3) == [[1, 2, 3], [4, 5], [6, 7]]
    assert divided([1, 2], 2) == [[1], [2]]


# Samples --------------------------------------------------------------------


def crops_by_id(stream, count):
    """(samples, length) of every crop by utterance ID."""
    crops = {}
    for batch in take(stream, count)[0]:
        for identity, wav, length in zip(
            batch.ids, batch.wavs, batch.lengths, strict=True
        ):
            crops.setdefault(identity, []).append((wav.numpy(), int(length)))
    return crops


def test_speech_is_whole_normalised_and_padded_with_zeros(corpus):
    for batch in take(make(corpus, "buckets"), 8)[0]:
        assert batch.wavs.dtype == torch.float32 and batch.lengths.dtype == torch.int64
        for identity, wav, length in zip(
            batch.ids, batch.wavs, batch.lengths, strict=True
        ):
            expected = corpus.normalised(identity)
            assert int(length) == len(expected)
            np.testing.assert_allclose(wav[:length], expected, atol=1e-5)
            assert not wav[length:].any()
            assert abs(float(wav[:length].double().mean())) < 1e-6
            assert float(wav[:length].double().var(correction=0)) == pytest.approx(
                1.0, abs=1e-3
            )


@pytest.mark.fault(
    "F22",
    "utterances of crop - 1, crop and crop + 1 samples",
    "all are cropped or padded to their exact samples",
)
@pytest.mark.parametrize("number, length", [(0, 1599), (1, 1600), (2, 1601)])
def test_crop_lengths_around_the_crop(corpus, number, length):
    crops = crops_by_id(make(corpus, "crops"), 60)[f"u-{number:02}"]
    assert len(crops) > 5
    expected = corpus.normalised(f"u-{number:02}")
    starts = set()
    for samples, valid in crops:
        assert valid == min(length, CROP)
        assert len(samples) == CROP
        assert not samples[valid:].any()
        start = next(
            s
            for s in range(length - valid + 1)
            if np.allclose(samples[:valid], expected[s : s + valid], atol=1e-5)
        )
        starts.add(start)
    assert starts == set(range(max(length - CROP, 0) + 1))


def test_a_short_utterance_is_taken_whole_and_padded(corpus):
    for samples, valid in crops_by_id(make(corpus, "crops"), 20)["u-03"]:
        assert valid == LENGTHS[3] == 800
        np.testing.assert_allclose(samples[:800], corpus.normalised("u-03"), atol=1e-5)
        assert not samples[800:].any()


def test_crops_move_between_passes_and_seeds(corpus):
    first, second = (s for s, _ in crops_by_id(make(corpus, "crops"), 10)["u-22"][:2])
    other = crops_by_id(make(corpus, "crops", seed=1), 10)["u-22"][0][0]
    assert not np.array_equal(first, second) and not np.array_equal(first, other)


def test_crops_are_normalised_by_the_whole_utterance(tmp_path):
    """A loud second half: a crop of the first half must stay quiet."""
    corpus = Corpus(tmp_path)
    random = np.random.default_rng(0)
    wave = random.normal(0, 1, 8 * CROP) * np.repeat([0.01, 0.5], 4 * CROP)
    for statistics in (True, False):
        wave = wave.astype(np.float32)
        names = "ab" if statistics else "cd"
        rows = [corpus.row(name, wave, statistics) for name in names]
        pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
        stream = make(corpus, "crops", csv=str(tmp_path / "a.csv"), budget=CROP)
        scales = [float(b.wavs.std()) for b in take(stream, 30)[0]]
        assert min(scales) < 0.05 and max(scales) > 1.2


def test_statistics_in_the_csv_change_no_sample(corpus, kind):
    with_columns, without = (
        take(make(corpus, kind, csv=csv), 12)[0]
        for csv in (corpus.csv, corpus.bare_csv)
    )
    for ours, theirs in zip(with_columns, without, strict=True):
        assert [i.replace("n", "u") for i in theirs.ids] == ours.ids
        assert torch.equal(ours.lengths, theirs.lengths)
        assert torch.equal(ours.wavs, theirs.wavs)


@pytest.mark.fault("F21", "an utterance of zeros", "finite samples")
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_silence_stays_finite(tmp_path, statistics, value):
    corpus = Corpus(tmp_path)
    wave = np.full(2 * CROP, value, dtype=np.float32)
    rows = [corpus.row(name, wave, statistics) for name in "ab"]
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    for each in ("buckets", "crops"):
        batch = take(make(corpus, each, csv=str(tmp_path / "a.csv")), 1)[0][0]
        assert not batch.wavs.any()


@pytest.mark.parametrize("statistics", [True, False])
def test_start_and_stop_choose_a_part_of_the_file(tmp_path, statistics):
    corpus = Corpus(tmp_path)
    wave = np.random.default_rng(0).normal(size=5 * CROP).astype(np.float32)
    row = {**corpus.row("a", wave, False), "start": 1000, "stop": 6000}
    part = wave[1000:6000].astype(np.float64)
    if statistics:
        row |= {"mean": repr(float(part.mean())), "std": repr(float(part.std()))}
    pandas.DataFrame([row]).to_csv(tmp_path / "a.csv", index=False)
    batch = take(make(corpus, "buckets", csv=str(tmp_path / "a.csv")), 1)[0][0]
    expected = (part - part.mean()) / math.sqrt(part.var() + 1e-7)
    np.testing.assert_allclose(batch.wavs[0], expected, atol=1e-5)


def test_labels_and_columns_stand_beside_their_utterances(corpus):
    table = pandas.read_csv(corpus.csv, dtype=str).set_index("ID")
    for batch in take(make(corpus, "buckets"), 4)[0]:
        assert batch.columns["wrd"] == table["wrd"][batch.ids].to_list()
        symbols, lengths = Letters().encode(batch.columns["wrd"])
        assert torch.equal(batch.labels["letters"][0], symbols)
        assert torch.equal(batch.labels["letters"][1], lengths)
    for batch in take(make(corpus, "crops"), 4)[0]:
        speakers = table["spk_id"][batch.ids].to_list()
        assert batch.columns["spk_id"] == speakers
        assert batch.labels["speaker"].tolist() == [int(s[1:]) for s in speakers]


def test_a_moved_batch_keeps_its_lengths_on_the_host(corpus):
    batch = take(make(corpus, "buckets"), 1)[0][0]
    moved = batch.to("meta")
    assert moved.wavs.device.type == "meta"
    assert moved.labels["letters"][0].device.type == "meta"
    assert moved.lengths.device.type == "cpu"
    assert moved.ids == batch.ids and len(moved) == len(batch)


# Several CSVs ---------------------------------------------------------------


def test_two_csvs_are_one_corpus(corpus, kind):
    """Also where only one of them has the statistics."""
    csvs = [corpus.small_csv, corpus.bare_csv]
    stream = make(corpus, kind, csv=csvs)
    total = 2 + len(LENGTHS)
    assert len(stream.utterances) == total
    found = passes(take(stream, 30)[0], total)
    wanted = ["few-00", "few-01", *(f"n-{i:02}" for i in range(len(LENGTHS)))]
    assert found and all(sorted(ids) == wanted for ids in found)


def test_samples_and_labels_are_those_of_each_csv(corpus, kind):
    stream = make(corpus, kind, csv=[corpus.bare_csv, corpus.small_csv])
    alone = [make(corpus, kind, csv=csv) for csv in stream.csvs]
    for row, identity in enumerate(stream.utterances.ids):
        other = alone[row >= len(LENGTHS)]
        assert stream.utterances.source(row) == other.csv
        place = list(other.utterances.ids).index(identity)
        ours = stream.utterances.read([(row, 100, 700)])
        theirs = other.utterances.read([(place, 100, 700)])
        assert ours.columns == theirs.columns
        assert torch.equal(ours.wavs, theirs.wavs)
        if kind == "crops":
            # The speakers of both CSVs are numbered together.
            number = ["s0", "s1", "s2"].index(ours.columns["spk_id"][0])
            assert ours.labels["speaker"].tolist() == [number]
        expected = corpus.normalised(identity)[100:700]
        np.testing.assert_allclose(ours.wavs[0], expected, atol=1e-5)


def test_an_utterance_over_the_budget_is_named_with_its_own_csv(corpus):
    with pytest.raises(UserError) as caught:
        make(corpus, "buckets", [corpus.csv, corpus.small_csv], budget=max(LENGTHS) - 1)
    assert f"u-22 ({corpus.csv}, line 24)" in str(caught.value)
    with pytest.raises(UserError) as caught:
        make(corpus, "buckets", [corpus.small_csv, corpus.csv], budget=max(LENGTHS) - 1)
    assert f"u-22 ({corpus.csv}, line 24)" in str(caught.value)


def test_an_id_in_two_csvs_names_both(corpus, tmp_path, kind):
    copy = tmp_path / "copy.csv"
    copy.write_text(open(corpus.csv, encoding="utf-8").read())
    with pytest.raises(UserError, match="copy.csv, line 2.*'u-00'.*u.csv, line 2"):
        make(corpus, kind, csv=[corpus.csv, str(copy)])


def test_labels_are_checked_in_the_csv_that_they_stand_in(tmp_path, corpus):
    rows = [{**corpus.row("x", np.ones(2000)), "wrd": "lower"}]
    pandas.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(UserError, match="x.csv, line 2 "):
        make(corpus, "buckets", csv=[corpus.csv, str(tmp_path / "x.csv")])


# Shards ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["wav", "flac", "m4a"])
def stored(request, corpus, tmp_path_factory):
    """The corpus in one format: CSVs of files and of shards, with statistics."""
    folder = tmp_path_factory.mktemp(request.param)
    table = pandas.read_csv(corpus.csv, dtype=str)
    for row, identity in enumerate(table["ID"]):
        path = folder / f"{identity}.{request.param}"
        wave = corpus.waves[identity]
        if request.param == "m4a":
            write_m4a(path, wave)
            # Made up of whole blocks of the codec, which changes the samples.
            frames, *statistics = audio_statistics(path)
            table.loc[row, "duration"] = str(frames / 16000)
            table.loc[row, ["mean", "std"]] = list(map(repr, statistics))
        else:
            path.write_bytes(encode_audio(wave, request.param))
        table.loc[row, "wav"] = str(path)
    files = folder / "files.csv"
    table.to_csv(files, index=False)
    # Small shards: a batch is read from several.
    make_shards([files], folder / "shards", shard_size=8000, num_workers=1)
    assert len(list((folder / "shards").glob("*.tar"))) > 3
    return str(files), str(folder / "shards" / "files.csv")


def test_shards_give_the_same_batches_as_files(stored, corpus, kind):
    """Bit by bit, over two passes, and after a position."""
    files, shards = stored
    workers = 2 * (kind == "crops")
    whole, positions = take(make(corpus, kind, csv=files), 14)
    ours, ours_at = take(make(corpus, kind, csv=shards, num_workers=workers), 14)
    assert ours_at == positions
    assert all(map(identical, ours, whole))
    for done in (1, 6, 11):
        stream = make(corpus, kind, csv=shards)
        stream.position = json.loads(json.dumps(positions[done - 1]))
        assert all(map(identical, take(stream, 3)[0], whole[done:]))


def test_files_and_shards_are_one_corpus(stored, corpus, kind):
    files, shards = stored
    for csvs in ([shards, corpus.bare_csv], [corpus.bare_csv, shards]):
        plain = [files if csv == shards else csv for csv in csvs]
        ours, theirs = (make(corpus, kind, csv=some) for some in (csvs, plain))
        assert all(map(identical, take(ours, 12)[0], take(theirs, 12)[0]))


def test_a_cut_shard_is_one_line_that_names_it(stored, corpus, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(Path(stored[1]).parent, shards)
    for path in shards.glob("*.tar"):
        os.truncate(path, 600)
    with pytest.raises(UserError, match=r"line 2.*files-\d{6}.tar: it has 600 bytes"):
        make(corpus, "crops", csv=str(shards / "files.csv"))


# Bad files ------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["garbage", "cut", "absent"])
def test_an_unreadable_file_is_one_line_also_from_a_worker(
    tmp_path, kind, workers, damage
):
    corpus = Corpus(tmp_path)
    csv = corpus.write("u", [2000, 2000, 2000])
    stream = make(corpus, kind, csv=csv, num_workers=workers)
    path = tmp_path / "u-01.wav"
    if damage == "garbage":
        path.write_bytes(b"<html>not found</html>")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    with pytest.raises(UserError) as caught:
        take(stream, 10)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message


def test_labels_are_checked_when_the_stream_is_opened(tmp_path, corpus):
    rows = [{**corpus.row("x", np.ones(2000)), "wrd": "lower"}]
    pandas.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(UserError, match="x.csv, line 2"):
        make(corpus, "buckets", csv=str(tmp_path / "x.csv"))


def test_the_csv_is_read_by_open_only(tmp_path):
    stream = RandomCrops(str(tmp_path / "later.csv"), {}, CROP_SECONDS, CROP)
    with pytest.raises(UserError, match="does not exist"):
        stream.open()


# TrainStream ----------------------------------------------------------------


def train_stream(corpus, steps=17, epoch_length=5, workers=0):
    """Both kinds of streams under their tasks; the CSVs differ in size."""
    streams = {
        "speech": make(corpus, "buckets", num_workers=workers),
        "speaker": make(corpus, "crops", csv=corpus.bare_csv, num_workers=workers),
    }
    return TrainStream(streams, steps, epoch_length)


def epochs(stream, count):
    """Batches of each of the next epochs."""
    return [list(stream) for _ in range(count)]


def same_steps(ours, theirs):
    """Whether two lists of ``{task: Batch}`` are identical."""
    return len(ours) == len(theirs) and all(
        a.keys() == b.keys() and all(identical(a[t], b[t]) for t in a)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_epochs_have_their_length_and_the_last_is_shorter(corpus):
    stream = train_stream(corpus)
    lengths = []
    for _ in range(5):
        promised = len(stream)
        batches = list(stream)
        assert len(batches) == promised
        lengths.append(len(batches))
    assert lengths == [5, 5, 5, 2, 0]
    assert stream.total_steps == 17 and stream.step == 0


def test_the_length_does_not_change_within_an_epoch(corpus):
    stream = train_stream(corpus, steps=7)
    assert [len(stream) for _ in stream] == [5] * 5
    assert [len(stream) for _ in stream] == [2] * 2


def test_every_step_has_every_task(corpus):
    for batches in train_stream(corpus, steps=5):
        assert list(batches) == ["speech", "speaker"]


def test_epochs_continue_the_streams(corpus):
    long = epochs(train_stream(corpus, epoch_length=17), 1)[0]
    short = sum(epochs(train_stream(corpus), 4), [])
    assert same_steps(short, long)


def test_the_state_is_json(corpus, tmp_path):
    stream = train_stream(corpus)
    list(itertools.islice(stream, 3))
    stream.save(tmp_path / "state")
    state = json.loads((tmp_path / "state").read_text())
    assert state["step"] == state["total_steps"] == 3
    assert set(state["positions"]) == {"speech", "speaker"}
    crops = stream.streams["speaker"].batch_size
    assert state["positions"]["speaker"] == 3 * crops


@pytest.mark.parametrize(
    "done, workers",
    [*((done, 0) for done in (1, 4, 5, 7, 9, 10, 16, 17)), (5, 2), (7, 2)],
)
def test_a_killed_run_continues_within_the_epoch(corpus, tmp_path, done, workers):
    """Also after the last step of an epoch (5, 10) and of the run (17)."""
    whole = epochs(train_stream(corpus), 4)
    stream = train_stream(corpus)
    steps = 0
    for _ in range(4):
        for _ in stream:
            steps += 1
            if steps == done:
                Checkpointer(tmp_path, {"stream": stream}).save_checkpoint(
                    end_of_epoch=False
                )
                break
        if steps == done:
            break
    resumed = train_stream(corpus, workers=workers)
    Checkpointer(tmp_path, {"stream": resumed}).recover_if_possible()
    # The interrupted epoch is finished first, if need be with no batch at all.
    interrupted = (done - 1) // 5
    rest = epochs(resumed, 4 - interrupted)
    assert same_steps(rest[0], whole[interrupted][done - 5 * interrupted :])
    for ours, theirs in zip(rest[1:], whole[interrupted + 1 :], strict=True):
        assert same_steps(ours, theirs)
    assert resumed.total_steps == 17


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_run_continues_after_an_epoch(corpus, tmp_path, done):
    whole = epochs(train_stream(corpus), 4)
    stream = train_stream(corpus)
    epochs(stream, done)
    Checkpointer(tmp_path, {"stream": stream}).save_checkpoint()
    resumed = train_stream(corpus)
    Checkpointer(tmp_path, {"stream": resumed}).recover_if_possible()
    assert len(resumed) == len(whole[done])
    for ours, theirs in zip(epochs(resumed, 4 - done), whole[done:], strict=True):
        assert same_steps(ours, theirs)


def test_another_set_of_tasks_is_refused(corpus, tmp_path):
    train_stream(corpus).save(tmp_path / "state")
    alone = TrainStream({"speech": make(corpus, "buckets")}, 5, 5)
    with pytest.raises(UserError, match="speaker"):
        alone.load(tmp_path / "state", end_of_epoch=True)


def test_joint_training_puts_one_batch_under_both_tasks(corpus):
    shared = make(corpus, "buckets")
    stream = TrainStream({"speech": shared, "speaker": shared}, 3, 3)
    batches = list(stream)
    assert all(b["speech"] is b["speaker"] for b in batches)
    alone = take(make(corpus, "buckets"), 3)[0]
    assert all(identical(a["speech"], b) for a, b in zip(batches, alone, strict=True))


def test_two_streams_over_one_corpus_are_independent(corpus):
    streams = {"speech": make(corpus, "buckets"), "speaker": make(corpus, "crops")}
    for batches in TrainStream(streams, 3, 3):
        assert batches["speech"] is not batches["speaker"]


# Evaluation -----------------------------------------------------------------


def evaluation(corpus, csv=None, rank=0, world_size=1, **settings):
    """An opened evaluation set and its batches."""
    found = EvaluationSet(csv or corpus.csv, **settings)
    found.open(rank, world_size)
    return found, list(found.batches())


@pytest.fixture
def trials(corpus):
    """Write a trial list beside the CSV; returns its name."""

    def trials(*lines, name="trials.txt"):
        path = corpus.folder / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return name

    return trials


def test_without_a_budget_utterances_come_alone_and_whole(corpus):
    found, batches = evaluation(corpus)
    assert [len(b) for b in batches] == [1] * len(LENGTHS)
    assert len(found) == len(LENGTHS)
    assert sorted(b.ids[0] for b in batches) == sorted(found.utterances.ids)
    lengths = [int(b.lengths[0]) for b in batches]
    assert lengths == sorted(LENGTHS, reverse=True)
    for batch in batches:
        expected = corpus.normalised(batch.ids[0])
        np.testing.assert_allclose(batch.wavs[0], expected, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_stay_within_the_budget_and_hold_everything_once(corpus, workers):
    found, batches = evaluation(corpus, max_batch_samples=16_000, num_workers=workers)
    assert len(found) == len(batches) < len(LENGTHS)
    assert all(b.wavs.numel() <= 16_000 for b in batches)
    ids = [i for b in batches for i in b.ids]
    assert sorted(ids) == sorted(found.utterances.ids)


@pytest.mark.fault(
    "F27", "an utterance longer than an evaluation batch", "evaluated alone"
)
def test_an_utterance_over_the_budget_is_evaluated_alone(corpus):
    _, batches = evaluation(corpus, max_batch_samples=max(LENGTHS) - 1)
    assert sum(len(b) for b in batches) == len(LENGTHS)
    assert len(batches[0]) == 1 and int(batches[0].lengths[0]) == max(LENGTHS)


@pytest.mark.parametrize("name", ["csv", "bare_csv"])
def test_the_first_seconds_are_normalised_by_the_whole(corpus, name):
    csv = getattr(corpus, name)
    _, batches = evaluation(
        corpus, csv, crop_seconds=CROP_SECONDS, max_batch_samples=8_000
    )
    seen = 0
    for batch in batches:
        assert batch.wavs.numel() <= 8_000
        for identity, wav, length in zip(
            batch.ids, batch.wavs, batch.lengths, strict=True
        ):
            expected = corpus.normalised(identity)[:CROP]
            assert int(length) == len(expected)
            np.testing.assert_allclose(wav[:length], expected, atol=1e-5)
            seen += 1
    assert seen == len(LENGTHS)


def test_only_utterances_in_a_trial_are_read(corpus, trials):
    one = trials("1 u-00 u-05", "0 u-05 u-07")
    two = trials("1 u-09 u-00", "0 u-00 u-07", name="hard.txt")
    found, batches = evaluation(corpus, trial_lists=[one, two])
    assert sorted(b.ids[0] for b in batches) == ["u-00", "u-05", "u-07", "u-09"]
    assert list(found.trials) == ["trials", "hard"]
    assert found.trials["hard"].enrol[0] == "u-09"


def test_a_trial_with_a_missing_utterance_is_named(corpus, trials):
    name = trials("1 u-00 u-05", "0 u-05 absent")
    with pytest.raises(UserError) as caught:
        evaluation(corpus, trial_lists=[name])
    message = str(caught.value)
    assert "line 2" in message and "absent" in message and corpus.csv in message


def test_a_missing_trial_list_is_named(corpus):
    with pytest.raises(UserError, match="nowhere.txt"):
        evaluation(corpus, trial_lists=["nowhere.txt"])


def test_repeated_trials_of_official_lists_are_kept(corpus, trials):
    name = trials("1 u-00 u-05", "1 u-00 u-05", "0 u-05 u-07")
    found, batches = evaluation(corpus, trial_lists=[name])
    assert len(found.trials["trials"].enrol) == 3 and len(batches) == 3


@pytest.mark.parametrize("world_size", [2, 40])
def test_processes_share_the_batches_without_overlap(corpus, world_size):
    ids = []
    for rank in range(world_size):
        found, batches = evaluation(corpus, rank=rank, world_size=world_size)
        assert len(found) == len(batches)
        ids += [i for b in batches for i in b.ids]
    assert sorted(ids) == [f"u-{i:02}" for i in range(len(LENGTHS))]


def test_it_gives_the_same_batches_again(corpus):
    found, batches = evaluation(corpus, max_batch_samples=16_000)
    again = list(found.batches())
    assert all(identical(a, b) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_stops_an_evaluation(tmp_path, workers):
    corpus = Corpus(tmp_path)
    csv = corpus.write("u", [2000, 2000])
    (tmp_path / "u-01.wav").write_bytes(b"")
    with pytest.raises(UserError, match="u-01.wav"):
        evaluation(corpus, csv, num_workers=workers)


def test_labels_of_an_evaluation_set(corpus):
    labels = {"letters": Letters()}
    _, batches = evaluation(corpus, labels=labels, max_batch_samples=16_000)
    for batch in batches:
        expected = Letters().encode(batch.columns["wrd"])
        assert torch.equal(batch.labels["letters"][0], expected[0])


def test_several_sets_by_name(corpus):
    sets = evaluation_sets(str(corpus.folder), ["u", "few"], max_batch_samples=9_000)
    assert list(sets) == ["u", "few"]
    assert sets["few"].csv == corpus.small_csv
    assert sets["few"].max_batch_samples == 9_000


def test_sets_follow_one_another_in_a_stream(corpus):
    speech, _ = evaluation(corpus, max_batch_samples=16_000)
    speaker, _ = evaluation(corpus, corpus.small_csv)
    stream = EvaluationStream([("speech", speech), ("speaker", speaker)])
    tasks = [task for batches in stream for task in batches]
    assert tasks == ["speech"] * len(speech) + ["speaker"] * 2
    assert len(stream) == len(tasks)
