"""From a command line to settings, and to the objects that they name."""

import argparse
import dataclasses
import hashlib
import importlib.util
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml.comments import CommentedMap

from lobes.data.prepared import name_csv_folders
from lobes.errors import UserError
from lobes.runs.variants import (
    keys_of,
    load_variant,
    place_of,
    placeholders,
    put,
    value_of,
)
from lobes.settings import checks, table, yamls
from lobes.settings.kinds import MappingOf, Object, similar, tag_of
from lobes.settings.table import counts
from lobes.system.checkout import ROOT, check_imports
from lobes.system.files import read_json
from lobes.system.lazy import lazy, module_alone

torch = lazy("torch")
# Imported with what is light alone: a wrong option is told at once.
RunOptions = module_alone("speechbrain.utils.run_opts").RunOptions


# SpeechBrain says of its own figures, of which none is made here, that they cannot be
# saved.
logging.getLogger("speechbrain.utils.train_logger").addFilter(
    lambda record: "torchvision" not in record.getMessage()
)

#: What to do about a damaged file of a run.
RESTORE = "restore it from where the run's folder was copied, or choose another run"


#: The command line's word for going on although something has changed.
ALLOW_CHANGES = "--allow_changes"


#: SpeechBrain's run options without a meaning here, and why.
REFUSED_RUN_OPTIONS = {
    "auto_mix_prec": "use --precision=fp16",
    "bfloat16_mix_prec": "use --precision=bf16",
    "data_parallel_backend": "use torchrun",
    "jit": "the encoder cannot be scripted; use --compile",
    "jit_module_keys": "the encoder cannot be scripted; use --compile",
    "find_unused_parameters": "modules are not wrapped in DistributedDataParallel",
    "remove_vector_weight_decay": "set weight_decay in the YAML's opt_class",
    "skip_nonfinite_grads": "steps with such gradients are always skipped as a whole",
}


@dataclasses.dataclass(frozen=True)
class ExperimentOptions(RunOptions):
    """SpeechBrain's run options, and what was asked for.

    ``commands`` train and evaluate again; ``origin`` has the ``recipe``, the
    ``variant``, and the ``changes`` that the command line makes to it, by key;
    ``allow_changes`` lets a run resume with other settings or data than it began with.
    """

    commands: tuple = ()
    allow_changes: bool = False
    origin: dict = dataclasses.field(default_factory=dict)


def parse_arguments(
    argv: Sequence[str] | None = None,
    changes: Mapping | None = None,
    corpora: Collection[str] | None = None,
    config: Mapping | None = None,
) -> tuple[dict, ExperimentOptions, str]:
    """Load a recipe's YAML with the command line's overrides.

    ``train.py hparams/x.yaml [--run_option ...] [--key=value ...]``. The file may
    be a variant: its ``base`` names another file (relative to it), whose whole
    top-level nodes it replaces, tags included, before anything is instantiated;
    ``a.b`` is the entry, or the argument, ``b`` of the node ``a``. ``--base=FILE``
    puts another variant of the same file below it: a combination of the two;
    ``--base=FILE+FILE`` puts two. Overrides on the command line replace scalars and
    win. Every value passes ``lobes.settings.table``. ``init_from`` names the results
    folder of a run with whose weights this one starts; the encoder is built as that
    one's was. With ``--debug`` everything goes into the folder ``debug`` below the
    output folder, so that a run there is left alone. ``--allow_changes`` is explained
    at ``start_experiment``.

    Arguments:
        argv: Defaults to the command line.
        changes: Further values by key, ``a.b`` included, set by the calling program.
        corpora: Keys of the corpora that the calling program prepares; a YAML with
            others is of another recipe.
        config: Configuration that the encoder is built from, without its ``source``.

    Returns:
        hparams (dict): The loaded YAML. ``output_folder`` is computed when it is null:
            ``results/<recipe>/<variant>[,key=value ...]/<seed>``; ``prepared_folder``
            likewise (``results/prepared``), and so are the folders of the CSVs
            (``lobes.data.prepared``).
        run_opts (ExperimentOptions)
        settings (str): The merged YAML, which stock ``load_hyperpyyaml`` loads.

    Raises:
        UserError: An unknown file, key, option or value.
    """
    check_imports()
    program = sys.argv[0] if argv is None else None
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        raise UserError(
            "name a YAML file: hparams/x.yaml [--key=value ...]; --help lists the run "
            "options"
        )
    if {"-h", "--help"} & set(argv):
        _print_help(argv[0])
        raise SystemExit(0)
    allow_changes = ALLOW_CHANGES in argv
    argv = [word for word in argv if word != ALLOW_CHANGES]
    path, base, tree, origin, run_arguments = resolve(argv, changes, config=config)
    if corpora is not None:
        _check_corpora(path, base, tree, corpora)
    run_opts = _run_options([str(path), *run_arguments])
    if run_opts["debug"]:
        tree["output_folder"] = str(Path(str(tree["output_folder"])) / "debug")
    settings = yamls.dump(tree)
    if tree.get("threads") is not None:
        torch.set_num_threads(tree["threads"])
    if tree.get("tensorboard") and importlib.util.find_spec("tensorboard") is None:
        # Told now, not after the corpora are prepared.
        raise UserError(
            "tensorboard is True, but the package is not installed; install it with "
            "`pip install -e .[tensorboard]`"
        )
    commands = _commands(program, base, argv, tree["output_folder"])
    asked = {"commands": commands, "origin": origin, "allow_changes": allow_changes}
    run_opts = ExperimentOptions(**vars(run_opts), **asked)
    source = _encoder(tree).get("source")
    if corpora is not None and source and not Path(str(source)).is_dir():
        # The hub may take its time: what a training lacks here must not show after it.
        _check_folders(tree)
    return _load(path, settings), run_opts, settings


