"""Grids of trainings: variants times values, each a command line of train.py.

A grid's YAML names runs by recipe, the values to go through, and what all share:

    runs:
        LibriSpeech_VoxCeleb/MTL:
            dynamic: hparams/mtl.yaml
            static: hparams/static_0.5_9s.yaml --max_grad_norm=1
    axes: {lr: [1.0e-5, 1.0e-4], seed: [1, 2, 3]}
    options: --precision=bf16

``lr: log:1e-6:1e-3`` is a range to draw from, as are ``lin:`` and ``int:``.
"""

import copy
import dataclasses
import functools
import itertools
import json
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from lobes.errors import UserError
from lobes.runs import ledger
from lobes.runs.command_line import recipe_folder, resolve
from lobes.runs.variants import load_variant, placeholders
from lobes.settings import yamls
from lobes.system.checkout import ROOT
from lobes.system.locks import lock_file
from lobes.system.preemption import EXIT_CODE

#: More runs than this are taken for a mistake.
MANY = 1000

_RANGE = re.compile(r"(log|lin|int):([^:]+):([^:]+)")


@dataclasses.dataclass(frozen=True)
class Grid:
    """Runs by name, each the words after ``train.py``; values by setting; options."""

    runs: dict[str, list[str]]
    axes: dict[str, list[str]]
    options: list[str]


@dataclasses.dataclass(frozen=True)
class Member:
    """One training of a grid.

    ``arguments`` follow ``script``; ``values`` are those of the grid's axes;
    ``settings`` is ``ledger.settings_hash``; ``key`` is ``ledger.key``.
    """

    run: str
    values: dict[str, str]
    script: str
    arguments: tuple[str, ...]
    recipe: str
    variant: str
    changes: dict
    seed: int
    lr: float
    steps: int
    settings: str
    output_folder: str

    @property
    def key(self) -> str:
        """What tells it from others in a ledger."""
        return ledger.key(vars(self))

    @property
    def name(self) -> str:
        """The run's name and the values of its axes."""
        return ", ".join([self.run, *(f"{k}={v}" for k, v in self.values.items())])

    def command(self, ledger_path: str | Path) -> list[str]:
        """The command line, as a list of words."""
        own = [f"--ledger={Path(ledger_path).resolve()}", "--noprogressbar"]
        given = [word for word in self.arguments if word not in own]
        return [sys.executable, self.script, *given, *own]


def read_grid(
    paths: Iterable[str],
    overrides: Iterable[str] = (),
    only: Sequence[str] | None = None,
) -> Grid:
    """The grid that some files and a command line name.

    Arguments:
        paths: Grids, and YAML files of recipes, each of which is a run of its name.
        overrides: ``--key=value`` for all runs, those about a corpus for the runs that
            have it; several values, ``--key=a,b`` or a range, are an axis and replace
            that of a file. Flags are run options of train.py.
        only: Names of the runs that are wanted; None for all.

    Raises ``UserError`` for files and words that are not like this.
    """
    runs, axes, options = {}, {}, []
    for path in map(Path, paths):
        tree = _read(path)
        if "runs" not in tree:
            _add(runs, path, path.stem, [str(path.resolve())])
            continue
        unknown = tree.keys() - {"runs", "axes", "options"}
        if unknown:
            raise UserError(
                f"{path}: {', '.join(sorted(map(str, unknown)))} is no part of a grid; "
                "it has runs, axes and options"
            )
        shared = _words(path, "options", tree.get("options") or "")
        for recipe, named in _mapping(path, "runs", tree["runs"]).items():
            folder = ROOT / "recipes" / recipe
            if not (folder / "train.py").is_file():
                raise UserError(f"{path}: runs: {recipe} is no recipe with a train.py")
            for name, words in _mapping(path, recipe, named).items():
                where = f"runs: {recipe}: {name}"
                words = _words(path, where, words)
                if not words or words[0].startswith("-"):
                    raise UserError(
                        f"{path}: {where} must begin with a YAML file of {recipe}, not "
                        f"{' '.join(words) or 'be empty'}"
                    )
                _add(runs, path, name, [*_absolute(folder, words), *shared])
        for name, values in _mapping(path, "axes", tree.get("axes") or {}).items():
            values = values if isinstance(values, list) else [values]
            axes[str(name)] = [_axis_text(path, name, value) for value in values]
            if not values:
                raise UserError(f"{path}: axes: {name} has no values; give some")
    for word in overrides:
        if not word.startswith("--"):
            raise UserError(f"{word!r} is neither a file nor --key=value")
        name, equals, text = word[2:].partition("=")
        values = _values(text) if equals else []
        if len(values) > 1 or (values and _RANGE.fullmatch(values[0])):
            axes[name] = values
        else:
            # The last one of a name wins in train.py; an axis would hide it.
            axes.pop(name, None)
            options.append(word)
    if only:
        missing = [name for name in only if name not in runs]
        if missing:
            raise UserError(f"--only: no run {missing[0]!r}; there are {list(runs)}")
        runs = {name: runs[name] for name in only}
    return Grid(runs, axes, options)


