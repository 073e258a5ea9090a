"""What differs between the settings of a run that began and those it resumes with."""

import copy
import json
import time
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import TaggedScalar

from lobes.settings import table as settings


def differences(old: Any, new: Any) -> list[str]:
    """One line, ``key: old -> new``, for every leaf in which two trees differ.

    The trees are mappings and sequences of plain values, or of a YAML file's nodes.
    """
    old, new = dict(_leaves(old)), dict(_leaves(new))
    keys = dict.fromkeys([*old, *new])
    return [
        f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def changed_settings(old: dict, new: dict) -> list[str]:
    """``differences`` of two merged YAML trees, in the settings that count.

    Those that do not (``lobes.settings.table``) say where things lie, what they are run
    on, what is tested and how much is written. What they lead to counts: the corpora by
    ``lobes.data.streams.TrainStream``, the encoder by its ``encoder_config.json``.
    """
    trees = []
    for tree in map(copy.deepcopy, (old, new)):
        for node, key in ((tree.get("encoder"), "source"), (tree, "init_from")):
            # A model that was moved is still the same one.
            if isinstance(node, dict) and isinstance(node.get(key), str):
                node[key] = Path(node[key]).name
        trees.append(_counting(tree))
    return differences(*trees)


def _counting(node, path=()):
    """A YAML node without the entries, at any depth, that do not count."""
    if isinstance(node, dict):
        for key in list(node):
            if settings.counts((*path, key), "resumed"):
                _counting(node[key], (*path, key))
            else:
                del node[key]
    for child in node if isinstance(node, list) else ():
        _counting(child, path)
    return node


def record_changes(folder: str | Path, changes: list[str]):
    """Append to ``changes.jsonl`` what a run goes on with all the same."""
    row = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "changes": changes}
    with open(Path(folder) / "changes.jsonl", "a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def _leaves(node, key=""):
    """Dotted key and plain value of every leaf of a tree, tags as leaves, too."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if isinstance(node, TaggedScalar):
        yield key, f"{tag} {node.value}"
        return
    if isinstance(node, dict):  # also ruamel's; its sequences are lists
        items = [(str(name), child) for name, child in node.items()]
    elif isinstance(node, (list, tuple)):
        items = [(str(place), child) for place, child in enumerate(node)]
    else:
        yield key, node
        return
    if tag or not items:
        yield key, tag or type(node)()
    for name, child in items:
        yield from _leaves(child, f"{key}.{name}" if key else name)
