"""The golden bundle: a folder that needs no library of ours to read [SPEC 8.1].

    manifest.json          what it is, how it was made, conventions, hashes
    weights.safetensors    latent parameters by dotted name; of a binary matrix bits and scale, too
    input_0.npy            images (B, channels, H, W), one batch
    output_0.npy           logits (B, classes), with a decoder (B, classes, H, W)
    index.csv              one line a tap or gradient, in order of computation
    taps/000.<name>.npy    values; grads/000.<name>.npy gradients

Bits are packed [SPEC 1]; all arrays are little-endian, C order, .npy version 1.0. `read` checks
everything before it believes anything: hashes, shapes, types, padding.
"""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl import disk
from refimpl.conventions import (
    FLOATS,
    ConfigError,
    GoldenFileError,
    RefimplError,
    did_you_mean,
    require_choice,
    require_finite,
    require_shape,
)
from refimpl.golden import bounds, npy, record
from refimpl.golden.record import INPUT, Step
from refimpl.models import (
    Config,
    VisionTransformer,
    files,
    flatten,
    insides,
    packing,
    replay,
    unflatten,
)
from refimpl.models import params as parameters
from refimpl.models.nodes import Network
from refimpl.models.params import Params
from refimpl.models.replay import GRADS
from refimpl.ops import weight_binarizer

FORMAT, FORMAT_VERSION = "refimpl golden bundle", "2"
VERSIONS = ("1", FORMAT_VERSION)  # that are read; "1" has no columns `op` and `attributes`
MANIFEST, INDEX, WEIGHTS = "manifest.json", "index.csv", "weights.safetensors"
INPUT_FILE, OUTPUT_FILE = "input_0.npy", "output_0.npy"
HASHED = (INDEX, WEIGHTS, INPUT_FILE, OUTPUT_FILE)  # in the manifest; the taps in the index
TAPS = ("all", "block", "io")
KINDS = ("ordinary", "tie-free", "adversarial")
DTYPES = ("float64", "float32")
CONVENTIONS = {
    "sign": "+1 where z >= 0, also for 0.0 and -0.0; else -1",
    "bit": "1 is +1 and 0 is -1; in attention's probabilities 1 is 1 and 0 is 0",
    "boolean": "1 where q > 1/2; q = 1/2 gives 0",
    "rounding": "half to even",
    "layout": "bits packed along the last axis, least significant bit first, rows of whole 64-bit "
    "words, padding 0; `shape` in the index is that before packing",
    "binary product": "K - 2 popcount(a ^ w); boolean: 2 popcount(a & v) - popcount(a)",
    "tolerance": "largest bound of the tap for a float32 candidate in mode free",
    "arrays": "little-endian, C order",
}


class Entry(NamedTuple):
    """A line of index.csv."""

    number: int  # within its folder
    name: str
    kind: str  # "bit", "int", "real"; the column `class`
    dtype: str  # of the file
    shape: tuple[int, ...]  # logical: before packing
    file: str
    op: str  # that made it, in `refimpl.ops`; of a gradient whose backward; "" of what was given
    attributes: str  # of the op, name=value
    inputs: tuple[str, ...]  # the nearest stored taps that it was computed from
    threshold: float | None  # of a bit
    tolerance: float | None  # None of whole numbers, which are exact
    ties: int | None  # elements at the threshold
    margin: float | None  # smallest distance from the threshold
    sha256: str

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return packed_shape(self.shape) if self.kind == "bit" else self.shape


COLUMNS = {
    version: tuple(
        "class" if field == "kind" else field
        for field in Entry._fields
        if version != "1" or field not in ("op", "attributes")
    )
    for version in VERSIONS
}


