"""Checks of the pre-trained encoder that ``source`` names, before it is loaded.

A folder's files are judged by their first bytes and their sizes. A hub model comes from
the local cache if it is there; if not, the hub is asked once, and for a short time.
"""

import json
import os
import zipfile
from pathlib import Path

from lobes.errors import UserError
from lobes.system.files import read_json
from lobes.system.lazy import lazy

huggingface_hub = lazy("huggingface_hub")
hub_constants = lazy("huggingface_hub.constants")
hub_errors = lazy("huggingface_hub.errors")
hub_utils = lazy("huggingface_hub.utils")
torch = lazy("torch")

WEIGHTS = ("model.safetensors", "pytorch_model.bin")

#: Seconds that the hub may take for its first answer.
HUB_TIMEOUT = 5

_POINTER = b"version https://git-lfs"
_REMEDY = "name a whole folder written by save_pretrained with --encoder.source=FOLDER"
_AGAIN = "download it again, whole"

# Weights under the names that older versions of torch gave them.
_RENAMED = {
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}


def check_source(
    source: str | Path, model_class: type | None = None, weights: bool = True
) -> str:
    """Check the model that ``source`` names, and return what to load it from.

    Arguments:
        source: A folder, or a model of the hub.
        model_class: A transformers class. The weights must have the sizes that it has
            with the folder's config.json. None: only the files are checked.
        weights: False if the configuration is enough.

    Returns:
        The folder, the local copy of a hub model, or the name of a model that the hub
        has and the local cache has not.

    Raises:
        UserError: There is no such folder. Its config.json is missing or cannot be
            read. There are no weights, or only a git-lfs pointer, a part of a download,
            or a pickle. Their sizes are not those of config.json. A hub model is not in
            the cache, and the hub cannot be reached.
    """
    folder = Path(source)
    if not folder.is_dir():
        local = _from_hub(str(source), weights)
        if local is None:
            return str(source)
        folder = Path(local)
    shapes = {}
    config = folder / "config.json"
    if not config.exists():
        raise UserError(f"source: {folder} has no config.json; {_REMEDY}")
    _check_pointer(config)
    read_json(config, _REMEDY)
    for path in _weights(folder) if weights else ():
        shapes.update(_check_weights(path))
    if model_class is not None and shapes:
        _check_shapes(folder, model_class, shapes)
    return str(folder)


def _weights(folder):
    """The files that hold a folder's weights."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return [folder / name]
        if index.exists():
            names = read_json(index, _REMEDY).get("weight_map")
            if not isinstance(names, dict):
                raise UserError(f"{index} names no files; {_REMEDY}")
            return [folder / part for part in sorted({*map(str, names.values())})]
    raise UserError(f"source: {folder} has no {' and no '.join(WEIGHTS)}; {_REMEDY}")


def _check_pointer(path):
    """Refuse the pointer that git leaves in a file's place without git-lfs."""
    if _start(path, len(_POINTER)) == _POINTER:
        raise UserError(
            f"{path} is a git-lfs pointer, not the file itself; run git lfs pull in "
            f"{path.parent}"
        )


def _check_weights(path):
    """Judge one file; returns the tensors' shapes by name if its format tells them."""
    _check_pointer(path)
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty; {_AGAIN}")
    if path.suffix == ".safetensors":
        return _safetensors_shapes(path, size)
    start = _start(path, 2)
    if not (zipfile.is_zipfile(path) if start == b"PK" else start[:1] == b"\x80"):
        raise UserError(
            f"{path} is cut, or no file of torch's ({size:,} bytes); {_AGAIN}"
        )
    return {}


def _safetensors_shapes(path, size):
    """Shape of each tensor by name, from the header; the file must be whole."""
    start = _start(path, 8)
    length = int.from_bytes(start, "little")
    cut = UserError(f"{path} is cut, or no safetensors ({size:,} bytes); {_AGAIN}")
    if start.startswith((b"PK", b"\x80")):
        # Such a start also fits a safetensors; if it is none, it is a zip or pickle.
        cut = UserError(
            f"{path} holds a pickle, which may hold code, and no safetensors; it was "
            "not loaded; take the weights from where you trust them"
        )
    if size < 8 or length > size - 8:
        raise cut
    try:
        header = json.loads(_start(path, 8 + length)[8:])
        tensors = {n: t for n, t in header.items() if n != "__metadata__"}
        shapes = {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise cut from error
    if end != size - 8 - length:
        raise UserError(
            f"{path} has {size:,} bytes, but its header tells of {8 + length + end:,}: "
            f"it is cut or was changed; {_AGAIN}"
        )
    return shapes


def _check_shapes(folder, model_class, shapes):
    """Compare the weights with the model that config.json describes."""
    config = folder / "config.json"
    try:
        described = model_class.config_class.from_pretrained(
            folder, output_attentions=False
        )
        # The encoder chooses the kernel itself; sizes do not depend on it.
        described._attn_implementation = "sdpa"
        with torch.device("meta"):
            model = model_class(described)
    # transformers raises many kinds of errors, as the numbers there may be.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{config} describes no model ({reason}); {_REMEDY}") from error
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name, shape in shapes.items():
        place = name.removeprefix(f"{model_class.base_model_prefix}.")
        for old, new in _RENAMED.items():
            if place.endswith(old):
                place = place.removesuffix(old) + new
        if wanted.get(place, shape) != shape:
            there, here = (" x ".join(map(str, s)) for s in (shape, wanted[place]))
            raise UserError(
                f"source: {folder}: {place} has the size {there}, but with "
                f"config.json it is {here}; the two are not of one model: restore the "
                "one that was changed"
            )


def _start(path, length):
    """The first bytes of a file."""
    try:
        with open(path, "rb") as stream:
            return stream.read(length)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); {_REMEDY}"
        ) from error


def _from_hub(name, weights):
    """The folder of a hub model in the cache; None if only the hub has it.

    Raises ``UserError`` when it is in neither.
    """
    absent = UserError(f"source: the folder {name} does not exist; {_REMEDY}")
    try:
        hub_utils.validate_repo_id(name)
    except ValueError as error:
        raise absent from error
    if name.startswith("."):
        raise absent
    cached = huggingface_hub.try_to_load_from_cache
    paths = [cached(name, file) for file in ("config.json", *WEIGHTS)]
    # Other values tell that a file is absent.
    folder, *others = [isinstance(p, str) and os.path.dirname(p) for p in paths]
    if folder and (not weights or folder in others):
        return folder
    _ask_hub(name)
    return None


def cache_alone_if_offline(name: str) -> None:
    """Let the hub's library use the cache only, if the hub does not answer for a model.

    The library would ask for minutes. It still tells when the cache has no ``name``.
    """
    try:
        _ask_hub(name)
    except UserError:
        hub_constants.HF_HUB_OFFLINE = True


def _ask_hub(name):
    """Ask the hub once for a model; ``UserError`` if it has none or does not answer."""
    try:
        if hub_constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(name, "config.json"), timeout=HUB_TIMEOUT
        )
    except hub_errors.RepositoryNotFoundError as error:
        raise UserError(
            f"source: the hub has no model {name}, or not for you; correct the name"
        ) from error
    except hub_errors.EntryNotFoundError as error:
        raise UserError(
            f"source: {name} has no config.json on the hub; name another model"
        ) from error
    # The libraries below raise errors of their own.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"source: {name} is not in the local cache, and the hub cannot be reached "
            f"({reason}); connect to it once, or name a folder with "
            "--encoder.source=FOLDER"
        ) from error
