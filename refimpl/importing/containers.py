"""Tensors by name out of a checkpoint, whatever it is wrapped in.

`.safetensors` needs nothing besides. All other formats are pickles: PyTorch reads them with
`weights_only=True`, which builds tensors and runs nothing; `argparse.Namespace`, in which training
scripts keep their options, is allowed besides. No pickle is opened in any other way.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.conventions import ModelFileError, is_lfs_pointer, lfs_error
from refimpl.models import arrays

PICKLES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
# What a folder is searched for, the safest first.
NAMES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"  # behind such a name: of a checkpoint in several files
LARGEST_INDEX = 2**24  # bytes
# What training scripts call the network, the one that is trained before its moving average.
WRAPPERS = ("model", "state_dict", "model_ema", "state_dict_ema")
PREFIXES = ("module.", "model.", "_orig_mod.")
FLOATS = "expected floats of 16, 32 or 64 bits"


class Container(NamedTuple):
    """What a checkpoint holds."""

    path: Path
    # As `values` gives them: float32 or float64, whole numbers as they are. Those of a safetensors
    # file are read when they are asked for.
    arrays: dict[str, Any]
    args: dict[str, Any]  # options of the training script, where they are in the file


def read(path: Path) -> Container:
    """Open a checkpoint, or the one in a folder; ModelFileError says what is wrong with it."""
    path = _file(path)
    arrays, args = (_parts(path), {}) if path.name.endswith(INDEX) else _one(path)
    return Container(path, _without_prefixes(path, arrays), args)


def _one(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors of one file, and the options in it."""
    if path.suffix == ".safetensors":
        return _safetensors(path), {}
    if path.suffix not in PICKLES:
        known = ", ".join((".safetensors", *PICKLES))
        raise ModelFileError(f"{path}: suffix {path.suffix!r}; expected one of {known}")
    found, args = _unwrapped(path, _pickle(path))
    return {key: _tensor(path, key, value) for key, value in found.items()}, args


def _parts(path: Path) -> dict[str, np.ndarray]:
    """Tensors of several files, which an index tells: {"weight_map": {key: name of its file}}."""
    places, arrays = _places(path), {}
    for name in sorted(set(places.values())):
        part, _ = _one(path.with_name(name))
        for key, array in part.items():
            if places.get(key) != name:
                raise ModelFileError(f"{path}: {key} is in {name}; expected it to be said there")
            arrays[key] = array
    for key, name in places.items():
        if key not in arrays:
            raise ModelFileError(f"{path}: {key} is not in {name}; expected it there")
    return arrays


def parts_of(path: Path) -> list[Path]:
    """List the files of a checkpoint: those that an index names, else the one. Errors as `read`."""
    path = _file(path)
    if not path.name.endswith(INDEX):
        return [path]
    return [path, *(path.with_name(name) for name in sorted(set(_places(path).values())))]


def _places(path: Path) -> dict[str, str]:
    """What an index says: key -> a file beside it, nowhere else."""
    try:
        found = json.loads(_bytes(path, LARGEST_INDEX))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not JSON: {error}") from None
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not places:
        raise ModelFileError(f"{path}: no weight_map; expected the file of each tensor")
    for key, name in places.items():
        if not isinstance(name, str) or "\0" in name or Path(name).name != name:
            raise ModelFileError(f"{path}: {key} is in {name!r:.60}; expected a file beside it")
        if not path.with_name(name).is_file():
            raise ModelFileError(f"{path}: {name}: no such file; expected all that it names")
    return places


