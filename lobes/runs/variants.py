"""YAML files that stand on one another, merged into one tree."""

from pathlib import Path

from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar

from lobes.errors import UserError
from lobes.settings import checks, table, yamls
from lobes.settings.kinds import similar


def load_variant(path, other_base=None, above=()):
    """The merged YAML tree of a file and its bases, includes put in place.

    Arguments
    ---------
    path : str or Path
    other_base : str or Path or None
        A variant that takes the place of the file at the end of the chain of bases,
        of which it must be a variant itself; several are joined by ``+``.
    above : sequence of Path
        The files that name this one as their base.

    Returns
    -------
    tree : ruamel.yaml.comments.CommentedMap
    base : Path
        The file that has no ``base`` of its own.
    """
    path = Path(path)
    tree = _read_yaml(path)
    if "base" not in tree:
        if other_base is not None:
            return _other_base(path, other_base, above)
        for key in tree:
            tree[key] = _inline(tree[key], path, (key,))
        return tree, path
    below = path.parent / str(tree.pop("base"))
    above = (*above, path.resolve())
    if below.resolve() in above:
        raise UserError(f"{path}: its base {below} is a variant of this file")
    if not below.is_file():
        raise UserError(f"{path}: its base {below} does not exist; correct base:")
    merged, base = load_variant(below, other_base, above)
    for key, node in tree.items():
        *outer, last = key.split(".")
        place = merged
        for name in outer:
            inner = place.get(name)
            if isinstance(inner, TaggedScalar) and inner.tag.value == "!ref":
                raise UserError(
                    f"{path}: {key}: {name} is only a reference to {inner.value} in "
                    f"{below}; change that node instead"
                )
            if not isinstance(inner, CommentedMap):
                raise UserError(
                    f"{path}: {key}: {name} is no mapping in {below}"
                    f"{similar(name, place)}"
                )
            place = inner
        if not outer and key not in merged:
            raise UserError(
                f"{path}: the key {key} is not in {below}{similar(key, merged)}"
            )
        if table.find(key) is None:
            checks.check_switch(place.get(last), node, f"{path}: ", key)
        place[last] = _inline(node, path, tuple(key.split(".")))
    return merged, base


def _other_base(path, other_base, above):
    """Load ``other_base`` where ``path``, the end of the chain, would stand."""
    if not above:
        raise UserError(f"--base: {path} has no base; name a variant of it instead")
    first, _, others = str(other_base).partition("+")
    merged, base = load_variant(first, others or None)
    if base.resolve() != path.resolve():
        raise UserError(
            f"--base: {other_base} is no variant of {path}, on which {above[0]} "
            "stands; name one that is"
        )
    return merged, base


def _read_yaml(path, top=()):
    """One YAML file as a tree that keeps its tags, its values checked."""
    tree = yamls.read(path)
    checks.check_file(tree, path, top)
    return tree


def _inline(node, path, names):
    """``node`` with every ``!include:`` replaced by the file and its body's knobs.

    A fragment is a leaf: it refers to nothing, and its keys are its knobs.
    Putting it in place (HyperPyYAML would do so when loading) keeps references
    in the stored settings, and finds misspelt knobs. ``!beside PATH`` becomes the
    absolute path of what is named relative to this YAML, wherever a command is
    started. ``names`` is the key that ``node`` is the value of.
    """
    tag = getattr(node, "tag", None)
    if tag is not None and tag.value == "!beside":
        return str((path.parent / node.value).resolve())
    if tag is None or not (tag.value or "").startswith("!include:"):
        if isinstance(node, (CommentedMap, CommentedSeq)):
            places = node if isinstance(node, CommentedMap) else range(len(node))
            for place in places:
                inner = (*names, place) if isinstance(place, str) else names
                node[place] = _inline(node[place], path, inner)
        return node
    source = path.parent / tag.value[len("!include:") :]
    fragment = _read_yaml(source, names)
    for key in node if isinstance(node, CommentedMap) else ():
        if key not in fragment:
            raise UserError(
                f"{path}: {source.name} has no knob {key}{similar(key, fragment)}"
            )
        fragment[key] = node[key]
    return fragment
