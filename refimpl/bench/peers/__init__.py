"""The others: one file each. None of them is needed; who is not installed is named as missing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from refimpl.bench.measure import Contender

PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf")  # the extra `bench`


class Peer(NamedTuple):
    """Builds contenders for a work from the packages that it requires."""

    name: str
    requires: tuple[str, ...]
    build: Callable[..., Iterable[Contender]]


def absent(packages: Iterable[str]) -> list[str]:
    """Those of the packages that cannot be imported."""
    found = []
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            found.append(package)
    return found


def missing(peers: Iterable[Peer]) -> list[str]:
    """A line for each peer that cannot take part, with what it lacks."""
    lacking = {peer.name: absent(peer.requires) for peer in peers}
    return [f"{name} (needs {', '.join(lacks)})" for name, lacks in lacking.items() if lacks]


def build(peers: Sequence[Peer], *args: Any) -> list[Contender]:
    """The contenders of all peers that can take part."""
    present = [peer for peer in peers if not absent(peer.requires)]
    return [contender for peer in present for contender in peer.build(*args)]
