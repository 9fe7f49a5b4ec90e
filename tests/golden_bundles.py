"""A small shipped bundle for tests: its arrays, copies of it, and copies that are broken."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np

from refimpl.golden import Bundle, candidate, read

BUNDLE = Path(str(resources.files("refimpl.weights") / "golden" / "small_tie_free"))


@functools.cache
def bundle() -> Bundle:
    return read(BUNDLE)


def arrays() -> dict[str, np.ndarray]:
    """Every tap as the bundle stores it: a candidate that is right."""
    return dict(candidate.read(BUNDLE).items())


def copy(folder: Path) -> Path:
    """A copy without gradients: fewer files to break."""
    copied = folder / "bundle"
    shutil.copytree(BUNDLE, copied, ignore=shutil.ignore_patterns("grads"))
    rows = [row for row in read_index(BUNDLE) if not row["name"].startswith("grads/")]
    write_index(copied, rows)
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "grads": False}))
    rehash(copied)
    return copied


def rehash(folder: Path) -> None:
    """Make the hashes of index and manifest those of what is there: they hide nothing then."""
    rows = read_index(folder)
    for row in rows:
        path = folder / row["file"]
        if path.is_file() and folder in path.resolve().parents:
            row["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_index(folder, rows)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["sha256"]:
        if name != "config":
            manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def read_index(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_index(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def change_line(folder: Path, tap: str, /, **fields: str) -> None:
    """Other values in one line of the index."""
    rows = read_index(folder)
    (line,) = (row for row in rows if row["name"] == tap)
    line.update(fields)
    write_index(folder, rows)


def change_array(
    folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray], **options
) -> None:
    """Another array in the file of a tap."""
    (line,) = (row for row in read_index(folder) if row["name"] == name)
    path = folder / line["file"]
    np.save(path, change(np.load(path)), **options)
