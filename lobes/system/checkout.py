"""The checkout that this code stands in: its folder, its commit, its packages."""

import importlib
import shutil
import subprocess
from pathlib import Path

from lobes.errors import UserError

#: Root of the checkout: results go below it wherever a command is started.
ROOT = Path(__file__).resolve().parents[2]


def commit():
    """The checkout's commit as ``git describe --always --dirty`` tells it, or None."""
    if not shutil.which("git"):
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return told.stdout.strip() or None


def check_imports():
    """Refuse another checkout's packages, which PYTHONPATH would put first."""
    for name in ("recipes", "tools"):
        module = importlib.import_module(name)
        # A single file, say a user's own tools.py, has no __path__.
        where = getattr(module, "__path__", None) or [module.__file__]
        found = Path(next(iter(where))).resolve().parent
        if found != ROOT:
            raise UserError(
                f"the package {name!r} comes from {found}, not from {ROOT}; remove "
                "the other one from PYTHONPATH or this folder"
            )
