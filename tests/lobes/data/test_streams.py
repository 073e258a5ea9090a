"""Streams: budgets, order, processes and parts, crops, resuming."""

import itertools
import json
import math

import numpy as np
import pandas
import pytest
import soundfile
import torch
from speechbrain.utils.checkpoints import Checkpointer

from lobes.data.labels import Categories, Letters
from lobes.data.streams import (
    LengthBuckets,
    RandomCrops,
    TrainStream,
    divided,
)
from lobes.data.utterances import pack
from lobes.errors import UserError
from tests.helpers.own_csvs import (
    rows_of,
    write_csv,
)
from tests.helpers.streams import (
    CROP,
    LENGTHS,
    Corpus,
    crops_by_id,
    identical,
    make,
    passes,
    take,
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


@pytest.mark.fault(
    "B9",
    "utterances longer than a batch",
    "`2 of 4 utterances have more samples than a batch may hold (12400); the longest, "
    "u3 (train.csv, line 5), has 20000; give --max_batch_samples=20000, or leave out "
    "long ones with --train_streams.speech.max_utterance_seconds=0.77`",
)
def test_utterances_over_the_budget_and_what_would_do(tmp_path, caplog):
    path = write_csv(tmp_path / "train.csv", rows_of(tmp_path))
    labels = {"letters": Letters()}
    with pytest.raises(UserError) as caught:
        LengthBuckets(path, labels, max_batch_samples=12400).open()
    assert str(caught.value) == (
        f"{path}: 2 of 4 utterances have more samples than a batch may hold (12400); "
        f"the longest, u3 ({path}, line 5), has 20000; give --max_batch_samples=20000, "
        "or leave out long ones with --train_streams.speech.max_utterance_seconds=0.77"
    )
    stream = LengthBuckets(path, labels, 20000)
    stream.open()
    limited = LengthBuckets(path, labels, 12400, max_utterance_seconds=0.775)
    limited.open()
    assert list(limited.utterances.ids) == ["u1", "u2"]
    assert limited.utterances.digest() != stream.utterances.digest()
    (batch,) = [next(limited.batches())]
    assert set(batch.ids) <= {"u1", "u2"} and batch.columns["wrd"] == ["A CAT"]
    assert limited.utterances.place(1) == f"u2 ({path}, line 4)"
    assert caplog.messages == [
        f"{path}: 2 of 4 utterances (0.00 of 0.00 hours) are longer than "
        "max_utterance_seconds=0.775 and are left out"
    ]
    with pytest.raises(UserError, match="4 of 4 .* none is left"):
        LengthBuckets(path, labels, 20000, max_utterance_seconds=0.1).open()