def resolve(
    argv: Sequence[str],
    changes: Mapping | None = None,
    load: Callable | None = None,
    config: Mapping | None = None,
) -> tuple[str, Path, CommentedMap, dict, list[str]]:
    """The settings that a command line asks for; nothing is instantiated.

    Arguments:
        argv, changes, config: As for ``parse_arguments``.
        load: Takes the place of ``load_variant``, to read files once for many calls.

    Returns:
        path (str): The YAML file.
        base (Path): The file at the end of its bases.
        tree (ruamel.yaml.comments.CommentedMap): The merged settings, folders filled
            in.
        origin (dict): ``recipe``, ``variant`` and ``changes``: what the command line
            changes in the variant, by key, where that is part of the folder's name
            (``lobes.settings.table``).
        run_arguments (list of str): Run options that are no settings of the YAML.

    Raises ``UserError`` as ``parse_arguments`` does.
    """
    load = load or load_variant
    path, overrides, run_options = _split(argv)
    other_base = overrides.pop("base", None)
    tree, base = load(path, other_base)
    # A run option that the YAML sets (max_grad_norm) is one of the settings: stored
    # with them, and part of the folder's name.
    run_arguments = []
    for name, words in run_options.items():
        if name in tree:
            overrides[name] = _one_value(name, words)
        elif table.find(name) is None:
            run_arguments += words
        else:
            value = checks.parse(name, _one_value(name, words))
            run_arguments.append(f"--{name}={value}")
    _check_keys(path, tree, overrides)
    for key in ("output_folder", "seed"):
        if key not in tree:
            raise UserError(f"{path} has no key {key}; name a recipe's YAML file")
    values = {key: _override(path, tree, key, text) for key, text in overrides.items()}
    changed = {
        key: value
        for key, value in values.items()
        if value_of(tree, key) != value and counts(key, "named")
    }
    for key, value in {**values, **(changes or {})}.items():
        put(tree, key, value, f"--{key}", path)
    if tree.get("init_from"):
        config = _config_of_run(tree, values)
    if config is not None:
        _build_from(tree, config)
    elif "encoder.config" not in (changes or {}):
        _check_encoder_config(path, tree)
    if other_base is not None:
        stems = [Path(name).stem for name in other_base.split("+")]
        values["base"] = changed["base"] = "+".join(stems)
    if tree["output_folder"] is None:
        tree["output_folder"] = str(_output_folder(path, base, tree, values))
    if tree.get("prepared_folder", "") is None:
        tree["prepared_folder"] = str(ROOT / "results" / "prepared")
    _check_placeholders(path, tree)
    checks.check_together(tree, path)
    name_csv_folders(tree)
    checks.check_references(tree, path)
    origin = {
        "recipe": _recipe_name(base),
        "variant": Path(path).stem,
        "changes": changed,
    }
    return path, base, tree, origin, run_arguments


