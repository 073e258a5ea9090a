"""The one table of settings: kind, range and unit of every key, and what it counts for.

``SETTINGS`` has a row for each key of the project's YAMLs, and for SpeechBrain's run
options that take a value. ``check_file`` looks at the values of one file, ``parse`` at
one of the command line; both raise ``UserError`` before anything is built. A key that
is in no row is a user's own: it may hold anything.
"""

import argparse
import dataclasses
import difflib
import math
import os
import re
from pathlib import Path

from ruamel.yaml.comments import TaggedScalar

from lobes.errors import UserError
from lobes.settings import yamls

#: Reading processes of one stream at most.
MOST_WORKERS = 256

#: What torch and numpy keep apart: beyond it SpeechBrain takes the seed 0.
LARGEST_SEED = 2**32 - 1

#: More than this is a mistake in any count here (a week of audio has 1e10 samples).
MANY = 10**10

#: Words that YAML 1.1 reads as True, False or null, and YAML 1.2 as text.
_OLD_FLAGS = {"yes", "no", "on", "off", "y", "n", "true", "false"}
_OLD_NULLS = {"none", "null", "nil", "~"}
_NULL = {"null", "Null", "NULL"}

#: Tags that HyperPyYAML and ``lobes.runs.experiment`` understand.
_TAGS = re.compile(
    r"!(ref|copy|PLACEHOLDER|beside|tuple)|!(new|name|module|apply|applyref|include):.+"
    r"|tag:yaml\.org,2002:.+"
)
_TUPLE = re.compile(r"\(.*\)")
_REFERENCE = re.compile(r"<[^<>]*>")

#: The arguments of objects whose tag begins so have rows; others are a user's own.
_OURS = re.compile(r"!(new|apply|name):(lobes|speechbrain|torch\.optim)\.|!include:")


# Kinds ---------------------------------------------------------------------------


class Wrong(ValueError):
    """A value is not of its kind; the message may say what to write."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value may be. ``str(kind)`` says it, after "must be".

    ``check(value)`` returns the value of a YAML as it is to be used and
    ``parse(text)`` that of a command line; both raise ``Wrong``. A kind is a ``type``
    for argparse, too.
    """

    def check(self, value):
        """The value."""
        return value

    def parse(self, text):
        """The value of a YAML text."""
        try:
            value = yamls.value(text)
        except ValueError as error:
            raise Wrong from error
        return self.check(value)

    def __call__(self, text):
        try:
            return self.parse(text)
        except Wrong:
            raise argparse.ArgumentTypeError(
                f"must be {self}, not {shown(text)}"
            ) from None


@dataclasses.dataclass(frozen=True)
class Flag(Kind):
    """True or False, and no word that another YAML would take for it."""

    def __str__(self):
        return "True or False"

    def check(self, value):
        """A bool."""
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _OLD_FLAGS | _OLD_NULLS:
            raise Wrong("write True or False, without quotes")
        raise Wrong


