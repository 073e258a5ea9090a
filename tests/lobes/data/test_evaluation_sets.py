"""Evaluation sets: budgets, trials, processes, bad files."""

import numpy as np
import pytest
import torch

from lobes.data.evaluation_sets import (
    EvaluationSet,
    EvaluationStream,
    evaluation_sets,
)
from lobes.data.labels import Letters
from lobes.errors import UserError
from tests.helpers.streams import (
    CROP,
    CROP_SECONDS,
    LENGTHS,
    Corpus,
    identical,
)


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
