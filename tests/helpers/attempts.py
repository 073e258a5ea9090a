"""Trainings in processes of their own, which a test may starve, stop or kill.

They are forks of a server that has imported everything, so that one takes a second
or two. ``attempt`` runs one of the functions below to its end.
"""

import logging
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import torch

from lobes.data import utterances
from lobes.runs import evaluate as evaluation
from lobes.training import brain
from recipes.LibriSpeech_VoxCeleb.MTL import train as command
from tests.helpers import kill_resume

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, *kill_resume.MODULES])


def begin(output, function, *arguments):
    """Start ``function(*arguments)``; what it prints goes to the file ``output``."""
    process = CONTEXT.Process(target=_redirected, args=(output, function, arguments))
    process.start()
    return process


def attempt(output, function, *arguments):
    """Exit status (negative for a signal) and output of a function to its end."""
    process = begin(output, function, *arguments)
    process.join(120)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"it hangs: {Path(output).read_text()}")
    return process.exitcode, Path(output).read_text()


def _redirected(output, function, arguments):
    # Reading processes as in a training that was started from a shell.
    multiprocessing.set_start_method("fork", force=True)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        function(*arguments)
    finally:
        logging.shutdown()


def training(argv):
    """The training command, without its evaluation and its curves."""
    evaluation.evaluate = brain.plot_curves = lambda *_: {}
    command.main(argv)


def with_limited_files(argv, step, size):
    """From a step on no file may grow beyond ``size`` bytes: a full disk."""

    def limit(_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    _at_step(step, limit)
    training(argv)


def without_rights(argv):
    """As a user who may write nowhere."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    training(argv)


def signalled_at_start(argv, number):
    """A signal while the corpora are prepared."""
    command.check_voxceleb = lambda **_: os.kill(os.getpid(), number)
    training(argv)


def signalled_with_its_group(argv, step, numbers):
    """Signals to a training and all of its reading processes, as from a cluster."""
    os.setsid()

    def strike(_):
        for number in numbers:
            os.killpg(0, number)
            time.sleep(0.3)

    _at_step(step, strike)
    training(argv)


def paused(argv, step):
    """A training that goes on for ever after a step."""
    _at_step(step, lambda _: time.sleep(1e6))
    training(argv)


def with_bad_reader(argv, kind, part):
    """The process that reads an utterance with ``part`` in its path comes to grief."""
    read = utterances.read_audio

    def bad(path, *args):
        if part in str(path):
            if kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif kind == "hanging":
                time.sleep(1e6)
            else:
                raise ZeroDivisionError("a defect in the reader")
        return read(path, *args)

    utterances.read_audio = bad
    training(argv)


def out_of_memory(argv, step):
    """At one step the encoder asks for more memory than there is."""
    _at_step(step, lambda _: torch.empty(1 << 50))
    training(argv)


def _at_step(step, act):
    """Have ``act(brain)`` called in the forward pass after so many steps."""

    class Acting(brain.SpeechSpeakerBrain):
        def compute_forward(self, batches, stage):
            if self.optimizer_step == step:
                act(self)
            return super().compute_forward(batches, stage)

    brain.SpeechSpeakerBrain = Acting