@dataclasses.dataclass(frozen=True)
class Number(Kind):
    """A finite number in a range; ``above`` and ``below`` are not part of it."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    name = "a number"

    def __str__(self):
        start, to = "", ", at most"
        if self.low is not None:
            start, to = f" from {_short(self.low)}", " to"
        elif self.above is not None:
            start = f" above {_short(self.above)}"
        end = "" if self.high is None else f"{to} {_short(self.high)}"
        if self.below is not None:
            end = f", below {_short(self.below)}"
        return f"{self.name}{start}{end}"

    def check(self, value):
        """A number within the range."""
        value = self._number(value)
        if not (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        ):
            raise Wrong
        return value

    def _number(self, value):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Wrong
        # Not math.isfinite, which a whole number of 400 digits overflows.
        if isinstance(value, float) and not math.isfinite(value):
            raise Wrong
        return value

    def parse(self, text):
        """The number that a text is; it is a float where it may be one."""
        try:
            value = float(text)
        except ValueError:
            # Also what only YAML takes for a number, such as 0x10.
            return super().parse(text)
        return self.check(value)


@dataclasses.dataclass(frozen=True)
class Whole(Number):
    """A whole number in a range; 1e5 is one."""

    name = "a whole number"

    def _number(self, value):
        value = super()._number(value)
        if isinstance(value, float):
            if not value.is_integer():
                raise Wrong
            value = int(value)
        return value

    def parse(self, text):
        """The whole number that a text is."""
        try:
            return self.check(int(text))
        except ValueError:
            return super().parse(text)


@dataclasses.dataclass(frozen=True)
class Text(Kind):
    """Text as it stands: nothing in it is YAML, and nothing a reference."""

    def __str__(self):
        return "text"

    def check(self, value):
        """A text that can stand in the stored settings as it is."""
        if not isinstance(value, str):
            raise Wrong("put it into quotes")
        found = _REFERENCE.search(value)
        if found:
            raise Wrong(
                f"{found[0]} would be read as a reference to a key: write it otherwise"
            )
        if _TUPLE.fullmatch(value):
            raise Wrong("in brackets it would be read as a tuple")
        if not value.isprintable():
            # Also what was not UTF-8 on the command line.
            raise Wrong("it holds letters that cannot be printed")
        if not value.strip():
            raise Wrong("it is empty")
        return value

    def parse(self, text):
        """The text."""
        return self.check(text)


@dataclasses.dataclass(frozen=True)
class PathText(Text):
    """The path of a file or folder; ``~`` is the home folder."""

    def __str__(self):
        return "a path"

    def check(self, value):
        """The path with the home folder in place of ``~``."""
        return os.path.expanduser(super().check(value))


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
    """One of some words."""

    words: tuple

    def __str__(self):
        *most, last = self.words
        return f"{', '.join(most)} or {last}" if most else last

    def check(self, value):
        """The word."""
        if not isinstance(value, str) or value not in self.words:
            close = difflib.get_close_matches(str(value), self.words, n=1)
            raise Wrong(f"did you mean {close[0]}?" if close else "")
        return value

    def parse(self, text):
        """The word."""
        return self.check(text)


@dataclasses.dataclass(frozen=True)
class ListOf(Kind):
    """A list, or a tuple of HyperPyYAML, of values of one kind; ``alone``: or one."""

    kind: Kind
    least: int = 0
    alone: bool = False

    def __str__(self):
        of = f" of {_many(self.kind)}"
        example = "[1, 2]" if isinstance(self.kind, Number) else "[a, b]"
        some = f" with {self.least} entries or more" if self.least > 1 else ""
        full = "non-empty " * (self.least == 1)
        one = f"{self.kind} or " if self.alone else ""
        return f"{one}a {full}list{some}{of}, say {example}"

    def check(self, value):
        """The list, its entries checked; tagged ones are references and objects."""
        if self.alone and not isinstance(value, list):
            return self.kind.check(value)
        if _tag(value) == "!tuple":
            entries = yamls.value(f"[{value.value[1:-1]}]")
        else:
            entries = value
        if not isinstance(entries, list) or len(entries) < self.least:
            raise Wrong
        for place, entry in enumerate(entries):
            if not _tag(entry):
                entries[place] = self.kind.check(entry)
        return value

    def parse(self, text):
        """The list, or the one value, that a text is."""
        if self.alone and not text.startswith("["):
            return self.kind.parse(text)
        return super().parse(text)


@dataclasses.dataclass(frozen=True)
class MappingOf(Kind):
    """A mapping of names to values of one kind."""

    kind: Kind
    least: int = 0
    #: Whether a value other than 0 is needed.
    some: bool = False

    def __str__(self):
        example = "1" if isinstance(self.kind, Number) else "b"
        full = "non-empty " * (self.least > 0)
        zero = ", not all 0" if self.some else ""
        return f"a {full}mapping of names to {self.kind}{zero}, say {{a: {example}}}"

    def check(self, value):
        """The mapping, its values checked; tagged ones are references and objects."""
        if not isinstance(value, dict) or len(value) < self.least:
            raise Wrong
        for name, one in value.items():
            if not isinstance(name, str):
                raise Wrong("its keys must be text")
            if not _tag(one):
                try:
                    value[name] = self.kind.check(one)
                except Wrong as error:
                    raise Wrong(f"{name} is wrong{_also(error)}") from error
        if self.some and not any(value.values()):
            raise Wrong
        return value


@dataclasses.dataclass(frozen=True)
class Anything(Kind):
    """Any value."""

    def __str__(self):
        return "any value"


@dataclasses.dataclass(frozen=True)
class Object(Kind):
    """An object (``!new:``, ``!apply:``, ``!name:``), or a mapping or list of them."""

    def __str__(self):
        return "an object (!new:...)"

    def check(self, value):
        """A node with a tag, a mapping or a list."""
        if _tag(value) or isinstance(value, (dict, list)):
            return value
        raise Wrong

    def parse(self, text):
        """Never: an object has no text."""
        raise Wrong("replace it in a variant file (base: ...)")


def most_threads():
    """CPU threads that this machine may be asked for: far more end torch."""
    return max(64, 4 * (os.cpu_count() or 1))


# The table -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row.

    Attributes
    ----------
    kind : Kind
    unit : str
        What a number counts or measures.
    null : bool
        Whether null may be given.
    named : bool
        Whether a value of the command line is part of the output folder's name.
    resumed : bool
        Whether it counts when a run is resumed: a change is refused.
    compared : bool
        Whether tables and the ledger compare it between runs.
    """

    kind: Kind
    unit: str = ""
    null: bool = False
    named: bool = True
    resumed: bool = True
    compared: bool = True

    def __str__(self):
        if self.null and isinstance(self.kind, Choice):
            return str(Choice((*self.kind.words, "null")))
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.kind}{unit}{', or null' * self.null}"


