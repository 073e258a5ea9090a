"""The one table of settings: kind, range and unit of every key, and what it counts for.

``SETTINGS`` has a row for each key of the project's YAMLs, and for SpeechBrain's run
options that take a value; ``lobes.settings.checks`` compares values with them. An
argument of one of our objects that has no row must be of the kind of the value in the
base. A user's own key may hold anything.
"""

import dataclasses
import os
import re

from lobes.settings.kinds import (
    LARGEST_SEED,
    MANY,
    Anything,
    Choice,
    Flag,
    Kind,
    ListOf,
    MappingOf,
    Number,
    Object,
    PathText,
    Text,
    Whole,
)

#: Reading processes of one stream at most.
MOST_WORKERS = 256


def most_threads() -> int:
    """CPU threads that this machine may be asked for: far more end torch."""
    return max(64, 4 * (os.cpu_count() or 1))


# The table -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row.

    Attributes:
        unit: What a number counts or measures.
        null: Whether null may be given.
        named: Whether a value of the command line is part of the output folder's name.
        resumed: Whether it counts when a run is resumed: a change is refused.
        compared: Whether tables and the ledger compare it between runs.
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
    "librispeech_valid_split": Setting(TEXT),
    "librispeech_test_splits": _way(ListOf(TEXT)),
    "voxceleb_trial_lists": _way(ListOf(PATH)),
    "skip_budget": Setting(_COUNT_OR_0, "utterances", resumed=False),
    "strict": _way(FLAG),
    "header_only": _way(FLAG),
    "headline_sets": _way(MappingOf(TEXT)),
    "mfcc_baseline": _way(FLAG),
    "librispeech": Setting(OBJECT),
    "voxceleb": Setting(OBJECT),
    "*.data_folder": _way(PATH, null=True),
    "*.test_folder": _way(PATH, null=True),
    "*.save_folder": _way(PATH, null=True),
    "*.journal_folder": _way(PATH, null=True),
    "*.without_test_speakers": Setting(FLAG),
    "*.tr_splits": Setting(ListOf(TEXT)),
    "*.dev_splits": Setting(ListOf(TEXT)),
    "*.te_splits": _way(ListOf(TEXT)),
    "*.speaker_valid_fraction": Setting(_SHARE, "share of the utterances", null=True),
    "*.trial_splits": Setting(ListOf(TEXT)),
    "*.positive_trials": Setting(COUNT, "trials"),
    "*.negative_trials": Setting(COUNT, "trials"),
    "*.trials_across_chapters": Setting(FLAG),
    "librispeech.seed": Setting(SEED),
    "voxceleb.seed": Setting(SEED),
    "*.valid_fraction": Setting(_SHARE, "share of the utterances"),
    "*.valid_different_video": Setting(FLAG),
    "*.valid_same_sex": Setting(FLAG),
    "*.valid_recordings_per_speaker": Setting(COUNT, "recordings"),
    "*.valid_positive_trials": Setting(COUNT, "trials"),
    "*.valid_negative_trials": Setting(COUNT, "trials"),
    "*.transcripts": Setting(PATHS, null=True, resumed=False),
    "*.convert": _way(Choice(("flac", "wav")), null=True),
    "librispeech.num_workers": _way(Whole(1, MOST_WORKERS), "processes", null=True),
    "voxceleb.num_workers": _way(Whole(1, MOST_WORKERS), "processes", null=True),
    # Model
    "encoder": Setting(OBJECT),
    "encoder.source": Setting(PATH, null=True),
    "encoder.config": Setting(MappingOf(Anything()), resumed=False),
    "encoder.layerdrop": Setting(_DROPOUT),
    "encoder.hidden_dropout": Setting(_DROPOUT),
    "encoder.input_dropout": Setting(_DROPOUT, null=True),
    "encoder.attention_dropout": Setting(_DROPOUT),
    "encoder.activation_dropout": Setting(_DROPOUT),
    "encoder.feat_proj_dropout": Setting(_DROPOUT),
    "encoder.mask_time_prob": Setting(_PROBABILITY, "share of the frames"),
    "encoder.mask_time_length": Setting(COUNT, "frames"),
    "encoder.mask_feature_prob": Setting(_PROBABILITY, "share of the channels"),
    "encoder.mask_feature_length": Setting(COUNT, "channels"),
    "encoder.shared_layers": Setting(Whole(0, 1000), "layers", null=True),
    "encoder.speaker_dims": Setting(COUNT, "channels", null=True),
    "encoder.class_token": Setting(Choice(("constant", "learnt")), null=True),
    "encoder.gradient_checkpointing": Setting(FLAG, resumed=False),
    "encoder.freeze_cnn": Setting(FLAG),
    "*.dropout": Setting(_DROPOUT),
    "speech.letter_prior": Setting(Choice(("log", "relative")), null=True),
    "speaker.n_speakers": Setting(Whole(2, 10**7), "speakers"),
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
    "*.length_jitter": Setting(Number(0, below=1), "share of the length"),
    "valid_batch_samples": _way(_SAMPLES, "samples", null=True),
    "test_batch_samples": _way(_SAMPLES, "samples", null=True),
    "valid_sets.*.max_batch_samples": Setting(_SAMPLES, "samples", null=True),
    "test_sets.*.max_batch_samples": Setting(_SAMPLES, "samples", null=True),
    "length_grid_seconds": Setting(Number(0, 3600), "seconds"),
    "*.max_utterance_seconds": Setting(Number(0.025, 3600), "seconds", null=True),
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
    "schedule.initial_lr": Setting(Number(0, 10)),
    "schedule.final_lr": Setting(Number(above=0, high=10)),
    "schedule.relative_ends": Setting(FLAG),
    "schedule.warmup": Setting(Number(0, 1), "share of the steps"),
    "schedule.hold": Setting(Number(0, 1), "share of the steps"),
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
    "stopping.patience_steps": Setting(COUNT, _STEPS, null=True),
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


#: First name, number of names and row of the dotted keys, by last name; ``*`` last.
_DOTTED = {}
for key in sorted(SETTINGS, key=lambda key: key.startswith("*")):
    if "." in key:
        names = key.split(".")
        _DOTTED.setdefault(names[-1], []).append((names[0], len(names), SETTINGS[key]))


def find(path: str | tuple) -> Setting | None:
    """The row of a key, or None.

    Arguments:
        path: A key, ``a.b``, or its names from the outermost on. The row of the dotted
            name is taken (``*`` stands for the names between, or for all above), else
            that of the last name.
    """
    path = tuple(path.split(".")) if isinstance(path, str) else path
    for top, length, row in _DOTTED.get(path[-1], ()) if len(path) > 1 else ():
        if top in ("*", path[0]) and len(path) >= length:
            return row
    return SETTINGS.get(path[-1])


def option(*path: str) -> Kind:
    """The kind of a setting, as a ``type`` for a tool's option.

    An argument of one object alone is found by its last name, too.
    """
    row = find(path)
    return (row or _DOTTED[path[-1]][0][-1]).kind


def counts(path: str | tuple, column: str) -> bool:
    """Whether a key counts in a column: ``named``, ``resumed`` or ``compared``."""
    row = find(path)
    if row is not None:
        return getattr(row, column)
    name = path.split(".")[-1] if isinstance(path, str) else str(path[-1])
    return not _PLACES.fullmatch(name)