def shell_command(script: str | Path, arguments: Iterable) -> str:
    """A line for a shell that runs a Python script again, in the same folder.

    With several processes they are started by torchrun on one machine.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    launcher = ["python"]
    if processes > 1:
        launcher = ["torchrun", "--standalone", f"--nproc_per_node={processes}"]
    command = shlex.join([*launcher, str(script), *map(str, arguments)])
    return f"cd {shlex.quote(os.getcwd())} && {command}"


def code_folders(path: str | Path) -> tuple[str, str]:
    """Where a class named in the YAML may lie: beside the YAML, or train.py."""
    return str(Path(path).resolve().parent), os.getcwd()


def _config_of_run(tree, values):
    """The configuration of the encoder of the run in ``init_from``."""
    folder = Path(str(tree["init_from"])).resolve()
    config = folder / "encoder_config.json"
    if "encoder.source" in values or "encoder.config" in values:
        raise UserError(
            "init_from gives the encoder; leave out --encoder.source and "
            "--encoder.config"
        )
    if not config.is_file():
        raise UserError(
            f"init_from: {folder} has no encoder_config.json; name the results folder "
            "of a training"
        )
    tree["init_from"] = str(folder)
    return read_json(config, RESTORE)


def _build_from(tree, config):
    """Let the encoder be built from a configuration, without a hub.

    A user's own encoder may take no source: it builds itself.
    """
    if encoder := _encoder(tree):
        encoder["source"] = None
        encoder["config"] = config


def _check_folders(tree):
    """Refuse folders of corpora, and splits within them, that are not there."""
    if tree.get("skip_prep") is True:
        return
    for key, folder in tree.items():
        corpus = key.removesuffix("_folder")
        own = key in ("output_folder", "prepared_folder")
        if corpus == key or own or not isinstance(folder, str):
            continue
        if not Path(folder).is_dir():
            raise UserError(
                f"{key}: the folder {folder} does not exist; set it to where the "
                "corpus lies"
            )
        for name, value in _splits(tree, corpus):
            for split in value if isinstance(value, list) else [value]:
                places = (Path(folder) / str(split), *Path(folder).glob(f"*/{split}"))
                if not any(place.is_dir() for place in places):
                    raise UserError(
                        f"{name}: {folder} has no folder {split}; unpack it there, or "
                        f"name other splits with --{name}"
                    )


def _splits(tree, corpus):
    """Yield the keys that name a corpus's splits, and what they name."""
    train = value_of(tree, f"{corpus}.tr_splits")
    if isinstance(train, list):
        yield f"{corpus}.tr_splits", train
    for key in tree:
        if re.fullmatch(rf"{corpus}_.*_splits?", key):
            yield key, tree[key]


def _encoder(tree):
    """The encoder's node, or an empty mapping where it is none with arguments."""
    node = tree.get("encoder")
    return node if isinstance(node, CommentedMap) and "source" in node else {}


def _print_help(first):
    """The run options, and the settings of the YAML when one is named first."""
    parser = RunOptions._create_parser()
    for action in parser._actions:
        names = [option.removeprefix("--") for option in action.option_strings]
        if not names or set(names) & set(REFUSED_RUN_OPTIONS):
            action.help = argparse.SUPPRESS
    parser.usage = f"{Path(sys.argv[0]).name} hparams/x.yaml [--option ...]"
    parser.description = (
        "Run options of SpeechBrain follow. Every number, text or switch of the YAML "
        "is an option, too (hparams/x.yaml --help lists them): --key=value; "
        "--base=FILE puts another variant below the YAML; --allow_changes resumes a "
        "run with other settings or data than it began with."
    )
    print(parser.format_help())
    if first.startswith("-"):
        return
    print(f"settings of {first}:")
    tree = load_variant(first)[0]
    for key in keys_of(tree):
        node, row = value_of(tree, key), table.find(key)
        plain = tag_of(node) in ("", "!PLACEHOLDER", "!tuple")
        plain = plain and not (isinstance(node, list) and any(map(tag_of, node)))
        scalar = not isinstance(node, CommentedMap)
        if plain and (scalar or row and not isinstance(row.kind, Object)):
            value = "(to be given)" if tag_of(node) == "!PLACEHOLDER" else node
            option = f"--{key}={'null' if value is None else value}"
            print(f"  {option}" if row is None else f"  {option:<40}  {row}")


