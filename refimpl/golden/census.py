"""What a bundle holds, for people who are about to port: statistics, ties, bits as they lie."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from refimpl.conventions import ConfigError
from refimpl.golden.store import Bundle
from refimpl.models.packing import pack_rows

BYTES = 8  # of a row that is drawn, on a line
ROW_BYTES = 24  # that are drawn at most


def of_bundle(bundle: Bundle) -> dict[str, Any]:
    """The manifest's essentials, the tie census over all bits, one line a tap; JSON values."""
    entries = list(bundle.entries.values())
    bits = [entry for entry in entries if entry.kind == "bit"]
    closest = min(bits, key=lambda entry: entry.margin, default=None)
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        **{key: manifest[key] for key in ("kind", "dtype", "grads", "free_margin", "search")},
        "images": len(bundle.input),
        "config": manifest["config"],
        "conventions": manifest["conventions"],
        "tool": manifest["tool"],
        "classes": dict(Counter(entry.kind for entry in entries)),
        "ties": {
            "bits": sum(int(np.prod(entry.shape)) for entry in bits),
            "ties": sum(entry.ties for entry in bits),
            "taps_with_ties": sum(entry.ties > 0 for entry in bits),
            "smallest_margin": None if closest is None else closest.margin,
            "smallest_margin_at": None if closest is None else closest.name,
            # a flip there says nothing about a float32 port
            "taps_with_margin_in_tolerance": sum(e.margin <= e.tolerance for e in bits),
        },
        "taps": [
            {
                "name": entry.name,
                "class": entry.kind,
                "shape": list(entry.shape),
                "file": entry.file,
                "inputs": list(entry.inputs),
                "threshold": entry.threshold,
                "tolerance": entry.tolerance,
                "ties": entry.ties,
                "margin": entry.margin,
            }
            for entry in entries
        ],
    }


def of_tap(bundle: Bundle, name: str) -> dict[str, Any]:
    """Its line of the index with statistics of its values; ConfigError for an unknown name."""
    if name not in bundle.entries:
        raise ConfigError(f"{bundle.path}: {no_tap(name, bundle.entries)}")
    (line,) = (tap for tap in of_bundle(bundle)["taps"] if tap["name"] == name)
    value = bundle.value(name)
    return {**line, "statistics": _statistics(value)}


def no_tap(name: str, names: Iterable[str]) -> str:
    """Words for a name that is none of these, with the nearest of them."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"has no tap {name}" + (f"; did you mean {close[0]}?" if close else "")


def _statistics(value: np.ndarray) -> dict[str, float | int]:
    if value.dtype == bool:
        return {"count": value.size, "ones": int(value.sum()), "share_of_ones": float(value.mean())}
    smallest = {"min": value.min().item(), "max": value.max().item()}
    reals = value.astype(np.float64)
    return {
        "count": value.size,
        **smallest,
        "mean": float(reals.mean()),
        "std": float(reals.std()),
        "zeros": int((value == 0).sum()),
    }


def first_row(bundle: Bundle, name: str) -> Iterator[str]:
    """The first row of a bit as it lies in the file, drawn byte by byte, and the z behind it."""
    bit = bundle.value(name)
    row = bit[(0,) * (bit.ndim - 1)]  # (K,)
    packed = pack_rows(row)
    yield f"first row, {len(row)} bits in {len(packed)} bytes; bit 0 is the lowest of byte 0"
    whole = -(-len(row) // 8)
    used = min(whole, ROW_BYTES)
    cells = "".join("1" if on else "0" for on in row).ljust(8 * used, ".")
    for first in range(0, used, BYTES):
        numbers = range(first, min(first + BYTES, used))
        yield "  byte  " + " ".join(f"{i:<8}" for i in numbers).rstrip()
        yield "  hex   " + " ".join(f"{packed[i]:02x}      " for i in numbers).rstrip()
        yield "  bits  " + " ".join(cells[8 * i : 8 * i + 8] for i in numbers)
    if used < whole:
        yield f"  and {whole - used} bytes more"
    if len(row) < 8 * len(packed):
        yield f"  then padding: bits {len(row)} to {8 * len(packed) - 1} are 0"
    z = _z(bundle, name)[(0,) * (bit.ndim - 1)]
    threshold = bundle.entries[name].threshold
    yield f"z of the first bits, 1 where z {'> 1/2' if threshold else '>= 0'}"
    yield "  " + "  ".join(f"{value:.6g}" for value in z[:8])


def _z(bundle: Bundle, name: str) -> np.ndarray:
    z = bundle.reference.steps[name].z
    return bundle.value(z) if z in bundle.entries else bundle.reference.steps[z].value
