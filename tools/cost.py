"""Estimate what trainings cost, from their YAMLs alone: no data, weights or GPU needed.

    python tools/cost.py hparams/mtl.yaml [more YAMLs] [--tflops=71] \
        [train.py's --key=value overrides]

``lobes.runs.cost`` tells how.
"""

from collections.abc import Sequence
from pathlib import Path

from lobes.errors import ArgumentParser, user_errors_exit
from lobes.runs.cost import CARDS, MACHINES, estimate
from lobes.settings.table import POSITIVE


@user_errors_exit
def main(argv: Sequence[str] | None = None):
    """The command; see the module's docstring."""
    parser = ArgumentParser(
        description="Estimate parameters, memory, operations and hours of trainings.",
        epilog="Further options are train.py's overrides, as --key=value. The columns "
        "12 to 80 GB: the grad_accumulation_factor that fits, max_batch_samples "
        "divided by it, and the GB that takes; disk: GB of best and last checkpoint, "
        "and of the test's scores.",
    )
    parser.add_argument("yaml", nargs="+", help="YAML files of the recipes")
    parser.add_argument("--tflops", type=POSITIVE, help="sustained TFLOP/s of your GPU")
    options, overrides = parser.parse_known_args(argv)
    machines = {"GPU": options.tflops} if options.tflops else MACHINES
    hours, cards = [f"{name} h" for name in machines], [f"{card} GB" for card in CARDS]
    names = ["YAML", "parameters", "trained", "TFLOP", "frozen", *hours, *cards, "disk"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for path in options.yaml:
        cost = estimate(path, overrides)
        row = [f"`{Path(path).stem}`"]
        row += [f"{cost[name]:,}" for name in ("parameters", "trained")]
        row += [f"{cost[name] / 1e12:.3g}" for name in ("flops", "frozen_flops")]
        row += [f"{cost['run_flops'] / 3.6e15 / t:.3g}" for t in machines.values()]
        fits = cost["cards"].values()
        row += [f"{fit[0]}: {fit[1] / 1e9:.1f}" if fit else "-" for fit in fits]
        disk = 2 * cost["checkpoint"] + cost["results"]
        print(f"| {' | '.join(row)} | {disk / 1e9:.1f} |", flush=True)


if __name__ == "__main__":
    main()