@dataclass(frozen=True)
class Bundle:
    """Give access to a bundle whose files have been checked; arrays are read when asked for.

    >>> from importlib import resources
    >>> read(resources.files("refimpl.weights") / "golden" / "react_micro").entries["logits"].kind
    'real'
    """

    path: Path
    manifest: dict[str, Any]
    entries: dict[str, Entry]  # in order of computation: taps, then gradients
    model: VisionTransformer
    params: Params  # latent, in the bundle's dtype
    input: np.ndarray  # (B, channels, H, W)
    output: np.ndarray  # logits: (B, classes), with a decoder (B, classes, H, W)
    # bits and scales that lie beside the binary matrices, by the taps that they are
    binarized: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        count = f"{len(self.entries)} taps of {len(self.input)} images"
        return f"Bundle({str(self.path)!r}: {count}, {self.input.dtype}, {self.model})"

    def value(self, name: str) -> np.ndarray:
        """A stored tap in its logical shape: bool, int32 or float."""
        entry = self.entries[name]
        array = npy.read(self.path, entry.file)
        return unpack(array, entry.shape) if entry.kind == "bit" else array

    @cached_property
    def reference(self) -> bounds.Reference:
        """Every tap of the model in float64, stored or not, recomputed from weights and input."""
        try:
            found = bounds.reference(self.model, self.params, self.input, self._dlogits())
        except RefimplError as error:
            raise GoldenFileError(f"{self.path}: {error}") from None
        for name, entry in self.entries.items():
            _check_step(self.path / INDEX, entry, found.steps.get(name))
        return found

    def retrace(self) -> dict[str, Step]:
        """Every tap in the bundle's own dtype."""
        if self.input.dtype == np.float64:
            return dict(self.reference.steps)
        return record.trace(self.model, self.params, self.input, self._dlogits())

    def _dlogits(self) -> np.ndarray | None:
        given = f"{GRADS}{self.model.network.output}"
        return self.value(given) if given in self.entries else None


# Bits


def packed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(..., K) -> (..., ceil(K / 64) * 8), of uint8."""
    return (*shape[:-1], -(-shape[-1] // packing.WORD) * packing.WORD // 8)


def unpack(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 as `packing.pack_rows` gives it -> bool of the logical shape."""
    return np.unpackbits(packed, axis=-1, count=shape[-1], bitorder="little").astype(bool)


