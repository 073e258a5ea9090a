"""CSV reading: what is accepted, and how every problem is named."""

import numpy as np
import pytest

from lobes.data.utterance_tables import as_paths, concatenate, read_table, read_values
from lobes.errors import UserError

HEADER = "ID,duration,wav,spk_id,wrd"
ROWS = ("a,1.5,a.wav,s1,A CAT", "b,2,/data/b.wav,s2,NO")


@pytest.fixture
def write(tmp_path):
    """Write ``t.csv`` from lines (or bytes); returns its path."""

    def write(*lines):
        path = tmp_path / "t.csv"
        if isinstance(lines[0], bytes):
            path.write_bytes(lines[0])
        else:
            path.write_bytes(("\n".join(lines) + "\n").encode("utf-8"))
        return path

    return write


def problem(path, columns=(), extent=True):
    """The message of the ``UserError``; one line that names the file."""
    with pytest.raises(UserError) as caught:
        read_table(path, columns, extent)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_text_numbers_and_extent(write, tmp_path):
    table = read_table(write(HEADER, *ROWS), ["spk_id", "wrd"])
    assert table["ID"].to_list() == ["a", "b"]
    assert table["duration"].to_list() == [1.5, 2.0]
    assert table["start"].to_list() == [0, 0]
    assert table["stop"].to_list() == [24000, 32000]
    assert table["start"].dtype == table["stop"].dtype == np.int64
    assert table["wav"].to_list() == [str(tmp_path.resolve() / "a.wav"), "/data/b.wav"]
    assert table["wrd"].to_list() == ["A CAT", "NO"]


def test_relative_wav_does_not_depend_on_the_working_directory(
    write, tmp_path, monkeypatch
):
    write(HEADER, *ROWS)
    monkeypatch.chdir(tmp_path)
    assert read_table("t.csv")["wav"].iloc[0] == str(tmp_path.resolve() / "a.wav")


def test_duration_is_rounded_to_samples(write):
    rows = [f"{n},{n / 16000!r},x.wav" for n in range(16000, 16400)]
    table = read_table(write("ID,duration,wav", *rows))
    assert table["stop"].to_list() == list(range(16000, 16400))


def test_start_and_stop_win_over_the_duration(write):
    table = read_table(write("ID,duration,wav,start,stop", "a,9,a.wav,100,500"))
    assert (table["start"].iloc[0], table["stop"].iloc[0]) == (100, 500)


def test_start_and_stop_need_no_duration(write):
    table = read_table(write("ID,wav,start,stop", "a,a.wav,0,500"))
    assert table["stop"].iloc[0] == 500


def test_mean_and_std_keep_every_bit(write):
    values = np.random.default_rng(0).normal(size=(50, 2)) * 1e-3
    rows = [f"{i},1,x.wav,{m!r},{s!r}" for i, (m, s) in enumerate(values.tolist())]
    table = read_table(write("ID,duration,wav,mean,std", *rows))
    assert (table[["mean", "std"]].to_numpy() == values).all()


@pytest.mark.parametrize("text", ["NA", "nan", "null", "None", "007", "1e5", "True"])
def test_identifiers_and_transcripts_stay_text(write, text):
    row = f"{text},1,a.wav,{text},{text}"
    table = read_table(write(HEADER, row))
    assert table[["ID", "spk_id", "wrd"]].iloc[0].to_list() == [text] * 3


def test_quoted_cells_may_hold_commas(write):
    table = read_table(write(HEADER, 'a,1,"a,b.wav",s,"SAY ""HI"""'))
    assert table["wav"].iloc[0].endswith("a,b.wav")
    assert table["wrd"].iloc[0] == 'SAY "HI"'


def test_byte_order_mark_and_windows_line_ends_are_fine(write):
    text = "\r\n".join([HEADER, *ROWS, ""])
    table = read_table(write(b"\xef\xbb\xbf" + text.encode()), ["wrd"])
    assert table["ID"].to_list() == ["a", "b"]
    assert table["wrd"].to_list() == ["A CAT", "NO"]