def _way(kind, unit="", null=False):
    """A row about where things are or how they are run, not what is computed."""
    return Setting(kind, unit, null, named=False, resumed=False, compared=False)


FLAG, TEXT, PATH, OBJECT = Flag(), Text(), PathText(), Object()
PATHS = ListOf(PATH, 1, alone=True)
#: Also for options of tools that are no settings.
COUNT, POSITIVE = Whole(1, MANY), Number(above=0, high=10**12)
_COUNT_OR_0 = Whole(0, MANY)
_SHARE = Number(above=0, below=1)
_WEIGHTS = MappingOf(Number(-(10**6), 10**6), 1, some=True)
_DROPOUT = Number(0, below=1)
_PROBABILITY = Number(0, 1)
_STEPS = "optimizer steps"
_PRECISION = Choice(("fp32", "fp16", "bf16"))
SEED = Whole(0, LARGEST_SEED)
_SAMPLES = Whole(400, MANY)

#: Of a user's own keys, which take the kind of the value that stands there.
WHOLE, NUMBER = Whole(), Number()
OWN_TEXT = Setting(TEXT, null=True)
OWN_LIST, OWN_MAPPING = ListOf(Anything()), MappingOf(Anything())

SETTINGS = {
    # Where things are
    "seed": Setting(SEED, named=False, compared=False),
    "__set_seed": Setting(OBJECT),
    "base": Setting(TEXT),
    "librispeech_folder": _way(PATH, null=True),
    "voxceleb2_folder": _way(PATH, null=True),
    "voxceleb1_folder": _way(PATH, null=True),
    "output_folder": _way(PATH, null=True),
    "prepared_folder": _way(PATH, null=True),
    "librispeech_csv_folder": _way(PATH, null=True),
    "voxceleb_csv_folder": _way(PATH, null=True),
    "skip_prep": _way(FLAG),
    "allow_leaks": Setting(FLAG, resumed=False),
    "init_from": Setting(PATH, null=True),
    # Corpora
    "librispeech_train_splits": Setting(ListOf(TEXT)),
    "librispeech_valid_split": Setting(TEXT),
    "librispeech_test_splits": _way(ListOf(TEXT)),
    "voxceleb_trial_lists": _way(ListOf(PATH)),
    "voxceleb_convert": _way(Choice(("flac", "wav")), null=True),
    "voxceleb_transcripts": Setting(PATHS, null=True, resumed=False),
    "n_speakers": Setting(Whole(2, 10**7), "speakers"),
    "valid_fraction": Setting(_SHARE, "share of the utterances"),
    "valid_trials": Setting(COUNT, "trials of each kind"),
    "valid_different_video": Setting(FLAG),
    "valid_same_sex": Setting(FLAG),
    "split_seed": Setting(SEED),
    "skip_budget": Setting(_COUNT_OR_0, "utterances", resumed=False),
    "strict": _way(FLAG),
    "header_only": _way(FLAG),
    "headline_sets": _way(MappingOf(TEXT)),
    "mfcc_baseline": _way(FLAG),
    "librispeech": Setting(OBJECT, resumed=False),
    "voxceleb": Setting(OBJECT, resumed=False),
    "*.data_folder": _way(PATH, null=True),
    "*.test_folder": _way(PATH, null=True),
    "*.save_folder": _way(PATH, null=True),
    "*.journal_folder": _way(PATH, null=True),
    "*.without_test_speakers": Setting(FLAG),
    "*.tr_splits": Setting(ListOf(TEXT)),
    "*.dev_splits": Setting(ListOf(TEXT)),
    "*.te_splits": Setting(ListOf(TEXT)),
    "*.speaker_valid_fraction": Setting(_SHARE, "share of the utterances", null=True),
    "*.trial_splits": Setting(ListOf(TEXT)),
    "*.positive_trials": Setting(COUNT, "trials"),
    "*.negative_trials": Setting(COUNT, "trials"),
    "*.trials_across_chapters": Setting(FLAG),
    "*.valid_recordings_per_speaker": Setting(COUNT, "recordings"),
    "*.valid_positive_trials": Setting(COUNT, "trials"),
    "*.valid_negative_trials": Setting(COUNT, "trials"),
    "*.transcripts": Setting(PATHS, null=True, resumed=False),
    "*.convert": Setting(Choice(("flac", "wav")), null=True),
    "librispeech.num_workers": _way(Whole(1, MOST_WORKERS), "processes", null=True),
    "voxceleb.num_workers": _way(Whole(1, MOST_WORKERS), "processes", null=True),
    # Model
    "source": Setting(PATH, null=True),
    "encoder_config": Setting(MappingOf(Anything()), resumed=False),
    "layerdrop": Setting(_DROPOUT),
    "hidden_dropout": Setting(_DROPOUT),
    "input_dropout": Setting(_DROPOUT, null=True),
    "attention_dropout": Setting(_DROPOUT),
    "activation_dropout": Setting(_DROPOUT),
    "feat_proj_dropout": Setting(_DROPOUT),
    "mask_time_prob": Setting(_PROBABILITY, "share of the frames"),
    "mask_time_length": Setting(COUNT, "frames"),
    "mask_feature_prob": Setting(_PROBABILITY, "share of the channels"),
    "mask_feature_length": Setting(COUNT, "channels"),
    "shared_layers": Setting(Whole(0, 1000), "layers", null=True),
    "speaker_dims": Setting(COUNT, "channels", null=True),
    "class_token": Setting(Choice(("constant", "learnt")), null=True),
    "gradient_checkpointing": Setting(FLAG, resumed=False),
    "freeze_cnn": Setting(FLAG),
    "encoder": Setting(OBJECT),
    "encoder.config": Setting(MappingOf(Anything())),
    "speech_dropout": Setting(_DROPOUT),
    "letter_prior": Setting(Choice(("log", "relative")), null=True),
    "speaker_dropout": Setting(_DROPOUT),
    "*.dropout": Setting(_DROPOUT),
    "aam_scale": Setting(Number(above=0, high=1000)),
    "aam_margin": Setting(Number(0, 1.5), "radians"),
    "speaker.scale": Setting(Number(above=0, high=1000)),
    "speaker.margin": Setting(Number(0, 1.5), "radians"),
    "speaker.label": Setting(TEXT),
    "speech.label": Setting(TEXT),
    "speech.column": Setting(TEXT),
    "pooling": Setting(OBJECT),
    "pooling.blank": Setting(FLAG),
    "pooling.attention_channels": Setting(COUNT, "channels"),
    "speech": Setting(OBJECT),
    "speaker": Setting(OBJECT),
    "tasks": Setting(OBJECT),
    "weighting": Setting(OBJECT),
    "weighting.weights": Setting(MappingOf(Number(0, 10**6), 1, some=True)),
    "weighting.reference": Setting(Choice(("min", "max"))),
    "weighting.tasks": Setting(ListOf(TEXT, 1)),
    "weighting.temperature": Setting(Number(above=0, high=10**6)),
    "weighting.scale": Setting(Number(above=0, high=10**6)),
    "weighting.window": Setting(Whole(2, 10**6), "losses"),
    # Batches
    "max_batch_samples": Setting(_SAMPLES, "samples"),
    "crop_seconds": Setting(Number(0.025, 3600), "seconds"),
    "valid_sets.*.crop_seconds": Setting(Number(0.025, 3600), "seconds", null=True),
    "test_sets.*.crop_seconds": Setting(Number(0.025, 3600), "seconds", null=True),
    "length_jitter": Setting(Number(0, below=1), "share of the length"),
    "valid_batch_samples": _way(_SAMPLES, "samples", null=True),
    "test_batch_samples": _way(_SAMPLES, "samples", null=True),
    "valid_sets.*.max_batch_samples": Setting(_SAMPLES, "samples", null=True),
    "test_sets.*.max_batch_samples": Setting(_SAMPLES, "samples", null=True),
    "length_grid_seconds": Setting(Number(0, 3600), "seconds"),
    "max_utterance_seconds": Setting(Number(0.025, 3600), "seconds", null=True),
    "num_workers": _way(Whole(0, MOST_WORKERS), "processes"),
    "loader_timeout": _way(Number(0, 10**6), "seconds"),
    "*.timeout": _way(Number(0, 10**6), "seconds"),
    "letters": Setting(OBJECT),
    "speakers": Setting(OBJECT),
    "train_streams": Setting(OBJECT),
    "valid_sets": Setting(OBJECT),
    "test_sets": Setting(OBJECT, resumed=False),
    "*.labels": Setting(OBJECT),
    "*.csv": _way(PATHS),
    "*.trial_lists": _way(ListOf(PATH)),
    "*.trial_paths": _way(ListOf(PATH)),
    "test_sets.*.folder": _way(PATH),
    "test_sets.*.names": Setting(ListOf(TEXT)),
    # Optimisation
    "steps": Setting(COUNT, _STEPS),
    "freeze_steps": Setting(_COUNT_OR_0, _STEPS),
    "lr": Setting(Number(above=0, high=10)),
    "initial_lr": Setting(Number(0, 10)),
    "final_lr": Setting(Number(above=0, high=10)),
    "relative_ends": Setting(FLAG),
    "warmup": Setting(Number(0, 1), "share of the steps"),
    "hold": Setting(Number(0, 1), "share of the steps"),
    "precision": Setting(_PRECISION),
    "grad_accumulation_factor": Setting(Whole(1, 10**6), "batches"),
    "max_grad_norm": Setting(Number(0, 10**6), "0: no clipping"),
    "nonfinite_patience": _way(_COUNT_OR_0, "skipped steps"),
    "opt_class": Setting(OBJECT),
    "*.betas": Setting(ListOf(_DROPOUT, 2)),
    "*.eps": Setting(Number(above=0, high=1)),
    "*.fused": Setting(FLAG),
    "opt_class.weight_decay": Setting(Number(0, 1)),
    "opt_class.amsgrad": Setting(FLAG),
    "schedule": Setting(OBJECT),
    # Validation and checkpoints
    "valid_interval": Setting(COUNT, _STEPS),
    "patience_steps": Setting(COUNT, _STEPS, null=True),
    "max_valid_loss": Setting(Number(above=0, high=10**12), null=True),
    "selection": Setting(_WEIGHTS),
    "rate_selection": Setting(_WEIGHTS, null=True),
    "checkpoints_to_keep": _way(Whole(1, 10**6), "checkpoints"),
    "ckpt_interval_minutes": _way(Number(0, 10**6), "minutes"),
    "ckpt_interval_steps": _way(_COUNT_OR_0, _STEPS),
    "stopping": Setting(OBJECT),
    "stopping.metrics": Setting(ListOf(TEXT)),
    "stopping.limits": Setting(MappingOf(Number(-(10**12), 10**12))),
    "epoch_counter": Setting(OBJECT),
    "checkpointer": Setting(OBJECT, resumed=False),
    "*.checkpoints_dir": _way(PATH),
    # Running
    "threads": _way(Whole(1, most_threads()), "CPU threads", null=True),
    "ledger": _way(PATH, null=True),
    "log_interval": _way(COUNT, _STEPS),
    "tensorboard": _way(FLAG),
    "train_logger": Setting(OBJECT, resumed=False),
    "*.save_file": _way(PATH),
    # SpeechBrain's run options that no YAML sets
    "debug_batches": _way(COUNT, "batches"),
    "debug_epochs": _way(COUNT, "epochs"),
    "device": _way(TEXT),
    "distributed_backend": _way(Choice(("nccl", "gloo", "mpi"))),
    "compile_mode": Setting(Choice(("default", "reduce-overhead", "max-autotune"))),
    "eval_precision": Setting(_PRECISION),
    "optimizer_step_limit": _way(COUNT, _STEPS),
    "profile_warmup": _way(_COUNT_OR_0, "steps"),
    "profile_steps": _way(COUNT, "steps"),
    "log_config": _way(PATH),
}

