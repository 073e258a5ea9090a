"""Kinds of values: what a setting may be, in YAML and on the command line."""

import argparse
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable
from typing import Any

from ruamel.yaml.comments import TaggedScalar

from lobes.settings import yamls

#: What torch and numpy keep apart: beyond it SpeechBrain takes the seed 0.
LARGEST_SEED = 2**32 - 1

#: More than this is a mistake in any count here (a week of audio has 1e10 samples).
MANY = 10**10

#: Words that YAML 1.1 reads as True, False or null, and YAML 1.2 as text.
OLD_FLAGS = {"yes", "no", "on", "off", "y", "n", "true", "false"}
OLD_NULLS = {"none", "null", "nil", "~"}

_TUPLE = re.compile(r"\(.*\)")
_REFERENCE = re.compile(r"<[^<>]*>")


class Wrong(ValueError):
    """A value is not of its kind; the message may say what to write."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value may be. ``str(kind)`` says it, after "must be".

    ``check(value)`` returns the value of a YAML as it is to be used and
    ``parse(text)`` that of a command line; both raise ``Wrong``. A kind is a ``type``
    for argparse, too.
    """

    def check(self, value: Any) -> Any:
        """The value."""
        return value

    def parse(self, text: str) -> Any:
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


class Flag(Kind):
    """True or False, and no word that another YAML would take for it."""

    def __str__(self):
        return "True or False"

    def check(self, value: Any) -> Any:
        """A bool."""
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in OLD_FLAGS | OLD_NULLS:
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

    def check(self, value: Any) -> Any:
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

    def parse(self, text: str) -> Any:
        """The number that a text is; it is a float where it may be one."""
        try:
            value = float(text)
        except ValueError:
            # Also what only YAML takes for a number, such as 0x10.
            return super().parse(text)
        return self.check(value)


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

    def parse(self, text: str) -> Any:
        """The whole number that a text is."""
        try:
            return self.check(int(text))
        except ValueError:
            return super().parse(text)


class Text(Kind):
    """Text as it stands: nothing in it is YAML, and nothing a reference."""

    def __str__(self):
        return "text"

    def check(self, value: Any) -> Any:
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

    def parse(self, text: str) -> Any:
        """The text."""
        return self.check(text)


class PathText(Text):
    """The path of a file or folder; ``~`` is the home folder."""

    def __str__(self):
        return "a path"

    def check(self, value: Any) -> Any:
        """The path with the home folder in place of ``~``."""
        return os.path.expanduser(super().check(value))


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
    """One of some words."""

    words: tuple

    def __str__(self):
        *most, last = self.words
        return f"{', '.join(most)} or {last}" if most else last

    def check(self, value: Any) -> Any:
        """The word."""
        if not isinstance(value, str) or value not in self.words:
            close = difflib.get_close_matches(str(value), self.words, n=1)
            raise Wrong(f"did you mean {close[0]}?" if close else "")
        return value

    def parse(self, text: str) -> Any:
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

    def check(self, value: Any) -> Any:
        """The list, its entries checked; tagged ones are references and objects."""
        if self.alone and not isinstance(value, list):
            return self.kind.check(value)
        entries = value
        if tag_of(value) == "!tuple":
            entries = yamls.value(f"[{value.value[1:-1]}]")
        if not isinstance(entries, list) or len(entries) < self.least:
            raise Wrong
        for place, entry in enumerate(entries):
            if not tag_of(entry):
                entries[place] = self.kind.check(entry)
        return value

    def parse(self, text: str) -> Any:
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

    def check(self, value: Any) -> Any:
        """The mapping, its values checked; tagged ones are references and objects."""
        if not isinstance(value, dict) or len(value) < self.least:
            raise Wrong
        for name, one in value.items():
            if not isinstance(name, str):
                raise Wrong("its keys must be text")
            if not tag_of(one):
                try:
                    value[name] = self.kind.check(one)
                except Wrong as error:
                    raise Wrong(f"{name} is wrong{because(error)}") from error
        if self.some and not any(value.values()):
            raise Wrong
        return value


class Anything(Kind):
    """Any value."""

    def __str__(self):
        return "any value"


class Object(Kind):
    """An object (``!new:``, ``!apply:``, ``!name:``), or a mapping or list of them."""

    def __str__(self):
        return "an object (!new:...)"

    def check(self, value: Any) -> Any:
        """A node with a tag, a mapping or a list."""
        if tag_of(value) or isinstance(value, (dict, list)):
            return value
        raise Wrong

    def parse(self, text: str) -> Any:
        """Never: an object has no text."""
        raise Wrong("replace it in a variant file (base: ...)")


def similar(key: Any, candidates: Iterable) -> str:
    """A hint at the nearest names, for the end of a message."""
    close = difflib.get_close_matches(str(key), [str(c) for c in candidates], n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def shown(value: Any) -> str:
    """A value in a message: its text in one line, not too long."""
    if isinstance(value, TaggedScalar):
        value = value.value
    try:
        text = repr(value if not isinstance(value, dict) else dict(value))
    except ValueError:
        # A whole number of more digits than Python writes.
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} letters)"


def tag_of(node: Any) -> str:
    """A node's tag as text, or an empty one."""
    return getattr(getattr(node, "tag", None), "value", None) or ""


def because(error: Exception) -> str:
    """What an error says, for the end of a message."""
    return f": {error}" if str(error) else ""


def _many(kind):
    known = {"text": "texts", "a path": "paths", "any value": "values"}
    return known.get(str(kind), f"values, each {kind}")


def _short(number):
    """1e+10 as 1e10, 10000000 as 10,000,000."""
    if isinstance(number, int) and abs(number) < 10**10:
        return f"{number:,}"
    return f"{number:.10g}".replace("e+", "e")
