"""Train a grid: variants times values, several at a time, here or on a cluster.

    python tools/grid.py recipes/LibriSpeech_VoxCeleb/MTL/hparams/mtl.yaml \
        --lr=1e-5,1e-4 --seed=1,2,3 [further options of train.py]
    python tools/grid.py grids/table4.yaml --librispeech_folder=... --dry_run
    python tools/grid.py recipes/.../mtl.yaml --random=20 --lr=log:1e-6:1e-3

Each run is its recipe's own train.py in a process and an output folder of its own.
What the ledger has as finished, early-stopped or diverged is left out; the same command
continues what was interrupted and tries again what failed.
"""

import collections
import contextlib
import itertools
import json
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lobes.errors import ArgumentParser, UserError, user_errors_exit
from lobes.evaluation.metrics import RATES
from lobes.runs import cost, ledger
from lobes.runs.grids import MANY, Job, latest, members, read_grid, same_but
from lobes.settings.kinds import Whole
from lobes.settings.table import COUNT, PATH, POSITIVE, SEED
from lobes.system.checkout import ROOT
from lobes.system.lazy import lazy
from lobes.system.machine import device_name
from lobes.system.preemption import EXIT_CODE
from lobes.system.terminal import console

torch = lazy("torch")

#: Seconds between two looks at the running trainings.
INTERVAL = 0.5

#: More trainings at a time are a mistake on any machine or cluster.
MOST_JOBS = 10_000

#: Ended runs that the table still shows.
_SHOWN = 12


@user_errors_exit
def main(argv: Sequence[str] | None = None):
    """The command; see the module's docstring. Returns the exit status."""
    parser = ArgumentParser(
        description="Train a grid of runs, a few at a time; --key=a,b is an axis.",
        epilog="Further options are those of train.py, as --key=value or "
        "--key=value,value; with --random also --key=log:1e-6:1e-3 (or lin:, int:).",
    )
    parser.add_argument("files", nargs="+", help="grids, or YAML files of recipes")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="of a grid's runs")
    parser.add_argument(
        "--jobs", type=Whole(1, MOST_JOBS), default=1, help="at a time; default: 1"
    )
    parser.add_argument("--ledger", type=PATH, default=str(ledger.DEFAULT))
    parser.add_argument("--dry_run", action="store_true", help="only list the runs")
    parser.add_argument(
        "--tflops", type=POSITIVE, help="of the GPU, for --dry_run's hours"
    )
    parser.add_argument("--random", type=COUNT, metavar="N", help="draw so many points")
    parser.add_argument("--random_seed", type=SEED, default=0)
    parser.add_argument(
        "--many", action="store_true", help=f"allow more than {MANY:,} runs"
    )
    parser.add_argument(
        "--slurm",
        nargs="*",
        metavar="KEY=VALUE",
        help="submit to SLURM with these parameters of submitit, such as "
        "slurm_partition=gpu gpus_per_node=1 timeout_min=1440",
    )
    options, overrides = parser.parse_known_args(argv)
    parameters = _parameters(options.slurm or ())
    grid = read_grid(options.files, overrides, options.only)
    draws = options.random, options.random_seed
    found = members(grid, *draws, fill=options.dry_run, many=options.many)
    known = latest(options.ledger)
    _warn_of_other_settings(found, known)
    if options.dry_run:
        _list(found, known, options.tflops, options.jobs)
        return 0
    left = [m for m in found if known.get(m.key, {}).get("state") not in ledger.DONE]
    print(f"{len(found)} runs, {len(found) - len(left)} of them done", flush=True)
    jobs = [Job(member, options.ledger) for member in left]
    if options.slurm is not None:
        return submit(jobs, parameters, options.jobs)
    return run(jobs, options.jobs)


def run(jobs, at_a_time):
    """Run ``lobes.runs.grids.Job`` objects here; returns the exit status.

    0: all are done; 1: some failed; ``lobes.system.preemption.EXIT_CODE``: some were
    interrupted. Ctrl-C, SIGTERM and SIGHUP ask all running ones to stop and wait for
    them; a second one kills them. So does what nobody has foreseen, which is raised
    again.
    """
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        # What nohup has had ignored remains so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, signal.default_int_handler)
    progress = Progress(len(jobs))
    waiting, running = collections.deque(jobs), {}
    slots = _slots(at_a_time)
    try:
        with progress.live or contextlib.nullcontext():
            while waiting or running:
                while waiting and len(running) < at_a_time:
                    job = waiting.popleft()
                    slot = next(s for s in range(at_a_time) if s not in running)
                    job.environment = slots[slot]
                    try:
                        if job.start():
                            running[slot] = job
                        else:
                            progress.ended(job, "elsewhere", "another grid's")
                    except (OSError, UserError) as error:
                        progress.ended(job, "failed", str(error))
                time.sleep(INTERVAL)
                _collect(running, progress)
                progress.show(running.values(), len(waiting))
    except KeyboardInterrupt:
        progress.say(f"Stopping {len(running)} trainings; once more kills them")
        _stop(running, progress)
        progress.say(
            f"Stopped; {len(waiting)} were not begun. The same command goes on."
        )
        return EXIT_CODE
    except BaseException:
        _stop(running, progress)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    progress.say(progress.summary())
    if progress.counts["failed"]:
        return 1
    return EXIT_CODE if progress.counts["pre-empted"] else 0


