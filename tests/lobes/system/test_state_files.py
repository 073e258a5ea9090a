"""State files that are damaged: named with the line, and what to do."""

import json
import logging

import pytest

from lobes.errors import UserError
from lobes.evaluation.progress import ProgressLog
from lobes.preparation import parts as preparation
from lobes.runs import ledger
from lobes.runs.evaluate import load_run
from lobes.system.files import parse_json, read_json, read_rows, read_text, usable_rows

REMEDY = "run it again"


@pytest.mark.parametrize(
    "content, told",
    [
        pytest.param(content, told, marks=pytest.mark.fault("C5", injected, told))
        for injected, content, told in (
            ("an empty JSON file", b"", ": it is empty; run it again"),
            ("a number as JSON file", b"5", ": 5 is not an object, {...}; run"),
            ("null as JSON file", b"null\n", ": null is not an object, {...}; run"),
            ("JSON that ends too soon", b'{\n"a": 1,\n', ", line 3: no JSON: Exp"),
            ("JSON in Latin-1", b'{"a": 1,\n"\xe4": 2}', ", line 2: not UTF-8; run it"),
            ("JSON of 99,999 brackets", b"[" * 99_999, "no JSON: "),
            ("a number of 9,999 digits", b"9" * 9999, "no JSON: Exceeds the limit"),
        )
    ],
)
def test_json_that_is_none(content, told, tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path, REMEDY)
    line = str(caught.value)
    assert line.startswith(str(path)) and told in line and line.endswith(REMEDY)
    assert "\n" not in line


def test_what_can_be_read(tmp_path):
    path = tmp_path / "x"
    path.write_bytes('\ufeff{"ä": 1}'.encode())
    assert read_json(path, REMEDY) == {"ä": 1} and read_text(path, REMEDY)[0] == "{"
    assert parse_json(b"[1]", path, REMEDY, list) == [1]
    with pytest.raises(UserError, match="absent cannot be read .No such file"):
        read_text(tmp_path / "absent", REMEDY)
    with pytest.raises(UserError, match="cannot be read .Is a directory"):
        read_json(tmp_path, REMEDY)


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "has no column a, b"),
        (b"a,c\n1,2\n", "has no column b"),
        (b"a,b\n1,2\n3\n", "line 3: it has not as many columns as the header"),
        (b"a,b\n1,2,3\n", "line 2: it has not as many columns as the header"),
        (b'a,b\n1,"2\n', "no CSV (unexpected end of data)"),
        (b"a,b\n1,\xff\n", "line 2: not UTF-8"),
    ],
)
def test_a_csv_that_is_none(content, told, tmp_path):
    path = tmp_path / "train.skipped.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_rows(path, ["a", "b"], REMEDY)
    assert told in str(caught.value) and str(caught.value).endswith(REMEDY)


def test_the_rows_of_a_csv(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'a,b\r\n1,"2\n3"\r\n')
    assert read_rows(path, ["b"], REMEDY) == [{"a": "1", "b": "2\n3"}]


@pytest.mark.fault(
    "C5",
    "progress.jsonl with `5`, null, a cut line, a text as step, a list",
    "these lines are skipped, named and counted; the others count",
)
def test_rows_that_cannot_be_used(tmp_path, caplog):
    good = [{"stage": "train", "step": n, "loss": 1.0} for n in (1, 2)]
    bad = [
        b"5",
        b"null",
        b'{"stage": "train", "st',
        b'{"stage": "train", "step": "x"}',
        b'{"stage": "valid", "step": 2, "wer": [1]}',
        b'{"stage": null, "step": 3}',
        b"\xff",
    ]
    log = ProgressLog(tmp_path)
    lines = [json.dumps(good[0]).encode(), *bad, json.dumps(good[1]).encode()]
    log.path.write_bytes(b"\n".join(lines))
    with caplog.at_level(logging.WARNING):
        assert log.rows() == good
    for number in range(2, 9):
        assert f"progress.jsonl, line {number}: " in caplog.text
    assert "7 of its lines skipped" in caplog.text
    log.rewind(1)
    assert log.rows() == good[:1]


def test_rows_of_a_file_that_is_not_there_or_no_file(tmp_path):
    assert usable_rows(tmp_path / "absent", REMEDY) == []
    with pytest.raises(UserError, match="Is a directory"):
        usable_rows(tmp_path, REMEDY)


@pytest.mark.parametrize("content", ["", "5", "{", '{"hidden_size": 32'])
@pytest.mark.fault(
    "C5",
    "a damaged encoder_config.json of a run",
    "named with its line; restore it from where the run's folder was copied",
)
def test_a_damaged_configuration_of_the_encoder(content, tmp_path):
    (tmp_path / "hyperparams.yaml").write_text("seed: 1\n")
    (tmp_path / "encoder_config.json").write_text(content)
    with pytest.raises(UserError, match="encoder_config.json.*restore it from where"):
        load_run(tmp_path)


@pytest.mark.parametrize("content", ["", "5", "null", '{"recipe": '])
@pytest.mark.fault(
    "C5", "a damaged run.json", "named before anything is tested; restore it"
)
def test_a_damaged_identity(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    hparams = {"ledger": tmp_path / "ledger.jsonl", "output_folder": tmp_path}
    with pytest.raises(UserError, match="run.json.*; restore it, or move it away"):
        with ledger.entry(hparams):
            pytest.fail("the tests have begun")


@pytest.mark.parametrize(
    "content", ["", "5", "[]", '{"format": 1}', '{"skipped": "x", "files": 5}']
)
@pytest.mark.fault("C5", "a damaged prepared.json", "the part is prepared again")
def test_a_damaged_marker_vouches_for_nothing(content, tmp_path):
    part = preparation.Part(tmp_path, "train", "VoxCeleb", {}, "inputs")
    part.marker.write_text(content)
    assert part.reusable(skip_budget=0) is None
    keys = ("format", "corpus", "options", "inputs", "skipped", "counts", "files")
    part.marker.write_text(json.dumps(dict.fromkeys(keys, "x")))
    assert part.reusable(skip_budget=0) is None


@pytest.mark.parametrize(
    "name, value",
    [
        ("changes", None),
        ("state", 5),
        ("seconds", "x"),
        ("validation", [1]),
        ("output_folder", None),
        ("wer", None),
    ],
)
@pytest.mark.fault(
    "C5", "ledger rows with null or of other kinds", "named with the line, and skipped"
)
def test_a_line_of_the_ledger_of_other_kinds(name, value, tmp_path, caplog):
    path = tmp_path / "ledger.jsonl"
    good = {"kind": "training", "state": "finished", "recipe": None, "variant": "mtl"}
    good |= {"changes": {}, "seed": 1}
    lines = [{**good, name: value}, good]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ledger.read(path) == [good]
    assert f"line 1: {name} is {json.dumps(value)}; skipped" in caplog.text or (
        name == "state" and "line 1: the state 5 is none of" in caplog.text
    )
