"""A port of the network to NumPy, written from SPEC.md alone: it knows no line of `refimpl`.

    port = Port(read(folder)).run()      # float32, forward and backward
    port.dump()                          # taps and gradients by name, as a candidate has them [8.1]

It reads a bundle by its file formats, packs bits into 64-bit words of its own, and has one method
for each thing that a port can get wrong: `foreign_mistakes` replaces one and sees what
`golden compare` says. It covers `didb`, `react` and `deit`, with windows and without.
"""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
DTYPES = {"F32": "<f4", "F64": "<f8", "U8": "u1"}
NEIGHBOURS = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
MERGED = [(0, 0), (1, 0), (0, 1), (1, 1)]  # (row, column), Swin's order


@dataclass(frozen=True)
class Files:
    """What a port reads of a bundle: configuration, parameters, images, the gradient to start."""

    config: Mapping[str, Any]
    params: Mapping[str, Array]
    images: Array
    dlogits: Array | None


@dataclass(frozen=True)
class Place:
    """Where a block stands: its path, its grid, its heads, tokens in front of it, its windows."""

    path: str
    grid: tuple[int, int]
    heads: int
    front: int
    window: int
    shift: int


def read(folder: Path) -> Files:
    config = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["config"]
    with open(folder / "index.csv", newline="", encoding="utf-8") as file:
        paths = {row["name"]: folder / row["file"] for row in csv.DictReader(file)}
    start = paths.get("grads/logits")
    params = read_safetensors(folder / "weights.safetensors")
    images = np.load(folder / "input_0.npy")
    return Files(config, params, images, None if start is None else np.load(start))


def read_safetensors(path: Path) -> dict[str, Array]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        values = np.frombuffer(raw[begin:end], DTYPES[entry["dtype"]])
        arrays[name] = values.reshape(entry["shape"])
    return arrays


