"""The summary of a network: against numbers worked out by hand, packed arrays, and a real run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refimpl
from refimpl import ops
from refimpl.conventions import ConfigError, ModelFileError
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import architectures, binary, files, packing, summary
from refimpl.models import params as parameters
from tests import networks

# C = 10 in 2 heads of 5, r = 3, 4 classes, a grid of 2 x 3 and so N = 7, 12 pixels a patch
DIDB = networks.small(**networks.DIDB)
SQUARE = 80 + 4 * 10  # bytes of a packed 10 x 10 matrix: 10 rows of 8 bytes, 10 scales


def rows(config, floats: str = "float32") -> dict[str, tuple]:
    return {row.name: tuple(row[1:]) for row in summary.summarise(config, floats).rows}


# --- by hand --------------------------------------------------------------------------------------

PROJECTION = 10 + 2 * 10 + 3 * 10 + 2 * 7  # floats: move, norm, RPReLU by channel and by token
BY_HAND = {
    "patch_embed": ((6, 10), 0, 130, 520, 0, 6 * 12 * 10),
    "tokens": ((7, 10), 0, 10 + 70, 320, 0, 0),
    "norm1": ((7, 10), 0, 20, 80, 0, 0),
    "attn.bands": ((2, 7, 10), 0, 0, 0, 0, 0),
    "attn.q_low": ((7, 10), 100, PROJECTION + 10, SQUARE + 4 * 84, 700, 0),
    "attn.k_low": ((7, 10), 100, PROJECTION + 10, SQUARE + 4 * 84, 700, 0),
    "attn.q_high": ((7, 10), 100, PROJECTION + 10, SQUARE + 4 * 84, 700, 0),
    "attn.k_high": ((7, 10), 100, PROJECTION + 10, SQUARE + 4 * 84, 700, 0),
    "attn.v": ((7, 10), 100, PROJECTION + 10, SQUARE + 4 * 84, 700, 0),
    "attn.scores": ((2, 7, 7), 0, 4, 16, 2 * 7 * 7 * 10, 0),
    "attn.prob": ((2, 7, 7), 0, 1, 4, 0, 0),
    "attn.context": ((2, 7, 5), 0, 0, 0, 7 * 7 * 10, 0),
    "attn.norm": ((7, 10), 0, 20, 80, 0, 0),
    "attn.differential": ((7, 10), 0, 20, 80, 0, 0),
    "attn.rprelu": ((7, 10), 0, 44, 176, 0, 0),
    "attn.proj": ((7, 10), 100, PROJECTION, SQUARE + 4 * 74, 700, 0),
    "norm2": ((7, 10), 0, 20, 80, 0, 0),
    "mlp.up": ((7, 30), 300, 10 + 60 + 90 + 14, 30 * 8 + 4 * 30 + 4 * 174, 2100, 0),
    "mlp.down": ((7, 10), 300, 30 + 20 + 30 + 14, SQUARE + 4 * 94, 2100, 0),
    "norm": ((7, 10), 0, 20, 80, 0, 0),
    "head": ((4,), 0, 44, 176, 0, 40),
}
BLOCK = list(BY_HAND)[2:-2]


def test_every_row_by_hand_in_order_of_computation():
    found = rows(DIDB)
    order = ["patch_embed", "tokens"]
    order += [f"blocks.{i}.{name}" for i in range(2) for name in BLOCK]
    assert list(found) == [*order, "norm", "head"]
    for name, row in found.items():
        assert row == BY_HAND[name.removeprefix("blocks.0.").removeprefix("blocks.1.")], name


def test_half_precision_changes_the_bytes_of_floats_only():
    found = rows(DIDB, "float16")
    assert found["blocks.1.attn.q_low"] == ((7, 10), 100, 84, 80 + 2 * 10 + 2 * 84, 700, 0)
    assert found["head"] == ((4,), 0, 44, 88, 0, 40)


def test_stages_have_real_weights():
    """Stage 1 multiplies real weights by signs, and signs by signs in attention only."""
    signs = rows(DIDB.replace(binarize="activations"))
    real = rows(DIDB.replace(binarize="none"))
    for found in (signs, real):
        assert found["blocks.0.attn.q_low"] == ((7, 10), 0, 184, 4 * 184, 0, 700)
        assert found["blocks.0.mlp.up"] == ((7, 30), 0, 474, 4 * 474, 0, 2100)
    assert signs["blocks.0.attn.scores"] == ((2, 7, 7), 0, 4, 16, 980, 0)
    assert signs["blocks.0.attn.context"] == ((2, 7, 5), 0, 0, 0, 490, 0)
    assert real["blocks.0.attn.scores"] == ((2, 7, 7), 0, 4, 16, 0, 980)
    assert real["blocks.0.attn.context"] == ((2, 7, 5), 0, 0, 0, 0, 490)


def test_the_baseline_lacks_what_its_switches_leave_out():
    found = rows(networks.small(layer_scale=True))
    names = [name.removeprefix("blocks.0.") for name in found if name.startswith("blocks.0.")]
    assert names == [
        *["norm1", "attn.q", "attn.k", "attn.v", "attn.scores", "attn.prob", "attn.context"],
        *["attn.norm", "attn.rprelu", "attn.proj", "scale1", "norm2", "mlp.up", "mlp.down"],
        "scale2",
    ]
    assert found["blocks.0.attn.k"] == ((7, 10), 100, 70, SQUARE + 4 * 70, 700, 0)
    assert found["blocks.0.attn.scores"] == ((2, 7, 7), 0, 0, 0, 490, 0)
    assert found["blocks.1.scale2"] == ((7, 10), 0, 20, 80, 0, 0)


def test_real_blocks():
    found = rows(networks.small(block="real"))
    names = [name.removeprefix("blocks.0.") for name in found if name.startswith("blocks.0.")]
    assert names == [
        *["norm1", "attn.qkv", "attn.scores", "attn.prob", "attn.context", "attn.proj"],
        *["norm2", "mlp.fc1", "mlp.gelu", "mlp.fc2"],
    ]
    assert found["blocks.0.attn.qkv"] == ((7, 30), 0, 330, 1320, 0, 2100)
    assert found["blocks.0.attn.scores"] == ((2, 7, 7), 0, 0, 0, 0, 490)
    assert found["blocks.0.mlp.fc2"] == ((7, 10), 0, 310, 1240, 0, 2100)


def test_the_pyramid_by_hand():
    """C = 10 and 20 on grids of 4 x 8 and 2 x 4: levels of 10 channels, 32-bit throughout."""
    found = rows(networks.swin(**networks.DIDB, decoder="fpn"))
    order = ["0.norm", "0.lateral", "1.lateral", "0.top", "0.smooth", "1.smooth", "sum", "gelu"]
    assert list(found)[-11:] == ["norm", *(f"decoder.{name}" for name in order), "head", "logits"]
    assert found["decoder.0.norm"] == ((32, 10), 0, 20, 80, 0, 0)
    assert found["decoder.1.lateral"] == ((8, 10), 0, 210, 840, 0, 8 * 200)
    assert found["decoder.0.smooth"] == ((32, 10), 0, 910, 3640, 0, 32 * 900)
    assert found["decoder.0.top"] == found["decoder.sum"] == ((32, 10), 0, 0, 0, 0, 0)
    assert found["head"] == ((32, 4), 0, 44, 176, 0, 32 * 40)
    assert found["logits"] == ((4, 8, 16), 0, 0, 0, 0, 0)


def test_windows_by_hand():
    """A grid of 4 x 4 has four windows of 2 x 2, one of 2 x 2 a single one, which is counted."""
    found = rows(networks.swin(image_size=(8, 8)))
    assert found["blocks.0.attn.scores"] == ((4, 2, 4, 4), 0, 9 * 2, 72, 4 * 2 * 16 * 5, 0)
    assert found["blocks.2.attn.scores"] == ((1, 4, 4, 4), 0, 9 * 4, 144, 4 * 16 * 5, 0)
    assert found["blocks.2.attn.context"] == ((1, 4, 4, 5), 0, 0, 0, 4 * 4 * 5 * 4, 0)
    assert found["blocks.2.attn.norm"] == ((4, 20), 0, 40, 160, 0, 0)


def test_rows_of_bits_are_whole_words():
    """65 inputs take two words of 64 bits a row, 64 take one."""
    for inputs, words in ((64, 1), (65, 2), (128, 2), (130, 3)):
        found = rows(networks.small(dim=inputs, heads=1, depth=1))["blocks.0.attn.proj"]
        floats = inputs + 6 * inputs  # scale; move, norm, RPReLU
        assert found[3] == 8 * words * inputs + 4 * floats


def test_totals_of_didb_tiny_by_hand():
    """C = 192, N = 197; in a block six C x C and two C x 4C matrices: 14 C^2 bits."""
    found = summary.of("didb_tiny")
    total = found.total
    assert total.params_1bit == 12 * 14 * 192**2 == 6_193_152
    # move, norm, RPReLU, tokens of: five inputs of attention with a move each, proj, up, down;
    # five norms and pairs, RPReLU_o, band weights, alpha; then the shell
    block = 5 * (1_546 + 192) + 1_546 + 4_426 + 2_122 + 4 * 384 + 970 + 6 + 1
    assert total.params_32bit == 12 * block + 147_648 + 38_016 + 384 + 193_000 == 610_612
    # rows of 3 and 12 words, no padding; a scale a row
    assert total.bytes == 774_144 + 4 * (610_612 + 12 * (6 * 192 + 768 + 192)) == 3_317_968
    assert total.macs_1bit == 12 * (14 * 192**2 * 197 + 3 * 197**2 * 192) == 1_488_298_752
    assert total.macs_32bit == 196 * 768 * 192 + 192 * 1000 == 29_093_376
    assert found.ops == 29_093_376 + 1_488_298_752 / 64 == 52_348_044
    assert found.float32_bytes == 27_215_056
    assert found.compression == pytest.approx(8.2023, abs=1e-4)
    assert total.shape == (1000,)


def test_deit_tiny_has_the_published_size():
    """5.7 million parameters and 1.3 G multiply-accumulates in DeiT's own table."""
    found = summary.of("deit_tiny")
    assert (found.total.params_1bit, found.total.params_32bit) == (0, 5_717_416)
    assert (found.total.macs_1bit, found.total.macs_32bit) == (0, 1_253_683_200)
    assert found.ops == 1_253_683_200
    assert (found.total.bytes, found.compression) == (4 * 5_717_416, 1.0)


