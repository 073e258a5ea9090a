"""What befalls a training process: F12, F28 and F31, in processes of their own."""

import os
import time

import pytest

from tests.helpers import attempts, tiny

OPTIONS = ["--device=cpu", "--noprogressbar", "--ckpt_interval_steps=1"]


def argv(corpus, folder, **settings):
    return [*tiny.arguments(corpus, folder / "run", **settings), *OPTIONS]


def only_error(status, said):
    """The one line in which an attempt ended."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1, said
    return errors[0]


def goes_on(corpus, folder, step):
    """The same command continues after a step and ends well."""
    status, said = attempts.attempt(
        folder / "resumed", attempts.training, argv(corpus, folder)
    )
    assert status == 0, said
    if step:
        assert f"Resuming after optimizer step {step}" in said


@pytest.mark.fault("F12", "a second process on one output folder")
def test_one_process_trains_into_a_folder(tiny_corpus, tmp_path):
    """Refused, naming host and process; the lock of a killed one is taken over."""
    arguments = argv(tiny_corpus, tmp_path)
    first = attempts.begin(tmp_path / "first", attempts.paused, arguments, 2)
    try:
        deadline = time.monotonic() + 100
        log = tmp_path / "run" / "log.txt"
        while not (log.exists() and "Going into epoch 1" in log.read_text("utf-8")):
            assert first.is_alive() and time.monotonic() < deadline
            time.sleep(0.1)
        error = only_error(
            *attempts.attempt(tmp_path / "second", attempts.training, arguments)
        )
        assert f"{tmp_path / 'run'}: another process (" in error
        assert f"{os.uname().nodename}, pid {first.pid})" in error
    finally:
        first.kill()
        first.join()
    goes_on(tiny_corpus, tmp_path, None)


@pytest.mark.parametrize(
    "kind, told",
    [
        pytest.param(*case, marks=pytest.mark.fault("F28", f"a loading process {name}"))
        for name, *case in [
            ("is killed", "killed", "loading failed (DataLoader worker (pid"),
            ("raises", "raising", "ZeroDivisionError"),
            ("hangs", "hanging", "timed out"),
        ]
    ],
)
def test_a_loading_process_comes_to_grief(kind, told, tiny_corpus, tmp_path):
    """One line within the timeout, naming task and utterance; resumable."""
    arguments = argv(tiny_corpus, tmp_path, num_workers=1, loader_timeout=5)
    error = only_error(
        *attempts.attempt(
            tmp_path / "said", attempts.with_bad_reader, arguments, kind, "id3--v1--2"
        )
    )
    assert error.startswith("error: speaker: ") and told in error, error
    assert "id3--v1--2" in error
    goes_on(tiny_corpus, tmp_path, None)


@pytest.mark.fault("F31", "out of memory in the forward pass of step 5")
def test_out_of_memory(tiny_corpus, tmp_path):
    """One line with the shapes of the batch; resumable from the step before."""
    arguments = argv(tiny_corpus, tmp_path)
    error = only_error(
        *attempts.attempt(tmp_path / "said", attempts.out_of_memory, arguments, 4)
    )
    assert "out of memory at step 4 with the waveforms speech [" in error
    assert "and speaker [10, 6400] [utterances, samples]" in error
    goes_on(tiny_corpus, tmp_path, 4)