#: A user's own key with such an ending says where or how, as ours do.
_PLACES = re.compile(r"(.*_)?(folder|csv|workers|trial_lists|test_splits)")


def find(path):
    """The row of a key, or None.

    Arguments
    ---------
    path : str or tuple of str
        A key, or its names from the outermost on. The row of the dotted name is taken
        (``*`` stands for the names between, or for all above), else that of the last
        name.
    """
    path = (path,) if isinstance(path, str) else path
    for top, length, row in _DOTTED.get(path[-1], ()) if len(path) > 1 else ():
        if top in ("*", path[0]) and len(path) >= length:
            return row
    return SETTINGS.get(path[-1])


def _dotted():
    """First name, number of names and row of the dotted keys, by last name."""
    found = {}
    for key, row in SETTINGS.items():
        names = key.split(".")
        if len(names) > 1:
            found.setdefault(names[-1], []).append((names[0], len(names), row))
    return {
        last: sorted(rows, key=lambda r: r[0] == "*") for last, rows in found.items()
    }


_DOTTED = _dotted()


def option(*path):
    """The kind of a setting, as a ``type`` for a tool's option."""
    return find(path).kind


def counts(path, column):
    """Whether a key counts in a column: ``named``, ``resumed`` or ``compared``."""
    row = find(path)
    if row is not None:
        return getattr(row, column)
    name = path if isinstance(path, str) else str(path[-1])
    return not _PLACES.fullmatch(name)


