"""Kill a training at random points, resume it, and compare it with one left alone.

    python -m tests.helpers.kill_resume 50 FOLDER [--workers=0,2] [--seed=1]

Each point is one real event of the reference run: the process sends SIGKILL to itself
there, and the same command is started again until it ends. Every step of the two runs
(utterances, crops, learning rate, weights, losses), every row of their logs, and the
parameters, Adam's state and the random generators at the end must be equal bit for
bit. Written: a table, and ``FOLDER/kill_resume.json``. The exit status is 1 unless all
are equal.

The reference is a program of its own; the others are forks of this one, which has
imported everything, so that an attempt takes about a second.
"""

import argparse
import gc
import hashlib
import importlib
import io
import json
import logging
import os
import pkgutil
import random
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import torch

import lobes
from lobes.evaluation.progress import ProgressLog
from lobes.runs import evaluate as evaluation
from lobes.training import brain as brain_module
from recipes.LibriSpeech_VoxCeleb.MTL import train
from tests.helpers import tiny

#: A weighting with a history, random generators in use, passes that end in mid-batch.
SETTINGS = {
    "yaml": str(tiny.MTL.parent / "dwa.yaml"),
    "steps": 12,
    "valid_interval": 5,
    "freeze_steps": 4,
    "max_batch_samples": 45_000,
    "hidden_dropout": 0.1,
    "layerdrop": 0.2,
}
OPTIONS = ["--device=cpu", "--noprogressbar", "--ckpt_interval_steps=2"]

#: Everything that a training imports when its YAML names it.
MODULES = [module.name for module in pkgutil.walk_packages(lobes.__path__, "lobes.")]

#: What each kind of event is called, in the order in which kill points are dealt out.
KINDS = (
    "while a file is written",
    "around the unfreeze",
    "within validation",
    "end of a speaker pass",
    "end of a speech pass",
    "before a rename",
    "first step",
    "while a checkpoint is deleted",
    "any step",
)
STEP_EVENTS = ("before step", "before update", "after step")