def test_a_missing_last_line_end_and_empty_lines_are_fine(write):
    text = "\n".join([HEADER, ROWS[0], "", ROWS[1]])
    table = read_table(write(text.encode()))
    assert table["ID"].to_list() == ["a", "b"]
    assert table.index.to_list() == [2, 4]


def test_an_empty_text_cell_is_an_empty_string(write):
    assert read_table(write(HEADER, "a,1,a.wav,s,"))["wrd"].iloc[0] == ""


def test_absent_file(tmp_path):
    assert "does not exist" in problem(tmp_path / "none.csv")


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_empty_file(write, content):
    assert "no header" in problem(write(content))


def test_header_alone(write):
    assert "lists no utterance" in problem(write(HEADER))


def test_latin_1_is_named_with_its_line(write):
    text = "\n".join([HEADER, ROWS[0], "c,1,c.wav,s,CAFÉ", ""])
    message = problem(write(text.encode("latin-1")))
    assert "line 3" in message and "UTF-8" in message


def test_utf_16_is_refused(write):
    assert "UTF-8" in problem(write("\n".join([HEADER, *ROWS]).encode("utf-16")))


def test_missing_columns_are_listed_with_those_present(write):
    message = problem(write("ID,wav,spk", "a,a.wav,s"), ["wrd"])
    assert "line 1" in message
    assert "duration, wrd" in message and "ID, wav, spk" in message


def test_start_without_stop(write):
    assert "stop" in problem(write("ID,wav,start", "a,a.wav,0"))


def test_a_repeated_column(write):
    assert "wrd stands twice" in problem(write(HEADER + ",wrd", "a,1,a.wav,s,A,B"))


def test_short_row(write):
    """A row cut in the middle must not become an empty speaker or transcript."""
    message = problem(write(HEADER, ROWS[0], "b,2,b.wav"))
    assert "line 3" in message and "3 fields" in message and "5" in message


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_a_field_too_many_in_every_row_never_shifts_the_columns(write, rows):
    message = problem(write(HEADER, *(row + "," for row in rows)))
    assert "line 2" in message and "6 fields" in message


def test_an_open_quote(write):
    assert "line 3" in problem(write(HEADER, 'a,1,"a.wav,s,A', ROWS[1]))


def test_repeated_id(write):
    message = problem(write(HEADER, *ROWS, "a,3,c.wav,s3,YES"))
    assert "line 4" in message and "column ID" in message and "'a'" in message


@pytest.mark.parametrize("column", ["duration", "start", "stop", "mean", "std"])
@pytest.mark.parametrize("cell", ["nan", "", "inf", "-inf", "two", "1,5"])
def test_numbers_that_are_none(write, column, cell):
    names = ["duration", "start", "stop", "mean", "std"]
    good = ["1", "0", "16000", "0", "1"]
    bad = [cell if n == column else v for n, v in zip(names, good, strict=True)]
    lines = [
        ",".join(["ID", "wav", *names]),
        ",".join(["a", "a.wav", *good]),
        "",
        ",".join(["b", "b.wav", *(f'"{v}"' for v in bad)]),
    ]
    message = problem(write(*lines))
    assert f"line 4, column {column}" in message and repr(cell) in message


def test_start_and_stop_count_samples(write):
    """Seconds would be taken for samples, and cut to whole ones."""
    assert problem(write("ID,wav,start,stop", "a,x,0,16000", "b,x,0.5,1.5")).endswith(
        "line 3, column start: 0.5 is not a whole number of samples from 0; correct "
        "it or prepare the corpus again"
    )


def test_an_extent_may_be_optional(write):
    table = read_table(write("ID,wav", "a,x"), extent=False)
    assert list(table.columns) == ["ID", "wav"]
    assert read_table(write(HEADER, *ROWS), extent=False)["stop"].iloc[0] == 24000
    assert "no column stop" in problem(write("ID,wav,start", "a,x,0"), extent=False)


