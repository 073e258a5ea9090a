"""What tools/bench.py measures; ``SECTIONS`` names its parts."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lobes.data.audio import SAMPLE_RATE
from lobes.data.trials import Trials
from lobes.evaluation.verification import (
    cosine_scores,
    equal_error_rate,
    verification_metrics,
)
from lobes.runs.command_line import RunOptions
from lobes.system.checkout import ROOT
from lobes.system.lazy import lazy
from lobes.system.machine import peak_memory
from recipes.LibriSpeech.librispeech_prepare import prepare_librispeech
from recipes.VoxCeleb.voxceleb_prepare import prepare_voxceleb

distributed = lazy("lobes.system.distributed")
flop_counter = lazy("torch.utils.flop_counter")
meters = lazy("lobes.runs.meters")
pandas = lazy("pandas")
ports = lazy("torch.distributed.elastic.utils.distributed")
sb = lazy("speechbrain")
evaluation_sets = lazy("lobes.data.evaluation_sets")
utterances = lazy("lobes.data.utterances")
corpora = lazy("tools.benchmark.corpora")
systems = lazy("tools.benchmark.systems")
torch = lazy("torch")


class Size(NamedTuple):
    """What a kind of machine can be asked."""

    seconds: float  # audio per task and step
    batches: int  # per round
    evaluated: int  # utterances
    memory: tuple[float, ...]  # audio per task where memory is measured
    scaling: float  # audio per task of all processes together
    growth: tuple[int, ...]  # utterances whose preparation is timed


SIZES = {
    "cuda": Size(200.0, 5, 128, (50.0, 100.0, 200.0), 200.0, (1_000, 10_000)),
    "base": Size(20.0, 1, 8, (10.0, 20.0, 30.0), 12.0, (1_000, 10_000, 100_000)),
    "tiny": Size(4.0, 4, 64, (2.0, 6.0), 4.0, (100, 1_000)),
}

#: Audio in a batch of evaluation: the YAMLs' valid_batch_samples.
EVALUATION_SECONDS = 200.0

#: Between an utterance's embeddings from a batch and alone it must be more.
LOWEST_COSINE = 1 - 1e-6

#: Of the transcripts so many may differ between a batch and alone on a GPU, whose
#: kernels differ with the shape: the letters of random weights are close to a tie.
OTHER_TRANSCRIPTS = 0.02

#: Utterances, and trials, of VoxCeleb1-O, -E and -H together (all cleaned).
VOXCELEB1 = 145_160, {"O": 37_611, "E": 579_818, "H": 550_894}

#: Ratios in bench.json: the one above the line, the one below, and which is better.
RATIOS = {
    "main_vs_stock": ("stock", "ours", "main"),
    "main_vs_paper": ("paper", "ours", "main"),
    "warmup_vs_stock": ("stock", "ours", "warmup"),
    "compiled_vs_stock": ("stock", "compiled", "main"),
}


# Steps ------------------------------------------------------------------------


def measure_steps(setup, options):
    """Our step, the stock one and the paper's: seconds per step of every round."""
    compared = {name: build(setup) for name, build in systems.SYSTEMS.items()}
    if options.compile:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compared["compiled"] = systems.Ours(setup.but(compile=True))
    rows, pooled, failed = [], {}, {}
    for crop in options.crop:
        cropped = setup.but(crop=crop * setup.scale)
        count = SIZES[options.kind].batches
        # On a GPU few enough for all to be warm before a step is timed.
        count *= 1 if options.kind == "cuda" else 4
        hparams, _ = systems.load(cropped)
        batches = list(systems.train_batches(cropped, hparams, count))
        if not rows:
            losses, failed = first_losses(compared, batches[0], options)
        row, seconds = one_crop(cropped, compared, batches, options)
        rows.append(row)
        for phase, values in seconds.items():
            for name, one in values.items():
                pooled.setdefault(phase, {}).setdefault(name, []).extend(one)
    ratios = {
        name: paired(pooled[phase][above], pooled[phase][below])
        for name, (above, below, phase) in RATIOS.items()
        if below in pooled[phase]
    }
    return {"losses": losses, "rows": rows, "ratios": ratios, **failed}