# --- against parameters, packed arrays and a run --------------------------------------------------


@given(networks.all_configs())
def test_every_parameter_and_byte_is_in_one_row(config):
    for floats in packing.FLOATS:
        found = summary.summarise(config, floats)
        count = sum(math.prod(shape) for shape in parameters.shapes(config).values())
        assert found.total.params_1bit + found.total.params_32bit == count
        size = np.dtype(floats).itemsize
        assert found.total.bytes == sum(
            math.prod(shape) * (1 if name.endswith(".bits") else size)
            for name, shape in packing.shapes(config).items()
        )


@given(networks.all_configs(), st.randoms())
def test_costs_do_not_depend_on_names(config, random):
    """Values and parameters get the names of others."""
    made = binary.network(config)
    old = [*made.parameters, *made.maker, *(n for node in made.nodes for n in node.inside.values())]
    new = dict(zip(old, random.sample(old, len(old)), strict=True))
    listed = networks.list_renamed(made, new.__getitem__)
    assert summary.rows(listed) == summary.summarise(config).rows


TAPS = {
    "attn.bands": "attn.low",
    "attn.differential": "attn.neighbour_mean",
    "attn.rprelu": "attn.out",
    "scale1": "mid",
    "scale2": "out",
    "head": "logits",
}


@given(networks.all_configs())
def test_shapes_and_order_are_those_of_a_run(config):
    made, heard = networks.make(config, seed=41, batch=1), {}

    def listen(name, value, op, inputs):
        # windows stand in the place of images, and they are in the row
        cut = config.window and value.ndim == 4 and name != "logits"
        heard[name] = value.shape if cut else value.shape[1:]

    made.model.forward(made.params, made.images, tap=listen)
    order, places = list(heard), []
    for row in summary.summarise(config).rows:
        block, layer = re.fullmatch(r"(blocks\.\d+\.)?(.+)", row.name).groups("")
        names = [f"{block}{TAPS.get(layer, layer)}{end}" for end in (".out", "", ".bit")]
        if layer == "head" and config.decoder != "none":
            names = ["head.out"]
        name = next(name for name in names if name in heard)
        assert row.shape == ((2, *heard[name]) if layer == "attn.bands" else heard[name]), row.name
        places.append(order.index(name))
    assert places == sorted(places)


