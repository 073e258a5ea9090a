"""Settings are checked against the table before anything is built."""

import re
from pathlib import Path

from ruamel.yaml.comments import TaggedScalar

from lobes.errors import UserError
from lobes.settings import yamls
from lobes.settings.kinds import (
    OLD_FLAGS,
    OLD_NULLS,
    Anything,
    ListOf,
    MappingOf,
    Number,
    Object,
    PathText,
    Whole,
    Wrong,
    because,
    shown,
    tag_of,
)
from lobes.settings.table import FLAG, PATHS, TEXT, Setting, find

_NULL = {"null", "Null", "NULL"}

#: Tags that HyperPyYAML and ``lobes.runs.experiment`` understand.
_TAGS = re.compile(
    r"!(ref|copy|PLACEHOLDER|beside|tuple)|!(new|name|module|apply|applyref|include):.+"
    r"|tag:yaml\.org,2002:.+"
)

#: The arguments of objects whose tag begins so have rows; others are a user's own.
_OURS = re.compile(r"!(new|apply|name):(lobes|speechbrain|torch\.optim)\.|!include:")


def check_file(tree: dict, file: str | Path, top: tuple[str, ...] = ()):
    """Check, and bring into their kind, the values of one YAML file's tree.

    Arguments:
        file: For messages.
        top: The key that a fragment is included under.

    Raises ``UserError`` with file, line, key, value, and what would be right.
    """
    ours = _is_ours(tree) or not (tag_of(tree) or (top and find(top) is None))
    for path, row, node, key in _entries(tree, file, tuple(top), ours):
        where = f"{file}{_line(node, key)}"
        tag = tag_of(node[key])
        if tag and not _TAGS.fullmatch(tag):
            raise UserError(
                f"{where}: the tag {tag} is unknown; there are !ref, "
                "!new:, !name:, !apply:, !include: and !PLACEHOLDER"
            )
        if row is not None and not _open(node[key]):
            node[key] = checked(row, node[key], f"{where}: ", path)


def check_references(tree: dict, file: str | Path):
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
            known = row is not None and isinstance(row.kind, Object)
            known = known or (ours and isinstance(node, list))
            below = (known and not tag_of(child)) or _is_ours(child)
            yield from _entries(child, file, names, below, False, seen)


def checked(row: Setting, value, where: str, path: tuple):
    """A YAML's value as it is to be used; ``where`` begins the message.

    Raises ``UserError`` when the row does not allow it.
    """
    name = ".".join(map(str, path))
    if value is None:
        if row.null:
            return value
        raise UserError(f"{where}{name} must be {row}; it is empty or null")
    return _read(row, row.kind.check, value, f"{where}{name}", "null")


def _read(row, read, value, name, null):
    """What ``read`` makes of a value.

    Text must be no word that YAML 1.1 would not take for text where null may stand.
    """
    old = (OLD_FLAGS - {"y", "n"}) | OLD_NULLS
    if isinstance(row.kind, PathText) or row.kind == PATHS:
        old -= {"~"}
    try:
        if row.null and isinstance(value, str) and value.lower() in old:
            raise Wrong(f"write {null} for none")
        return read(value)
    except Wrong as error:
        raise UserError(
            f"{name} must be {row}, not {shown(value)}{because(error)}"
        ) from None


def _target(node):
    """The key that a node refers to as a whole, or None."""
    if isinstance(node, TaggedScalar) and tag_of(node) == "!ref":
        found = re.fullmatch(r"<([^<>\[\].]+)>", str(node.value))
        return found and found[1]
    return None


def check_together(tree: dict, file: str | Path):
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
    """The number that an object's argument is, or None."""
    node = tree.get(name)
    value = node.get(key) if isinstance(node, dict) else None
    value = tree.get(_target(value), value)
    return value if isinstance(value, (int, float)) else None


def _model_width(tree):
    """Channels of the encoder where they are known without loading it, or None."""
    encoder = tree.get("encoder")
    source = encoder.get("source", "") if isinstance(encoder, dict) else ""
    if source is None:
        config = encoder.get("config") or {}
    elif isinstance(source, str):
        path = Path(source) / "config.json"
        try:
            config = yamls.value(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # A model of the hub, or a folder whose faults are told when it is read.
            return None
    else:
        return None
    width = config.get("hidden_size", 768) if isinstance(config, dict) else None
    return width if isinstance(width, int) else None


def parse(key: str, text: str, row: Setting | None = None):
    """The value of ``--key=text``; raises ``UserError`` when it is none."""
    row = row or find(key)
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
    return _read(row, row.kind.parse, text, f"--{key}", f"--{key}=null")


def kind_like(old) -> Setting | None:
    """A row for what has none: the kind of the value that stands there, if any."""
    kinds = {bool: FLAG, int: Whole(), float: Number(), str: TEXT}
    kinds |= {list: ListOf(Anything()), dict: MappingOf(Anything())}
    for kind, row in kinds.items():
        if isinstance(old, kind) and not tag_of(old):
            return Setting(row, null=row is not FLAG)
    return None


def check_like(old, value, where: str, key: str, place: dict):
    """Check the value of a key without a row by the one that it replaces.

    An argument of one of our objects must be of the same kind. A user's own key may
    hold anything, but for another YAML's word in the place of True or False.
    """
    row = None if _open(value) else kind_like(old)
    is_word = isinstance(value, str) and value.lower() in OLD_FLAGS
    if row and (_is_ours(place) or (isinstance(old, bool) and is_word)):
        checked(row, value, where, (key,))


def _is_ours(node):
    return bool(_OURS.match(tag_of(node)))


def _open(node):
    """Whether a value is still to come: a reference, a placeholder, a call."""
    tag = tag_of(node)
    return bool(tag) and tag != "!tuple"


def _line(node, key):
    """``, line N`` of an entry, where ruamel knows it."""
    try:
        return f", line {node.lc.value(key)[0] + 1}"
    except (AttributeError, KeyError, TypeError, IndexError):
        return ""