def _split(argv):
    """The YAML's path, overrides by key, run options by name with their words."""
    if argv[0].startswith("-"):
        raise UserError(f"the first argument must be a YAML file, not {argv[0]}")
    flags = {
        option: action.nargs == 0
        for action in RunOptions._create_parser()._actions
        for option in action.option_strings
    }
    overrides, run_options = {}, {}
    rest = argv[1:]
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        if not option.startswith("--"):
            raise UserError(f"{argument!r} is neither an option nor --key=value")
        name = option[2:]
        values = []
        while rest and not equals and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if name in REFUSED_RUN_OPTIONS:
            raise UserError(f"{option} is not supported: {REFUSED_RUN_OPTIONS[name]}")
        if option in flags:
            if flags[option] and (equals or values):
                raise UserError(
                    f"{' '.join([argument, *values])!r}: the flag {option} takes no "
                    "value; give or omit it"
                )
            run_options[name] = [argument, *values]
            continue
        overrides[name] = _one_value(name, [argument, *values])
    return argv[0], overrides, run_options


def _one_value(name, words):
    """The value in ``--name=value`` or ``--name value``."""
    _, equals, value = words[0].partition("=")
    values = ([value] if equals else []) + words[1:]
    if len(values) != 1:
        hint = similar(name, RunOptions().keys())
        raise UserError(f"--{name} needs one value: --{name}=VALUE{hint}")
    return values[0]


def _run_options(arguments):
    """SpeechBrain's parser on the YAML's path and run options, its gaps filled."""
    _, run_opts, stray = RunOptions.from_command_line_args(arguments)
    if stray:
        raise UserError(f"{stray!r} belongs to no option; remove it")
    limit, log_config = run_opts["optimizer_step_limit"], run_opts["log_config"]
    if limit is not None:
        # The parser leaves it a string, which no step can be compared with.
        run_opts = dataclasses.replace(run_opts, optimizer_step_limit=int(limit))
    if log_config is not None and not Path(log_config).is_file():
        # SpeechBrain would silently log nothing into the output folder.
        raise UserError(f"--log_config: {log_config} does not exist; name a YAML file")
    return run_opts


def _check_keys(path, tree, overrides):
    """Refuse unknown keys; abbreviated run options are unknown keys, too."""
    for key in overrides:
        *outer, last = key.split(".")
        place = tree
        if outer and outer[0] in tree:
            place, last = place_of(tree, key, f"--{key}", path)
        if last not in place and (place is tree or _row(key) is None):
            everything = [*keys_of(tree), *RunOptions().keys()]
            raise UserError(
                f"--{key} is neither a key of {path} nor a run option"
                f"{_similar_key(key, everything)}"
            )


def _similar_key(key, keys):
    """A hint at the keys that end so, or else at the nearest ones."""
    ends = [other for other in keys if other.endswith(f".{key}")]
    return f"; did you mean {' or '.join(ends[:3])}?" if ends else similar(key, keys)


def _row(key):
    """The row of a key; in a mapping of values of one kind it is a row of that kind."""
    row = table.find(key)
    outer = table.find(key.rpartition(".")[0])
    if row is None and outer is not None and isinstance(outer.kind, MappingOf):
        return table.Setting(outer.kind.kind)
    return row


def _override(path, tree, key, text):
    """Value of ``--key=text``, of the same kind as the value it replaces."""
    node = value_of(tree, key)
    tag = tag_of(node)
    if tag.startswith(("!new:", "!name:", "!apply:")):
        raise UserError(
            f"--{key}: {key} holds an object ({tag}); replace it in a variant file "
            "(base: ...)"
        )
    row = _row(key)
    if row is not None:
        return checks.parse(key, text, row)
    if text == "":
        raise UserError(
            f"--{key} is empty (an unset variable of the shell?); give a value, or "
            f"--{key}=null for none"
        )
    # A folder may look like a number, and `#` or `: ` may stand in its name.
    is_text = isinstance(node, str) or key.endswith("_folder")
    try:
        value = yamls.value(text)
    except ValueError:
        if not is_text:
            raise UserError(f"--{key}={text} is not a YAML value; quote it") from None
        value = text
    like = checks.kind_like("" if is_text else node)
    if value is None or like is None:
        return value
    value = checks.parse(key, text, like)
    return float(value) if isinstance(node, float) else value