@pytest.mark.parametrize("extent", ["5,5", "5,4", "-1,9"])
def test_no_samples(write, extent):
    good = "a,a.wav,0,500"
    message = problem(write("ID,wav,start,stop", good, f"b,b.wav,{extent}"))
    assert "line 3" in message and "no samples" in message


@pytest.mark.parametrize("duration", ["0", "-1", "0.00001"])
def test_no_duration(write, duration):
    message = problem(write("ID,duration,wav", f"a,{duration},a.wav"))
    assert "line 2" in message and "duration" in message


@pytest.mark.parametrize("row, column", [(",1,a.wav", "ID"), ("a,1,", "wav")])
def test_empty_id_or_path(write, row, column):
    message = problem(write("ID,duration,wav", row))
    assert f"line 2, column {column}" in message


def test_windows_in_shards_are_whole_numbers(write, tmp_path):
    rows = ["a,1,s.tar,1536,99", "b,1,s.tar,9007199254740000,1"]
    table = read_table(write("ID,duration,wav,offset,size", *rows))
    assert table["offset"].to_list() == [1536, 9007199254740000]
    assert table["size"].to_list() == [99, 1]
    assert table["offset"].dtype == table["size"].dtype == np.int64
    assert table["wav"].iloc[0] == str(tmp_path.resolve() / "s.tar")


@pytest.mark.parametrize(
    "column, cells",
    [("offset", "-1,5"), ("offset", "0.5,5"), ("size", "512,0"), ("size", "512,x")],
)
def test_windows_that_are_none(write, column, cells):
    rows = ["a,1,s.tar,512,9", f"b,1,s.tar,{cells}"]
    message = problem(write("ID,duration,wav,offset,size", *rows))
    assert f"line 3, column {column}" in message


@pytest.mark.parametrize("present, missing", [("offset", "size"), ("size", "offset")])
def test_half_a_window(write, present, missing):
    message = problem(write(f"ID,duration,wav,{present}", "a,1,s.tar,512"))
    assert f"there is no column {missing}" in message


# Several tables --------------------------------------------------------------