def one_crop(setup, compared, batches, options):
    """A row of the table for one crop length, and the seconds by phase and system."""
    count = SIZES[options.kind].batches
    row = {"crop": setup.crop}
    audio = [systems.audio_seconds(one) for one in batches]
    row["audio_seconds"] = statistics.mean(audio)
    row["flops"] = count_flops(compared["ours"], batches[0]) / audio[0]
    # The paper's warm-up is no claim of ours.
    warmed = {name: compared[name] for name in ("ours", "stock")}
    seconds = {}
    for phase, chosen in (("warmup", warmed), ("main", compared)):
        functions = {}
        for name, system in chosen.items():
            system.modules.zero_grad(set_to_none=True)
            functions[name] = run = functools.partial(
                run_steps, system, batches, count, phase == "warmup"
            )
            # Until kernels are chosen, or compiled. On CPU the first losses took a step
            # already, and one at base size takes long.
            if options.kind != "base":
                run(0)
        took = interleaved(functions, options)
        seconds[phase] = {name: [s / count for s in took[name]] for name in took}
    row["seconds"] = {
        phase: {name: summary(values) for name, values in systems_.items()}
        for phase, systems_ in seconds.items()
    }
    medians = {name: one["median"] for name, one in row["seconds"]["main"].items()}
    row["tflops"] = {
        name: row["flops"] * row["audio_seconds"] / medians[name] / 1e12
        for name in ("ours", "compiled")
        if name in medians
    }
    if "compiled" in compared:
        row["compilations"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    best = medians.get("compiled", medians["ours"])
    warmup = row["seconds"]["warmup"]["ours"]["median"]
    row["hours_of_100k"] = (10 * warmup + 90 * best) / 3.6
    return row, seconds


def run_steps(system, batches, count, frozen, number):
    """The steps of round ``number``; every round takes the next batches."""
    for place in range(number * count, (number + 1) * count):
        systems.step(system, batches[place % len(batches)], frozen)


def first_losses(compared, batches, options):
    """Losses of the first step on one batch without padding; they must be equal.

    A compiled system that fails is taken out: why, in a second dict.
    """
    batches = systems.trimmed(batches)
    losses, failed = {}, {}
    for name, system in list(compared.items()):
        try:
            losses[name] = float(systems.step(system, batches))
        except Exception as error:
            if name != "compiled":
                raise
            traceback.print_exc()
            failed = {"error": f"compiled: {type(error).__name__}: {error}"}
            del compared[name]
    tolerance = 1e-4 if options.precision == "fp32" else 2e-2
    if not np.allclose(list(losses.values()), losses["ours"], rtol=tolerance):
        raise RuntimeError(f"the systems compute different things: losses {losses}")
    return losses, failed


def count_flops(brain, batches):
    """Operations of our step, forward and back; attention counts on GPUs only."""
    counts = {torch.ops.aten.convolution_backward: meters.convolution_backward}
    encoder = brain.hparams.encoder
    encoder.freeze(False)
    with flop_counter.FlopCounterMode(display=False, custom_mapping=counts) as counter:
        with brain.training_ctx:
            given = dict(batches)
            outputs = brain.compute_forward(given, sb.Stage.TRAIN)
            loss = brain.compute_objectives(outputs, given, sb.Stage.TRAIN)
        loss.backward()
    brain.modules.zero_grad(set_to_none=True)
    return counter.get_total_flops()


# Memory -----------------------------------------------------------------------


def measure_memory(setup, options):
    """Peak memory, and step time, against the seconds of audio in a step."""
    amounts = SIZES[options.kind].memory
    points = {}
    for name in ("ours", "stock"):
        # A process per point where the peak is the process's; on a GPU it starts anew.
        groups = [amounts] if options.kind == "cuda" else [[a] for a in amounts]
        points[name] = []
        for group in groups:
            points[name] += in_new_process(memory_points, setup, name, group)
    slopes = {name: slopes_between(rows) for name, rows in points.items()}
    return {
        "points": points,
        "bytes_per_second": {n: statistics.median(s) for n, s in slopes.items()},
        "ratios": {"memory_vs_stock": paired(slopes["ours"], slopes["stock"])},
    }


def memory_points(setup, name, amounts):
    """Rows of seconds of audio (both tasks), peak bytes, and seconds of a step."""
    rows, system = [], None
    for amount in amounts:
        # As long as the audio, where that is shorter than the crop.
        one = setup.but(seconds=amount, crop=min(setup.crop, amount))
        batches = systems.plain_batches(systems.load(one)[0], one)
        system = system or systems.SYSTEMS[name](one)
        systems.step(system, batches)
        if setup.device != "cpu":
            # Now: choosing kernels may have taken memory of its own.
            torch.cuda.reset_peak_memory_stats(setup.device)
        seconds = clock(setup.device, systems.step, system, batches)
        audio = systems.audio_seconds(batches)
        *_, peak = peak_memory(torch.device(setup.device)).values()
        rows.append({"audio": audio, "peak": peak, "seconds": seconds})
    return rows


def slopes_between(rows):
    """Bytes per added second of audio between every two points."""
    return [
        (b["peak"] - a["peak"]) / (b["audio"] - a["audio"])
        for a, b in itertools.combinations(rows, 2)
    ]


def in_new_process(function, *args, ranks=1):
    """What a function returns in a process, or a list of several processes' results."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(ranks, mp_context=context) as pool:
        if ranks == 1:
            return pool.submit(function, *args).result()
        futures = [pool.submit(function, *args, rank) for rank in range(ranks)]
        return [future.result() for future in futures]


# The rest of a run ------------------------------------------------------------


def measure_loading(setup, options):
    """Audio-seconds per second that the streams give, alone."""
    setup = setup.but(workers=options.workers)
    count = 4 * SIZES[options.kind].batches
    hparams, _ = systems.load(setup)
    stream = systems.train_batches(setup, hparams, count + 1)
    with contextlib.closing(stream):
        batches = iter(stream)
        next(batches)  # Until here the reading processes start.
        start = time.perf_counter()
        audio = sum(systems.audio_seconds(next(batches)) for _ in range(count))
        seconds = time.perf_counter() - start
    return {"workers": options.workers, "audio_per_second": audio / seconds}


def measure_evaluation(setup, options):
    """Utterances per second in batches and one at a time, and that they are equal."""
    count = SIZES[options.kind].evaluated
    lists = {}
    for task, corpus in (("speech", "LibriSpeech"), ("speaker", "VoxCeleb")):
        source = Path(setup.folder, "prepared", corpus, "train.csv")
        lists[task] = source.with_name("evaluated.csv")
        table = pandas.read_csv(source, dtype=str, keep_default_na=False)
        table.head(count).to_csv(lists[task], index=False)
    brain = systems.Ours(setup)
    seconds = EVALUATION_SECONDS * setup.scale
    budgets = {"batched": round(seconds * SAMPLE_RATE), "single": None}
    with float32_products():
        found = {name: evaluate(brain, lists, b) for name, b in budgets.items()}
    took = interleaved(
        {
            name: lambda _, budget=budget: evaluate(brain, lists, budget)
            for name, budget in budgets.items()
        },
        options,
    )
    batched, single = found.values()
    utterances = sum(map(len, single.values()))
    cosines = []
    for key in single["speaker"]:
        a, b = (one["speaker"][key].astype(np.float64) for one in (batched, single))
        cosines.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    pairs = [(batched["speech"][key], one) for key, one in single["speech"].items()]
    others = sum(one[1] != other[1] for one, other in pairs)
    measured = {
        "utterances": utterances,
        "batch_seconds": seconds,
        "utterances_per_second": {
            name: utterances / statistics.median(values)
            for name, values in took.items()
        },
        "lowest_cosine": min(cosines),
        "other_transcripts": others,
        "ratios": {"evaluation_vs_single": paired(took["single"], took["batched"])},
    }
    cuda = torch.device(options.device).type == "cuda"
    allowed = OTHER_TRANSCRIPTS * len(pairs) if cuda else 0
    if others > allowed or min(cosines) <= LOWEST_COSINE:
        measured["error"] = "batches give other transcripts or embeddings than one"
    return measured


@contextlib.contextmanager
def float32_products():
    """Without TF32, which SpeechBrain allows and whose rounding hides equality."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def evaluate(brain, lists, budget):
    """What the tasks collected of every utterance, read from disk."""
    labels = {"speech": {"letters": brain.hparams.letters}, "speaker": {}}
    collected = {}
    for task, csv in lists.items():
        one = evaluation_sets.EvaluationSet(csv, labels[task], max_batch_samples=budget)
        one.open()
        stream = evaluation_sets.EvaluationStream([(task, one)])
        brain.evaluate(stream, progressbar=False)
        collected[task] = dict(brain.tasks[task].collected)
    return collected


def measure_scoring(setup, options):
    """Scores and metrics of VoxCeleb1's three lists, and the EER against trials."""
    random = np.random.default_rng(2)
    utterances, lists = VOXCELEB1
    width = 768 if setup.size == "base" else 32
    if setup.size == "tiny":
        utterances, lists = 2000, {"O": 5000, "E": 10_000, "H": 10_000}
    ids = [f"id{number:06d}" for number in range(utterances)]
    speakers = random.integers(1251, size=utterances)
    centres = random.normal(size=(1251, width)).astype(np.float32)
    embeddings = random.normal(size=(utterances, width)).astype(np.float32)
    embeddings += centres[speakers] / 4
    seconds = {}
    for name, count in lists.items():
        sides = random.integers(utterances, size=(2, count))
        sides[1, ::100] = sides[0, ::100]
        trials = Trials(
            speakers[sides[0]] == speakers[sides[1]],
            *([ids[i] for i in side] for side in sides),
        )
        start = time.perf_counter()
        scores = cosine_scores(trials, (ids, embeddings))
        middle = time.perf_counter()
        verification_metrics(scores, trials.labels)
        seconds[name] = [middle - start, time.perf_counter() - middle]
    total = sum(map(sum, seconds.values()))
    trials = sum(lists.values())
    growth = []
    for count in (trials // 100, trials // 10, trials):
        labels = random.random(count) < 0.5
        scores = random.normal(size=count) + labels
        took = clock("cpu", equal_error_rate, scores, labels)
        growth.append({"trials": count, "seconds": took})
    return {
        "utterances": utterances,
        "trials": trials,
        "seconds_scores_and_metrics": seconds,
        "seconds": total,
        "trials_per_second": trials / total,
        "eer_growth": growth,
    }


def measure_preparation(setup, options):
    """Utterances per second prepared whole and by header; CSV load against rows.

    The latter only if the part was asked for: the others do not need it.
    """
    folder = Path(setup.folder)
    prepare = {
        "LibriSpeech": lambda to, **how: prepare_librispeech(
            folder / "LibriSpeech", to, tr_splits=["train-clean-100"], **how
        ),
        "VoxCeleb": lambda to, **how: prepare_voxceleb(
            folder / "VoxCeleb2", None, to, valid_fraction=0.1, **how
        ),
    }
    rows, count = [], options.utterances
    for corpus, function in prepare.items():
        full = _quietly(function, folder / "prepared" / corpus)
        header = _quietly(function, folder / "headers" / corpus, header_only=True)
        row = {"corpus": corpus, "utterances": count}
        rows.append(row | {"full": count / full, "header_only": count / header})
    growth = []
    if "preparation" not in options.only:
        return {"rows": rows, "growth": growth}
    source = folder / "prepared" / "LibriSpeech" / "train.csv"
    table = pandas.read_csv(source, dtype=str, keep_default_na=False)
    labels = {"letters": systems.load(setup)[0]["letters"]}
    for count in SIZES[options.kind].growth:
        repeated = table.iloc[np.arange(count) % len(table)].copy()
        repeated["ID"] = [f"{number}" for number in range(count)]
        path = source.with_name(f"{count}.csv")
        repeated.to_csv(path, index=False)
        row = {"utterances": count}
        row["csv_load"] = clock("cpu", utterances.Utterances, path, labels)
        tree, random = folder / f"tree-{count}", np.random.default_rng(3)
        corpora.write_voxceleb(tree, random, count, setup.scale, sources=8)
        how = {"valid_fraction": 0.1, "header_only": True}
        row["header_only"] = _quietly(prepare_voxceleb, tree, None, tree / "csv", **how)
        shutil.rmtree(tree)
        growth.append(row)
    return {"rows": rows, "growth": growth}


def _quietly(prepare, *args, **how):
    """Seconds that a preparation takes, whose reports do not reach the terminal."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            return clock("cpu", prepare, *args, **how)


STARTUP = """
import sys, time
times = [time.perf_counter()]
from lobes.training.brain import SpeechSpeakerBrain
from lobes.runs.command_line import parse_arguments
times.append(time.perf_counter())
hparams, run_opts, _ = parse_arguments(sys.argv[1:])
times.append(time.perf_counter())
SpeechSpeakerBrain(hparams, run_opts)
times.append(time.perf_counter())
print(*[after - before for before, after in zip(times, times[1:])])
"""


def measure_startup(setup, options):
    """Seconds until a Brain stands: import, YAML with its encoder, Brain; in all."""
    command = [sys.executable, "-c", STARTUP, *systems.arguments(setup)]
    rows = []
    for _ in range(1 if options.kind == "cuda" else min(options.rounds, 3)):
        start = time.perf_counter()
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        total = time.perf_counter() - start
        rows.append([*map(float, output.split()[-3:]), total])
    names = ("import", "yaml", "brain", "total")
    return dict(zip(names, np.median(rows, axis=0).tolist(), strict=True))


def measure_scaling(setup, options):
    """Two processes against one with the same utterances in a step.

    On CPU over gloo with a thread each; on GPUs over nccl, where there are two. Two
    that exchange nothing show what the machine itself loses.
    """
    cuda = torch.device(options.device).type == "cuda"
    if cuda and torch.cuda.device_count() < 2:
        return {"skipped": "two GPUs are needed"}
    amount = SIZES[options.kind].scaling
    setup = setup.but(
        seconds=amount,
        crop=min(setup.crop, amount / 2),  # one for each process
        device="cuda" if cuda else "cpu",
        threads=1,
    )
    ways = {"one": (1, False), "two": (2, True), "two apart": (2, False)}
    seconds = {name: [] for name in ways}
    for _ in range(min(options.rounds, 2)):
        for name, (ranks, joined) in ways.items():
            port = ports.get_free_port() if joined else None
            args = setup, ranks, port, options.rounds
            found = in_new_process(scaling_steps, *args, ranks=ranks)
            # A step has ended when it has on every rank.
            found = [found] if ranks == 1 else found
            steps = [max(one) for one in zip(*found, strict=True)]
            seconds[name].append(statistics.median(steps))
    one, *others = seconds.values()
    two, apart = ([2 * value for value in values] for values in others)
    return {
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "ratios": {
            "efficiency_of_two": paired(one, two),
            "efficiency_of_two_apart": paired(one, apart),
        },
    }


def scaling_steps(setup, ranks, port, rounds, rank=0):
    """Seconds of some steps on one rank after two others; no port: on its own."""
    if port is not None:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
        }
        backend = "nccl" if setup.device == "cuda" else "gloo"
        distributed.join_processes(RunOptions(distributed_backend=backend))
    if setup.device == "cuda":
        # Without a number SpeechBrain would take the first one in every process.
        setup = setup.but(device=f"cuda:{rank}")
    hparams, _ = systems.load(setup)
    batches = systems.share(systems.plain_batches(hparams, setup), rank, ranks)
    brain = systems.Ours(setup)
    # In the first ones memory is touched for the first time.
    for _ in range(2):
        systems.step(brain, batches)
    steps = 3 if setup.size == "base" and setup.device == "cpu" else rounds
    return [clock(setup.device, systems.step, brain, batches) for _ in range(steps)]


# Measuring and showing --------------------------------------------------------


def clock(device, function, *args, **options):
    """Seconds that a call takes until the device is done."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function(*args, **options)
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def interleaved(functions, options):
    """Seconds of every function, called with the round's number, in every round.

    The first of a round is another one each time.
    """
    names, seconds = list(functions), {name: [] for name in functions}
    for number in range(options.rounds):
        for name in names:
            seconds[name].append(clock(options.device, functions[name], number))
        names.append(names.pop(0))
    return seconds


def paired(above, below):
    """``summary`` of the quotients round by round."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def summary(values):
    """Least, middle and greatest."""
    median = statistics.median(values)
    return {"min": min(values), "median": median, "max": max(values)}


SECTIONS = {
    "preparation": measure_preparation,
    "steps": measure_steps,
    "memory": measure_memory,
    "loading": measure_loading,
    "evaluation": measure_evaluation,
    "scoring": measure_scoring,
    "startup": measure_startup,
    "scaling": measure_scaling,
}