def submit(jobs, parameters, at_a_time, cluster="slurm"):
    """Hand the jobs to a cluster as one array; returns the exit status.

    Arguments:
        jobs (list of lobes.runs.grids.Job)
        parameters (dict): Of submitit's executor.
        at_a_time (int): Jobs of the array that may run at once.
        cluster (str): ``slurm``; ``local`` is submitit's stand-in.
    """
    try:
        import submitit
    except ImportError:
        raise UserError(
            "--slurm needs submitit; install it with `pip install -e .[slurm]`"
        ) from None
    if not jobs:
        return 0
    try:
        executor = submitit.AutoExecutor(ROOT / "results" / "slurm", cluster=cluster)
        executor.update_parameters(slurm_array_parallelism=at_a_time, **parameters)
    except (RuntimeError, ValueError, TypeError, NameError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--slurm: {reason}") from error
    with executor.batch():
        submitted = [executor.submit(job) for job in jobs]
    for job, one in zip(jobs, submitted, strict=True):
        print(f"{one.job_id}  {job.member.name}")
    print("Submitted. Look at them with squeue, and with this command and --dry_run.")
    return 0


class Progress:
    """How far a grid is: a live table in a terminal, or a line for each run's end."""

    def __init__(self, total):
        self.total = total
        self.counts = collections.Counter()
        self.rows = collections.deque(maxlen=_SHOWN)
        self.started = time.monotonic()
        live = sys.stdout.isatty()
        self.live = Live(console=console(), auto_refresh=False) if live else None

    def say(self, text):
        """A line of its own."""
        # The terminal may be gone, the trainings are not.
        with contextlib.suppress(OSError):
            print(text, flush=True)

    def ended(self, job, state, reached):
        """Take note of a run's end, and of what it has reached or why it has not."""
        self.counts[state] += 1
        self.rows.append((job.member.name, state, reached))
        if not self.live:
            number = f"[{self.counts.total()}/{self.total}]"
            self.say(f"{number} {state}: {job.member.name}: {reached}")

    def show(self, running, waiting):
        """Draw the table, where there is a terminal."""
        if not self.live:
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        for row in self.rows:
            table.add_row(*map(Text, row))
        for job in running:
            table.add_row(job.member.name, "running", _how_far(job))
        line = f"{self.summary()}; {waiting} waiting"
        self.live.update(Group(table, Text(line)), refresh=True)

    def summary(self):
        """Counts by state, and the time since the start."""
        counts = [f"{n} {state}" for state, n in self.counts.items()]
        minutes = (time.monotonic() - self.started) / 60
        return f"{', '.join(counts) or 'none ended'} in {minutes:.1f} minutes"


def _collect(running, progress):
    """Take the ended ones out of ``running``."""
    for slot, job in list(running.items()):
        if job.ended():
            del running[slot]
            try:
                state, row = job.result()
                progress.ended(job, state, _reached(state, row))
            except (OSError, UserError) as error:
                progress.ended(job, "failed", str(error))


def _stop(running, progress):
    """Ask the running ones to save and end; kill them at a second Ctrl-C."""
    try:
        for job in running.values():
            job.stop()
        while running:
            _collect(running, progress)
            time.sleep(INTERVAL / 5)
    except KeyboardInterrupt:
        for job in running.values():
            job.stop(kill=True)


def _slots(count):
    """Environment of each place: with several GPUs they take turns."""
    gpus = torch.cuda.device_count()
    if gpus < 2 or count < 2:
        return [{}] * count
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",")[:gpus] if given else map(str, range(gpus))
    names = itertools.islice(itertools.cycle(names), count)
    return [{"CUDA_VISIBLE_DEVICES": name.strip()} for name in names]


def _how_far(job):
    """Steps of a running training, from the end of its progress.jsonl."""
    path = Path(job.member.output_folder) / "progress.jsonl"
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, path.stat().st_size - 2000))
            steps = re.findall(rb'"step": (\d+)', stream.read())
    except OSError:
        steps = []
    step = int(steps[-1]) if steps else 0
    seconds = time.monotonic() - job.started
    return f"step {step:,} of {job.member.steps:,}, {seconds / 60:.1f} minutes"


