"""Measure this project side by side with what a user would run instead.

    python tools/bench.py [--size=base] [--device=cpu] [--only steps memory]

Three training steps are compared: ours, SpeechBrain's stock one and the paper's
(tools/benchmark/systems.py). They take turns in one process, so that a busy machine is
as busy for all. Also measured are memory, data loading, evaluation, scoring,
preparation, start-up, and two processes against one. Tables are printed; results/bench
gets bench.json, written anew after every part, and bench.png. When a part fails it is
reported, the others are measured, and the exit status is 1.
"""

import argparse
import gc
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

from lobes.errors import ArgumentParser, UserError, user_errors_exit
from lobes.settings.table import COUNT, PATH, POSITIVE, option
from lobes.system.checkout import ROOT, commit
from lobes.system.files import write_atomically
from lobes.system.lazy import lazy
from lobes.system.machine import memory, processor, usable_cores
from tools.benchmark.measures import SECTIONS, SIZES, clock
from tools.benchmark.tables import draw, errors, report

pandas = lazy("pandas")
corpora = lazy("tools.benchmark.corpora")
systems = lazy("tools.benchmark.systems")
torch = lazy("torch")

#: Goals by device and size, for the machine and configuration they were set for.
GOALS = {
    ("cpu", "base"): {
        "main_vs_stock": 1.15,
        "main_vs_paper": 1.5,
        "warmup_vs_stock": 2.5,
        "memory_vs_stock": 0.55,
    },
    ("cpu", "tiny"): {"evaluation_vs_single": 3.0},
    ("cuda", "base"): {
        "main_vs_stock": 1.5,
        "main_vs_paper": 2.0,
        "compiled_vs_stock": 1.5,
        "steps_per_second": 10.0,
        "fraction_of_peak": 0.35,
        "peak_gb": 16.0,
        "hours_of_100k": 3.0,
    },
}

#: Where less is better; the others are to be reached.
AT_MOST = "memory_vs_stock", "peak_gb", "hours_of_100k"


@user_errors_exit
def main(argv=None):
    """The command; see the module's docstring."""
    options = parse(argv)
    started = time.perf_counter()
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(options), "options": vars(options), "ratios": {}}
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        given = ("size", "device", "precision", "seconds", "threads")
        setup = systems.Setup(work, **{name: getattr(options, name) for name in given})
        setup = setup.but(crop=options.crop[0] * setup.scale)
        corpora.prepare(setup, options.utterances)
        # First the preparation: the others read what it writes.
        others = [name for name in options.only if name != "preparation"]
        for name in ["preparation", *others]:
            begun = time.perf_counter()
            found[name] = attempt(SECTIONS[name], setup, options)
            found["ratios"].update(found[name].pop("ratios", {}))
            found["goals"] = judged(found)
            found["seconds"] = time.perf_counter() - started
            write_atomically(folder / "bench.json", json.dumps(found, indent=2) + "\n")
            took = time.perf_counter() - begun
            print(f"{name}: {took:.0f} s", file=sys.stderr, flush=True)
            gc.collect()
            # For the processes that measure memory.
            torch.cuda.empty_cache()
    draw(found, folder / "bench.png")
    print(report(found))
    print(f"\n{folder / 'bench.json'}")
    if errors(found):
        sys.exit(1)


def attempt(measure, setup, options):
    """What a part measured, or ``{"error": why not}``."""
    try:
        return measure(setup, options)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def judged(found):
    """Rows of every figure that has a goal here: name, figure, goal and whether met."""
    options = found["options"]
    kind = torch.device(options["device"]).type
    goals = GOALS.get((kind, options["size"]), {})
    rows = []
    for name, where, value in _figures(found):
        if name in goals:
            less, goal = name in AT_MOST, goals[name]
            row = {"name": f"{name}{where}", "figure": value}
            row["goal"] = f"{'<=' if less else '>='} {goal:g}"
            rows.append(row | {"met": value <= goal if less else value >= goal})
    return rows


