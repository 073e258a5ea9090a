"""Transcripts as letters, values as classes."""

import pytest
import torch

from lobes.data.labels import Categories, Letters
from lobes.data.utterance_tables import read_table
from lobes.data.vocabulary import Vocabulary
from lobes.errors import UserError


@pytest.fixture
def csv(tmp_path):
    """Write a CSV of (ID, speaker, transcript) rows; returns path and table."""

    def csv(*rows, name="t.csv"):
        path = tmp_path / name
        lines = [",".join([i, "1", "x.wav", s, w]) for i, s, w in rows]
        path.write_text("\n".join(["ID,duration,wav,spk_id,wrd", *lines, ""]))
        return str(path), read_table(path)

    return csv


def test_letters_are_padded_with_blanks_and_counted():
    symbols, lengths = Letters().encode(["I SEE", "A"])
    assert symbols.tolist() == [[10, 4, 12, 5, 5], [7, 0, 0, 0, 0]]
    assert lengths.tolist() == [5, 1]
    assert symbols.dtype == lengths.dtype == torch.int64


def test_letters_of_nothing_are_integers_too():
    symbols, lengths = Letters().encode([""])
    assert symbols.dtype == torch.int64 and lengths.tolist() == [0]


def test_letters_follow_their_vocabulary_and_column():
    letters = Letters("text", Vocabulary(["<pad>", "|", "B", "A"]))
    assert letters.column == "text"
    assert letters.encode(["AB"])[0].tolist() == [[3, 2]]


def test_good_transcripts_pass(csv):
    Letters().check(*csv(("a", "s", "IT'S A CAT"), ("b", "s", "NO")))


@pytest.mark.parametrize(
    "text, named",
    [("naïve", "'n' 'a' 'ï' 'v' 'e'"), ("ROOM 101", "'1' '0'"), ("", "is empty")],
)
def test_a_bad_transcript_is_named_by_file_line_and_id(csv, text, named):
    path, table = csv(("a", "s", "FINE"), ("b", "s", text), ("c", "s", "9"))
    with pytest.raises(UserError) as caught:
        Letters().check(path, table)
    message = str(caught.value)
    assert f"{path}, line 3 (b), column wrd" in message and named in message
    assert "\n" not in message


def test_only_spaces_are_an_empty_transcript(csv):
    path, table = csv(("a", "s", "  "))
    with pytest.raises(UserError, match="is empty"):
        Letters().check(path, table)


def test_lines_count_empty_ones(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("ID,duration,wav,wrd\n\na,1,x,A\n\nb,1,x,9\n")
    with pytest.raises(UserError, match="line 5 "):
        Letters().check(str(path), read_table(path))


def test_classes_are_the_sorted_values_not_their_order_in_the_file(csv):
    path, _ = csv(("1", "id9", "A"), ("2", "id10", "A"), ("3", "id9", "A"))
    categories = Categories(path)
    assert len(categories) == 2
    encoded = categories.encode(["id9", "id10", "id9"])
    assert encoded.tolist() == [1, 0, 1] and encoded.dtype == torch.int64


def test_the_csv_is_read_when_first_needed(tmp_path, csv):
    categories = Categories(str(tmp_path / "later.csv"))
    csv(("1", "s", "A"), name="later.csv")
    assert len(categories) == 1


def test_another_column(csv):
    path, _ = csv(("1", "s", "B"), ("2", "s", "A"))
    assert Categories(path, column="wrd").encode(["A", "B"]).tolist() == [0, 1]


def test_absent_column(csv):
    path, _ = csv(("1", "s", "A"))
    with pytest.raises(UserError, match="gender"):
        len(Categories(path, column="gender"))


def test_an_unknown_class_is_named(csv):
    train, _ = csv(("1", "s1", "A"), ("2", "s2", "A"), name="train.csv")
    path, table = csv(("3", "s2", "A"), ("4", "s7", "A"))
    with pytest.raises(UserError) as caught:
        Categories(train).check(path, table)
    message = str(caught.value)
    assert f"{path}, line 3, column spk_id" in message and "'s7'" in message
    assert train in message and "among the 2" in message and "\n" not in message


def test_known_classes_pass(csv):
    train, table = csv(("1", "s1", "A"), ("2", "s2", "A"))
    Categories(train).check(train, table)


def test_classes_of_several_csvs_are_one_set(csv):
    first, table = csv(("1", "s2", "A"), ("2", "id1", "A"), name="first.csv")
    second, other = csv(("3", "s1", "A"), ("4", "s2", "A"), name="second.csv")
    categories = Categories([first, second])
    assert len(categories) == 3
    assert categories.encode(["id1", "s1", "s2"]).tolist() == [0, 1, 2]
    categories.check(first, table)
    categories.check(second, other)
    path, stranger = csv(("5", "s7", "A"), name="t.csv")
    with pytest.raises(UserError) as caught:
        categories.check(path, stranger)
    assert f"among the 3 of {first} and {second}" in str(caught.value)


@pytest.mark.fault(
    "C4",
    "training speakers that are one, or have no name",
    "`train.csv, column spk_id: all rows have 'a'; training needs at least two`",
)
def test_a_single_speaker_and_a_nameless_one_are_refused(tmp_path):
    path = tmp_path / "train.csv"

    def check(*speakers):
        rows = [f"u{i},1,u.wav,{speaker}" for i, speaker in enumerate(speakers)]
        path.write_text("\n".join(["ID,duration,wav,spk_id", *rows]), encoding="utf-8")
        Categories(path).check(str(path), read_table(path))

    with pytest.raises(UserError) as caught:
        check("a", "a")
    assert str(caught.value) == (
        f"{path}, column spk_id: all rows have 'a'; training needs at least two"
    )
    with pytest.raises(UserError, match="line 4, column spk_id: the cell is empty"):
        check("a", "b", "")
    check("a", "b", "b")
