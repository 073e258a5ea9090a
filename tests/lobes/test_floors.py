"""The rooms of ``lobes`` import downward only, as docs/architecture.md draws them.

The picture there is the rule: it is read, and every import is compared with it.
"""

import ast
import graphlib
from pathlib import Path

import pytest

PAGE = "docs/architecture.md"
BEGIN, END = "<!-- floors: begin -->\n```\n", "```\n<!-- floors: end -->\n"
#: Calls that import the module which they name.
IMPORTERS = ("lazy", "module_alone", "import_module")


def read_floors(page: str) -> list[list[str]]:
    """The rooms of each floor, from the roof down to the ground."""
    picture = page.split(BEGIN)[1].split(END)[0]
    # Two spaces or more stand between the rooms and what they are for.
    return [line.split("  ")[0].split(", ") for line in picture.splitlines()]


def imports(source: str, for_hints: bool = True):
    """``(line, module)`` of every import in a file's text, late and lazy ones too.

    ``for_hints`` counts those below ``if TYPE_CHECKING``.
    """
    tree = ast.parse(source)
    hints = [
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    ]
    for node in ast.walk(tree):
        if node in hints and not for_hints:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            # What is imported may be a module of its own.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and _called(node.func) in IMPORTERS:
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        else:
            continue
        for name in names:
            yield node.lineno, name


def _called(function: ast.expr) -> str | None:
    return getattr(function, "id", getattr(function, "attr", None))


def room_of(module: str) -> str | None:
    """The room of a dotted name, or None for what is no part of the project."""
    first, *rest = module.split(".")
    if first == "lobes":
        return rest[0] if rest else None
    return first if first in ("recipes", "tools", "tests") else None


def tool_of(module: str) -> str:
    """Where a module of ``tools`` lies, without ``.py``."""
    return "/".join(module.split(".")[:2])


def faults(root: Path, floors: list[list[str]]) -> list[str]:
    """A line for each import that neither stays in its room nor leads to one below.

    No command of ``tools`` imports another one; a folder there may serve several.
    """
    height = {room: -n for n, rooms in enumerate(floors) for room in rooms}
    found = []
    for path in sorted(p for top in ("lobes", "recipes", "tools") for p in root.glob(
        f"{top}/**/*.py")):  # fmt: skip
        place = path.relative_to(root)
        home = room_of(".".join(place.with_suffix("").parts))
        for line, module in imports(path.read_text(encoding="utf-8")):
            room = room_of(module)
            if room is None:
                continue
            if room == home:
                allowed = home != "tools" or (root / tool_of(module)).is_dir()
            else:
                # The tests, for instance, are on no floor at all.
                allowed = height.get(room, 1) < height.get(home, 0)
            if not allowed:
                found.append(f"{place}, line {line}: {module}")
    return found


def circle(root: Path) -> list[str]:
    """The modules of a circle of imports within ``lobes``, or an empty list.

    Hints may go round: nothing is imported for them.
    """
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in root.glob("lobes/**/*.py")
        if path.stem != "__init__"
    }
    graph = {
        name: {
            # A module, or something in a module.
            module if module in modules else module.rpartition(".")[0]
            for _, module in imports(path.read_text(encoding="utf-8"), False)
        }
        & modules.keys()
        for name, path in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def floors(repository):
    return read_floors((repository / PAGE).read_text(encoding="utf-8"))


def test_the_picture_shows_every_room(repository, floors):
    lobes = {
        path.stem
        for path in (repository / "lobes").iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    shown = [room for rooms in floors for room in rooms]
    assert len(set(shown)) == len(shown)
    assert set(shown) == lobes - {"__init__"} | {"recipes", "tools"}


def test_every_import_leads_to_a_floor_below(repository, floors):
    assert faults(repository, floors) == []


@pytest.mark.parametrize(
    "file, line",
    [
        ("lobes/system/files.py", "import lobes.settings.table"),
        ("lobes/system/files.py", "from lobes import settings"),
        ("lobes/system/files.py", "from lobes.settings.table import SETTINGS"),
        ("lobes/data/audio.py", 'plots = lazy("lobes.evaluation.plots")'),
        ("lobes/data/audio.py", "def f():\n    from lobes.runs import ledger"),
        ("lobes/model/encoder.py", "from lobes.training import brain"),
        ("lobes/training/brain.py", "from lobes.model import encoder"),
        ("lobes/errors.py", "from lobes.system import files"),
        ("lobes/runs/ledger.py", "from recipes.VoxCeleb import voxceleb_prepare"),
        ("recipes/VoxCeleb/voxceleb_prepare.py", "from tools import download"),
        ("tools/download.py", "from tools.convert import main"),
        ("tools/download.py", "from tests.helpers import tiny"),
    ],
)
def test_a_planted_import_is_found(file, line, floors, tmp_path):
    """Upward, sideways, late, lazy: each is one fault."""
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f'"""A module."""\n\nfrom lobes.errors import UserError\n{line}\n')
    if file == "lobes/errors.py":
        path.write_text(f"{line}\n")
    (fault,) = faults(tmp_path, floors)
    assert fault.startswith(f"{file}, line ")


def test_imports_downward_and_within_a_room_are_none(floors, tmp_path):
    for file, line in [
        ("lobes/data/streams.py", "from lobes.data import audio"),
        ("lobes/data/audio.py", "from lobes.system import files"),
        ("lobes/runs/ledger.py", 'brain = lazy("lobes.training.brain")'),
        ("recipes/VoxCeleb/train.py", "from recipes.VoxCeleb import voxceleb_prepare"),
        ("tools/download.py", "import torch, lobes"),
    ]:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line + "\n")
    assert faults(tmp_path, floors) == []


def test_no_modules_import_each_other(repository):
    assert circle(repository) == []


def test_a_planted_circle_is_found(tmp_path):
    """Within one room, over three modules, one import of which is lazy."""
    room = tmp_path / "lobes" / "data"
    room.mkdir(parents=True)
    (room / "a.py").write_text("from lobes.data.b import b")
    (room / "b.py").write_text("from lobes.data import c")
    assert circle(tmp_path) == []
    (room / "c.py").write_text('a = lazy("lobes.data.a")')
    assert set(circle(tmp_path)) == {f"lobes.data.{name}" for name in "abc"}
