"""YAML files as trees that keep their tags, read alike whatever else was loaded.

HyperPyYAML adds its tuples, ``(0.9, 0.999)``, to the rules of every later reader of
ruamel's in this process. The reader here always has that rule, so that a tree, its
text and its hash are the same before and after ``load_hyperpyyaml``.
"""

import io
import re
from pathlib import Path

import ruamel.yaml
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.resolver import VersionedResolver

from lobes.errors import UserError

_TUPLE = ("!tuple", re.compile(r"^\(.*\)$"))


class _Resolver(VersionedResolver):
    """YAML 1.2 with the tuples of HyperPyYAML."""

    @property
    def versioned_resolver(self):
        """The rules by the first letter of a scalar."""
        return {**super().versioned_resolver, "(": [_TUPLE]}


class _Composer(Composer):
    """Refuses an alias within what it stands for; ruamel would put null there."""

    def __init__(self, loader=None):
        super().__init__(loader)
        self._within = []

    def compose_node(self, parent, index):
        """The next node."""
        event = self.parser.peek_event()
        if isinstance(event, AliasEvent) and event.anchor in self._within:
            raise ComposerError(
                None, None, f"*{event.anchor} holds itself", event.start_mark
            )
        self._within.append(event.anchor)
        try:
            return super().compose_node(parent, index)
        finally:
            self._within.pop()


def _yaml(typ="rt"):
    yaml = ruamel.yaml.YAML(typ=typ, pure=True)
    yaml.Resolver = _Resolver
    yaml.Composer = _Composer
    return yaml


def read(path: str | Path, remedy: str = "name a recipe's YAML file") -> CommentedMap:
    """The tree of a YAML file.

    Raises ``UserError``, with the line where one is known and the ``remedy``, for a
    file that is not there, not UTF-8, no YAML, or holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8; re-encode it, or {remedy}") from error
    tree = load(text, path)
    if not isinstance(tree, CommentedMap):
        raise UserError(f"{path} holds no keys; {remedy}")
    return tree


def load(text: str, name: str | Path = "the YAML") -> CommentedMap:
    """The tree of a YAML text; ``name`` stands in the message of a ``UserError``."""
    try:
        return _yaml().load(text)
    except ruamel.yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{name}{line}: {problem}; correct the YAML") from error
    except RecursionError as error:
        raise UserError(f"{name} is nested too deeply; correct the YAML") from error
    except Exception as error:
        # A number of 5000 digits, the 99th of a month: ruamel lets Python tell it.
        problem = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: {problem}; correct the YAML") from error


def value(text: str):
    """The plain value of a word of the command line; raises ``ValueError``."""
    try:
        return _yaml("safe").load(text)
    except (ruamel.yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(f"{text} is no YAML") from error


def dump(tree: CommentedMap) -> str:
    """A tree as text, which stock ``load_hyperpyyaml`` loads."""
    stream = io.StringIO()
    yaml = _yaml()
    # A wrapped line would be hard to read and to compare.
    yaml.width = 10_000
    yaml.dump(tree, stream)
    return stream.getvalue()
