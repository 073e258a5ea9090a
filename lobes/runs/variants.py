"""YAML files that stand on one another, merged into one tree for the chosen tasks."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar

from lobes.data.prepared import CORPORA
from lobes.errors import UserError
from lobes.settings import checks, table, yamls
from lobes.settings.kinds import MappingOf, similar, tag_of
from lobes.system.checkout import ROOT

#: The one full YAML of the system. It belongs to no recipe.
BASE = ROOT / "hparams" / "base.yaml"

#: Keys that hold one entry for each task.
_BY_TASK = ("train_streams", "valid_sets", "test_sets")


def load_variant(
    path: str | Path, other_base: str | None = None
) -> tuple[CommentedMap, Path]:
    """The merged YAML tree of a file and its bases, for the tasks that it chooses.

    Arguments:
        other_base: A variant that takes the place of the recipe's file below ``path``,
            of which it must be a variant itself; several are joined by ``+``.

    Returns:
        tree (ruamel.yaml.comments.CommentedMap): Includes are put in place; what only
            absent tasks need is left out (``keep_tasks``).
        recipe (Path): The recipe's file: the last of the chain of bases but for
            ``BASE``.

    Raises ``UserError`` for a file, key or value that cannot be.
    """
    tree, recipe = _merged(Path(path), other_base)
    keep_tasks(tree)
    return tree, recipe


def keep_tasks(tree: CommentedMap):
    """Leave out the streams, sets and corpora of tasks that ``tasks`` does not name.

    With them goes every other key that nothing refers to any more. A stream or set
    of a name that no object of the tree has is kept: it is a mistake, to be told.
    """
    tasks = tree.get("tasks")
    if not isinstance(tasks, CommentedMap):
        return
    before = _references(tree)
    by_task = [tree[key] for key in _BY_TASK if isinstance(tree.get(key), CommentedMap)]
    for sets in by_task:
        for name in list(sets):
            if name not in tasks and tag_of(tree.get(name)).startswith("!new:"):
                before["tasks"].add(name)
                del sets[name]
    while unused := _unused(tree, before):
        for key in unused:
            del tree[key]


def _unused(tree, before):
    """Keys that only the absent tasks needed."""
    references = _references(tree)
    now = set().union(*references.values())
    once = set().union(*before.values())
    unused = [key for key in tree if key in once and key not in now]
    return unused or [name for name in CORPORA if _is_idle(name, references, before)]


def _is_idle(corpus, now, before):
    """Whether sets were read from a corpus's CSVs before, and none is now."""
    folder = f"{corpus}_csv_folder"
    users, earlier = (
        {key for key, targets in references.items() if folder in targets} - {corpus}
        for references in (now, before)
    )
    return corpus in now and bool(earlier) and not users


def _references(tree):
    """For each top-level key: the keys that its node refers to."""
    return {key: set(_targets(node)) for key, node in tree.items()}


def _targets(node):
    """Yield the key of every reference within a node."""
    if isinstance(node, TaggedScalar):
        yield from re.findall(r"<(\w+)[^<>]*>", str(node.value))
    children = node.values() if isinstance(node, dict) else node
    for child in children if isinstance(node, (dict, list)) else ():
        yield from _targets(child)


def place_of(
    tree: CommentedMap, key: str, where: str, file: str | Path
) -> tuple[CommentedMap, str]:
    """The mapping or object that holds a dotted key, and its last name.

    Arguments:
        where: Begins messages.
        file (str or Path): What the tree was read from, for messages.

    Raises ``UserError`` when there is no such place.
    """
    *outer, last = key.split(".")
    place = tree
    for name in outer:
        inner = place.get(name)
        if tag_of(inner) == "!ref":
            raise UserError(
                f"{where}: {name} is only a reference to {inner.value} in {file}; "
                "change that node instead"
            )
        if isinstance(inner, TaggedScalar) and tag_of(inner).startswith("!new:"):
            # An object without arguments gets room for one.
            place[name] = CommentedMap()
            place[name].yaml_set_ctag(inner.tag)
            inner = place[name]
        if not isinstance(inner, CommentedMap):
            raise UserError(
                f"{where}: {name} is no mapping in {file}{similar(name, place)}"
            )
        place = inner
    return place, last