class Meter:
    """A backend that counts the MACs of the products a network asks for."""

    def __init__(self):
        self.macs = 0
        self.backend = SimpleNamespace(**{name: getattr(ops, name) for name in ops.__all__})
        # the length of the sum in each entry of the result, from the second factor
        for name in ("patch_embed", "linear", "binary_linear", "convolution"):
            self._count(name, lambda weight: weight[0].size)
        for name in ("matmul", "boolean_attention"):
            self._count(name, lambda b: b.shape[-1])

    def _count(self, name: str, length: Callable[[np.ndarray], int]) -> None:
        def forward(a, *others, **options):
            y, cache = getattr(ops, name).forward(a, *others, **options)
            self.macs += y.size * length(others[0] if others else options["weight"])
            return y, cache

        setattr(self.backend, name, SimpleNamespace(forward=forward))


@given(networks.all_configs())
def test_macs_are_those_that_a_run_asks_for(config):
    made, meter = networks.make(config, seed=42, batch=1), Meter()
    made.model.predict(made.params, made.images, backend=meter.backend)
    total = summary.summarise(config).total
    assert total.macs_1bit + total.macs_32bit == meter.macs
    if config.block == "real" or config.binarize == "none":
        assert total.macs_1bit == 0


SIZED = [f"{family}_{size}" for family in ("didb", "react", "deit") for size in ("micro", "cifar")]