def _figures(found):
    """Names, what they hold for, and values of all that may have a goal."""
    for name, one in found["ratios"].items():
        yield name, "", one["median"]
    for row in found.get("steps", {}).get("rows", []):
        where = f", crop {row['crop']:g} s"
        for name, one in row["seconds"]["main"].items():
            if name in ("ours", "compiled"):
                yield "steps_per_second", f", {name}{where}", 1 / one["median"]
        if "compiled" in row["tflops"]:
            share = row["tflops"]["compiled"] / found["machine"]["peak_tflops"]
            yield "fraction_of_peak", f", compiled{where}", share
        yield "hours_of_100k", where, row["hours_of_100k"]
    for row in found.get("memory", {}).get("points", {}).get("ours", [])[-1:]:
        yield "peak_gb", f", {row['audio']:.0f} s of audio", row["peak"] / 1e9


def parse(argv):
    """The options, with this machine's and size's values where none are given."""
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    compiled = "our step with a compiled encoder, too (default: on cuda)"
    flag, output = argparse.BooleanOptionalAction, str(ROOT / "results" / "bench")
    crop = {"type": POSITIVE, "nargs": "+", "default": [3.0, 9.0]}
    only = {"nargs": "+", "choices": SECTIONS, "default": list(SECTIONS)}
    for name, settings, text in (
        ("size", {"choices": ("tiny", "base"), "default": "base"}, None),
        ("device", {"default": "cpu"}, "cpu, cuda or cuda:N"),
        ("precision", {}, "default: fp32, on cuda bf16"),
        ("compile", {"action": flag}, compiled),
        ("crop", crop, "seconds of a speaker crop; tiny takes a tenth (default: 3 9)"),
        ("seconds", {"type": POSITIVE}, "audio per task and step"),
        ("rounds", {"type": COUNT, "default": 5}, None),
        ("threads", {"type": option("threads")}, "CPU threads of torch"),
        ("workers", {"type": option("num_workers")}, "reading processes per task"),
        ("only", only, None),
        ("output", {"type": PATH, "default": output}, None),
        ("work", {"type": PATH}, "folder for the made-up corpora, removed again"),
    ):
        parser.add_argument(f"--{name}", **settings, help=text)
    options = parser.parse_args(argv)
    cuda = torch.device(options.device).type == "cuda"
    if cuda and not torch.cuda.is_available():
        raise UserError(f"--device={options.device}: torch finds no GPU; use cpu")
    options.kind = "cuda" if cuda and options.size == "base" else options.size
    defaults = {
        "precision": "bf16" if cuda else "fp32",
        "compile": cuda,
        "seconds": SIZES[options.kind].seconds,
        "threads": torch.get_num_threads(),
        "workers": 4 if cuda else 1,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.utterances = max(96, round(20 * options.seconds / 12))
    torch.set_num_threads(options.threads)
    return options


def machine(options):
    """What the figures depend on: processor, memory, GPU, versions, commit."""
    described = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": processor(),
        "cores": usable_cores(),
        "threads": options.threads,
        "memory": f"{memory() // 1024} kB",
    }
    if torch.device(options.device).type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(options.device)
        described["cuda"] = torch.version.cuda
    for name in ("torch", "transformers", "speechbrain", "numpy"):
        described[name] = importlib.metadata.version(name)
    return {**described, "commit": commit(), "peak_tflops": matmul_peak(options)}


def matmul_peak(options):
    """TFLOP/s of a large matrix product in the steps' precision, the best of ten."""
    names = {"bf16": torch.bfloat16, "fp16": torch.float16}
    n = 8192 if torch.device(options.device).type == "cuda" else 1024
    dtype = names.get(options.precision, torch.float32)
    a = torch.randn(n, n, device=options.device).to(dtype)
    seconds = [clock(options.device, torch.matmul, a, a) for _ in range(11)]
    return 2 * n**3 / min(seconds[1:]) / 1e12


if __name__ == "__main__":
    main()