def padding_is_clear(packed: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether all bits beyond the logical shape are 0."""
    return not np.unpackbits(packed, axis=-1, bitorder="little")[..., shape[-1] :].any()


# Writing


def make(
    path: str | os.PathLike,
    model: VisionTransformer,
    params: Params,
    images: np.ndarray,
    *,
    taps: str | Sequence[str] = "all",
    grads: bool = False,
    dtype: str = "float64",
    seed: int = 0,
    kind: str = "ordinary",
    search: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a bundle of one forward, with `grads` also of one backward; whole or not at all.

    images (B, channels, H, W), any float type like the parameters: both are cast to `dtype`, in
    which the reference then runs. The gradient of the logits is drawn from `seed`. `taps`:
    "all"; "block": the shell, each block's mid and out, and the bits of activations; "io": input
    and logits; or patterns of names such as "blocks.0.*", several of which add up. The logits and
    their gradient are always there. `search` is noted in the manifest.
    GoldenFileError where `path` exists and is not an empty folder, with `overwrite` no bundle;
    ConfigError where a pattern fits no tap; errors of the model; OSError.

    >>> import tempfile
    >>> from refimpl.models import create_model
    >>> model = create_model("react_micro", depth=1)
    >>> params = model.init(np.random.default_rng(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     make(f"{folder}/bundle", model, params, np.zeros((1, 1, 28, 28)), taps="io")
    ...     read(f"{folder}/bundle").value("logits").shape
    (1, 10)
    """
    taps = [taps] if isinstance(taps, str) else list(taps)
    require_taps(model.network, taps, grads)
    if len(taps) == 1 and taps[0] in TAPS:
        (taps,) = taps
    chosen = {"kind": kind, "taps": taps, "grads": grads, "seed": seed, "dtype": dtype}
    for option, choices in (("dtype", DTYPES), ("kind", KINDS)):
        require_choice("golden make", option, chosen[option], choices)
    path = Path(path)
    require_free(path, overwrite=overwrite)
    parameters.check(model.network.parameters, flatten(params))
    size = (model.config.channels, *model.config.image_size)  # what the manifest will say
    require_shape("golden make", "images", images, (None, *size))
    used, images = record.cast(params, dtype), images.astype(dtype)
    require_finite("golden make", "images", images)
    dlogits = None
    if grads:
        shape = (len(images), *model.config.logits_shape)
        dlogits = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    exact = bounds.reference(model, used, images, dlogits)
    is_exact = images.dtype == np.float64
    steps = exact.steps if is_exact else record.trace(model, used, images, dlogits)
    manifest = _description(model.config, chosen, search)
    write_folder(path, _contents(exact, steps, params, manifest), overwrite)


def require_taps(network: Network, taps: Sequence[str], grads: bool) -> None:
    """Raise ConfigError where one of these is no preset, and fits no tap of the network."""
    shown = replay.taps(network)
    forward = [tap.name for place in shown.forward for tap in place]
    backward = [tap.name for place in shown.backward for tap in place]
    for pattern in taps:
        if pattern in TAPS or fnmatch.filter([*forward, *(backward if grads else [])], pattern):
            continue
        if fnmatch.filter(backward, pattern):
            raise ConfigError(f"--taps {pattern!r} fits gradients alone; expected --grads, too")
        raise ConfigError(
            f"--taps {pattern!r} fits no tap of the model; expected {', '.join(TAPS)} or a "
            f"pattern of names{did_you_mean(pattern, [*TAPS, *forward, *backward])}"
        )


def _description(
    config: Config, chosen: Mapping[str, Any], search: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The manifest without its hashes; `chosen` are options of `make`."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **chosen,
        "free_margin": bounds.FREE_MARGIN,
        "search": dict(search) if search else None,
        "config": config.to_json(),
        "conventions": CONVENTIONS,
        "tool": {
            "refimpl": importlib.metadata.version("refimpl"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _contents(
    reference: bounds.Reference,
    steps: Mapping[str, Step],
    params: Params,
    manifest: dict[str, Any],
) -> Iterator[tuple[str, bytes]]:
    """Names of files and what is in them; the manifest, which has the hashes, comes last."""
    hashes = {"config": _hash_of_config(manifest["config"])}
    whole = {
        WEIGHTS: _weights(reference.network, params, np.dtype(manifest["dtype"])),
        INPUT_FILE: to_npy(steps[INPUT].value),
        OUTPUT_FILE: to_npy(steps[reference.network.output].value),
    }
    entries = []
    for entry, data in _taps(reference, steps, manifest["taps"]):
        entries.append(entry)
        yield entry.file, data
    whole[INDEX] = _to_csv(entries)
    for name, data in whole.items():
        hashes[name] = _hash(data)
        yield name, data
    text = json.dumps({**manifest, "sha256": hashes}, indent=2, ensure_ascii=False)
    yield MANIFEST, f"{text}\n".encode()


def _taps(
    reference: bounds.Reference, steps: Mapping[str, Step], taps: str | Sequence[str]
) -> Iterator[tuple[Entry, bytes]]:
    words = [taps] if isinstance(taps, str) else taps
    ends = (reference.network.output, GRADS + reference.network.output)
    chosen = [
        name
        for name, step in steps.items()
        if name in ends or (name != INPUT and any(_is_chosen(name, step, word) for word in words))
    ]
    sources = _sources(steps, {INPUT, *chosen})
    free = bounds.Free(reference, bounds.UNITS["float32"])
    numbers = {"taps": 0, "grads": 0}
    for name in chosen:
        step = steps[name]
        value, kind = step.value, step.kind
        folder = "grads" if name.startswith(GRADS) else "taps"
        data = to_npy(packing.pack_rows(value) if kind == "bit" else value)
        threshold = ties = margin = tolerance = None
        if kind != "int":
            tolerance = float(free[name].max())
        if kind == "bit":
            threshold = step.threshold
            distance = np.abs(steps[step.z].value - threshold)
            ties, margin = int((distance == 0).sum()), float(distance.min())
        entry = Entry(
            number=numbers[folder],
            name=name,
            kind=kind,
            dtype="uint8" if kind == "bit" else value.dtype.name,
            shape=value.shape,
            file=_file(folder, numbers[folder], name),
            op=_op(step),
            attributes=_attributes(step),
            inputs=sources[name],
            threshold=threshold,
            tolerance=tolerance,
            ties=ties,
            margin=margin,
            sha256=_hash(data),
        )
        numbers[folder] += 1
        yield entry, data


def _is_chosen(name: str, step: Step, taps: str) -> bool:
    """Whether a pattern or a preset stores it: of presets all do so with the ends of the run."""
    if taps not in TAPS:
        return fnmatch.fnmatchcase(name, taps)
    if step.op is None:  # given: the gradient of the logits
        return True
    shown, network = step.op.shown, step.op.network
    ends = shown.source in (INPUT, network.output) or shown.what == "d.param"
    if taps == "all" or ends:
        return True
    if taps == "io":
        return False
    made = network.maker.get(shown.source)
    shell = made is not None and network.nodes[made].shell
    return shell or (step.kind == "bit" and shown.what != "weight.bit")


def _op(step: Step) -> str:
    return step.op.node.op if step.op else ""


def _attributes(step: Step) -> str:
    return attributes_text(step.op.node.attributes) if step.op else ""


def attributes_text(attributes: Mapping[str, Any]) -> str:
    """Write attributes of an op as name=value, without blanks inside a value."""
    return " ".join(f"{key}={_text(value)}" for key, value in attributes.items())


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _sources(steps: Mapping[str, Step], stored: set[str]) -> dict[str, tuple[str, ...]]:
    """For every step the nearest stored ones that it was computed from, each once."""
    found: dict[str, tuple[str, ...]] = {}
    for name, step in steps.items():
        nearest: dict[str, None] = {}
        for read in step.inputs:
            nearest.update(dict.fromkeys([read] if read in stored else found[read]))
        found[name] = tuple(nearest)
    return found


def _file(folder: str, number: int, name: str) -> str:
    return f"{folder}/{number:03d}.{name.removeprefix(GRADS)}.npy"


def _weights(network: Network, params: Params, dtype: np.dtype) -> bytes:
    """Parameters as they were given, then bits and, in the bundle's dtype, scales."""
    arrays = dict(flatten(params))
    for path in sorted(path for path, p in network.parameters.items() if p.traits.binary):
        centred, _, scale = weight_binarizer.binarize(arrays[path].astype(dtype))
        bits_name, scale_name = packing.bits_and_scale(path)
        arrays |= {bits_name: packing.pack_rows(centred >= 0), scale_name: scale}
    return files.to_bytes(arrays, {"format": FORMAT, "format_version": FORMAT_VERSION})


def to_npy(array: np.ndarray) -> bytes:
    """Version 1.0 of the format, C order, little-endian; the same array gives the same bytes."""
    file = io.BytesIO()
    array = np.array(array, array.dtype.newbyteorder("<"), order="C")
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _to_csv(entries: list[Entry]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS[FORMAT_VERSION])
    for entry in entries:
        row = entry._replace(shape=_join(entry.shape), inputs=_join(entry.inputs))
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue().encode()


def _join(values: tuple) -> str:
    return " ".join(map(str, values))


def _hash_of_config(fields: Any) -> str:
    return _hash(json.dumps(fields, sort_keys=True).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def require_free(path: Path, *, overwrite: bool = False) -> None:
    """Raise GoldenFileError where this is no folder that a bundle may be written to.

    With `overwrite` a folder may go in which every file is one that its index lists, and that has
    the manifest of a bundle: an earlier run wrote it. What else is in it is nobody's to delete.
    """
    require_free_folder(path, _written, overwrite=overwrite)


def _written(path: Path) -> set[str]:
    """The names of all files of a folder that is a bundle; GoldenFileError where it is none."""
    try:
        columns = COLUMNS[_manifest(path)["format_version"]]
    except GoldenFileError:
        raise _not_ours(path) from None
    return {MANIFEST, *HASHED, *(row["file"] for row in rows_of(path, columns))}


def require_free_folder(
    path: Path, written: Callable[[Path], set[str]], *, overwrite: bool = False
) -> None:
    """Raise GoldenFileError unless a folder is new, empty or, with `overwrite`, all our own.

    written: the names of the files that an earlier run wrote; GoldenFileError where none has.
    """
    disk.require_parent(path)
    if path.is_dir() and not any(path.iterdir()):
        return
    if os.path.lexists(path) and not overwrite:
        raise GoldenFileError(f"{path}: exists; expected a new folder or an empty one")
    if os.path.lexists(path):
        _require_own(path, written)


def rows_of(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the index of a folder of ours; GoldenFileError where it has other columns, or none."""
    try:
        with (path / INDEX).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, ValueError, csv.Error):
        rows = []
    whole = all(None not in row and None not in row.values() for row in rows)
    if not (rows and whole and tuple(reader.fieldnames or ()) == tuple(columns)):
        raise _not_ours(path)
    return rows


def _not_ours(path: Path) -> GoldenFileError:
    return GoldenFileError(f"{path}: holds no {INDEX} of ours; expected a folder to replace")


def _require_own(path: Path, written: Callable[[Path], set[str]]) -> None:
    """Raise GoldenFileError where a folder holds a file that no earlier run has written."""
    own = written(path)
    for found in sorted(path.rglob("*")):
        name = found.relative_to(path).as_posix()
        if (found.is_symlink() or not found.is_dir()) and name not in own:
            raise GoldenFileError(
                f"{path}: holds {name}, which no earlier run has written; "
                "expected a new folder or one of an earlier run"
            )


def write_folder(path: Path, contents: Iterable[tuple[str, bytes]], overwrite: bool) -> None:
    """Write files by their names in the folder, all or none."""
    with disk.new_folder(path, overwrite=overwrite) as folder:
        for name, data in contents:
            file = folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)


# Reading


def read(path: str | os.PathLike) -> Bundle:
    """Check a bundle and open it.

    GoldenFileError, one line with the file's name, on anything but a whole bundle of this version.
    Nothing outside the folder is opened and nothing is unpickled.

    >>> from importlib import resources
    >>> bundle = read(resources.files("refimpl.weights") / "golden" / "react_micro")
    >>> bundle.value("blocks.0.out").shape, bundle.input.dtype
    ((1, 50, 64), dtype('float64'))
    """
    path = Path(path)
    if not path.is_dir():
        found = "is no folder" if path.exists() else "no such folder"
        raise GoldenFileError(f"{path}: {found}; expected a golden bundle")
    manifest = _manifest(path)
    hashes = manifest["sha256"]
    data = {name: _read_hashed(path, name, hashes.get(name)) for name in HASHED}
    dtype = np.dtype(manifest["dtype"])
    model, params, binarized = _model(path, manifest["config"], data[WEIGHTS], dtype)
    config = model.config
    images = _parse_npy(data[INPUT_FILE], path / INPUT_FILE)
    batch = images.shape[:1]
    _check_array(
        path / INPUT_FILE, images, dtype.name, (*batch, config.channels, *config.image_size)
    )
    output = _parse_npy(data[OUTPUT_FILE], path / OUTPUT_FILE)
    _check_array(path / OUTPUT_FILE, output, dtype.name, (*batch, *config.logits_shape))
    columns = COLUMNS[manifest["format_version"]]
    entries = _entries(path / INDEX, data[INDEX], columns, dtype.name)
    _check_thresholds(path / INDEX, entries, model.network)
    for entry in entries.values():
        _check_tap(path, entry)
    return Bundle(path, manifest, entries, model, params, images, output, binarized)


def _manifest(path: Path) -> dict[str, Any]:
    where, data = path / MANIFEST, _read_bytes(path, MANIFEST)
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        raise GoldenFileError(f"{where}: no JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise GoldenFileError(f"{where}: no manifest of a golden bundle")
    for key, expected in (
        ("format_version", VERSIONS), ("kind", KINDS), ("dtype", DTYPES),
    ):  # fmt: skip
        if manifest.get(key) not in expected:
            wanted = " or ".join(map(repr, expected))
            raise GoldenFileError(f"{where}: {key} {manifest.get(key)!r:.80}; expected {wanted}")
    taps = manifest.get("taps")
    words = taps if isinstance(taps, list) else [taps] if taps in TAPS else [None]
    if not all(isinstance(word, str) for word in words):
        wanted = f"{' or '.join(map(repr, TAPS))}, or a list of patterns"
        raise GoldenFileError(f"{where}: taps {taps!r:.80}; expected {wanted}")
    margin = manifest.get("free_margin")
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 < margin < 2**20:
        raise GoldenFileError(f"{where}: free_margin {margin!r:.80}; expected a positive number")
    for key, kinds, wanted in (
        ("grads", bool, "true or false"), ("search", (dict, type(None)), "an object or null"),
        ("conventions", dict, "an object"), ("tool", dict, "an object"),
    ):  # fmt: skip
        if key not in manifest or not isinstance(manifest[key], kinds):
            found = f"{manifest[key]!r:.80}" if key in manifest else "is missing"
            raise GoldenFileError(f"{where}: {key} {found}; expected {wanted}")
    if not isinstance(manifest.get("sha256"), dict):
        raise GoldenFileError(f"{where}: sha256 is missing; expected hashes by name of the file")
    if manifest["sha256"].get("config") != _hash_of_config(manifest.get("config")):
        raise GoldenFileError(f"{where}: config has another sha256 than the manifest says")
    return manifest


def _read_bytes(path: Path, name: str) -> bytes:
    with npy.open_inside(path, name) as file:
        data = file.read(npy.MAX_BYTES + 1)
    if len(data) > npy.MAX_BYTES:
        raise GoldenFileError(f"{path / name}: more than {npy.MAX_BYTES} bytes")
    return data


def _read_hashed(path: Path, name: str, expected: Any) -> bytes:
    data = _read_bytes(path, name)
    found = _hash(data)
    if found != expected:
        raise GoldenFileError(f"{path / name}: sha256 {found}; expected {expected!s:.80}")
    return data


def _parse_npy(data: bytes, where: Path) -> np.ndarray:
    file = io.BytesIO(data)
    header = npy.header(file, len(data), os.fspath(where))
    return npy.values(file.read(header.bytes), header)


def _check_array(where: Path, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype.name != dtype:
        raise GoldenFileError(f"{where}: dtype {array.dtype}; expected {dtype}")
    if array.shape != shape:
        raise GoldenFileError(f"{where}: shape {array.shape}; expected {shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise GoldenFileError(f"{where}: holds NaN or infinity; expected finite numbers")


def _model(
    path: Path, fields: Any, data: bytes, dtype: np.dtype
) -> tuple[VisionTransformer, Params, dict[str, np.ndarray]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    where = path / WEIGHTS
    try:
        config = Config.from_json(fields)
    except ConfigError as error:
        raise GoldenFileError(f"{path / MANIFEST}: {error}") from None
    try:
        arrays = load(data)
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise GoldenFileError(f"{where}: not a readable safetensors file: {error}") from None
    if config.num_blocks > len(arrays):  # before a list of all names is made of a hostile number
        raise GoldenFileError(f"{where}: {len(arrays)} arrays for {config.num_blocks} blocks")
    params = {}
    for name, shape in parameters.shapes(config).items():
        array = _taken(where, arrays, name)
        if array.dtype not in FLOATS:
            raise GoldenFileError(f"{where}: {name}: {array.dtype}; expected float32 or float64")
        _check_array(Path(f"{where}: {name}"), array, array.dtype.name, shape)
        params[name] = array.astype(dtype)
    binarized = {}
    for name in sorted(packing.binary_matrices(config)):
        names, shape = packing.bits_and_scale(name), params[name].shape
        bits, scale = (_taken(where, arrays, stored) for stored in names)
        _check_array(Path(f"{where}: {names[0]}"), bits, "uint8", packed_shape(shape))
        _check_array(Path(f"{where}: {names[1]}"), scale, dtype.name, shape[:1])
        if not padding_is_clear(bits, shape):
            raise GoldenFileError(f"{where}: {names[0]}: a padding bit is 1; expected 0")
        binarized |= {f"{name}.bit": bits, f"{name}.scale": scale}
    if arrays:
        raise GoldenFileError(f"{where}: {min(arrays)}: unknown array for this configuration")
    return VisionTransformer(config), unflatten(params), binarized


def _taken(where: Path, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise GoldenFileError(f"{where}: {name}: missing")
    return arrays.pop(name)


def _entries(
    where: Path, data: bytes, columns: tuple[str, ...], dtype: str
) -> dict[str, Entry]:
    try:
        rows = list(csv.reader(io.StringIO(data.decode("ascii")), strict=True))
    except (ValueError, csv.Error) as error:
        raise GoldenFileError(f"{where}: no CSV: {error}") from None
    if not rows or tuple(rows[0]) != columns:
        raise GoldenFileError(f"{where}: line 1: expected {','.join(columns)}")
    entries: dict[str, Entry] = {}
    numbers = {"taps": 0, "grads": 0}
    for line, row in enumerate(rows[1:], start=2):
        at = f"{where}: line {line}"
        try:
            entry = _parse_row(row, columns)
        except ValueError as error:
            raise GoldenFileError(f"{at}: {error}") from None
        if entry.name in entries:
            raise GoldenFileError(f"{at}: {entry.name}: a name that came before")
        _check_entry(at, entry, entries, numbers, dtype)
        entries[entry.name] = entry
    return entries


def _parse_row(row: list[str], columns: tuple[str, ...]) -> Entry:
    if len(row) != len(columns):
        raise ValueError(f"{len(row)} columns; expected {len(columns)}")
    cell = dict(zip(columns, row, strict=True))
    return Entry(
        **{
            "op": "",
            "attributes": "",
            "kind": cell.pop("class"),
            **cell,
            "number": int(cell["number"]),
            "shape": tuple(int(n) for n in cell["shape"].split()),
            "inputs": tuple(cell["inputs"].split()),
            "ties": int(cell["ties"]) if cell["ties"] else None,
            **{
                key: float(cell[key]) if cell[key] else None
                for key in ("threshold", "tolerance", "margin")
            },
        }
    )


def _check_entry(
    at: str, entry: Entry, before: Mapping[str, Entry], numbers: dict[str, int], dtype: str
) -> None:
    """Whether the line is one that `make` would write at this place."""
    name, is_bit = entry.name, entry.kind == "bit"
    folder = "grads" if name.startswith(GRADS) else "taps"
    if not re.fullmatch(r"[\w.]+", name.removeprefix(GRADS), re.ASCII):
        raise GoldenFileError(f"{at}: name {name!r:.80}; expected letters, digits, _ and .")
    dtypes = {"bit": "uint8", "int": "int32", "real": dtype}
    for column, found, expected in (
        ("class", entry.kind, entry.kind if entry.kind in dtypes else "bit, int or real"),
        ("dtype", entry.dtype, dtypes.get(entry.kind)),
        ("number", entry.number, numbers[folder]),
        ("file", entry.file, _file(folder, numbers[folder], name)),
        ("threshold", entry.threshold is not None, is_bit),
        ("ties", entry.ties is not None, is_bit),
        ("margin", _is_size(entry.margin), is_bit),
        ("tolerance", _is_size(entry.tolerance), entry.kind != "int"),
    ):
        if found != expected:
            raise GoldenFileError(f"{at}: {name}: {column} {found!r:.80}; expected {expected!r}")
    if not all(0 < n <= npy.MAX_BYTES for n in entry.shape) or (is_bit and not entry.shape):
        raise GoldenFileError(f"{at}: {name}: shape {entry.shape}; expected sizes of at least 1")
    for read in entry.inputs:
        if read != INPUT and read not in before:
            raise GoldenFileError(f"{at}: {name}: input {read!r:.80} is no line before it")
    numbers[folder] += 1


def _check_thresholds(where: Path, entries: Mapping[str, Entry], network: Network) -> None:
    shown = {tap.name: tap for place in replay.taps(network).forward for tap in place}
    for line, entry in enumerate(entries.values(), start=2):
        if entry.kind == "bit" and entry.name in shown:
            expected = insides.threshold(network.nodes[shown[entry.name].node])
            if entry.threshold != expected:
                raise GoldenFileError(
                    f"{where}: line {line}: {entry.name}: threshold {entry.threshold}; "
                    f"expected {expected}"
                )


def _is_size(number: float | None) -> bool:
    return number is not None and 0 <= number < math.inf


def _check_tap(path: Path, entry: Entry) -> None:
    where = path / entry.file
    array = _parse_npy(_read_hashed(path, entry.file, entry.sha256), where)
    _check_array(where, array, entry.dtype, entry.stored_shape)
    if entry.kind == "bit" and not padding_is_clear(array, entry.shape):
        raise GoldenFileError(f"{where}: a padding bit is 1; expected 0 from {entry.shape[-1]} on")


def _check_step(where: Path, entry: Entry, step: Step | None) -> None:
    if step is None:
        raise GoldenFileError(f"{where}: {entry.name}: the model has no such tap")
    for what, found, expected in (
        ("class", entry.kind, step.kind),
        ("shape", entry.shape, step.value.shape),
        ("op", entry.op or _op(step), _op(step)),
    ):
        if found != expected:
            raise GoldenFileError(f"{where}: {entry.name}: {what} {found}; expected {expected}")
