"""Automatic transcripts are read, spelt in our letters, and chosen.

The end of a file's name says what it holds:

``.jsonl``, ``.json``
    One object a line: ``{"ID": "id00012--video--00001", "text": "Hello.",
    "language": "en", "seconds": 4.1}``; text and language may be null, other keys
    are ignored. ``tools/pseudo_label.py`` writes such a file; its first line has no
    ID but says which model made it.
``.csv``, ``.tsv``
    A header, a column ``ID``, a column ``text`` or ``wrd``, perhaps ``language``.
everything else
    Kaldi's ``text``: the ID and the words, separated by blanks.

An ID may also be a path, ``.../id00012/video/00001.m4a``. Its last three parts count.
"""

import csv
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lobes.data.audio import SAMPLE_RATE, encoder_frames
from lobes.data.vocabulary import Vocabulary, ctc_frames
from lobes.errors import UserError
from lobes.system.files import parse_json, read_text

#: Utterances of this length, in seconds, and longer ones are left out.
MAXIMUM_SECONDS = 25

#: Transcripts of so many characters, and longer ones, are left out.
MAXIMUM_CHARACTERS = 300

#: Why an utterance is left out; the first reason that applies counts. The last reason
#: is of a transcript without an utterance.
REASONS = (
    "no transcript",
    f"{MAXIMUM_SECONDS} s or longer",
    "not English",
    "empty",
    "characters",
    f"{MAXIMUM_CHARACTERS} characters or more",
    "more letters than frames",
    "unknown utterance",
)

_ENGLISH = {"en", "eng", "english"}

