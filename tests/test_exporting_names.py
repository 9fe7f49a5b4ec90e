"""Exports go by no name: of a network where nothing has its name they differ in names alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from refimpl.exporting import c, hexfiles, onnx
from refimpl.exporting.source import Source
from refimpl.live import export as live
from refimpl.models import files, packing
from tests import networks

CONFIGS = {
    "didb": networks.small(**networks.DIDB, layer_scale=True, alpha_scope="head"),
    "didb-fixed": networks.small(**networks.DIDB, band_weights="fixed", context="differences"),
    "pyramid": networks.swin(**networks.DIDB, decoder="fpn"),
    "boxes": networks.imported()["binaryvit-boxes"],
    "activations": networks.small(binarize="activations", rprelu="token"),
    "deit": networks.imported()["distilled"],
    "swin": networks.imported()["ms-swin"],
}
BINARY = [name for name, config in CONFIGS.items() if packing.binary_matrices(config)]
LIVE = ["didb", "didb-fixed", "boxes"]


def pair(name: str, folder: Path) -> tuple[Source, Source]:
    """A network, and the same one where nothing has its name."""
    network = networks.make(CONFIGS[name], 11, np.float32)
    other, new = networks.renamed(network, 11)
    listed, path = other.model.network.parameters, folder / "net.safetensors"
    files.save(path, network.model, network.params)
    arrays = packing.pack(CONFIGS[name], network.params)
    called = {
        old: name
        for path, parameter in network.model.network.parameters.items()
        for old, name in zip(packing.stored(parameter), packing.stored(listed[new(path)]))
    }
    renamed = {called[name]: array for name, array in arrays.items()}
    own = Source(path, network.model, "0" * 64, arrays)
    return own, own._replace(model=other.model, stored=renamed)


def assert_equal_but_for_names(own: Sequence[str], other: Sequence[str]) -> None:
    """Word by word, one word always stands for the same other one."""
    there, back = dict(zip(own, other, strict=True)), dict(zip(other, own, strict=True))
    assert [there[word] for word in own] == list(other)
    assert [back[word] for word in other] == list(own)
    assert any(a != b for a, b in there.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_c(name, tmp_path):
    """The whole program, a string as one word."""
    own, other = (
        re.split(r'("?[A-Za-z_][\w.]*"?)', c.Program(source).text())
        for source in pair(name, tmp_path)
    )
    assert other[::2] == own[::2]
    assert_equal_but_for_names(own[1::2], other[1::2])


@pytest.mark.parametrize("name", CONFIGS)
def test_onnx(name, tmp_path):
    """Operators, how they are wired, and constants in their order."""
    library = pytest.importorskip("onnx")
    words, others = [], []
    for source in pair(name, tmp_path):
        graph = library.load_from_string(onnx.to_bytes(source)).graph
        nodes = [(n.op_type, n.name, *n.input, *n.output) for n in graph.node]
        words.append([*(word for node in nodes for word in node),
                      *(array.name for array in graph.initializer)])  # fmt: skip
        others.append([*map(len, nodes), *([*n.attribute] for n in graph.node),
                       *(array.raw_data for array in graph.initializer)])  # fmt: skip
    assert_equal_but_for_names(*words)
    assert others[0] == others[1]


@pytest.mark.parametrize("name", BINARY)
def test_hex_files(name, tmp_path):
    own, other = (list(hexfiles._files(source, 16, "fixed")) for source in pair(name, tmp_path))
    assert [file.lines for file in other] == [file.lines for file in own]
    assert [file.entry[2:] for file in other] == [file.entry[2:] for file in own]
    assert_equal_but_for_names(
        *([word for file in files for word in file.entry[:2]] for files in (own, other))
    )


@pytest.mark.parametrize("name", LIVE)
def test_the_live_page(name, tmp_path, monkeypatch):
    """What the page's engine reads."""
    texts = []
    for source in pair(name, tmp_path):
        network = source.network
        monkeypatch.setattr(live.binary, "network", lambda config, network=network: network)
        text = json.dumps(live.export(CONFIGS[name], source.stored))
        monkeypatch.undo()
        texts.append(re.split(r'("[^"]*")', text))
    assert texts[1][::2] == texts[0][::2]
    assert_equal_but_for_names(*(text[1::2] for text in texts))