def members(
    grid: Grid,
    draws: int | None = None,
    draw_seed: int = 0,
    fill: bool = False,
    many: bool = False,
) -> list[Member]:
    """All trainings of a grid, checked as far as that goes without corpora.

    Arguments:
        draws :: So many random values of the axes (each seed has the same), not all.
        fill :: Take what is still to be given, such as folders, as given.
        many :: Whether there may be more than ``MANY``.

    Raises ``UserError`` for an unknown setting or a wrong value, and for two members
    that are the same training or would write to the same folder.
    """
    load = functools.cache(load_variant)
    found, keys, folders = [], {}, {}
    points = _points(grid.axes, draws, draw_seed)
    for word in filter(_other_corpus, grid.options):
        # Left out where a recipe has not that corpus, it must be known to one.
        if not any(_has(load(words[0], None)[0], word) for words in grid.runs.values()):
            raise UserError(f"{word} is a setting of none of the runs")
    count = len(grid.runs) * len(points)
    if count > MANY and not many:
        raise UserError(f"the grid has {count:,} runs; give --many if that is meant")
    for run, words in grid.runs.items():
        for values in points:
            given = [f"--{name}={value}" for name, value in values.items()]
            member = _member(run, values, [*words, *grid.options, *given], load, fill)
            for known, mark, what in (
                (keys, member.key, "are the same training"),
                (folders, member.output_folder, f"write to {member.output_folder}"),
            ):
                other = known.setdefault(mark, member)
                if other is not member:
                    raise UserError(
                        f"{other.name!r} and {member.name!r} {what}; change or remove "
                        "one of them"
                    )
            found.append(member)
    return found


def _member(run, values, words, load, fill):
    """One training, its command line resolved."""
    path, *overrides = words
    # The last of several words about one setting counts, as in train.py.
    given = {_name(word): word for word in overrides}
    base = given["base"].partition("=")[2] if "base" in given else None
    tree = load(path, base)[0]
    kept = [w for w in given.values() if not _other_corpus(w) or _has(tree, w)]
    arguments = [path, *kept]
    empty = [key for key in placeholders(tree) if fill and key not in given]
    changes = dict.fromkeys(empty, "unused")
    try:
        _, end, tree, origin, _ = resolve(
            arguments, changes, lambda *names: copy.deepcopy(load(*names))
        )
    except UserError as error:
        name = ", ".join([run, *(f"{k}={v}" for k, v in values.items())])
        raise UserError(f"{name}: {error}") from error
    return Member(
        run=run,
        values=values,
        script=str(recipe_folder(end) / "train.py"),
        arguments=tuple(arguments),
        **origin,
        seed=tree["seed"],
        lr=float(tree["lr"]),
        steps=tree["steps"],
        settings=ledger.settings_hash(tree),
        output_folder=str(tree["output_folder"]),
    )


def _name(word):
    """The setting that a word is about."""
    return word[2:].partition("=")[0]


def _has(tree, word):
    """Whether a tree has the top-level key that a word is about."""
    return _name(word).partition(".")[0] in tree


def _other_corpus(word):
    """Whether a word is about one of the corpora, which not every recipe has."""
    return _name(word).startswith(("librispeech", "voxceleb"))


def _points(axes, draws, draw_seed):
    """The values to go through: dicts of text by setting."""
    ranges = [n for n, values in axes.items() if any(map(_RANGE.fullmatch, values))]
    if draws is None:
        if ranges:
            raise UserError(f"{ranges[0]} is a range; say how many to draw: --random N")
        combinations = itertools.product(*axes.values())
        return [dict(zip(axes, values, strict=True)) for values in combinations]
    if draws < 1:
        raise UserError(f"--random must be at least 1, not {draws}")
    seeds = [{"seed": seed} for seed in axes.get("seed", ())] or [{}]
    drawn = {name: values for name, values in axes.items() if name != "seed"}
    if not drawn:
        raise UserError("--random needs an axis to draw from, say --lr=log:1e-6:1e-3")
    generator, points = random.Random(draw_seed), {}
    for _ in range(100 * draws):
        values = {
            name: _draw(name, generator.choice(v), generator)
            for name, v in drawn.items()
        }
        points.setdefault(json.dumps(values), values)
        if len(points) == draws:
            break
    else:
        raise UserError(f"--random: there are only {len(points)} different values")
    return [{**values, **seed} for values in points.values() for seed in seeds]


def _draw(name, text, generator):
    """A value of a range with three digits; anything else as it is."""
    found = _RANGE.fullmatch(text)
    if not found:
        return text
    try:
        low, high = float(found[2]), float(found[3])
        if not (-math.inf < low < high < math.inf and (found[1] != "log" or low > 0)):
            raise ValueError
        if found[1] == "int" and math.ceil(low) > math.floor(high):
            raise ValueError
    except ValueError:
        kind = {"int": " with a whole number in it", "log": " above 0"}
        raise UserError(
            f"{name}: {text} is no range from low to high{kind.get(found[1], '')}"
        ) from None
    if found[1] == "int":
        return str(generator.randint(math.ceil(low), math.floor(high)))
    if found[1] == "log":
        return f"{math.exp(generator.uniform(math.log(low), math.log(high))):.3g}"
    return f"{generator.uniform(low, high):.3g}"


