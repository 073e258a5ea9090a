"""Modules that take seconds to import, imported when something in them is used.

A command's ``--help`` and a wrong option need none of them.
"""

import importlib
import importlib.util
import sys
import types
from pathlib import Path


class _Lazy(types.ModuleType):
    """Stands for a module until something in it is asked for."""

    def __getattr__(self, name):
        return getattr(importlib.import_module(self.__name__), name)

    @property
    def __dict__(self):
        return vars(importlib.import_module(self.__name__))

    def __setattr__(self, name, value):
        setattr(importlib.import_module(self.__name__), name, value)

    def __delattr__(self, name):
        delattr(importlib.import_module(self.__name__), name)


def lazy(name: str) -> types.ModuleType:
    """The module ``name``, which is not imported before it is used.

    Example:
        >>> json = lazy("json")
        >>> json.dumps([1])
        '[1]'
    """
    return _Lazy(name)


def module_alone(name: str) -> types.ModuleType:
    """The module ``name`` without the packages that it lies in.

    For a module that imports nothing of theirs; whoever imports it later gets the
    same one.
    """
    if name not in sys.modules:
        package, *inner = name.split(".")
        folder = importlib.util.find_spec(package).submodule_search_locations[0]
        path = Path(folder, *inner).with_suffix(".py")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        # A dataclass looks its module up.
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