_AUDIO_SUFFIXES = (".wav", ".flac", ".m4a")

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u2032\u00b4`", "'"))

# Unicode calls these punctuation, but they are read aloud (&, %) or mark a remark
# ([Music]). Without them the text would not be what was said.
_NOT_SILENT = frozenset("&%@#*/\\_\u00a7()[]{}")


class Transcript(NamedTuple):
    """What a file says about one utterance, and where; two values may be None."""

    text: str | None
    language: str | None
    path: Path
    line: int


class Skipped(NamedTuple):
    """An utterance without a usable transcript: its ID, one of REASONS, a detail."""

    utterance: str
    reason: str
    detail: str


def transcript_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path or a list of them as a list; ``UserError`` if a file is absent."""
    paths = [paths] if isinstance(paths, str | Path) else paths
    paths = [Path(path) for path in paths]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"transcripts: the file {path} does not exist; make it with "
                "tools/pseudo_label.py or correct the path"
            )
    return paths


def read_transcripts(
    paths: str | Path | Sequence[str | Path],
) -> dict[str, Transcript]:
    """The transcripts in files of the kinds above, ``{ID: Transcript}``.

    Raises ``UserError``, which names file and line, for a line that is malformed or
    not UTF-8, and for an utterance that occurs twice.
    """
    transcripts = {}
    for path in transcript_files(paths):
        kind = path.suffix.lower()
        read = {".jsonl": _json, ".json": _json, ".csv": _table, ".tsv": _table}
        for line, name, text, language in read.get(kind, _kaldi)(path):
            utterance = _utterance(path, line, name)
            if first := transcripts.get(utterance):
                raise UserError(
                    f"{path}, line {line}: {utterance} has a transcript already "
                    f"({first.path}, line {first.line}); remove one of them"
                )
            transcripts[utterance] = Transcript(text, language, path, line)
    return transcripts


def normalise(text: str) -> str:
    """``text`` in upper-case letters, apostrophes and single spaces, if it can be.

    Accents are dropped (NFKD), typographic apostrophes become ``'``, hyphens and
    dashes spaces, other punctuation vanishes. Digits, signs that are spoken (``&``,
    ``%``), brackets and other alphabets stay, so that ``Vocabulary.unknown`` finds
    them: how they were spoken is not known.

    Example:
        >>> normalise("\u201cCaf\u00e9-owners don\u2019t \u2013 well, won't!\u201d")
        "CAFE OWNERS DON'T WELL WON'T"
    """
    # NFKD would turn the acute accent into a space and an accent.
    text = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES))
    letters = []
    for letter in text:
        kind = unicodedata.category(letter)
        if kind == "Pd" or letter == "\u2212":
            letters.append(" ")
        elif letter == "'" or letter in _NOT_SILENT or kind[0] not in "PM":
            letters.append(letter)
    words = "".join(letters).upper().split()
    return " ".join(word for word in words if word.strip("'"))


def choose(
    transcripts: Mapping[str, Transcript], samples: Mapping[str, int]
) -> tuple[dict[str, str], list[Skipped]]:
    """The usable transcripts of some utterances.

    Arguments:
        transcripts: Of ``read_transcripts``.
        samples: Length of every utterance by ID.

    Returns:
        texts (dict): Normalised transcript by ID, in the order of ``samples``.
        skipped (list of Skipped): All other utterances, in that order.
    """
    vocabulary = Vocabulary()
    texts, skipped = {}, []
    for utterance, count in samples.items():
        transcript = transcripts.get(utterance)
        text = normalise(transcript.text or "") if transcript else ""
        detail = _problem(transcript, text, count, vocabulary)
        if detail is None:
            texts[utterance] = text
        else:
            skipped.append(Skipped(utterance, *detail))
    return texts, skipped


def unknown_utterances(
    transcripts: Mapping[str, Transcript], known: Container[str]
) -> list[Skipped]:
    """``Skipped`` of every transcript whose utterance is not in ``known``."""
    return [
        Skipped(utterance, REASONS[-1], f"{transcript.path.name}:{transcript.line}")
        for utterance, transcript in transcripts.items()
        if utterance not in known
    ]


def reason_counts(skipped: Iterable[Skipped]) -> str:
    """How many were left out for which reason, as text."""
    counts = Counter(one.reason for one in skipped)
    return ", ".join(f"{counts[r]} {r}" for r in REASONS if counts[r]) or "none"


def json_lines(path: str | Path, lines: Iterable[bytes]) -> Iterator[tuple[int, dict]]:
    """Yield ``(line number, object)`` of lines (bytes) of JSON objects.

    Raises ``UserError``, which names ``path`` and the line, for one that is no
    complete object.
    """
    remedy = "correct or remove the line, or let tools/pseudo_label.py finish the file"
    for number, line in enumerate(lines, 1):
        yield number, parse_json(line, path, remedy, line=number)


def _json(path):
    """Yield (line, ID, text, language) of JSON lines."""
    with open(path, "rb") as stream:
        for number, value in json_lines(path, stream):
            if number == 1 and "model" in value and "ID" not in value:
                continue
            for key in ("ID", "text"):
                if key not in value:
                    raise UserError(f"{path}, line {number}: it has no {key}; add it")
            texts = value["ID"], value["text"] or "", value.get("language") or ""
            if not all(isinstance(text, str) for text in texts):
                raise UserError(
                    f"{path}, line {number}: ID, text and language must be strings; "
                    "correct the line"
                )
            yield number, value["ID"], value["text"], value.get("language")


def _table(path):
    """Yield (line, ID, text, language) of a CSV or TSV with a header."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = (line + "\n" for _, line in _lines(path))
    # Quotes mean nothing in a TSV: transcripts have unbalanced ones.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        header = next(reader, [])
        column = next((name for name in ("text", "wrd") if name in header), None)
        if "ID" not in header or column is None:
            raise UserError(
                f"{path}, line 1: the columns ID and text (or wrd) are needed; there "
                f"are {', '.join(header) or 'none'}"
            )
        for row in filter(None, reader):
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: the row has {len(row)} fields, "
                    f"the header {len(header)}; correct the row"
                )
            cells = dict(zip(header, row, strict=True))
            language = cells.get("language") or None
            yield reader.line_num, cells["ID"], cells[column], language
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}; correct it"
        ) from None


def _kaldi(path):
    """Yield (line, ID, text, language) of Kaldi's ``text``.

    id00012-video-00001 NO LANGUAGE IS SAID IN SUCH A FILE
    """
    for number, line in _lines(path):
        if line.strip():
            name, *words = line.split(None, 1)
            yield number, name, " ".join(words), None


def _lines(path):
    """Yield (line number, line without its end) of a UTF-8 text file."""
    text = read_text(path, "re-encode it").removesuffix("\n")
    for number, line in enumerate(text.split("\n"), 1):
        yield number, line.rstrip("\r")


def _utterance(path, line, name):
    """An ID as it stands in our CSVs."""
    parts = name.split("/")
    if len(parts) == 1 and name.strip():
        return name
    if len(parts) < 3 or not all(parts[-3:]):
        raise UserError(
            f"{path}, line {line}: {name!r} is neither an ID nor a path "
            "speaker/video/file; correct the line"
        )
    stem, dot, suffix = parts[-1].rpartition(".")
    if dot + suffix.lower() in _AUDIO_SUFFIXES:
        parts[-1] = stem
    return "--".join(parts[-3:])


def _problem(transcript, text, samples, vocabulary):
    """One of REASONS and a detail, or None when the transcript is usable."""
    if transcript is None:
        return REASONS[0], ""
    if samples >= MAXIMUM_SECONDS * SAMPLE_RATE:
        return REASONS[1], f"{samples / SAMPLE_RATE:.2f} s"
    language = transcript.language
    if language and language.lower().split("-")[0] not in _ENGLISH:
        return REASONS[2], language
    if not text:
        return REASONS[3], ""
    if unknown := vocabulary.unknown(text):
        return REASONS[4], " ".join(unknown)
    if len(text) >= MAXIMUM_CHARACTERS:
        return REASONS[5], str(len(text))
    needed, frames = ctc_frames(text), int(encoder_frames(samples))
    if needed > frames:
        return REASONS[6], f"{needed} > {frames}"
    return None
