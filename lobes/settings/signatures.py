"""Command lines made from functions: from their arguments, hints and docstrings."""

import inspect
import re
import typing
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

from lobes.errors import ArgumentParser
from lobes.settings.table import PATH, Kind, option


@dataclass(frozen=True)
class Command:
    """The command line of a function.

    An argument without a default is required, unless its hint allows None. The hint
    decides what is read: ``bool`` is a switch, a list takes several words and may be
    repeated, ``Literal`` has the choices, a ``Path`` is a path, and a number is of the
    kind of the setting of that name. The help is the first sentence of the argument's
    documentation.

    Attributes:
        positional: The arguments that are given by their place. Where the hint allows
            None, ``-`` stands for it.
        names: What the command line calls an argument, where that differs. A switch
            whose default is True is called by what switches it off; its documentation
            begins with a verb, before which the help puts "Do not".
        hidden: The arguments that only Python code can give.
        section: The setting in which the numbers' settings stand.
        kinds: The ``Kind`` of each argument that is called like no setting.

    Example:
        >>> def train(folder: Path, steps: int = 2, loud: bool = False): ...
        >>> Command(train, positional=["folder"]).parse(["a", "--steps=1e3"])
        {'folder': 'a', 'steps': 1000, 'loud': False}
    """

    function: Callable
    positional: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    hidden: Sequence[str] = ()
    section: str = ""
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    def parse(self, argv: Sequence[str] | None = None) -> dict[str, Any]:
        """All arguments by name; ``argv`` is what argparse takes.

        Raises ``UserError`` for a wrong command line.
        """
        arguments = dict(inspect.signature(self.function, eval_str=True).parameters)
        arguments = {n: a for n, a in arguments.items() if n not in self.hidden}
        optional = {n for n, a in arguments.items() if NoneType in _members(a)}
        text = inspect.getdoc(self.function) or ""
        helps = _first_sentences(text)
        parser = ArgumentParser(description=text.partition("\n\n")[0].replace("`", ""))
        for name in self.positional:
            shown = self.names.get(name, name).upper()
            settings = self._settings(name, arguments[name])
            parser.add_argument(name, metavar=shown, help=helps.get(name), **settings)
        for name, argument in arguments.items():
            if name not in self.positional:
                settings = self._settings(name, argument)
                needed = argument.default is argument.empty
                settings["required"] = needed and name not in optional
                settings["help"] = _help(helps.get(name, ""), argument.default)
                shown = self.names.get(name, name)
                if "action" not in settings or "nargs" in settings:
                    settings.setdefault("metavar", shown.upper())
                parser.add_argument(
                    f"--{shown}", dest=name, default=SUPPRESS, **settings
                )
        given = vars(parser.parse_args(argv))
        given |= {n: None for n in optional if given.get(n) == "-"}
        for name, argument in arguments.items():
            empty = argument.default is argument.empty
            given.setdefault(name, None if empty else argument.default)
        return given

    def _settings(self, name, argument):
        """What argparse is told about the words of an argument."""
        hints = _members(argument)
        origins = {typing.get_origin(hint): hint for hint in hints}
        if bool in hints:
            return {"action": "store_false" if argument.default else "store_true"}
        if Literal in origins:
            return {"choices": typing.get_args(origins[Literal]), "metavar": None}
        if {list, Sequence} & origins.keys():
            action = "store" if name in self.positional else "extend"
            return {"action": action, "nargs": "+"}
        if name in self.kinds:
            return {"type": self.kinds[name]}
        if {int, float} & set(hints):
            return {"type": option(*filter(None, (self.section, name)))}
        return {"type": PATH if Path in hints else str}


def _members(argument):
    """The hint of an argument, or what it is a union of."""
    hint = argument.annotation
    union = typing.get_origin(hint) in (typing.Union, UnionType)
    return typing.get_args(hint) if union else (hint,)


def _first_sentences(text):
    """The first sentence about each argument of a docstring."""
    entry = r"^    (\w[\w, ]*)(?: \(.*?\))?: ((?:.*\n?)(?: {8}.*\n?)*)"
    entries = re.findall(entry, text, re.MULTILINE)
    return {
        name: re.split(r"\.(?:\s|$)", " ".join(told.split()))[0]
        .replace("`", "")
        .replace("%", "%%")
        for names, told in entries
        for name in names.split(", ")
    }


def _help(sentence, default):
    """The help of an option, with its default where that says something."""
    if default is True:
        return f"Do not {sentence[:1].lower()}{sentence[1:]}"
    if default in (inspect.Parameter.empty, None, ()) or default is False:
        return sentence
    shown = " ".join(default) if isinstance(default, tuple) else default
    return f"{sentence} (default: {shown})"
