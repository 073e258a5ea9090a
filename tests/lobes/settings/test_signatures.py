"""Command lines that are made from functions."""

import doctest
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from lobes.errors import UserError
from lobes.settings import signatures
from lobes.settings.signatures import Command
from lobes.settings.table import COUNT


def work(
    source: str | Path | None,
    out: str | Path,
    size: int,
    parts: Sequence[str] = (),
    names: str | Sequence[str] | None = ("a", "b"),
    to: Literal["flac", "wav"] | None = None,
    valid_fraction: float = 0.02,
    across: bool = True,
    strict: bool = False,
    secret: int = 3,
):
    """Do some `work`.

    Arguments:
        source, out: From and to. More of them.
        size: Bytes of a file, 100 % of them.
        across: Go across.
    """


COMMAND = Command(
    work,
    positional=("out", "source"),
    names={"across": "within", "parts": "part"},
    hidden=("secret",),
    kinds={"size": COUNT},
)

DEFAULTS = {
    "source": "s",
    "out": "o",
    "size": 1000,
    "parts": (),
    "names": ("a", "b"),
    "to": None,
    "valid_fraction": 0.02,
    "across": True,
    "strict": False,
}


@pytest.mark.parametrize(
    "words, changes",
    [
        ("o s", {}),
        ("o -", {"source": None}),
        ("- s", {"out": "-"}),
        ("o s --part a --part b c", {"parts": ["a", "b", "c"]}),
        ("o s --names c", {"names": ["c"]}),
        ("o s --to wav --strict", {"to": "wav", "strict": True}),
        ("o s --valid_fraction 2e-1 --within", {"valid_fraction": 0.2, "across": 0}),
    ],
)
def test_words_become_arguments(words, changes):
    found = COMMAND.parse([*words.split(), "--size=1e3"])
    assert found == {**DEFAULTS, **changes}


@pytest.mark.parametrize(
    "words, problem",
    [
        ("o s", "the following arguments are required: --size; --help lists"),
        ("o --size 1", "the following arguments are required: SOURCE"),
        ("o s --size 1.5", "--size: must be a whole number from 1 to 1e10, not '1.5'"),
        ("o s --size 1 --valid_fraction 2", "--valid_fraction: must be a number above"),
        ("o s --size 1 --to mp3", "--to: invalid choice: 'mp3'"),
        ("o s --size 1 --secret 2", "unrecognized arguments: --secret 2"),
        ("o s --size 1 --str", "unrecognized arguments: --str"),
        ("o s --size 1 --part", "--part: expected at least one argument"),
    ],
)
def test_wrong_words_are_one_line(words, problem):
    with pytest.raises(UserError, match=problem) as caught:
        COMMAND.parse(words.split())
    assert "\n" not in str(caught.value)


def test_the_example_of_the_docstring():
    assert doctest.testmod(signatures).attempted == 2
    assert doctest.testmod(signatures).failed == 0


def test_the_help_has_first_sentences_and_defaults(capsys):
    with pytest.raises(SystemExit):
        COMMAND.parse(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "Do some work. positional" in told
    assert "OUT From and to SOURCE From and to options" in told
    assert "--size SIZE Bytes of a file, 100 % of them --part PART [PART ...]" in told
    assert (
        "--to {flac,wav} --valid" in told and "--within Do not go across --st" in told
    )
    assert "(default: a b)" in told and "(default: 0.02)" in told