# Values of YAML files --------------------------------------------------------------


def check_file(tree, file, top=()):
    """Check, and bring into their kind, the values of one YAML file's tree.

    Arguments
    ---------
    tree : ruamel.yaml.comments.CommentedMap
    file : str or Path
        For messages.
    top : tuple of str
        The key that a fragment is included under.

    Raises ``UserError`` with file, line, key, value, and what would be right.
    """
    ours = _is_ours(tree) or not (_tag(tree) or (top and find(top) is None))
    for path, row, node, key in _entries(tree, file, tuple(top), ours):
        where = f"{file}{_line(node, key)}"
        tag = _tag(node[key])
        if tag and not _TAGS.fullmatch(tag):
            raise UserError(
                f"{where}: the tag {tag} is unknown; there are !ref, "
                "!new:, !name:, !apply:, !include: and !PLACEHOLDER"
            )
        if row is not None and not _open(node[key]):
            node[key] = checked(row, node[key], f"{where}: ", path)


def check_references(tree, file):
    """Check values that are references to a user's own keys, once all is merged.

    Raises ``UserError`` as ``check_file`` does.
    """
    for path, row, node, key in _entries(tree, file, ()):
        name = _target(node[key])
        if row is None or name not in tree or find(name) is row:
            continue
        if not _open(tree[name]):
            checked(row, tree[name], f"{file}: <{name}> as ", path)


