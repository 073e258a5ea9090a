"""The marker that vouches for the CSVs of one prepared part."""

from pathlib import Path

from lobes.errors import UserError
from lobes.system.files import file_hash, read_json


def vouched_since(csv_path: str | Path) -> int | None:
    """When a preparation wrote a CSV (ns), or None unless it is still as it was then.

    A marker beside the CSV vouches for it: all of its files were decoded before.
    """
    csv_path = Path(csv_path)
    content = None
    for marker in sorted(csv_path.parent.glob(marker_path("", "*").name)):
        wanted = read_marker(marker).get("files", {}).get(csv_path.name)
        if wanted is None:
            continue
        content = content or file_hash(csv_path)
        if content == wanted:
            return marker.stat().st_mtime_ns
    return None


def marker_path(save_folder: str | Path, name: str) -> Path:
    """Path of the file that vouches for a part's outputs."""
    return Path(save_folder) / f"{name}.prepared.json"


def read_marker(path: str | Path) -> dict:
    """A marker's content; empty if there is none, or not a complete one."""
    try:
        stored = read_json(path, "")
    except UserError:
        return {}
    wanted = {"format", "corpus", "options", "inputs", "skipped", "counts", "files"}
    whole = wanted <= set(stored) and type(stored["skipped"]) is int
    maps = whole and all(isinstance(stored[name], dict) for name in ("counts", "files"))
    return stored if maps else {}
