"""The 32 symbols, encoding and greedy decoding."""

import random

import pytest
from speechbrain.utils.edit_distance import wer_details_for_batch

from lobes.data.vocabulary import VOCABULARY, Vocabulary, edit_distances
from lobes.errors import UserError


def test_the_symbols_are_the_papers_in_their_order():
    expected = "<pad> <s> </s> <unk> | E T A O N I H S R D L U M W C F G Y P B V K ' X"
    assert list(VOCABULARY) == [*expected.split(), "J", "Q", "Z"]
    assert len(Vocabulary()) == 32
    assert VOCABULARY[Vocabulary.blank_index] == "<pad>"


def test_encode_marks_word_boundaries():
    assert Vocabulary().encode("I SEE") == [10, 4, 12, 5, 5]
    assert Vocabulary().encode("IT'S") == [10, 6, 27, 12]


def test_encode_takes_runs_of_spaces_as_one_boundary():
    assert Vocabulary().encode("  I   SEE ") == Vocabulary().encode("I SEE")


@pytest.mark.parametrize("text", ["see", "A-B", "CAFÉ", "A1", "A|B", "A\tB"])
def test_characters_without_a_symbol_are_named(text):
    with pytest.raises(UserError) as caught:
        Vocabulary().encode(text)
    for character in Vocabulary().unknown(text):
        assert repr(character) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_lists_each_character_once_in_order():
    assert Vocabulary().unknown("A9 1B91") == ["9", "1"]
    assert Vocabulary().unknown("A B'C") == []


def test_decode_collapses_repeats_before_it_drops_blanks():
    vocabulary = Vocabulary()
    assert vocabulary.decode([0, 10, 10, 4, 0, 12, 5, 0, 5]) == "I SEE"
    assert vocabulary.decode([5, 5, 5]) == "E"
    assert vocabulary.decode([5, 0, 5]) == "EE"


def test_decode_leaves_special_symbols_out_but_lets_them_separate():
    assert Vocabulary().decode([1, 5, 3, 5, 2]) == "EE"


@pytest.mark.parametrize("indices", [[], [0, 0], [4, 0, 4]])
def test_decode_gives_no_letters_for_silence(indices):
    assert Vocabulary().decode(indices) == ""


def test_decode_makes_one_space_of_several_boundaries():
    assert Vocabulary().decode([4, 5, 4, 0, 4, 6, 4]) == "E T"


def test_every_letter_survives_a_round_trip():
    vocabulary = Vocabulary()
    text = " ".join("ETAONIHSRDLUMWCFGYPBVK'XJQZ")
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_other_symbols_can_be_given():
    vocabulary = Vocabulary(["<pad>", "|", "B", "A"])
    assert vocabulary.encode("AB B") == [3, 2, 1, 2]
    assert vocabulary.unknown("ABC") == ["C"]
    assert len(vocabulary) == 4


def test_edit_distances_are_speechbrain_s():
    draw = random.Random(0)

    def texts():
        return ["".join(draw.choices("ABC ", k=draw.randrange(12))) for _ in range(300)]

    for split in (list, str.split):
        sides = [[split(text) for text in side] for side in (texts(), texts())]
        names = list(map(str, range(300)))
        kinds = ("insertions", "deletions", "substitutions")
        rows = wer_details_for_batch(names, *sides)
        expected = [sum(row[kind] for kind in kinds) for row in rows]
        assert edit_distances(*sides).tolist() == expected
    assert edit_distances([], []).tolist() == []