def _entries(node, file, path, ours=True, top=True, seen=None):
    """Yield path, row, mapping or list, and key or place of every entry of a tree.

    The row is None where values are a user's own: below their keys, and in the
    arguments of their classes. Raises ``UserError`` for keys of ours that are no text.
    """
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        names, row = path, None
        if isinstance(node, dict) and ours:
            if not isinstance(key, str):
                where = f"{file}{_line(node, key)}"
                raise UserError(f"{where}: the key {shown(key)} is no text; quote it")
            # A variant's top-level key may be dotted.
            names = (*path, *(key.split(".") if top else [key]))
            row = find(names)
        yield names, row, node, key
        child = node[key]
        if isinstance(child, (dict, list)):
            is_object = row is not None and isinstance(row.kind, Object)
            below = (is_object or (ours and isinstance(node, list))) and not _tag(child)
            below = below or _is_ours(child)
            yield from _entries(child, file, names, below, False, seen)


def checked(row, value, where, path):
    """A YAML's value as it is to be used; ``where`` begins the message.

    Raises ``UserError`` when the row does not allow it.
    """
    name = ".".join(map(str, path))
    if value is None:
        if row.null:
            return value
        raise UserError(f"{where}{name} must be {row}; it is empty or null")
    try:
        if row.null and isinstance(value, str) and _is_old_word(row.kind, value):
            raise Wrong("write null for none")
        return row.kind.check(value)
    except Wrong as error:
        raise UserError(
            f"{where}{name} must be {row}, not {shown(value)}{_also(error)}"
        ) from None


