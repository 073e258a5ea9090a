"""Transcripts made by our tool or elsewhere: read, spelled, chosen, counted."""

import json

import pytest

from lobes.data.vocabulary import Vocabulary, ctc_frames
from lobes.errors import UserError
from lobes.preparation import transcripts
from lobes.preparation.transcripts import (
    REASONS,
    Skipped,
    Transcript,
    choose,
    json_lines,
    normalise,
    read_transcripts,
    reason_counts,
    transcript_files,
    unknown_utterances,
)

ID = "id00012--21Uxsk56VDQ--00001"
OTHER = "id00012---v0deo--00002"


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def found(path):
    """``{ID: (text, language, line)}``."""
    read = read_transcripts(path)
    assert all(one.path == path for one in read.values())
    return {name: (one.text, one.language, one.line) for name, one in read.items()}


# Reading.


def test_json_lines_of_our_tool(tmp_path):
    lines = [
        {"model": "openai/whisper-base", "language": None},
        {"ID": ID, "text": " Hello, you.", "language": "en", "seconds": 4.1},
        {"ID": OTHER, "text": None, "language": None, "seconds": 26.0},
    ]
    path = write(tmp_path, "a.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
    assert found(path) == {ID: (" Hello, you.", "en", 2), OTHER: (None, None, 3)}


def test_json_lines_made_elsewhere(tmp_path):
    text = f'{{"text": "caf\u00e9", "ID": "{ID}", "p": -1}}\n{{"ID": "x", "text": ""}}'
    assert found(write(tmp_path, "a.json", text)) == {
        ID: ("caf\u00e9", None, 1),
        "x": ("", None, 2),
    }


def test_kaldi_text(tmp_path):
    text = f"\ufeff{ID} HELLO  YOU\r\n\n{OTHER}\n"
    expected = {ID: ("HELLO  YOU", None, 1), OTHER: ("", None, 3)}
    assert found(write(tmp_path, "text", text)) == expected
    assert found(write(tmp_path, "train.txt", text)) == expected


@pytest.mark.parametrize("column", ["text", "wrd"])
def test_csv(tmp_path, column):
    text = f'ID,duration,{column},language\n{ID},4,"Hello, ""you""",en\n\n{OTHER},1,,\n'
    assert found(write(tmp_path, "a.csv", text)) == {
        ID: ('Hello, "you"', "en", 2),
        OTHER: ("", None, 4),
    }


def test_tsv_takes_quotes_as_they_stand(tmp_path):
    text = f'ID\ttext\n{ID}\t"Hello, you\n{OTHER}\tno\n'
    assert found(write(tmp_path, "a.TSV", text)) == {
        ID: ('"Hello, you', None, 2),
        OTHER: ("no", None, 3),
    }


@pytest.mark.parametrize(
    "name",
    [
        ID,
        "id00012/21Uxsk56VDQ/00001",
        "id00012/21Uxsk56VDQ/00001.wav",
        "id00012/21Uxsk56VDQ/00001.M4A",
        "/data/vox2/dev/aac/id00012/21Uxsk56VDQ/00001.m4a",
    ],
)
def test_paths_are_ids(tmp_path, name):
    assert set(found(write(tmp_path, "text", f"{name} hello\n"))) == {ID}


def test_a_name_keeps_dots_that_end_in_no_audio_suffix(tmp_path):
    path = write(tmp_path, "text", "id1/a.b/1.2 hello\n")
    assert set(found(path)) == {"id1--a.b--1.2"}


def test_several_files_are_one(tmp_path):
    first = write(tmp_path, "a.jsonl", f'{{"ID": "{ID}", "text": "a"}}\n')
    second = write(tmp_path, "text", f"{OTHER} b\n")
    assert set(read_transcripts([first, str(second)])) == {ID, OTHER}


@pytest.mark.parametrize(
    "name,content,problem",
    [
        (
            "a.jsonl",
            '{"ID": "x", "text": "a"}\n{"ID": "y", "te',
            "line 2: no JSON: Unterminated string",
        ),
        ("a.jsonl", '["x", "a"]\n', "line 1: .* is not an object"),
        ("a.jsonl", '{"ID": "x", "text": "a"}\n\n', "line 2: it is empty; .* the line"),
        ("a.jsonl", b'{"ID": "x", "text": "\xff"}\n', "line 1: not UTF-8"),
        ("a.jsonl", '{"ID": "x"}\n', "line 1: it has no text"),
        ("a.jsonl", '{"text": "x"}\n', "line 1: it has no ID"),
        ("a.jsonl", '{"ID": "x", "text": ["a"]}\n', "line 1: ID, text and language"),
        ("a.jsonl", '{"ID": 7, "text": "a"}\n', "line 1: ID, text and language"),
        ("a.jsonl", '{"ID":"x","text":"a"}\n{"model":"m"}\n', "line 2: it has no ID"),
        ("a.csv", "ID,sentence\nx,a\n", "line 1: the columns ID and text .* ID, sent"),
        ("a.csv", "", "line 1: the columns ID and text .* there are none"),
        ("a.csv", "ID,text\nx,a\ny,a,b\n", "line 3: the row has 3 fields"),
        ("a.csv", 'ID,text\nx,"a\n', "line 2: unexpected end"),
        ("a.tsv", "ID\ttext\nx\n", "line 2: the row has 1 fields"),
        ("text", b"x a\ny \xe9\n", "line 2: not UTF-8"),
        ("text", "x a\nid1/00001.wav b\n", "line 2: 'id1/00001.wav' is neither"),
        ("text", "id1//00001.wav b\n", "line 1: 'id1//00001.wav' is neither"),
        ("a.csv", "ID,text\n,a\n", "line 2: '' is neither an ID"),
        ("text", "x a\ny b\nx c\n", "line 3: x has a transcript already .*, line 1"),
        ("text", "a/b/c.wav a\na--b--c b\n", "line 2: a--b--c has a transcript"),
    ],
)
def test_a_bad_line_is_named(tmp_path, name, content, problem):
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=f"{name}, {problem}") as caught:
        read_transcripts(path)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    present = write(tmp_path, "text", "")
    assert transcript_files(present) == [present]
    with pytest.raises(UserError, match="the file .*absent.jsonl does not exist; make"):
        transcript_files([present, f"{tmp_path}/absent.jsonl"])