def tables(folder, **contents):
    """Write ``<name>.csv`` from lines; returns the paths and their tables."""
    paths = []
    for name, lines in contents.items():
        paths.append(str(folder / f"{name}.csv"))
        (folder / f"{name}.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return paths, [read_table(path) for path in paths]


SPEECH = ["ID,duration,wav,spk_id,wrd", "a,1.5,a.wav,s1,A CAT", "b,2,b.wav,s2,NO"]
VOICES = ["ID,wav,start,stop,spk_id,mean,std", "c,c.wav,7,100,id1,0.25,0.5"]


def test_one_path_or_several():
    assert as_paths("a.csv") == ["a.csv"]
    assert as_paths(["a.csv", "b.csv"]) == ["a.csv", "b.csv"]
    with pytest.raises(UserError, match="the list is empty"):
        as_paths([])


def test_tables_of_different_columns_become_one(tmp_path):
    both = concatenate(*tables(tmp_path, speech=SPEECH, voices=VOICES))
    assert set(both) == {"ID", "wav", "start", "stop", "spk_id", "mean", "std"}
    assert both["ID"].to_list() == ["a", "b", "c"]
    assert both["wav"].to_list() == [
        str(tmp_path.resolve() / f"{n}.wav") for n in "abc"
    ]
    assert both["start"].to_list() == [0, 0, 7]
    assert both["stop"].to_list() == [24000, 32000, 100]
    assert both["start"].dtype == both["stop"].dtype == np.int64
    assert both["spk_id"].to_list() == ["s1", "s2", "id1"]


def test_statistics_that_one_table_lacks_are_nan(tmp_path):
    for order in ({"x": SPEECH, "y": VOICES}, {"x": VOICES, "y": SPEECH}):
        both = concatenate(*tables(tmp_path, **order)).set_index("ID")
        assert both["mean"].isna().to_dict() == {"a": True, "b": True, "c": False}
        assert (both["mean"]["c"], both["std"]["c"]) == (0.25, 0.5)
    neither = concatenate(*tables(tmp_path, x=SPEECH, y=[SPEECH[0], "z,1,z.wav,s,A"]))
    assert "mean" not in neither


def test_windows_that_one_table_lacks_are_minus_one(tmp_path):
    shards = ["ID,duration,wav,spk_id,offset,size", "s,1,s.tar,s1,512,9"]
    for order in ({"x": SPEECH, "y": shards}, {"x": shards, "y": SPEECH}):
        both = concatenate(*tables(tmp_path, **order)).set_index("ID")
        assert both["offset"].to_dict() == {"a": -1, "b": -1, "s": 512}
        assert both["size"].to_dict() == {"a": -1, "b": -1, "s": 9}
        assert both["offset"].dtype == np.int64
        assert "mean" not in both


def test_a_mean_without_its_deviation_is_no_statistics(tmp_path):
    half = ["ID,duration,wav,mean", "h,1,h.wav,0.5"]
    both = concatenate(*tables(tmp_path, half=half, voices=VOICES)).set_index("ID")
    assert np.isnan(both["mean"]["h"]) and both["mean"]["c"] == 0.25


def test_one_table_is_left_as_it_is(tmp_path):
    paths, (table,) = tables(tmp_path, speech=SPEECH)
    assert concatenate(paths, [table]) is table
    assert table.index.to_list() == [2, 3]


def test_an_id_in_two_tables_is_named_with_both(tmp_path):
    third = [SPEECH[0], "", "x,1,x.wav,s,NO", "b,1,b.wav,s,NO"]
    paths, found = tables(tmp_path, speech=SPEECH, voices=VOICES, third=third)
    with pytest.raises(UserError) as caught:
        concatenate(paths, found)
    message = str(caught.value)
    assert f"{paths[2]}, line 4, column ID: 'b' stands also in {paths[0]}" in message
    assert f"{paths[0]}, line 3" in message and "\n" not in message


def test_a_table_named_twice_is_refused(tmp_path):
    (path,), (table,) = tables(tmp_path, speech=SPEECH)
    with pytest.raises(UserError, match="'a' stands also in .*name a CSV once"):
        concatenate([path, path], [table, table])


def test_values_of_one_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("ID,duration,wav,spk_id\na,x,,s 2\nb,1,b,s1\nc,1,c,s 2\n")
    assert read_values(path, "spk_id") == {"s 2", "s1"}
    path.write_text(path.read_text() + "d,1\n")
    with pytest.raises(UserError, match="a.csv, line 5: the row has 2 fields"):
        read_values(path, "spk_id")
    with pytest.raises(UserError, match="line 1: there is no column sex"):
        read_values(path, "sex")
    with pytest.raises(UserError, match="b.csv does not exist"):
        read_values(tmp_path / "b.csv", "spk_id")


def test_blocks_of_rows_are_joined(tmp_path, monkeypatch):
    """With the right lines, empty ones between them, whatever a block holds."""
    path = tmp_path / "a.csv"
    rows = [f"u{n},{n + 1},{n}.wav,s{n // 4}\n" for n in range(10)]
    path.write_text("ID,duration,wav,spk_id\n" + "\n".join(rows))
    whole = read_table(path)
    monkeypatch.setattr("lobes.data.utterance_tables._ROWS", 3)
    table = read_table(path)
    assert table.equals(whole) and table.index.tolist() == list(range(2, 22, 2))
    assert table["spk_id"].tolist() == [f"s{n // 4}" for n in range(10)]
    path.write_text(path.read_text().replace("\n8,", "\n8x,").replace(",8,", ",8x,"))
    with pytest.raises(UserError, match="line 16, column duration: '8x'"):
        read_table(path)
