"""What all corpora share: scanning in parallel, CSV text, markers, problems."""

import json
from pathlib import Path

import pytest

from lobes.errors import UserError, enumeration
from lobes.preparation import parts
from lobes.preparation.parts import Part, Problem, check_owner


def part(folder, options=None, inputs="inputs", corpus="Corpus"):
    """The part ``one`` with default options."""
    return Part(folder, "one", corpus, options or {"seed": 1}, inputs)


def test_a_written_part_is_kept(tmp_path, capsys):
    assert part(tmp_path).reusable(0) is None
    part(tmp_path).write({"one.csv": "ID\n1\n"}, {"one.csv": {"utterances": 1}})
    assert (tmp_path / "one.csv").read_text() == "ID\n1\n"
    assert part(tmp_path).reusable(0) == {"one.csv": {"utterances": 1}}
    assert "nothing changed; kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda f: part(f, options={"seed": 2}), "options changed"),
        (lambda f: part(f, inputs="others"), "input files changed"),
        (lambda f: (f / "one.csv").unlink(), "one.csv is missing"),
        (lambda f: (f / "one.csv").write_text("ID\n"), "edited or cut"),
        (lambda f: (f / "two.txt").write_text("trial 2\n"), "two.txt was edited"),
        (lambda f: (f / "one.prepared.json").write_text("{"), ""),
        (lambda f: (f / "one.prepared.json").write_text("[]"), ""),
        (lambda f: (f / "one.prepared.json").unlink(), ""),
        (
            lambda f: change_json(f / "one.prepared.json", format=0),
            "another version",
        ),
        (lambda f: change_json(f / "one.prepared.json", files=[]), ""),
    ],
)
def test_a_part_that_does_not_fit_is_not_trusted(tmp_path, capsys, change, said):
    part(tmp_path).write({"one.csv": "ID\n1\n", "two.txt": "trial\n"}, {"n": 1})
    changed = change(tmp_path)
    current = changed if isinstance(changed, Part) else part(tmp_path)
    assert current.reusable(0) is None
    assert said in capsys.readouterr().err


def change_json(path, **changes):
    """Change entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.fault(
    "F25",
    "an output that is missing at the end of preparation",
    "never taken for complete",
)
def test_a_part_without_all_outputs_has_no_marker(tmp_path, monkeypatch):
    part(tmp_path).write({"one.csv": "old\n"}, {"n": 1})

    def full(path, content):
        if Path(path).name == "one.csv":
            raise OSError("disk full")
        write(path, content)

    write = parts.write_atomically
    monkeypatch.setattr(parts, "write_atomically", full)
    with pytest.raises(OSError):
        part(tmp_path).write({"one.csv": "new\n"}, {"n": 2})
    monkeypatch.undo()
    assert (tmp_path / "one.csv").read_text() == "old\n"
    assert part(tmp_path).reusable(0) is None


def test_the_marker_is_the_last_file_written(tmp_path, monkeypatch):
    order = []
    write = parts.write_atomically

    def record(path, content):
        order.append(Path(path).name)
        write(path, content)

    monkeypatch.setattr(parts, "write_atomically", record)
    part(tmp_path).write({"b.csv": "", "a.csv": ""}, {"n": 1})
    # The first one says only whose files these are: see check_owner.
    assert order == ["one.prepared.json", "b.csv", "a.csv", "one.prepared.json"]


def test_two_corpora_do_not_share_a_part(tmp_path):
    part(tmp_path).write({"one.csv": ""}, {"n": 1})
    check_owner(tmp_path, "one", "Corpus", ["one.csv"])
    check_owner(tmp_path, "two", "Other", ["two.csv"])
    with pytest.raises(UserError, match="one.csv.*from Corpus, not from Other"):
        check_owner(tmp_path, "one", "Other", ["one.csv"])


@pytest.mark.fault(
    "C6",
    "the user's own train.csv in save_folder",
    "refused: `no preparation wrote it; it is not overwritten`",
)
def test_what_no_preparation_wrote_is_not_overwritten(tmp_path, monkeypatch):
    (tmp_path / "one.csv").write_text("mine\n")
    with pytest.raises(UserError, match="one.csv is there and no preparation wrote it"):
        check_owner(tmp_path, "one", "Corpus", ["one.csv"])
    (tmp_path / "one.csv").unlink()
    # But what a killed one left may be written again.
    write = parts.write_atomically

    def killed(path, content):
        write(path, content)
        if Path(path).name == "one.csv":
            raise KeyboardInterrupt

    monkeypatch.setattr(parts, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        part(tmp_path).write({"one.csv": ""}, {"n": 1})
    check_owner(tmp_path, "one", "Corpus", ["one.csv"])
    assert part(tmp_path).reusable(0) is None


PROBLEMS = [Problem(f"u{n}", f"/p/{n}.wav", "is broken") for n in (4, 1, 3, 2)]


@pytest.mark.fault(
    "F20", "more bad files than the budget", "an error that lists all of them"
)
def test_too_many_problems_are_all_listed(tmp_path):
    with pytest.raises(UserError) as caught:
        part(tmp_path).skip(PROBLEMS, skip_budget=3)
    message = str(caught.value)
    assert "one: 4 bad utterance(s): u1: /p/1.wav: is broken; u2" in message
    assert "and 1 more" in message and "--skip_budget=4" in message
    lines = [f"u{n},/p/{n}.wav,is broken" for n in (1, 2, 3, 4)]
    listed = (tmp_path / "one.skipped.csv").read_text().splitlines()
    assert listed == ["ID,path,reason", *lines]


@pytest.mark.fault(
    "F20", "bad files within the stated budget", "left out, counted and listed"
)
def test_problems_within_the_budget_are_counted_and_listed(tmp_path, capsys):
    first = part(tmp_path)
    first.skip(PROBLEMS, skip_budget=4)
    assert "left out 4 bad utterance(s)" in capsys.readouterr().err
    first.write({"one.csv": ""}, {"n": 1}, skipped=4)
    assert part(tmp_path).reusable(4) == {"n": 1}
    assert part(tmp_path).reusable(3) is None
    assert "skip_budget=3" in capsys.readouterr().err
    (tmp_path / "one.skipped.csv").write_text("ID,path,reason\n")
    assert part(tmp_path).reusable(4) is None


def test_no_problems_remove_an_older_list(tmp_path):
    part(tmp_path).skip(PROBLEMS, skip_budget=4)
    part(tmp_path).skip([], skip_budget=0)
    assert not list(tmp_path.iterdir())


def test_enumeration_is_short():
    assert enumeration(["a"]) == "a"
    assert enumeration(list("abc")) == "a; b; c"
    assert enumeration(list("abcde")) == "a; b; c; and 2 more"
