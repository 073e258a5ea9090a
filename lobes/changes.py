"""What differs between the settings of a run that began and those it resumes with."""

import json
import re
import time
from pathlib import Path

import ruamel.yaml
from ruamel.yaml.comments import TaggedScalar

#: Settings that do not change what is learnt: where things lie, what they are run
#: on, what is tested and how much is written. (What they lead to counts: the corpora
#: by ``lobes.streams.TrainStream``, the encoder by its ``encoder_config.json``.)
DO_NOT_COUNT = re.compile(
    r"(.*_)?(folder|csv|transcripts|trial_lists|workers|timeout)|encoder_config"
    r"|threads|device|log_interval|tensorboard|train_logger|checkpointer"
    r"|gradient_checkpointing|valid_batch_samples|nonfinite_patience"
    r"|checkpoints_to_keep|ckpt_interval_.*|test_.*|.*_test_splits|headline_sets"
    r"|skip_prep|skip_budget|strict|header_only|voxceleb_convert|librispeech|voxceleb|ledger"
)


def differences(old, new):
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


def changed_settings(old, new):
    """``differences`` of two merged YAML texts, in the settings that count."""
    trees = []
    for text in (old, new):
        tree = ruamel.yaml.YAML().load(text)
        for key in ("source", "init_from"):
            # A model that was moved is still the same one.
            if tree.get(key):
                tree[key] = Path(str(tree[key])).name
        trees.append(_counting(tree))
    return differences(*trees)


def _counting(node):
    """A YAML node without the entries, at any depth, that ``DO_NOT_COUNT`` names."""
    if isinstance(node, dict):
        for key in [key for key in node if DO_NOT_COUNT.fullmatch(str(key))]:
            del node[key]
        children = node.values()
    else:
        children = node if isinstance(node, list) else ()
    for child in children:
        _counting(child)
    return node


def record_changes(folder, changes):
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