def keys_of(tree: CommentedMap) -> Iterator[str]:
    """Every key and, dotted, every key within the mappings and objects."""
    for key, node in tree.items():
        yield str(key)
        if isinstance(node, CommentedMap):
            yield from (f"{key}.{inner}" for inner in keys_of(node))


def value_of(tree: CommentedMap, key: str):
    """The node of a dotted key, or None."""
    node = tree
    for name in key.split("."):
        node = node.get(name) if isinstance(node, CommentedMap) else None
    return node


def placeholders(tree: CommentedMap) -> list[str]:
    """The keys whose values the user must give."""
    keys = keys_of(tree)
    return [key for key in keys if tag_of(value_of(tree, key)) == "!PLACEHOLDER"]


def put(tree: CommentedMap, key: str, value: Any, where: str, file: str | Path):
    """Set a dotted key; arguments as for ``place_of``.

    Raises ``UserError`` for a value that the enclosing mapping may not hold.
    """
    place, last = place_of(tree, key, where, file)
    place[last] = value
    outer = tuple(key.split(".")[:-1])
    row = table.find(outer) if outer else None
    if row is not None and isinstance(row.kind, MappingOf):
        checks.checked(row, place, f"{where}: ", outer)


def _merged(path, other_base, above=()):
    """The whole tree of a file and its bases; ``above`` are those that stand on it."""
    tree = _read_yaml(path)
    below = path.parent / str(tree["base"]) if "base" in tree else None
    if other_base is not None and (below is None or _is_base(below)):
        return _other_base(path, other_base, above)
    if below is None:
        for key in tree:
            tree[key] = _inline(tree[key], path, (key,))
        return tree, path
    del tree["base"]
    above = (*above, path.resolve())
    if below.resolve() in above:
        raise UserError(f"{path}: its base {below} is a variant of this file")
    if not below.is_file():
        raise UserError(f"{path}: its base {below} does not exist; correct base:")
    merged, recipe = _merged(below, other_base, above)
    for key, node in tree.items():
        if "." not in key and key not in merged:
            raise UserError(
                f"{path}: the key {key} is not in {below}{similar(key, merged)}"
            )
        where = f"{path}: {key}"
        names = tuple(key.split("."))
        place, last = place_of(merged, key, where, below)
        if table.find(names) is None:
            checks.check_like(place.get(last), node, f"{path}: ", key, place)
        put(merged, key, _inline(node, path, names), where, below)
    return merged, path if _is_base(below) else recipe


def _is_base(path):
    return path.resolve() == BASE


def _other_base(path, other_base, above):
    """Load ``other_base`` where ``path``, the recipe's file, would stand."""
    if not above:
        raise UserError(
            f"--base: {path} has no base in its recipe; name a variant of it instead"
        )
    first, _, others = str(other_base).partition("+")
    merged, recipe = _merged(Path(first), others or None)
    if recipe.resolve() != path.resolve():
        raise UserError(
            f"--base: {other_base} is no variant of {path}, on which {above[0]} "
            "stands; name one that is"
        )
    return merged, recipe


def _read_yaml(path, top=()):
    """One YAML file as a tree that keeps its tags, its values checked."""
    tree = yamls.read(path)
    checks.check_file(tree, path, top)
    return tree


def _inline(node, path, names):
    """``node`` with every ``!include:`` replaced by the file and its body's values.

    A fragment is a leaf: it refers to nothing, and its keys are what the body may
    set. Putting it in place (HyperPyYAML would do so when loading) keeps references
    in the stored settings, and finds misspelt keys. ``!beside PATH`` becomes the
    absolute path of what is named relative to this YAML, wherever a command is
    started. ``names`` is the key that ``node`` is the value of.
    """
    tag = tag_of(node)
    if tag == "!beside":
        return str((path.parent / node.value).resolve())
    if not tag.startswith("!include:"):
        if isinstance(node, (CommentedMap, CommentedSeq)):
            places = node if isinstance(node, CommentedMap) else range(len(node))
            for place in places:
                inner = (*names, place) if isinstance(place, str) else names
                node[place] = _inline(node[place], path, inner)
        return node
    source = path.parent / tag[len("!include:") :]
    fragment = _read_yaml(source, names)
    for key in node if isinstance(node, CommentedMap) else ():
        if key not in fragment:
            raise UserError(
                f"{path}: {source.name} has no knob {key}{similar(key, fragment)}"
            )
        fragment[key] = node[key]
    return fragment