def _output_folder(path, base, tree, values):
    """``results/<recipe>/<variant>[,key=value ...]/<seed>`` below the checkout."""
    changed = [
        f"{key}={re.sub(r'[^A-Za-z0-9._+-]+', '-', str(value))}"
        for key, value in sorted(values.items())
        if counts(key, "named")
    ]
    name = ",".join([Path(path).stem, *changed])
    if len(name) > 100:
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        name = f"{name[:80]},{digest}"
    return ROOT / "results" / _recipe_name(base) / name / str(tree["seed"])


def _commands(program, base, argv, output_folder):
    """The lines that train and, where there is an evaluate.py, evaluate again.

    ``program`` is None when another one, such as tools/demo.py, handed ``argv``
    over; then it is the recipe's own train.py that takes these arguments.
    """
    train = Path(program or recipe_folder(base) / "train.py")
    evaluate = train.with_name("evaluate.py")
    calls = (train, argv), (evaluate, [output_folder])
    return tuple(shell_command(*call) for call in calls if call[0].is_file())


def recipe_folder(base: Path) -> Path:
    """The folder of the recipe that a YAML file belongs to."""
    folder = base.resolve().parent
    return folder.parent if folder.name == "hparams" else folder


def _recipe_name(base):
    """The recipe's folder below ``recipes``, or only its name when it is elsewhere."""
    folder, recipes = recipe_folder(base), ROOT / "recipes"
    inside = folder.is_relative_to(recipes)
    return folder.relative_to(recipes).as_posix() if inside else folder.name


def _check_corpora(path, base, tree, corpora):
    """Refuse the YAML of another recipe, with the train.py that it belongs to."""
    found = {key for key in ("librispeech", "voxceleb") if key in tree}
    if found == set(corpora):
        return
    remedy = "name a YAML of this recipe"
    train = recipe_folder(base) / "train.py"
    if train.is_file():
        remedy += f", or run {train}"
    raise UserError(
        f"{path} has {' and '.join(sorted(found)) or 'no corpus'}, this train.py "
        f"prepares {' and '.join(sorted(corpora))}; {remedy}"
    )


def _check_encoder_config(path, tree):
    """Refuse misspelt fields of the configuration, which HuggingFace would keep."""
    encoder = _encoder(tree)
    given = encoder.get("config")
    if not given or tag_of(encoder) != "!new:lobes.model.encoder.Wav2Vec2Encoder":
        return
    from transformers import Wav2Vec2Config

    fields = Wav2Vec2Config().to_dict()
    unknown = [name for name in given if name not in fields and name[0] != "_"]
    if unknown:
        raise UserError(
            f"{path}: encoder.config: Wav2Vec2Config has no field {unknown[0]}"
            f"{similar(unknown[0], fields)}"
        )


def _check_placeholders(path, tree):
    """Every value that the user must give, in one message."""
    missing = placeholders(tree)
    if tree.get("skip_prep") is True:
        # Only the preparation looks at corpora and their transcripts.
        for key in missing:
            if key.endswith(("_folder", "transcripts")):
                put(tree, key, None, key, path)
        missing = placeholders(tree)
    if missing:
        given = " ".join(f"--{key}=..." for key in missing)
        raise UserError(f"{path} needs {', '.join(missing)}; give {given}")


def _load(path, settings):
    """Instantiate the merged YAML."""
    for folder in code_folders(path):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        return load_hyperpyyaml(settings)
    except OSError as error:
        raise UserError(
            f"{path}: {error.filename} cannot be used ({error.strerror}); choose "
            "another folder or file"
        ) from error
    except UserError:
        raise
    except Exception as error:
        # Whatever a class of the YAML says about its arguments is about the YAML.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines) or repr(error)
        if not isinstance(error, (ValueError, TypeError, ImportError)):
            reason = f"{type(error).__name__}: {reason}"
        raise UserError(f"{path}: {reason}") from error
