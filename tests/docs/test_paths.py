"""What README.md, docs/ and lobes/__init__.py name is there."""

import re

import pytest

import lobes
from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").rglob("README.md")),
]

FOLDERS = ("lobes", "recipes", "hparams", "grids", "tools", "tests", "docs")
RECIPES = [file.parent for file in ROOT.glob("recipes/*/*/train.py")]
#: Where a path may begin: in the root, in a recipe, or beside a recipe's YAMLs.
BASES = [ROOT, *RECIPES, *(recipe / "hparams" for recipe in RECIPES)]
#: Names of all files, for pages that name a file without its folder.
NAMES = {f.name for folder in FOLDERS for f in (ROOT / folder).rglob("*.*")}

#: A path with a folder of ours, or a bare file of a kind that we write by hand.
PATH = re.compile(
    rf"(?<![\w./>-])((?:\.\./)*(?:{'|'.join(FOLDERS)})(?:/[\w.*{{}},-]+)*/?"
    r"|[\w.*{},-]+\.(?:py|yaml|md))(?![\w/-])"
)

#: Files of a reader, of a run, and of SpeechBrain.
NOT_OURS = re.compile(
    r"\bmy_|mine/|\bmy\.|\bx\.yaml|hyperparams\.yaml"
    r"|train_hf_wav2vec|train_ecapa_tdnn|verification_ecapa"
)


def paths(text):
    """Every path of the project that a page names."""
    for match in PATH.finditer(text):
        path = match[1].rstrip(".,")
        alone = path.rstrip("/") in FOLDERS and not path.endswith("/")
        if not alone and not NOT_OURS.search(path):
            yield path


def spelled(path):
    """``a/{b,c}.yaml`` as ``a/b.yaml`` and ``a/c.yaml``."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if not braces:
        return [path]
    before, after = path[: braces.start()], path[braces.end() :]
    return [p for word in braces[1].split(",") for p in spelled(before + word + after)]


def exists(path, page):
    """Whether a path is there from the root, a recipe, the page, or as a bare name."""
    if "*" in path:
        return any(any(base.glob(path)) for base in BASES)
    if path in NAMES:
        return True
    return any((base / path).exists() for base in [*BASES, page.parent])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_is_there(page):
    named = {one for path in paths(page.read_text("utf-8")) for one in spelled(path)}
    assert named
    absent = sorted(path for path in named if not exists(path, page))
    assert not absent, f"{page.relative_to(ROOT)} names {', '.join(absent)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", h.lower()) for h in headings]
            assert anchor in [a.replace(" ", "-") for a in anchors], target


def test_the_finder_of_paths_finds_what_is_absent():
    text = "`lobes/no.py`, hparams/{mtl,no}.yaml, (docs/no.md), no_such.yaml, my_x.py"
    named = [one for path in paths(text) for one in spelled(path)]
    absent = [path for path in named if not exists(path, ROOT / "README.md")]
    assert absent == ["lobes/no.py", "hparams/no.yaml", "docs/no.md", "no_such.yaml"]


def test_every_module_that_is_named_is_there():
    """In code, comments, YAMLs and pages, whose names a move leaves behind."""
    # Tests may plant names that are none.
    folders = [ROOT / folder for folder in FOLDERS if folder != "tests"]
    sources = [f for folder in folders for f in folder.rglob("*.*")]
    sources = [f for f in sources if f.suffix in (".py", ".yaml", ".md")]
    assert len(sources) > 100
    for file in [*sources, ROOT / "README.md"]:
        text = file.read_text("utf-8")
        named = set(re.findall(r"(?<![\w.])lobes\.(\w+)\.(\w+)", text))
        for room, module in sorted(named):
            place = (
                "lobes/errors.py" if room == "errors" else f"lobes/{room}/{module}.py"
            )
            assert (ROOT / place).is_file(), f"{file.relative_to(ROOT)}: {place}"


def rooms():
    """The folders of ``lobes`` that hold modules."""
    return {file.parent.name for file in (ROOT / "lobes").glob("*/__init__.py")}


def test_lobes_has_a_line_for_each_room():
    named = re.findall(r"^    (\w+)(?:/|\.py)  +\S", lobes.__doc__, re.MULTILINE)
    assert sorted(named) == sorted(rooms() | {"errors"})


def test_the_steps_of_the_architecture_are_where_it_says():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    steps = re.findall(r"^\| \d+ \| `([^`]+)` \| (`[^|]+`) \|", page, re.MULTILINE)
    assert len(steps) == 20
    for file, cell in steps:
        text = (ROOT / file).read_text("utf-8")
        for name in re.findall(r"`(\w+)`", cell):
            assert re.search(rf"^ *(def|class) {name}\b", text, re.MULTILINE), name


def test_the_readme_has_each_folder_and_room():
    page = (ROOT / "README.md").read_text("utf-8")
    legend = page.partition("## What is where\n")[2].partition("\n## ")[0]
    folders = {f"lobes/{room}/" for room in rooms()} | {f"{f}/" for f in FOLDERS}
    shown = set(re.findall(r"`([\w/]+/)`", legend))
    # The rooms stand for lobes/, the links to pages for docs/.
    assert shown == folders - {"lobes/", "docs/"}