def _target(node):
    """The key that a node refers to as a whole, or None."""
    if isinstance(node, TaggedScalar) and _tag(node) == "!ref":
        found = re.fullmatch(r"<([^<>\[\].]+)>", str(node.value))
        return found and found[1]
    return None


def check_together(tree, file):
    """Check what settings must be to each other, once all is merged.

    Raises ``UserError``.
    """
    warmup, hold = (_of(tree, "schedule", key) or 0 for key in ("warmup", "hold"))
    # Shares such as 0.7 and 0.3 need not add up to 1 in every bit.
    if warmup + hold > 1 + 1e-9:
        raise UserError(
            f"{file}: warmup {warmup} and hold {hold} are shares of the steps: their "
            "sum must be at most 1"
        )
    width = _model_width(tree)
    chance, length = (
        _of(tree, "encoder", f"mask_feature_{key}") for key in ("prob", "length")
    )
    if chance and length and width and length > width:
        raise UserError(
            f"{file}: mask_feature_length is {length}, but the encoder has {width} "
            f"channels: give at most {width}"
        )


def _of(tree, name, key):
    """The number that an object's argument is, or stands at the top, or None."""
    node = tree.get(name)
    value = node.get(key, tree.get(key)) if isinstance(node, dict) else tree.get(key)
    value = tree.get(_target(value), value)
    return value if isinstance(value, (int, float)) else None