def _file(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            found = "is neither a file nor a folder" if path.exists() else "no such file"
            raise ModelFileError(f"{path}: {found}; expected a checkpoint, or a folder of one")
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
        if (path / f"{name}{INDEX}").is_file():
            return path / f"{name}{INDEX}"
    raise ModelFileError(f"{path}: a folder without {' or '.join(NAMES)}; expected either of them")


def _bytes(path: Path, count: int) -> bytes:
    """What a file begins with; ModelFileError where that is a pointer of Git LFS."""
    try:
        with open(path, "rb") as file:
            data = file.read(count)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    if is_lfs_pointer(data):
        raise ModelFileError(lfs_error(path))
    return data


def _safetensors(path: Path) -> dict[str, arrays.InFile]:
    _bytes(path, 128)  # whether it can be read, and is there
    try:
        found = arrays.header(path)[1]
    except ValueError as error:
        raise ModelFileError(f"{path}: not a readable safetensors file: {error}") from None
    for key, array in found.items():
        if array.type != "BF16" and not isinstance(array.dtype, np.dtype):
            raise ModelFileError(f"{path}: {key}: {array.type}; {FLOATS}")
    return found


def values(array: np.ndarray | arrays.InFile) -> np.ndarray:
    """A tensor of a Container, read where it is still in its file; half precision is widened.

    ModelFileError where the file has changed meanwhile.
    """
    if isinstance(array, np.ndarray):
        return array
    try:
        if array.type == "BF16":  # the upper half of a float32
            bits = np.frombuffer(array.read(), "<u2").astype(np.uint32) << 16
            return bits.view(np.float32).reshape(array.shape)
        found = array.array()
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{array.path}: cannot be read: {error}") from None
    return _widened(found) if found.dtype.kind == "f" else found


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64 if array.dtype.itemsize == 8 else np.float32)


def _pickle(path: Path) -> Any:
    """What PyTorch makes of a file; without PyTorch, how to go on."""
    _bytes(path, 128)  # whether it can be read, and is there
    if importlib.util.find_spec("torch") is None:
        raise ModelFileError(
            f"{path}: PyTorch reads this, and is not installed; `pip install refimpl[torch]`, or "
            "convert it elsewhere to safetensors, with `safetensors.torch.save_file` of what "
            "`torch.load(..., weights_only=True)` gives"
        )
    import torch

    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may raise anything out of PyTorch
        raise ModelFileError(f"{path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Why PyTorch refused a file, in one line of ours."""
    text = " ".join(str(error).split())
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"holds {found[1]}, which is more than tensors and could run code; expected a file "
            "that torch.load(weights_only=True) takes: save its state dict alone"
        )
    # what PyTorch says to everybody stands around what it says of this file
    what = re.split(r"UnpicklingError: |Unpickler error: |trusted source\. ", text)[-1]
    what = what.split(" Check the documentation")[0].split(". ")[0]  # the rest is for its authors
    what = f": {textwrap.shorten(what, 160, placeholder=' …')}" if re.search("[a-z]", what) else ""
    return f"not a readable checkpoint{what}; expected what torch.save writes"


def _unwrapped(path: Path, found: Any) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The state dict inside of what a training script saved, and the script's options."""
    args: dict[str, Any] = {}
    for _ in WRAPPERS:
        if not isinstance(found, Mapping) or not found:
            break
        given = found.get("args")
        args = args or (vars(given) if isinstance(given, argparse.Namespace) else {})
        inner = next((k for k in WRAPPERS if isinstance(found.get(k), Mapping)), None)
        if inner is None:
            break
        found = found[inner]
    if not isinstance(found, Mapping) or not found:
        what = "nothing" if isinstance(found, Mapping) else type(found).__name__
        raise ModelFileError(f"{path}: holds {what}; expected a state dict")
    return found, args


def _tensor(path: Path, key: Any, value: Any) -> np.ndarray:
    import torch

    if not isinstance(key, str) or not isinstance(value, torch.Tensor):
        raise ModelFileError(
            f"{path}: {key}: {type(value).__name__}; expected a tensor, as in a state dict, or one "
            f"under {', '.join(WRAPPERS)}"
        )
    if value.is_floating_point() and value.element_size() == 1:
        raise ModelFileError(f"{path}: {key}: {str(value.dtype).removeprefix('torch.')}; {FLOATS}")
    try:
        value = value.detach()
        if value.is_floating_point():
            wide = torch.float64 if value.dtype == torch.float64 else torch.float32
            return value.to(wide).contiguous().numpy()
        return value.contiguous().numpy()
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ModelFileError(f"{path}: {key}: {reason}; expected a plain tensor") from None


def _without_prefixes(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Names as the network itself has them, without what holds it."""
    while found:
        prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in found)), None)
        if prefix is None:
            return found
        if other := [key for key in found if not key.startswith(prefix)]:
            raise ModelFileError(
                f"{path}: {other[0]}: stands beside the network, in {prefix}*; "
                "expected a state dict of the network alone"
            )
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    raise ModelFileError(f"{path}: no tensor in it; expected a state dict")