class Port:
    """The network of one bundle; `run` fills `taps` and, where the bundle has them, gradients."""

    def __init__(self, files: Files, dtype: type = np.float32) -> None:
        self.config, self.dtype = files.config, dtype
        self.params = {
            name: value if value.dtype == np.uint8 else value.astype(dtype)
            for name, value in files.params.items()
        }
        self.images = files.images.astype(dtype)
        self.dlogits = None if files.dlogits is None else files.dlogits.astype(dtype)
        self.stages = self.layout()
        self.taps: dict[str, Array] = {}
        self.kept: dict[str, Any] = {}  # what backward needs and no tap holds

    def run(self) -> "Port":
        self.forward()
        if self.dlogits is not None:
            self.backward(self.dlogits)
        return self

    def layout(self) -> list[list[Place]]:
        c = self.config
        size = c["image_size"]
        rows, columns = (size, size) if isinstance(size, int) else size
        grid = rows // c["patch_size"], columns // c["patch_size"]
        depths = c["depth"] if isinstance(c["depth"], list) else [c["depth"]]
        front = int(c["pool"] == "cls")
        stages, number = [], 0
        for s, depth in enumerate(depths):
            side = grid[0] >> s, grid[1] >> s
            window = min(c["window"], *side) if c["window"] else 0
            places = []
            for i in range(depth):
                shift = self.window_shift(i, window, side) if window else 0
                heads = c["heads"] << s
                places.append(Place(f"blocks.{number}", side, heads, front, window, shift))
                number += 1
            stages.append(places)
        return stages

    def dump(self) -> dict[str, Array]:
        """The taps as a candidate: bits in words, the rest as it is."""
        return {
            name: self.dumped_bits(value) if value.dtype == bool else value
            for name, value in self.taps.items()
        }

    def dumped_bits(self, bits: Array) -> Array:
        return packed(bits).view(np.uint8)

    def tap(self, name: str, value: Array) -> Array:
        self.taps[name] = value
        return value

    def grad(self, name: str, value: Array) -> Array:
        return self.tap(f"grads/{name}", value)

    def grad_param(self, path: str, value: Array) -> None:
        self.grad(f"param.{path}", value.reshape(self.params[path].shape).astype(self.dtype))

    # What all reductions go through

    def sum(self, x: Array, axis: int | tuple[int, ...] | None = -1) -> Array:
        return x.sum(axis=axis, keepdims=axis is not None)

    def mean(self, x: Array) -> Array:
        return self.sum(x) / self.dtype(x.shape[-1])

    def total(self, x: Array) -> Array:
        """Over all axes but the last."""
        return self.sum(x.reshape(-1, x.shape[-1]), 0)[0]

    def matmul(self, a: Array, b: Array) -> Array:
        return a @ b

    # Plain operations [5.1], forward

    def linear(self, x: Array, path: str) -> Array:
        self.kept[path] = x
        y = self.matmul(x, self.matrix(path).T)
        return self.add_bias(y, path)

    def matrix(self, path: str) -> Array:
        weight = self.params[f"{path}.weight"]
        return weight.reshape(len(weight), -1)

    def add_bias(self, y: Array, path: str) -> Array:
        return y + self.params[f"{path}.bias"]

    def patches(self, images: Array) -> Array:
        p = self.config["patch_size"]
        batch, channels, rows, columns = images.shape
        x = images.reshape(batch, channels, rows // p, p, columns // p, p)
        x = x.transpose(0, 2, 4, 1, 3, 5)  # batch, row, column, channel, row in patch, column
        return x.reshape(batch, (rows // p) * (columns // p), channels * p * p)

    def layer_norm(self, x: Array, path: str) -> Array:
        n, _ = self.kept[path] = self.normed(x)
        return self.params[f"{path}.weight"] * n + self.params[f"{path}.bias"]

    def normed(self, x: Array) -> tuple[Array, Array]:
        d = x - self.mean(x)
        s = self.deviation(d)
        return d / s, s

    def deviation(self, d: Array) -> Array:
        return np.sqrt(self.mean(d * d) + self.dtype(self.config["norm_eps"]))

    def softmax(self, scores: Array) -> Array:
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return e / self.sum(e)

    def gelu(self, x: Array) -> Array:
        cdf = self.gaussian(x)
        return x * cdf

    def gaussian(self, x: Array) -> Array:
        erf = np.vectorize(math.erf, otypes=[np.float64])
        return ((1 + erf(x.astype(np.float64) / math.sqrt(2))) / 2).astype(self.dtype)

    # Bits [1]

    def sign(self, z: Array) -> Array:
        return z >= 0

    def words(self, bits: Array) -> Array:
        return packed(bits)

    def popcount(self, words: Array) -> Array:
        return np.bitwise_count(words).astype(np.int32).sum(axis=-1, dtype=np.int32)

    def binary_product(self, a: Array, b: Array) -> Array:
        """Every row of a with every row of b."""
        differ = self.words(a)[..., :, None, :] ^ self.words(b)[..., None, :, :]
        return np.int32(a.shape[-1]) - 2 * self.popcount(differ)

    def boolean_product(self, a: Array, v: Array) -> Array:
        ones = self.words(a)
        both = ones[..., :, None, :] & self.words(v)[..., None, :, :]
        return 2 * self.popcount(both) - self.popcount(ones)[..., None]

    def signs(self, bits: Array) -> Array:
        return np.where(bits, self.dtype(1), self.dtype(-1))

    # The binary projection [2, 3, 5]

    def weights(self, p: str) -> tuple[Array, Array]:
        weight = self.latent(p)
        z = self.tap(f"{p}.weight.z", self.centred(weight))
        bits = self.tap(f"{p}.weight.bit", self.sign(z))
        return bits, self.tap(f"{p}.weight.scale", self.scale(weight))

    def latent(self, p: str) -> Array:
        return self.params[f"{p}.weight"]

    def centred(self, weight: Array) -> Array:
        return weight - self.mean(weight)

    def scale(self, weight: Array) -> Array:
        return self.mean(np.abs(weight))[:, 0]

    def move(self, x: Array, path: str) -> Array:
        return x + self.params[path]

    def scaled(self, whole: Array, scale: Array) -> Array:
        return scale * whole.astype(self.dtype)

    def fit(self, x: Array, size: int) -> Array:
        if size == x.shape[-1]:
            return x
        if size > x.shape[-1]:
            return np.concatenate([x] * (size // x.shape[-1]), axis=-1)
        return self.mean(x.reshape(*x.shape[:-1], size, -1))[..., 0]

    def rprelu(self, x: Array, path: str) -> Array:
        u = self.shifted_in(x, path)
        y = self.bent(u, self.params[f"{path}.slope"])
        self.kept[path] = u
        return self.shifted_out(y, path)

    def shifted_in(self, x: Array, path: str) -> Array:
        u = x - self.params[f"{path}.shift_in"]
        if f"{path}.token_shift_in" in self.params:
            u = u - self.params[f"{path}.token_shift_in"][:, None]
        return u

    def bent(self, u: Array, slope: Array) -> Array:
        return np.where(u > 0, u, slope * u)

    def shifted_out(self, y: Array, path: str) -> Array:
        y = y + self.params[f"{path}.shift_out"]
        if f"{path}.token_shift_out" in self.params:
            y = y + self.params[f"{path}.token_shift_out"][:, None]
        return y

    def projection(self, x: Array, p: str) -> Array:
        weight, scale = self.weights(p)
        z = self.tap(f"{p}.z", self.move(x, f"{p}.move"))
        bit = self.tap(f"{p}.bit", self.sign(z))
        whole = self.tap(f"{p}.int", self.binary_product(bit, weight))
        linear = self.tap(f"{p}.linear", self.scaled(whole, scale))
        norm = self.tap(f"{p}.norm", self.layer_norm(linear, f"{p}.norm"))
        self.kept[p] = x
        y = self.with_shortcut(norm, x, p)
        return self.tap(f"{p}.out", self.rprelu(y, f"{p}.rprelu"))

    def with_shortcut(self, norm: Array, x: Array, p: str) -> Array:
        return norm + self.fit(x, norm.shape[-1])

    # Bands and neighbours [4, 6.2]

    def to_grid(self, x: Array, place: Place) -> Array:
        rows, columns = place.grid
        return x[:, place.front :].reshape(len(x), rows, columns, x.shape[-1])

    def with_front(self, front: Array, grid: Array) -> Array:
        return np.concatenate([front, grid.reshape(len(grid), -1, grid.shape[-1])], axis=1)

    def corners(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """x at (i, j), (i, j+1), (i+1, j), (i+1, j+1): at the border again, or from the start."""
        rows, columns = self.next_index(x.shape[1]), self.next_index(x.shape[2])
        return x, x[:, :, columns], x[:, rows], x[:, rows][:, :, columns]

    def next_index(self, size: int) -> Array:
        following = np.arange(size) + 1
        if self.config["haar_mode"] == "periodic":
            return following % size
        return np.minimum(following, size - 1)

    def haar(self, x: Array) -> tuple[Array, Array]:
        x00, x01, x10, x11 = self.corners(x)
        quarter = self.dtype(0.25)
        low = (x00 + x01 + x10 + x11) * quarter
        rows = ((x00 + x01) - (x10 + x11)) * quarter
        columns = ((x00 - x01) + (x10 - x11)) * quarter
        diagonal = ((x00 - x01) - (x10 - x11)) * quarter
        return low, (rows + columns) + diagonal

    def bands(self, x: Array, place: Place) -> tuple[Array, Array]:
        low, high = self.haar(self.to_grid(x, place))
        front_low, front_high = self.front_bands(x[:, : place.front])
        return self.with_front(front_low, low), self.with_front(front_high, high)

    def front_bands(self, front: Array) -> tuple[Array, Array]:
        return front, front if self.config["haar_cls"] == "both" else np.zeros_like(front)

    def neighbour_mean(self, v: Array, place: Place) -> Array:
        grid = self.to_grid(v, place)
        total = np.zeros_like(grid)
        for here, there in self.pairs(place.grid):
            total[:, here[0], here[1]] += grid[:, there[0], there[1]]
        mean = self.shared(total, self.counts(place.grid))
        return self.with_front(np.zeros_like(v[:, : place.front]), mean)

    def shared(self, total: Array, count: Array) -> Array:
        return total / count

    def pairs(self, grid: tuple[int, int]) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        """Of each of the eight neighbours: the patches that have it, and where it is."""
        return [
            ((cut(rows, -r), cut(columns, -c)), (cut(rows, r), cut(columns, c)))
            for rows, columns in [grid]
            for r, c in NEIGHBOURS
            if abs(r) < rows and abs(c) < columns
        ]

    def counts(self, grid: tuple[int, int]) -> Array:
        if self.config["neighbours"] == "eight":
            return self.dtype(8)
        count = np.zeros((*grid, 1), self.dtype)
        for here, _ in self.pairs(grid):
            count[here] += 1
        return np.maximum(count, 1)

    # Attention [6.1, 6.2, 6.7]

    def heads(self, x: Array, heads: int) -> Array:
        batch, tokens, channels = x.shape
        return x.reshape(batch, tokens, heads, channels // heads).transpose(0, 2, 1, 3)

    def joined(self, x: Array) -> Array:
        batch, heads, tokens, d = x.shape
        return x.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * d)

    def window_shift(self, number: int, window: int, grid: tuple[int, int]) -> int:
        return window // 2 if number % 2 and window not in grid else 0

    def cut(self, x: Array, place: Place) -> Array:
        """The grid in windows, (B nW, M M, C); x itself where there are none."""
        if not place.window:
            return x
        batch, (rows, columns), m = len(x), place.grid, place.window
        grid = self.rolled(x.reshape(batch, rows, columns, -1), place.shift)
        grid = grid.reshape(batch, rows // m, m, columns // m, m, -1).transpose(0, 1, 3, 2, 4, 5)
        return grid.reshape(batch * (rows // m) * (columns // m), m * m, -1)

    def rolled(self, grid: Array, shift: int) -> Array:
        return np.roll(grid, (-shift, -shift), axis=(1, 2))

    def uncut(self, x: Array, place: Place) -> Array:
        if not place.window:
            return x
        (rows, columns), m = place.grid, place.window
        grid = x.reshape(-1, rows // m, columns // m, m, m, x.shape[-1])
        grid = grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, x.shape[-1])
        return self.unrolled(grid, place.shift).reshape(-1, rows * columns, x.shape[-1])

    def unrolled(self, grid: Array, shift: int) -> Array:
        return np.roll(grid, (shift, shift), axis=(1, 2))

    def masked(self, place: Place) -> Array | None:
        """(nW, M M, M M): keys that come from another side of the grid than the query."""
        if not place.shift:
            return None
        rows, columns = place.grid
        from_above = np.arange(rows) >= rows - place.shift
        from_left = np.arange(columns) >= columns - place.shift
        side = self.sides(from_above[:, None], from_left[None, :])
        whole = Place("", place.grid, 1, 0, place.window, 0)
        windows = self.cut(np.broadcast_to(side, place.grid).reshape(1, -1, 1), whole)[..., 0]
        return windows[:, :, None] != windows[:, None, :]

    def sides(self, above: Array, left: Array) -> Array:
        return 2 * above + left

    def position_index(self, m: int) -> Array:
        row, column = np.divmod(np.arange(m * m), m)
        rows = row[:, None] - row[None, :] + m - 1
        columns = column[:, None] - column[None, :] + m - 1
        return rows * (2 * m - 1) + columns

    def with_position_bias(self, scores: Array, place: Place) -> Array:
        if not place.window:
            return scores
        table = self.params[f"{place.path}.attn.position_bias"]
        return scores + table[self.position_index(place.window)].transpose(2, 0, 1)

    def probabilities(self, scores: Array, place: Place) -> Array:
        mask = self.masked(place) if place.window else None
        if mask is not None:
            windows = np.tile(mask, (len(scores) // len(mask), 1, 1))[:, None]
            scores = np.where(windows, self.dtype(-np.inf), scores)
        return self.softmax(scores)

    def sources(self, n1: Array, place: Place) -> dict[str, Array]:
        """What each projection of attention reads, in order of computation."""
        if self.config["similarity"] == "plain":
            return {"q": n1, "k": n1, "v": n1}
        low, high = self.bands(n1, place)
        self.tap(f"{place.path}.attn.low", low)
        self.tap(f"{place.path}.attn.high", high)
        return {"q_low": low, "k_low": low, "q_high": high, "k_high": high, "v": n1}

    def head_bits(self, out: Array, name: str, place: Place) -> Array:
        p = f"{place.path}.attn.{name}"
        moved = self.move(out, f"{p}_move")
        z = self.heads(self.cut(moved, place), place.heads)
        z = self.tap(f"{p}.head_z", z.swapaxes(-1, -2) if name == "v" else z)
        return self.tap(f"{p}.head_bit", self.sign(z))

    def scores(self, bits: Mapping[str, Array], place: Place) -> Array:
        a = f"{place.path}.attn"
        d = bits["v"].shape[2]
        if "q" in bits:
            whole = self.tap(f"{a}.scores.int", self.binary_product(bits["q"], bits["k"]))
            return self.divided(whole.astype(self.dtype), d)
        low, high = (
            self.tap(f"{a}.scores_{band}.int", self.similarity(bits, band))
            for band in ("low", "high")
        )
        return self.divided(self.band_sum(low, high, a), d)

    def similarity(self, bits: Mapping[str, Array], band: str) -> Array:
        return self.binary_product(bits[f"q_{band}"], bits[f"k_{band}"])

    def band_sum(self, low: Array, high: Array, a: str) -> Array:
        w = self.params[f"{a}.band_weight"][:, :, None, None]
        return w[0] * low.astype(self.dtype) + w[1] * high.astype(self.dtype)

    def divided(self, scores: Array, d: int) -> Array:
        return scores / np.sqrt(self.dtype(d))

    def alpha(self, a: str) -> Array:
        return np.maximum(self.params[f"{a}.alpha"], self.dtype(1e-5))

    def over_alpha(self, prob: Array, a: str) -> Array:
        return prob / self.alpha(a)

    def boolean(self, q: Array) -> Array:
        return q > self.dtype(0.5)

    def attention(self, n1: Array, place: Place) -> Array:
        a = f"{place.path}.attn"
        sources = self.sources(n1, place)
        m = {name: self.projection(x, f"{a}.{name}") for name, x in sources.items()}
        bits = {name: self.head_bits(out, name, place) for name, out in m.items()}
        scores = self.with_position_bias(self.scores(bits, place), place)
        self.tap(f"{a}.scores", scores)
        self.kept[f"{a}.prob"] = prob = self.probabilities(scores, place)
        q = self.tap(f"{a}.prob.z", self.over_alpha(prob, a))
        ones = self.tap(f"{a}.prob.bit", self.boolean(q))
        whole = self.tap(f"{a}.context.int", self.boolean_product(ones, bits["v"]))
        context = self.tap(f"{a}.context", self.scaled(whole, self.alpha(a)))
        joined = self.uncut(self.joined(context), place)
        norm = self.tap(f"{a}.norm.out", self.layer_norm(joined, f"{a}.norm"))
        y = self.shortcuts(norm, m, place)
        return self.tap(f"{a}.out", self.rprelu(y, f"{a}.rprelu"))

    def shortcuts(self, norm: Array, m: Mapping[str, Array], place: Place) -> Array:
        y = norm
        for name in self.query_key_names(m):
            y = y + m[name]
        if self.config["attention"] == "plain":
            return y + m["v"]
        around = self.neighbour_mean(m["v"], place)
        self.tap(f"{place.path}.attn.neighbour_mean", around)
        return y + self.differential(m["v"], around, f"{place.path}.attn")

    def query_key_names(self, m: Mapping[str, Array]) -> list[str]:
        return [name for name in m if name != "v"]

    def differential(self, v: Array, around: Array, a: str) -> Array:
        return self.params[f"{a}.shortcut"] * v - self.params[f"{a}.neighbour"] * around

    # The network [6.3]

    def tokens(self, images: Array) -> Array:
        x = self.tap("patch_embed.out", self.linear(self.patches(images), "patch_embed"))
        if self.config["window"]:
            return self.tap("tokens", self.layer_norm(x, "embed_norm"))
        if self.config["pool"] == "cls":
            x = self.with_class_token(x)
        return self.tap("tokens", self.with_positions(x))

    def with_class_token(self, x: Array) -> Array:
        first = np.broadcast_to(self.params["cls_token"], (len(x), 1, x.shape[-1]))
        return np.concatenate([first, x], axis=1)

    def with_positions(self, x: Array) -> Array:
        return x + self.params["pos_embed"]

    def scaled_branch(self, x: Array, path: str) -> Array:
        self.kept[path] = x
        if not self.config["layer_scale"]:
            return x
        return self.params[f"{path}.alpha"] * x + self.params[f"{path}.beta"]

    def residual(self, x: Array, branch: Array) -> Array:
        return x + branch

    def block(self, x: Array, place: Place) -> Array:
        b = place.path
        n1 = self.tap(f"{b}.norm1.out", self.layer_norm(x, f"{b}.norm1"))
        if self.config["block"] == "real":
            branch = self.real_attention(n1, place)
        else:
            branch = self.projection(self.attention(n1, place), f"{b}.attn.proj")
        mid = self.tap(f"{b}.mid", self.residual(x, self.scaled_branch(branch, f"{b}.scale1")))
        n2 = self.tap(f"{b}.norm2.out", self.layer_norm(mid, f"{b}.norm2"))
        if self.config["block"] == "real":
            branch = self.real_mlp(n2, b)
        else:
            branch = self.projection(self.projection(n2, f"{b}.mlp.up"), f"{b}.mlp.down")
        branch = self.scaled_branch(branch, f"{b}.scale2")
        return self.tap(f"{b}.out", self.residual(mid, branch))

    def qkv(self, x: Array, place: Place) -> tuple[Array, Array, Array]:
        q, k, v = np.split(x, 3, axis=-1)
        return tuple(self.heads(t, place.heads) for t in (q, k, v))

    def real_attention(self, n1: Array, place: Place) -> Array:
        a = f"{place.path}.attn"
        x = self.tap(f"{a}.qkv.out", self.linear(n1, f"{a}.qkv"))
        q, k, v = self.kept[f"{a}.heads"] = self.qkv(x, place)
        scores = self.divided(self.matmul(q, k.swapaxes(-1, -2)), q.shape[-1])
        prob = self.tap(f"{a}.prob", self.softmax(self.tap(f"{a}.scores", scores)))
        context = self.tap(f"{a}.context", self.matmul(prob, v))
        return self.tap(f"{a}.proj.out", self.linear(self.joined(context), f"{a}.proj"))

    def real_mlp(self, n2: Array, b: str) -> Array:
        x = self.tap(f"{b}.mlp.fc1.out", self.linear(n2, f"{b}.mlp.fc1"))
        y = self.tap(f"{b}.mlp.gelu.out", self.gelu(x))
        return self.tap(f"{b}.mlp.fc2.out", self.linear(y, f"{b}.mlp.fc2"))

    def merge(self, x: Array, stage: int, grid: tuple[int, int]) -> Array:
        p = f"merges.{stage}"
        patches = self.tap(f"{p}.patches", self.side_by_side(x, grid))
        norm = self.tap(f"{p}.norm.out", self.layer_norm(patches, f"{p}.norm"))
        return self.projection(norm, f"{p}.proj")

    def side_by_side(self, x: Array, grid: tuple[int, int]) -> Array:
        x = x.reshape(len(x), *grid, -1)
        parts = [x[:, r::2, c::2] for r, c in MERGED]
        return np.concatenate(parts, axis=-1).reshape(len(x), -1, 4 * x.shape[-1])

    def pool(self, x: Array) -> Array:
        if self.config["pool"] == "cls":
            return x[:, 0]
        return self.sum(x, 1)[:, 0] / self.dtype(x.shape[1])

    def forward(self) -> Array:
        x = self.tokens(self.images)
        for stage, places in enumerate(self.stages):
            if stage:
                x = self.merge(x, stage - 1, self.stages[stage - 1][0].grid)
            for place in places:
                x = self.block(x, place)
        y = self.tap("norm.out", self.layer_norm(x, "norm"))
        return self.tap("logits", self.linear(self.pool(y), "head"))

    # Plain operations, backward

    def linear_back(self, dy: Array, path: str) -> Array:
        x = self.kept[path]
        rows_dy, rows_x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        self.grad_param(f"{path}.weight", self.outer(rows_dy, rows_x))
        self.grad_param(f"{path}.bias", self.total(dy))
        return self.matmul(dy, self.matrix(path))

    def outer(self, rows_dy: Array, rows_x: Array) -> Array:
        return self.matmul(rows_dy.T, rows_x)

    def unpatches(self, dx: Array) -> Array:
        p = self.config["patch_size"]
        batch, channels, rows, columns = self.images.shape
        x = dx.reshape(batch, rows // p, columns // p, channels, p, p)
        return x.transpose(0, 3, 1, 4, 2, 5).reshape(self.images.shape)

    def layer_norm_back(self, dy: Array, path: str) -> Array:
        n, s = self.kept[path]
        self.grad_param(f"{path}.weight", self.total(dy * n))
        self.grad_param(f"{path}.bias", self.total(dy))
        return self.normed_back(dy * self.params[f"{path}.weight"], n, s)

    def normed_back(self, g: Array, n: Array, s: Array) -> Array:
        return (g - self.mean(g) - n * self.mean(g * n)) / s

    def softmax_back(self, dy: Array, y: Array) -> Array:
        return y * (dy - self.sum(dy * y))

    def gelu_back(self, dy: Array, x: Array) -> Array:
        density = np.exp(-x * x / 2) / self.dtype(math.sqrt(2 * math.pi))
        return dy * (self.gaussian(x) + x * density)

    def sign_back(self, dy: Array, z: Array) -> Array:
        if self.config["ste"] == "clip":
            return dy * (np.abs(z) <= 1)
        return dy * np.maximum(self.dtype(0), 2 - 2 * np.abs(z))

    # The binary projection, backward

    def rprelu_back(self, dy: Array, path: str) -> Array:
        u = self.kept[path]
        below = u <= 0
        du = self.bent_back(dy, below, self.params[f"{path}.slope"])
        self.grad_param(f"{path}.shift_in", -self.total(du))
        self.grad_param(f"{path}.slope", self.slope_back(dy, u, below))
        self.grad_param(f"{path}.shift_out", self.total(dy))
        if f"{path}.token_shift_in" in self.params:
            self.grad_param(f"{path}.token_shift_in", -self.over_tokens(du))
            self.grad_param(f"{path}.token_shift_out", self.over_tokens(dy))
        return du

    def bent_back(self, dy: Array, below: Array, slope: Array) -> Array:
        return dy * np.where(below, slope, self.dtype(1))

    def slope_back(self, dy: Array, u: Array, below: Array) -> Array:
        return self.total(dy * u * below)

    def over_tokens(self, dy: Array) -> Array:
        return self.sum(dy, (0, 2))[0, :, 0]

    def fit_back(self, dy: Array, size: int) -> Array:
        out = dy.shape[-1]
        if size == out:
            return dy
        if size < out:
            tiles = dy.reshape(*dy.shape[:-1], out // size, size)
            return self.sum(tiles, -2)[..., 0, :]
        return np.repeat(dy, size // out, axis=-1) / self.dtype(size // out)

    def binary_linear_back(self, dlinear: Array, p: str) -> Array:
        weight, scale = self.taps[f"{p}.weight.bit"], self.taps[f"{p}.weight.scale"]
        rows_dy = dlinear.reshape(-1, dlinear.shape[-1])
        bits = self.signs(self.taps[f"{p}.bit"])
        dbinary = self.outer(rows_dy, bits.reshape(-1, bits.shape[-1]))
        self.grad_param(f"{p}.weight", self.weight_back(dbinary, p))
        binary = scale[:, None] * self.signs(weight)
        dbit = self.grad(f"{p}.bit", self.bit_back(dlinear, binary, p))
        return self.grad(f"{p}.z", self.sign_back(dbit, self.taps[f"{p}.z"]))

    def bit_back(self, dlinear: Array, binary: Array, p: str) -> Array:
        return self.matmul(dlinear, binary)

    def weight_back(self, dbinary: Array, p: str) -> Array:
        g = dbinary * (np.abs(self.taps[f"{p}.weight.z"]) <= 1)
        return g - self.mean(g)

    def projection_back(self, dout: Array, p: str) -> Array:
        dy = self.grad(f"{p}.norm", self.rprelu_back(dout, f"{p}.rprelu"))
        dlinear = self.grad(f"{p}.linear", self.layer_norm_back(dy, f"{p}.norm"))
        dz = self.binary_linear_back(dlinear, p)
        self.grad_param(f"{p}.move", self.total(dz))
        return self.with_shortcut_back(dz, dy, p)

    def with_shortcut_back(self, dz: Array, dy: Array, p: str) -> Array:
        return self.fit_back(dy, self.kept[p].shape[-1]) + dz

    # Bands and neighbours, backward

    def haar_back(self, dlow: Array, dhigh: Array) -> Array:
        """The adjoint; all three details have the gradient of their sum."""
        quarter = self.dtype(0.25)
        to_first = (dlow + 3 * dhigh) * quarter
        to_others = (dlow - dhigh) * quarter
        rows, columns = self.next_index(dlow.shape[1]), self.next_index(dlow.shape[2])
        here = np.arange(dlow.shape[1]), np.arange(dlow.shape[2])
        dx = to_first.copy()
        for r, c in [(here[0], columns), (rows, here[1]), (rows, columns)]:
            np.add.at(dx, (slice(None), r[:, None], c[None, :]), to_others)
        return dx

    def bands_back(self, dlow: Array, dhigh: Array, place: Place) -> Array:
        dx = self.haar_back(self.to_grid(dlow, place), self.to_grid(dhigh, place))
        front = self.front_back(dlow[:, : place.front], dhigh[:, : place.front])
        return self.with_front(front, dx)

    def front_back(self, dlow: Array, dhigh: Array) -> Array:
        return dlow + dhigh if self.config["haar_cls"] == "both" else dlow

    def neighbours_back(self, dy: Array, place: Place) -> Array:
        share = self.shared(self.to_grid(dy, place), self.counts(place.grid))
        dx = np.zeros_like(share)
        for here, there in self.pairs(place.grid):
            dx[:, there[0], there[1]] += share[:, here[0], here[1]]
        return self.with_front(np.zeros_like(dy[:, : place.front]), dx)

    # Attention, backward

    def boolean_back(self, dcontext: Array, place: Place) -> tuple[Array, Array]:
        """Gradients of the probabilities and of the signs of v."""
        a = f"{place.path}.attn"
        v = self.signs(self.taps[f"{a}.v.head_bit"])
        dy = self.matmul(dcontext, v)
        q = self.taps[f"{a}.prob.z"]
        inside, above = self.elastic_range(q)
        dprob = dy * inside
        self.grad_param(f"{a}.alpha", self.alpha_back(dy, q, inside, above, a))
        ones = self.taps[f"{a}.prob.bit"].astype(self.dtype) * self.alpha(a)
        dv = self.matmul(dcontext.swapaxes(-1, -2), ones)
        return dprob, dv

    def elastic_range(self, q: Array) -> tuple[Array, Array]:
        return (q >= 0) & (q <= 1), q > 1

    def alpha_back(self, dy: Array, q: Array, inside: Array, above: Array, a: str) -> Array:
        terms = dy * (inside * (np.round(q) - q) + above)
        alpha = self.params[f"{a}.alpha"]
        axes = (0, 2, 3) if alpha.ndim else (0, 1, 2, 3)
        return self.sum(terms, axes)[0].reshape(alpha.shape) * (alpha >= self.dtype(1e-5))

    def scores_back(self, dscores: Array, place: Place) -> dict[str, Array]:
        """Gradients of the signs of queries and keys."""
        a = f"{place.path}.attn"
        if place.window:
            self.grad_param(f"{a}.position_bias", self.position_back(dscores, place))
        if self.config["similarity"] == "plain":
            dwhole = {"": self.divided(dscores, self.taps[f"{a}.q.head_bit"].shape[-1])}
        else:
            d = self.taps[f"{a}.q_low.head_bit"].shape[-1]
            dwhole = self.band_back(self.divided(dscores, d), a)
        dbits = {}
        for band, dy in dwhole.items():
            dbits[f"q{band}"], dbits[f"k{band}"] = self.similarity_back(dy, a, band)
        return dbits

    def similarity_back(self, dy: Array, a: str, band: str) -> tuple[Array, Array]:
        q, k = (self.signs(self.taps[f"{a}.{t}{band}.head_bit"]) for t in "qk")
        return self.matmul(dy, k), self.matmul(dy.swapaxes(-1, -2), q)

    def band_back(self, dy: Array, a: str) -> dict[str, Array]:
        w = self.params[f"{a}.band_weight"][:, :, None, None]
        whole = [self.taps[f"{a}.scores_{band}.int"] for band in ("low", "high")]
        dw = [self.sum(dy * x.astype(self.dtype), (0, 2, 3))[0, :, 0, 0] for x in whole]
        self.grad_param(f"{a}.band_weight", np.stack(dw))
        return {"_low": w[0] * dy, "_high": w[1] * dy}

    def position_back(self, dscores: Array, place: Place) -> Array:
        table = np.zeros(self.params[f"{place.path}.attn.position_bias"].shape, self.dtype)
        dbias = self.sum(dscores, 0)[0].transpose(1, 2, 0)
        np.add.at(table, self.position_index(place.window), dbias)
        return table

    def head_bits_back(self, dbit: Array, name: str, place: Place) -> Array:
        p = f"{place.path}.attn.{name}"
        self.grad(f"{p}.head_bit", dbit)
        dz = self.grad(f"{p}.head_z", self.sign_back(dbit, self.taps[f"{p}.head_z"]))
        dmoved = self.uncut(self.joined(dz.swapaxes(-1, -2) if name == "v" else dz), place)
        self.grad_param(f"{p}_move", self.total(dmoved))
        return dmoved

    def attention_back(self, dout: Array, place: Place) -> Array:
        a = f"{place.path}.attn"
        dsum = self.grad(f"{a}.norm.out", self.rprelu_back(dout, f"{a}.rprelu"))
        dm_v = self.value_back(dsum, place)
        djoined = self.layer_norm_back(dsum, f"{a}.norm")
        dcontext = self.grad(f"{a}.context", self.heads(self.cut(djoined, place), place.heads))
        dprob, dv = self.boolean_back(dcontext, place)
        self.grad(f"{a}.prob", dprob)
        dscores = self.grad(f"{a}.scores", self.softmax_back(dprob, self.kept[f"{a}.prob"]))
        dbits = {**self.scores_back(dscores, place), "v": dv}
        dm = {}
        for name, dbit in dbits.items():
            moved = self.head_bits_back(dbit, name, place)
            total = self.total_of_readers(moved, dm_v if name == "v" else dsum, name)
            self.grad(f"{a}.{name}.out", total)
            dm[name] = self.projection_back(total, f"{a}.{name}")
        return self.sources_back(dm, place)

    def total_of_readers(self, moved: Array, shortcut: Array, name: str) -> Array:
        return shortcut + moved

    def value_back(self, dsum: Array, place: Place) -> Array:
        """What the shortcuts send back to the values."""
        a = f"{place.path}.attn"
        if self.config["attention"] == "plain":
            return dsum
        v, around = self.taps[f"{a}.v.out"], self.taps[f"{a}.neighbour_mean"]
        dv, daround = self.differential_back(dsum, v, around, a)
        self.grad(f"{a}.neighbour_mean", daround)
        return dv + self.neighbours_back(daround, place)

    def differential_back(self, dy: Array, v: Array, around: Array, a: str) -> tuple[Array, Array]:
        self.grad_param(f"{a}.shortcut", self.total(dy * v))
        self.grad_param(f"{a}.neighbour", -self.total(dy * around))
        return self.params[f"{a}.shortcut"] * dy, -self.params[f"{a}.neighbour"] * dy

    def sources_back(self, dm: Mapping[str, Array], place: Place) -> Array:
        if self.config["similarity"] == "plain":
            return dm["q"] + dm["k"] + dm["v"]
        dlow, dhigh = dm["q_low"] + dm["k_low"], dm["q_high"] + dm["k_high"]
        self.grad(f"{place.path}.attn.low", dlow)
        self.grad(f"{place.path}.attn.high", dhigh)
        return self.bands_back(dlow, dhigh, place) + dm["v"]

    # The network, backward

    def scaled_branch_back(self, dy: Array, path: str) -> Array:
        if not self.config["layer_scale"]:
            return dy
        self.grad_param(f"{path}.alpha", self.total(dy * self.kept[path]))
        self.grad_param(f"{path}.beta", self.total(dy))
        return self.params[f"{path}.alpha"] * dy

    def block_back(self, dout: Array, place: Place) -> Array:
        b, real = place.path, self.config["block"] == "real"
        dbranch = self.scaled_branch_back(self.grad(f"{b}.out", dout), f"{b}.scale2")
        if real:
            dn2 = self.real_mlp_back(dbranch, b)
        else:
            self.grad(f"{b}.mlp.down.out", dbranch)
            dup = self.grad(f"{b}.mlp.up.out", self.projection_back(dbranch, f"{b}.mlp.down"))
            dn2 = self.projection_back(dup, f"{b}.mlp.up")
        self.grad(f"{b}.norm2.out", dn2)
        dmid = self.residual_back(dout, self.layer_norm_back(dn2, f"{b}.norm2"))
        dbranch = self.scaled_branch_back(self.grad(f"{b}.mid", dmid), f"{b}.scale1")
        self.grad(f"{b}.attn.proj.out", dbranch)
        if real:
            dn1 = self.real_attention_back(dbranch, place)
        else:
            dattention = self.projection_back(dbranch, f"{b}.attn.proj")
            dn1 = self.attention_back(self.grad(f"{b}.attn.out", dattention), place)
        self.grad(f"{b}.norm1.out", dn1)
        return self.residual_back(dmid, self.layer_norm_back(dn1, f"{b}.norm1"))

    def residual_back(self, dx: Array, dbranch: Array) -> Array:
        return dx + dbranch

    def real_mlp_back(self, dy: Array, b: str) -> Array:
        self.grad(f"{b}.mlp.fc2.out", dy)
        dgelu = self.grad(f"{b}.mlp.gelu.out", self.linear_back(dy, f"{b}.mlp.fc2"))
        dfc1 = self.gelu_back(dgelu, self.taps[f"{b}.mlp.fc1.out"])
        return self.linear_back(self.grad(f"{b}.mlp.fc1.out", dfc1), f"{b}.mlp.fc1")

    def real_attention_back(self, dy: Array, place: Place) -> Array:
        a = f"{place.path}.attn"
        q, k, v = self.kept[f"{a}.heads"]
        prob = self.taps[f"{a}.prob"]
        dcontext = self.heads(self.linear_back(dy, f"{a}.proj"), place.heads)
        self.grad(f"{a}.context", dcontext)
        dprob = self.grad(f"{a}.prob", self.matmul(dcontext, v.swapaxes(-1, -2)))
        dscores = self.grad(f"{a}.scores", self.softmax_back(dprob, prob))
        dproduct = self.divided(dscores, q.shape[-1])
        parts = (
            self.matmul(dproduct, k),
            self.matmul(dproduct.swapaxes(-1, -2), q),
            self.matmul(prob.swapaxes(-1, -2), dcontext),
        )
        dqkv = self.joined_qkv(parts)
        return self.linear_back(self.grad(f"{a}.qkv.out", dqkv), f"{a}.qkv")

    def joined_qkv(self, parts: tuple[Array, ...]) -> Array:
        return np.concatenate([self.joined(part) for part in parts], axis=-1)

    def merge_back(self, dout: Array, stage: int, grid: tuple[int, int]) -> Array:
        p = f"merges.{stage}"
        self.grad(f"{p}.proj.out", dout)
        dnorm = self.grad(f"{p}.norm.out", self.projection_back(dout, f"{p}.proj"))
        dpatches = self.grad(f"{p}.patches", self.layer_norm_back(dnorm, f"{p}.norm"))
        return self.apart(dpatches, grid)

    def apart(self, dy: Array, grid: tuple[int, int]) -> Array:
        rows, columns = grid
        dx = np.empty((len(dy), rows, columns, dy.shape[-1] // 4), self.dtype)
        parts = np.split(dy.reshape(len(dy), rows // 2, columns // 2, -1), 4, axis=-1)
        for (r, c), part in zip(MERGED, parts, strict=True):
            dx[:, r::2, c::2] = part
        return dx.reshape(len(dy), rows * columns, -1)

    def pool_back(self, dy: Array, tokens: int) -> Array:
        dx = np.zeros((len(dy), tokens, dy.shape[-1]), self.dtype)
        if self.config["pool"] == "cls":
            dx[:, 0] = dy
        else:
            dx += dy[:, None] / self.dtype(tokens)
        return dx

    def tokens_back(self, dx: Array) -> None:
        self.grad("tokens", dx)
        if self.config["window"]:
            dx = self.layer_norm_back(dx, "embed_norm")
        else:
            self.grad_param("pos_embed", self.sum(dx, 0))
            if self.config["pool"] == "cls":
                self.grad_param("cls_token", self.sum(dx[:, :1], 0))
                dx = dx[:, 1:]
        self.grad("patch_embed.out", dx)
        self.grad("input", self.unpatches(self.linear_back(dx, "patch_embed")))

    def backward(self, dlogits: Array) -> None:
        self.grad("logits", dlogits)
        tokens = self.taps["norm.out"].shape[1]
        dnorm = self.pool_back(self.linear_back(dlogits, "head"), tokens)
        dx = self.layer_norm_back(self.grad("norm.out", dnorm), "norm")
        for stage in reversed(range(len(self.stages))):
            for place in reversed(self.stages[stage]):
                dx = self.block_back(dx, place)
            if stage:
                dx = self.merge_back(dx, stage - 1, self.stages[stage - 1][0].grid)
        self.tokens_back(dx)


def cut(size: int, offset: int) -> slice:
    """Of an axis of this size, what lies `offset` behind the rest: 1 gives 1:, -1 gives :-1."""
    return slice(max(offset, 0), size + min(offset, 0))


def packed(bits: Array) -> Array:
    """Rows of 64-bit words, the lowest bit first, the tail 0."""
    tail = -bits.shape[-1] % 64
    padded = np.pad(np.ascontiguousarray(bits), [(0, 0)] * (bits.ndim - 1) + [(0, tail)])
    return np.packbits(padded, axis=-1, bitorder="little").view("<u8")