# Spelling.


@pytest.mark.parametrize(
    "text,expected",
    [
        (" Hello, you. ", "HELLO YOU"),
        ("I don\u2019t; it's `it\u00b4s\u2032", "I DON'T IT'S 'IT'S'"),
        ("well-known \u2014 twenty\u2010one--two", "WELL KNOWN TWENTY ONE TWO"),
        ("na\u00efve Zo\u00eb \u00c5ngstr\u00f6m", "NAIVE ZOE ANGSTROM"),
        ("\u00abOui\u00bb \u201cno\u201d \u00bfs\u00ed? \u2026", "OUI NO SI"),
        ("stra\u00dfe \ufb01ne", "STRASSE FINE"),
        ("rock ' n ' roll ''", "ROCK N ROLL"),
        ("a\tb\u00a0c\nd", "A B C D"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected
    assert Vocabulary().unknown(expected) == []
    assert normalise(expected) == expected


@pytest.mark.parametrize(
    "text,left",
    [
        ("in 1999", "19"),
        ("R&B", "&"),
        ("100 %", "10%"),
        ("$", "$"),
        ("and/or", "/"),
        ("[Music]", "[]"),
        ("(laughs)", "()"),
        ("\u043f\u0440", "\u041f\u0420"),
        ("\u266a", "\u266a"),
        ("\u00bd", "1\u20442"),
    ],
)
def test_what_cannot_be_spelled_stays_and_is_found(text, left):
    assert Vocabulary().unknown(normalise(text)) == list(left)


# Choosing.


SECOND = 16000

#: Transcript, samples, reason; None where the transcript is usable.
CASES = {
    "fine": ("Hello!", "en", 4 * SECOND, None),
    "untold": ("HELLO", None, 4 * SECOND, None),
    "spelled-out": ("Hello", "English", 4 * SECOND, None),
    "regional": ("Hello", "en-GB", 4 * SECOND, None),
    "nearly-long": ("Hello", "en", 25 * SECOND - 1, None),
    "nearly-wordy": ("ab " * 99 + "ab", "en", 10 * SECOND, None),
    "long": ("Hello", "fr", 25 * SECOND, (REASONS[1], "25.00 s")),
    "french": ("1 caf\u00e9", "fr", 4 * SECOND, (REASONS[2], "fr")),
    "null": (None, "en", 4 * SECOND, (REASONS[3], "")),
    "empty": (" ... ", "en", 4 * SECOND, (REASONS[3], "")),
    "digits": ("In 1990 & 1991, " * 30, "en", 4 * SECOND, (REASONS[4], "1 9 0 &")),
    "wordy": ("ab " * 99 + "abc", "en", 10 * SECOND, (REASONS[5], "300")),
}


def test_reasons():
    read, samples, expected, problems = {}, {}, {}, []
    for line, (name, (text, language, count, problem)) in enumerate(CASES.items(), 1):
        read[name] = Transcript(text, language, None, line)
        samples[name] = count
        if problem:
            problems.append(Skipped(name, *problem))
        else:
            expected[name] = normalise(text)
    samples["absent"] = 4 * SECOND
    problems.append(Skipped("absent", "no transcript", ""))
    texts, skipped = choose(read, samples)
    assert texts == expected
    assert skipped == problems
    assert reason_counts(skipped) == (
        "1 no transcript, 1 25 s or longer, 1 not English, 2 empty, 1 characters, "
        "1 300 characters or more"
    )
    assert reason_counts([]) == "none"


def test_more_letters_than_frames():
    """As many frames as letters are enough, unless two equal ones meet."""
    # 400 + 4 * 320 samples: 5 frames.
    samples = dict.fromkeys("abc", 1680)
    read = {
        "a": Transcript("AB CD", None, None, 1),
        "b": Transcript("ABCCD", None, None, 2),
        "c": Transcript("ABCDEF", None, None, 3),
    }
    texts, skipped = choose(read, samples)
    assert texts == {"a": "AB CD"}
    assert skipped == [
        Skipped("b", "more letters than frames", "6 > 5"),
        Skipped("c", "more letters than frames", "6 > 5"),
    ]
    assert ctc_frames("") == 0


def test_transcripts_of_unknown_utterances(tmp_path):
    read = read_transcripts(write(tmp_path, "text", "a A\nb B\nc C\n"))
    skipped = unknown_utterances(read, {"b"})
    assert skipped == [
        Skipped("a", "unknown utterance", "text:1"),
        Skipped("c", "unknown utterance", "text:3"),
    ]
    assert reason_counts(skipped) == "2 unknown utterance"


def test_json_lines_are_numbered():
    lines = [b'{"a": 1}\n', b'{"b": 2}']
    assert list(json_lines("x", lines)) == [(1, {"a": 1}), (2, {"b": 2})]


def test_the_module_s_example():
    import doctest

    assert doctest.testmod(transcripts) == (0, 1)