def _values(text):
    """The values between commas; those within brackets do not part."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _read(path):
    """A YAML as plain values; of a recipe's YAML only its keys matter."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a grid or a recipe's YAML file")
    return yamls.read(path, "name a grid or a recipe's YAML file")


def _words(path, name, text):
    """The words of a command line in a grid's YAML, as a shell parts them."""
    if not isinstance(text, str):
        raise UserError(
            f"{path}: {name} must be text, words of a command line, not {text!r}"
        )
    try:
        return shlex.split(text)
    except ValueError as error:
        reason = str(error).lower()
        raise UserError(f"{path}: {name}: {reason} in {text!r}") from error


def _axis_text(path, name, value):
    """A value of an axis as the command line has it."""
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return json.dumps(value)
    if not isinstance(value, str | int | float):
        raise UserError(f"{path}: axes: {name}: {value!r} is no value of a setting")
    return str(value)


def _mapping(path, name, node):
    """``node``, which must be a mapping of names."""
    if not isinstance(node, dict):
        raise UserError(f"{path}: {name} must be a mapping of names, not {node!r}")
    for key in node:
        if not isinstance(key, str):
            raise UserError(f"{path}: {name}: {key!r} is no name; put it into quotes")
    return node


def _add(runs, path, name, words):
    """Add a run; its name must be new."""
    if name in runs:
        raise UserError(f"{path}: the run {name!r} stands twice; give it another name")
    runs[str(name)] = words


def _absolute(folder, words):
    """The YAML and its ``--base``, named relative to the recipe's folder."""
    first, *rest = words
    prefix = "--base="
    for place, word in enumerate(rest):
        if word.startswith(prefix):
            names = word.removeprefix(prefix).split("+")
            rest[place] = prefix + "+".join(str(folder / name) for name in names)
    return [str(folder / first), *rest]


# Running ------------------------------------------------------------------------


class Job:
    """One member's training in a process of its own; submitit can run it, too.

    Arguments:
        member (Member)
        ledger_path (str or Path)
        environment (dict): Further environment variables.
    """

    def __init__(self, member, ledger_path, environment=None):
        self.member = member
        self.ledger_path = str(ledger_path)
        self.environment = environment or {}
        self.process = self.lock = None

    @property
    def log(self) -> Path:
        """What the training prints."""
        return Path(self.member.output_folder) / "grid.txt"

    def start(self) -> bool:
        """Begin or continue it; False when another grid is running it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.log.parent / ".grid.lock", "a", encoding="utf-8")
        try:
            if not lock_file(self.lock):
                return False
            self.started = time.monotonic()
            with open(self.log, "ab") as stream:
                self.process = subprocess.Popen(
                    self.member.command(self.ledger_path),
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self.environment},
                    # Ctrl-C is for the grid, which then asks its trainings to stop.
                    start_new_session=True,
                )
            return True
        finally:
            if self.process is None:
                self.lock.close()

    def ended(self) -> bool:
        """Whether it has ended; does not wait."""
        if self.process.poll() is None:
            return False
        self.lock.close()
        return True

    def stop(self, kill: bool = False) -> None:
        """Ask it to save its state and to end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

    def result(self) -> tuple[str, ledger.Row | None]:
        """State and ledger row of a process that has ended."""
        code = self.process.returncode
        row = latest(self.ledger_path, report=False).get(self.member.key)
        if code == 0 and row is not None:
            return row["state"], row
        if code == EXIT_CODE or code == -signal.SIGTERM:
            return "pre-empted", row
        if row is not None and row["state"] == "diverged":
            return "diverged", row
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "")
        return "failed", {**(row or {}), "reason": f"exit code {code}: {last}"}

    # What submitit needs.

    def __call__(self):
        """Run it to its end on a cluster's machine; returns its state."""
        row = latest(self.ledger_path).get(self.member.key)
        if row is not None and row["state"] in ledger.DONE:
            return row["state"]
        if not self.start():
            return "elsewhere"
        while not self.ended():
            time.sleep(1)
        state, row = self.result()
        if state == "failed":
            raise RuntimeError(f"{self.member.name}: {row['reason']} (see {self.log})")
        return state

    def checkpoint(self):
        """The cluster wants its machine back: stop, and queue again."""
        import submitit

        self.stop()
        # poll() may be what the signal has interrupted: it must not be entered again.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        again = Job(self.member, self.ledger_path, self.environment)
        return submitit.helpers.DelayedSubmission(again)


def latest(ledger_path: str | Path, report: bool = True) -> dict[str, ledger.Row]:
    """The training that counts of every run in a ledger, by ``ledger.key``."""
    return ledger.trainings(ledger.read(ledger_path, report))


def same_but(row: ledger.Row, ignored: Collection[str]) -> str:
    """Recipe, variant and changes as text, without the changes of some settings."""
    kept = {k: v for k, v in row["changes"].items() if k not in ignored}
    return ledger.key({**row, "changes": kept, "seed": None})