class Events:
    """Writes down what happens in a run, and kills the process at one event.

    Arguments:
        folder (Path): Gets ``events.jsonl`` and ``trace.jsonl``; the run itself is in
            ``run``.
        kill_at (int or None): Number of the event that is not survived, counted from 1.
        signals (sequence of int): What the process sends to itself there.
    """

    def __init__(self, folder, kill_at, signals=(signal.SIGKILL,)):
        self.kill_at = kill_at
        self.signals = signals
        self.number = 0
        self.pid = os.getpid()
        self.saves = str(folder / "run" / "save")
        self.deleting = False
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self.trace = os.open(folder / "trace.jsonl", flags)
        self.log = os.open(folder / "events.jsonl", flags | os.O_TRUNC)

    def happen(self, name, step=None, last_act=lambda: None):
        """One event, after which the process may be no more."""
        self.number += 1
        self.write(self.log, {"name": name, "step": step})
        if self.number == self.kill_at:
            last_act()
            for number in self.signals:
                os.kill(self.pid, number)

    @staticmethod
    def write(file, row):
        """One line, whole or not at all."""
        os.write(file, (json.dumps(row, sort_keys=True) + "\n").encode())

    def watch(self):
        """Have ``happen`` called by the Brain, by ``torch.save`` and by the files."""
        events, brain = self, brain_module.SpeechSpeakerBrain

        class Watched(brain):
            def fit_batch(self, batches):
                step = self.optimizer_step + 1
                events.happen("before step", step)
                loss = super().fit_batch(batches)
                events.happen("after step", step)
                return loss

            def on_fit_batch_end(self, batches, *args):
                super().on_fit_batch_end(batches, *args)
                row = _row(self, batches)
                events.write(events.trace, {"step": self.optimizer_step, **row})

            def optimizers_step(self):
                events.happen("before update", self.optimizer_step + 1)
                super().optimizers_step()

            def evaluate_batch(self, batches, stage):
                events.happen("within validation", self.optimizer_step)
                return super().evaluate_batch(batches, stage)

            def fit(self, *args, **kwargs):
                super().fit(*args, **kwargs)
                events.write(events.trace, {"step": "end", **_end(self)})

        save = torch.save

        def watched_save(state, target, *args, **kwargs):
            data = io.BytesIO()
            save(state, data, *args, **kwargs)
            half = data.getvalue()[: data.tell() // 2]

            def tear():
                if hasattr(target, "write"):
                    target.write(half)
                    target.flush()
                else:
                    Path(target).write_bytes(half)

            self.happen("half a file", last_act=tear)
            return save(state, target, *args, **kwargs)

        brain_module.SpeechSpeakerBrain = Watched
        torch.save = watched_save
        # What else takes time and decides nothing.
        evaluation.evaluate = brain_module.plot_curves = lambda *_: {}
        sys.addaudithook(self._audit)

    def _audit(self, name, args):
        """Called by Python before it opens, renames or removes anything."""
        if os.getpid() != self.pid:
            return  # a reading process
        if name == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE:
            if isinstance(args[0], str) and args[0].startswith(self.saves):
                self.happen("before a file")
        elif name in ("os.rename", "shutil.rmtree"):
            ours = str(args[0]).startswith(self.saves)
            if name == "shutil.rmtree":
                self.deleting = ours
            if ours:
                self.happen(name)
        elif name in ("os.remove", "os.rmdir") and self.deleting and args[1] >= 0:
            # Within rmtree: a name in the folder that args[1] has open.
            self.happen(name)


def _hash(*tensors):
    """Digest of dtypes, shapes and every bit."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _row(system, batches):
    """What one step was made of."""
    values = {name: float(value).hex() for name, value in system.step_values.items()}
    return {
        "ids": {task: batch.ids for task, batch in batches.items()},
        "crops": {task: _hash(b.wavs, b.lengths) for task, b in batches.items()},
        "positions": {task: batch.position for task, batch in batches.items()},
        "values": values,
        "skipped": system.guard.skipped_steps,
    }


def _end(system):
    """What the run leaves behind."""
    adam = system.optimizer.state_dict()["state"]
    numpy_state = np.random.get_state()
    return {
        "parameters": {n: _hash(t) for n, t in system.modules.state_dict().items()},
        "adam": {
            key: _hash(*(state[name] for name in sorted(state)))
            for key, state in adam.items()
        },
        "steps": system.optimizer_step,
        "random": [
            _hash(torch.get_rng_state()),
            hashlib.sha256(numpy_state[1].tobytes()).hexdigest(),
            hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
        ],
    }


def run(folder, corpus, workers, kill_at=None, signals=(signal.SIGKILL,)):
    """One attempt of the training command, in this process."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    Events(folder, kill_at, signals).watch()
    train.main(argv(folder, corpus, workers))


def argv(folder, corpus, workers):
    """The command line of the training in ``folder/run``."""
    arguments = tiny.arguments(
        Path(corpus), Path(folder) / "run", num_workers=workers, **SETTINGS
    )
    return [*arguments, *OPTIONS]


def attempt(folder, corpus, workers, kill_at):
    """The same in a fork; returns its exit status, negative for a signal.

    Its output is added to ``output.txt``.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(300)  # it hangs: ends with that signal
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            output = os.open(folder / "output.txt", flags)
            os.dup2(output, 1)
            os.dup2(output, 2)
            run(folder, corpus, workers, kill_at)
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            gc.collect()  # ends the reading processes
            logging.shutdown()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left_alone(folder, corpus, workers):
    """The reference run, in a program of its own with other hash values of strings."""
    program = (
        "import sys; from tests.helpers.kill_resume import run; run(*sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder, corpus, str(workers)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the reference run failed:\n{done.stderr}")


def outcome(folder):
    """Everything that two runs must share: rows by step, and the progress log."""
    rows = {}
    for line in (folder / "trace.jsonl").read_text().splitlines():
        row = json.loads(line)
        # A later attempt repeats the steps after its checkpoint.
        rows[str(row.pop("step"))] = row
    speeds = ("steps_per_second", "audio_per_second")
    for row in ProgressLog(folder / "run").rows():
        kept = {name: value for name, value in row.items() if name not in speeds}
        rows[f"log of {row['stage']} {row['step']}"] = kept
    return rows


def difference(reference, found):
    """The first thing in which two outcomes differ, or None."""
    for step in [*reference, *found]:
        ours, theirs = reference.get(step), found.get(step)
        if ours is None or theirs is None:
            return f"{step} is only in {'the resumed' if ours is None else 'the first'}"
        for name in [*ours, *theirs]:
            if ours.get(name) != theirs.get(name):
                return f"{step}: {name}"
    return None


def events_by_kind(folder):
    """``{kind: [event number, ...]}`` of the reference run."""
    trace = outcome(folder)
    speakers = {i for n in trace if n.isdigit() for i in trace[n]["ids"]["speaker"]}
    passes = {"speech": {}, "speaker": {}}
    for step in range(1, SETTINGS["steps"] + 1):
        positions = trace[str(step)]["positions"]
        passes["speech"][step] = positions["speech"][0]
        passes["speaker"][step] = positions["speaker"] // len(speakers)
    ends = {
        task: {
            step
            for first in range(1, SETTINGS["steps"])
            if numbers[first] != numbers[first + 1]
            for step in (first, first + 1)
        }
        for task, numbers in passes.items()
    }
    thaw = SETTINGS["freeze_steps"] + 1
    kinds = {kind: [] for kind in KINDS}
    for number, line in enumerate(
        (folder / "events.jsonl").read_text().splitlines(), start=1
    ):
        event = json.loads(line)
        name, step = event["name"], event["step"]
        if name in STEP_EVENTS:
            kinds["any step"].append(number)
            if step == 1:
                kinds["first step"].append(number)
            if abs(step - thaw) <= 1:
                kinds["around the unfreeze"].append(number)
            for task, steps in ends.items():
                if step in steps:
                    kinds[f"end of a {task} pass"].append(number)
        elif name == "within validation":
            kinds[name].append(number)
        elif name in ("before a file", "half a file"):
            kinds["while a file is written"].append(number)
        elif name == "os.rename":
            kinds["before a rename"].append(number)
        else:
            kinds["while a checkpoint is deleted"].append(number)
    return {kind: numbers for kind, numbers in kinds.items() if numbers}


def _event(folder, number):
    """What an event of the latest attempt in that folder was."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    event = json.loads(lines[number - 1])
    return " ".join(str(value) for value in event.values() if value is not None)


def deal(kinds, points, chance):
    """Kill points, every kind in turn; every third is killed twice.

    Returns a list of (kind, event numbers).
    """
    middle = max(max(numbers) for numbers in kinds.values()) // 2
    stacks, dealt = {}, []
    for index in range(points):
        kind = list(kinds)[index % len(kinds)]
        if not stacks.get(kind):
            stacks[kind] = chance.sample(kinds[kind], len(kinds[kind]))
        kills = [stacks[kind].pop()]
        if index % 3 == 2:
            kills.append(chance.randint(1, middle))
        dealt.append((kind, kills))
    return dealt


def measure(points, folder, workers, seed):
    """Kill and resume ``points`` runs; returns what the JSON file holds."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    tiny.write_corpus(corpus)
    found = []
    for number in workers:
        reference = folder / f"reference_{number}"
        left_alone(reference, corpus, number)
        expected = outcome(reference)
        kinds = events_by_kind(reference)
        dealt = deal(kinds, points, random.Random(f"{seed} {number}"))
        for index, (kind, kills) in enumerate(dealt):
            place = folder / f"killed_{number}_{index:02}"
            place.mkdir()  # for the output of its attempts
            killed_at, statuses = [], []
            for kill_at in [*kills, None]:
                statuses.append(attempt(place, corpus, number, kill_at))
                if statuses[-1] != -signal.SIGKILL:
                    break  # done, before a second kill too
                killed_at.append(_event(place, kill_at))
            planned = _event(reference, kills[0])
            if killed_at and killed_at[0] != planned:
                differs = f"killed elsewhere than planned ({planned})"
            elif statuses[-1]:
                differs = (place / "output.txt").read_text().splitlines()[-1]
            else:
                differs = difference(expected, outcome(place))
            row = {
                "workers": number,
                "kind": kind,
                "killed_at": killed_at,
                "statuses": statuses,
                "equal": bool(killed_at) and differs is None,
                "difference": differs,
            }
            found.append(row)
            told = "equal" if row["equal"] else f"DIFFERS {statuses}: {differs}"
            at = ", then ".join(killed_at)
            print(f"{number}  {kind:30}{at:40}{told}", flush=True)
            if row["equal"]:
                shutil.rmtree(place)
    equal = sum(row["equal"] for row in found)
    return {"seed": seed, "equal": equal, "of": len(found), "points": found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("points", type=int, help="kill points for each number below")
    parser.add_argument("folder", type=Path, help="is made; keeps the runs that differ")
    parser.add_argument("--workers", default="0,2", help="num_workers of the training")
    parser.add_argument("--seed", type=int, default=1, help="which points")
    options = parser.parse_args()
    for name in MODULES:
        importlib.import_module(name)
    workers = [int(number) for number in options.workers.split(",")]
    print(f"{'':3}{'killed':30}{'at':40}resumed run")
    found = measure(options.points, options.folder.resolve(), workers, options.seed)
    print(f"{found['equal']} of {found['of']} resumed runs equal the one left alone")
    text = json.dumps(found, indent=1) + "\n"
    (options.folder / "kill_resume.json").write_text(text, encoding="utf-8")
    sys.exit(found["equal"] < found["of"])


if __name__ == "__main__":
    main()
