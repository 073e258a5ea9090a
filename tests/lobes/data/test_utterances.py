"""Utterances as batches: samples, labels, several CSVs, shards, bad files."""

import json
import math
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from lobes.data import utterances
from lobes.data.audio import audio_statistics, encode_audio
from lobes.data.labels import Categories, Letters
from lobes.data.streams import (
    RandomCrops,
)
from lobes.errors import UserError
from tests.helpers.own_csvs import (
    rows_of,
    write_csv,
)
from tests.helpers.streams import (
    CROP,
    CROP_SECONDS,
    LENGTHS,
    Corpus,
    identical,
    make,
    passes,
    take,
)
from tests.lobes.data.test_audio import write_m4a
from tools.make_shards import make_shards

# Samples ----------------------------------------------------------------------


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


# Several CSVs -----------------------------------------------------------------


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


# Shards -----------------------------------------------------------------------


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


# Bad files --------------------------------------------------------------------


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


@pytest.mark.fault("C5", "utterances called NA, null and nan", "they are read as names")
def test_names_that_look_like_nothing(tmp_path):
    rows = rows_of(tmp_path)
    for row, identity in zip(rows, ("NA", "null", "nan", "None"), strict=True):
        row["ID"] = row["spk_id"] = identity
    stream = RandomCrops(
        path := write_csv(tmp_path / "own.csv", rows),
        {"speaker": Categories(path)},
        crop_seconds=0.1,
        max_batch_samples=6400,
    )
    stream.open()
    batch = next(stream.batches())
    assert sorted(batch.ids) == sorted(batch.columns["spk_id"])
    assert sorted(batch.ids) == ["NA", "None", "nan", "null"]


# Loading processes ----------------------------------------------------------


@pytest.fixture
def other_process():
    """A process that has nothing to do with loading."""
    process = multiprocessing.Process(target=time.sleep, args=(60,))
    process.start()
    yield process
    process.kill()
    process.join()


def test_closing_ends_the_loading_processes_alone(corpus, other_process):
    streams = [make(corpus, "crops", num_workers=2) for _ in range(2)]
    first, second = (stream.batches() for stream in streams)
    next(first), next(second)
    assert len(multiprocessing.active_children()) == 5
    first.close()
    assert len(multiprocessing.active_children()) == 3
    next(second)
    second.close()
    assert multiprocessing.active_children() == [other_process]


def test_a_loading_process_that_hangs_is_ended_alone(
    corpus, other_process, monkeypatch
):
    monkeypatch.setattr(utterances, "read_audio", lambda *_: time.sleep(60))
    batches = make(corpus, "crops", num_workers=1, timeout=0.5).batches()
    with pytest.raises(UserError, match="loading failed .* while reading u-"):
        next(batches)
    assert multiprocessing.active_children() == [other_process]


def test_the_interpreter_s_end_ends_loading_processes_alone(corpus, other_process):
    batches = make(corpus, "crops", num_workers=1).batches()
    next(batches)
    utterances._kill_those_left()
    assert multiprocessing.active_children() == [other_process]
    batches.close()