@pytest.mark.parametrize("floats", packing.FLOATS)
@pytest.mark.parametrize("name", [*SIZED, "didb_tiny", "react_tiny", "deit_tiny"])
def test_size_and_share_of_the_header(tmp_path: Path, name: str, floats: str):
    model, path = refimpl.create_model(name), tmp_path / "packed.safetensors"
    zeros = {k: np.zeros(s, np.float32) for k, s in parameters.shapes(model.config).items()}
    config = model.config
    preprocessing = Preprocessing.plain(config.image_size, config.channels).to_json()
    files.save_packed(
        path, model, refimpl.unflatten(zeros), floats=floats, preprocessing=preprocessing
    )
    size, predicted = path.stat().st_size, summary.of(path).total.bytes
    with path.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    assert size == header + predicted
    assert header <= 0.02 * size
    if "tiny" in name and "deit" not in name:  # against the real network of the same size
        deit = parameters.shapes(architectures.named("deit_tiny"))
        real = 4 * sum(math.prod(shape) for shape in deit.values())
        assert size <= real / {"float32": 6.5, "float16": 10.5}[floats]


# --- which network --------------------------------------------------------------------------------


# Compression of what has many floats for its size: token shifts, the levels of a pyramid.
LEAST = {
    "segmenter_didb_micro": 4.5,
    "segmenter_react_swin_micro": 3.8,
    "segmenter_didb_swin_micro": 2.7,
}


@pytest.mark.parametrize("name", architectures.NAMES)
def test_every_architecture_has_one(name):
    found = summary.of(name)
    assert found.config == architectures.named(name)
    real = found.config.block == "real"
    assert found.compression == 1 if real else found.compression > LEAST.get(name, 5)


def test_files_of_either_kind(tmp_path: Path):
    made, path = networks.make(DIDB, seed=43, dtype=np.float32), tmp_path / "model.safetensors"
    refimpl.save(path, made.model, made.params)
    assert summary.of(path) == summary.summarise(DIDB)
    files.save_packed(path, made.model, made.params)
    assert summary.of(str(path)) == summary.summarise(DIDB)
    files.save_packed(path, made.model, made.params, floats="float16")
    assert summary.of(path) == summary.summarise(DIDB, "float16")


def test_what_is_refused(tmp_path: Path):
    with pytest.raises(ModelFileError, match="none.safetensors: no such file or model"):
        summary.of(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="floats is 'int8'; expected one of 'float32', 'float16'"):
        summary.summarise(DIDB, "int8")


# --- how it looks ---------------------------------------------------------------------------------


def test_the_table():
    lines = summary.summarise(DIDB).table().splitlines()
    count = 4 + 2 * len(BLOCK)
    header, rule, *body = lines[: 2 + count]
    assert header.split("  ")[0] == "layer"
    for title in ("output", "1-bit params", "32-bit params", "packed bytes", "1-bit MACs"):
        assert title in header
    assert set(rule) == {"-"}
    assert {len(line) for line in lines[: 4 + count]} == {len(header)}
    assert body[3].split() == ["blocks.0.attn.bands", "(2,", "7,", "10)", *"-----"]
    assert body[4].split()[4:] == ["84", "456", "700", "-"]
    assert body[-1].split() == ["head", "(4,)", "-", "44", "176", "-", "40"]
    assert lines[2 + count] == rule
    total = summary.summarise(DIDB).total
    assert lines[3 + count].split()[-5:] == [
        f"{number:,}" for number in (total.params_1bit, *total[3:])
    ]


def test_the_figures_below_the_table():
    assert summary.of("didb_tiny").table().splitlines()[-5:] == [
        "parameters   6,803,764",
        "packed       3,317,968 bytes, floats as float32",
        "in float32   27,215,056 bytes",
        "compression  8.20",
        "OPs          52,348,044 = FLOPs (32-bit MACs) + BOPs (1-bit MACs) / 64",
    ]


def test_json():
    found = summary.of("didb_tiny")
    value = json.loads(json.dumps(found.to_json()))
    assert list(value) == ["config", "floats", "layers", "total"]
    assert value["config"] == found.config.to_json()
    assert value["floats"] == "float32"
    assert len(value["layers"]) == len(found.rows)
    assert value["layers"][4] == {
        "name": "blocks.0.attn.q_low",
        "shape": [197, 192],
        "params_1bit": 36_864,
        "params_32bit": 1_738,
        "bytes": 192 * 24 + 4 * (192 + 1_738),
        "macs_1bit": 7_262_208,
        "macs_32bit": 0,
    }
    assert value["total"] == {
        "params_1bit": 6_193_152,
        "params_32bit": 610_612,
        "bytes": 3_317_968,
        "macs_1bit": 1_488_298_752,
        "macs_32bit": 29_093_376,
        "float32_bytes": 27_215_056,
        "compression": found.compression,
        "ops": 52_348_044.0,
    }