def _reached(state, row):
    """What a run has reached, or why it has not."""
    if row is None:
        return ""
    if state not in ledger.DONE:
        return row.get("reason") or ""
    metrics = [f"{n.upper()} {row[n]:.2f} %" for n in RATES if n in row]
    return ", ".join([*metrics, f"{row.get('seconds', 0):.0f} s"])


def _warn_of_other_settings(found, known):
    """Say which runs of the ledger were made with other defaults than today's."""
    made = {key: row["settings"] for key, row in known.items() if "settings" in row}
    other = [m for m in found if made.get(m.key, m.settings) != m.settings]
    if other:
        print(
            f"warning: {len(other)} runs of the ledger had other settings than the "
            f"YAMLs have now, the first {other[0].name!r}; they count all the same",
            file=sys.stderr,
        )


def _list(found, known, tflops, at_a_time):
    """Print every run with its state and the estimated time of those to come."""
    seconds = collections.defaultdict(list)
    for row in known.values():
        if row["state"] == "finished":
            seconds[same_but(row, {"lr"})].append(row["total_seconds"])
    rate, machine = tflops, f"on a GPU of {tflops or 0:g} TFLOP/s"
    costs, total, left = {}, 0.0, 0
    table = Table(box=None)
    for heading in ("", "run", "state", "estimate", "from"):
        table.add_column(heading, justify="right" if heading == "estimate" else "left")
    for number, member in enumerate(found, start=1):
        row = known.get(member.key, {})
        state = row.get("state", "to be run")
        same, estimate, source = same_but(vars(member), {"lr"}), 0.0, ""
        if state not in ledger.DONE:
            left += 1
            if seconds[same]:
                estimate, source = statistics.fmean(seconds[same]), "runs like it"
            else:
                if rate is None:
                    rate, machine = _rate(known)
                if same not in costs:
                    path, *words = member.arguments
                    words = [word for word in words if "=" in word]
                    costs[same] = cost.estimate(path, words)["run_flops"]
                estimate = costs[same] / (rate * 1e12)
                source = f"{rate:.3g} TFLOP/s"
            # It goes on where it was interrupted.
            estimate *= max(0.0, 1 - (row.get("steps") or 0) / member.steps)
        total += estimate
        time_left = _duration(estimate) if estimate else ""
        table.add_row(str(number), member.name, state, time_left, source)
    wide = 110 if not sys.stdout.isatty() else None
    console(width=wide).print(table)
    line = f"{len(found)} runs, {left} to be run: about {_duration(total)}"
    if at_a_time > 1:
        line += f", or {_duration(total / at_a_time)} with {at_a_time} at a time"
    print(line + f"; where no run is like it: training alone, {machine}" * bool(costs))


def _rate(known):
    """TFLOP/s to reckon with, and what they are, as words.

    What this machine did in the newest training of the ledger whose YAML is still
    there; without any, the paper's GPU.
    """
    gpu = torch.cuda.is_available()
    here = device_name(torch.device("cuda" if gpu else "cpu"))
    rows = sorted(known.values(), key=lambda row: row.get("time", ""), reverse=True)
    for row in rows:
        ours = (row["state"], row.get("device")) == ("finished", here)
        # Of a combination the ledger has the names, not the files.
        if not ours or "base" in row["changes"]:
            continue
        recipe = ROOT / "recipes" / str(row["recipe"])
        path = recipe / "hparams" / f"{row['variant']}.yaml"
        words = [f"--{key}={json.dumps(v)}" for key, v in row["changes"].items()]
        if path.is_file() and row["total_seconds"] > 0:
            with contextlib.suppress(UserError):
                flops = cost.estimate(path, words)["run_flops"]
                rate = flops / row["total_seconds"] / 1e12
                return rate, f"at the {rate:.3g} TFLOP/s of {row['variant']!r} here"
    rate = cost.MACHINES["RTX 3090"]
    words = f"on a GPU of {rate:g} TFLOP/s (RTX 3090)"
    if not gpu:
        words += "; this machine has none and takes far longer: give its --tflops"
    return rate, words


def _duration(seconds):
    """Time in the unit that suits it."""
    if 0 < seconds < 1:
        return "less than a second"
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _parameters(words):
    """``{name: value}`` of KEY=VALUE words; whole numbers as such."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--slurm: {word!r} is not KEY=VALUE")
        found[name] = int(value) if value.isdecimal() else value
    return found


if __name__ == "__main__":
    sys.exit(main())