def _model_width(tree):
    """Channels of the encoder where they are known without loading it, or None."""
    if tree.get("source", "") is None:
        config = tree.get("encoder_config") or {}
    elif isinstance(tree.get("source"), str):
        path = Path(tree["source"]) / "config.json"
        try:
            config = yamls.value(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # A model of the hub, or a folder whose faults are told when it is read.
            return None
    else:
        return None
    width = config.get("hidden_size", 768) if isinstance(config, dict) else None
    return width if isinstance(width, int) else None


# Values of the command line --------------------------------------------------------


def parse(key, text, row=None):
    """The value of ``--key=text``; raises ``UserError`` when it is none."""
    row = row or SETTINGS[key]
    if text == "":
        null = f", or --{key}=null for none" if row.null else ""
        raise UserError(
            f"--{key} must be {row}; it is empty (an unset variable of the shell?): "
            f"give a value{null}"
        )
    if text in _NULL:
        if row.null:
            return None
        raise UserError(f"--{key} must be {row}, not {shown(text)}")
    try:
        if row.null and _is_old_word(row.kind, text):
            raise Wrong(f"write --{key}=null for none")
        return row.kind.parse(text)
    except Wrong as error:
        raise UserError(
            f"--{key} must be {row}, not {shown(text)}{_also(error)}"
        ) from None


def _is_old_word(kind, text):
    """Whether a text is a word that YAML 1.1 would not take for text."""
    old = (_OLD_FLAGS - {"y", "n"}) | _OLD_NULLS
    if isinstance(kind, PathText) or kind == PATHS:
        old -= {"~"}
    return text.lower() in old


def check_switch(old, value, where, key):
    """Refuse another YAML's word for True or False in place of a user's own switch."""
    if isinstance(old, bool) and isinstance(value, str):
        if value.lower() in _OLD_FLAGS:
            checked(Setting(FLAG), value, where, (key,))


def similar(key, candidates):
    """A hint at the nearest names, for the end of a message."""
    close = difflib.get_close_matches(str(key), [str(c) for c in candidates], n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def shown(value):
    """A value in a message: its text in one line, not too long."""
    if isinstance(value, TaggedScalar):
        value = value.value
    try:
        text = repr(value if not isinstance(value, dict) else dict(value))
    except ValueError:
        # A whole number of more digits than Python writes.
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} letters)"


# Helpers ---------------------------------------------------------------------------


def _tag(node):
    """A node's tag as text, or an empty one."""
    return getattr(getattr(node, "tag", None), "value", None) or ""


def _is_ours(node):
    return bool(_OURS.match(_tag(node)))


def _open(node):
    """Whether a value is still to come: a reference, a placeholder, a call."""
    tag = _tag(node)
    return bool(tag) and tag != "!tuple"


def _line(node, key):
    """``, line N`` of an entry, where ruamel knows it."""
    try:
        return f", line {node.lc.value(key)[0] + 1}"
    except (AttributeError, KeyError, TypeError, IndexError):
        return ""


def _also(error):
    return f": {error}" if str(error) else ""


def _many(kind):
    known = {"text": "texts", "a path": "paths", "any value": "values"}
    return known.get(str(kind), f"values, each {kind}")


def _short(number):
    """1e+10 as 1e10, 10000000 as 10,000,000."""
    if isinstance(number, int) and abs(number) < 10**10:
        return f"{number:,}"
    return f"{number:.10g}".replace("e+", "e")
