"""The engine's values under the names of the model's taps [SPEC 8.1].

A run kernel by kernel shows tiles of sixteen tokens; here they become whole tensors. What the
kernels never form, because they fuse it, follows from what they do form by the one operation in
between: z = x + move, linear and the scores (from whole numbers), a projection's norm (from what
its product differs by from a level, and the scale and shift of that) and q (from the exponentials
and their sum).
Centred weights are not in a packed network, so there is no `weight.z`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from refimpl.engine import columns
from refimpl.engine.plan import Plan, Stage, decoded_row, level_row, stage_at, words
from refimpl.kernels import bits
from refimpl.kernels.vector import LANES
from refimpl.models.config import Config
from refimpl.models.stage import Stage as ModelStage
from refimpl.ops import band_sum, boolean, position_bias, split_heads, windows

Arrays = Mapping[str, np.ndarray]
FIELDS = ("norm1.out", "value.out")  # whole, of every token
# of the pyramid, whole fields
LEVELS = ("lateral.out", "top", "smooth.out", "decoder.sum", "decoder.gelu.out")


class Listener:
    """Collects the tiles of one image; `taps` gives its tensors, as of a batch of one."""

    def __init__(self, config: Config, plan: Plan, arrays: Arrays):
        self.config, self.plan, self.arrays = config, plan, arrays
        self._stages = [stage_at(plan, s) for s in range(len(plan.stages))]
        self._tiles: dict[tuple[str, int, int], list[np.ndarray]] = defaultdict(list)

    def __call__(self, what: str, row: int, head: int, tile: int, values, at: int) -> None:
        self._tiles[what, row, head].append(values[at : at + self._length(what, row)].copy())

    def _length(self, what: str, row: int) -> int:
        plan, stage = self.plan, self._stage(row)
        inputs, outputs = plan.table[row, [columns.INPUTS, columns.OUTPUTS]]
        lanes = {
            "bit": words(inputs),
            "deviation": outputs or stage.channels,
            "norm": 2,
            "out": outputs or stage.channels,
            "attn.scores": 2 * stage.slots * LANES,
            "attn.weights": stage.keys + 1,
            "attn.prob.bit": words(stage.keys),
            "head_bit": words(plan.head_dim),
            "patches": inputs,
            **dict.fromkeys(FIELDS, stage.channels * stage.pitch // LANES),
            "norm.out": inputs or stage.channels,
            **dict.fromkeys(LEVELS, self.config.dim * stage.pitch // LANES),
            "head.out": plan.classes * stage.pitch // LANES,
        }
        if what == "head_bit" and row % plan.rows == plan.inputs - 1:  # values: over the tokens
            return -(-plan.head_dim // LANES) * words(stage.keys) * LANES
        return int(lanes.get(what, stage.channels)) * LANES

    def _stage(self, row: int) -> Stage:
        """That of a row of the table; of patch merging the one that it leads to."""
        block, merge = row // self.plan.rows, row - self.plan.blocks * self.plan.rows
        if merge < 0:
            return self._stages[self.config.place_of(block)[0]]
        level = row - level_row(self.plan, 0)
        return self._stages[merge + 1 if level < 0 else level]

    def taps(self) -> dict[str, np.ndarray]:
        """Name -> value, in an order in which each comes after what it is computed from."""
        plan, merges = self.plan, self.config.merges
        found = {"patch_embed.out": self._tokens("patch_embed.out", 0)[:, plan.first :]}
        found["tokens"] = self._tokens("tokens", 0)
        for i in range(plan.blocks):
            if i in merges:
                self._merge(found, merges[i])
            self._block(found, i)
        if plan.pyramid:
            self._pyramid(found)
        else:
            found["norm.out"] = self._tokens("norm.out", decoded_row(plan))
        if plan.decode:
            found["head.out"] = self._field("head.out", decoded_row(plan))
        return found

    def _pyramid(self, found: dict[str, np.ndarray]) -> None:
        rows = [level_row(self.plan, s) for s in range(len(self._stages))]
        last = len(rows) - 1
        for s, row in enumerate(rows):
            name = "norm.out" if s == last else f"decoder.{s}.norm.out"
            found[name] = self._tokens("norm.out", row)
            found[f"decoder.{s}.lateral.out"] = self._field("lateral.out", row)
        for s in reversed(range(last)):
            found[f"decoder.{s}.top"] = self._field("top", rows[s])
        for s, row in enumerate(rows):
            found[f"decoder.{s}.smooth.out"] = self._field("smooth.out", row)
        for name in ("decoder.sum", "decoder.gelu.out"):
            found[name] = self._field(name, rows[0])

    def _merge(self, found: dict[str, np.ndarray], merge: int) -> None:
        name, row = f"merges.{merge}", self.plan.blocks * self.plan.rows + merge
        for what in ("patches", "norm.out"):
            found[f"{name}.{what}"] = self._tokens(what, row)
        self._projection(found, f"{name}.proj", row, found[f"{name}.norm.out"])

    def _block(self, found: dict[str, np.ndarray], i: int) -> None:
        config, name = self.config, f"blocks.{i}"
        row, own = i * self.plan.rows, (i + 1) * self.plan.rows - 1
        found[f"{name}.norm1.out"] = n1 = self._field("norm1.out", own, every=True)
        source = {"": n1}
        if config.similarity == "haar":
            for band in ("low", "high"):
                found[f"{name}.attn.{band}"] = source[f"_{band}"] = self._tokens(
                    f"attn.{band}", own
                )
        for t, unit in enumerate(config.attention_inputs):
            x = n1 if unit == "v" else source[unit[1:]]
            m = self._projection(found, f"{name}.attn.{unit}", row + t, x)
            self._heads(found, f"{name}.attn.{unit}", row + t, m, config.stage_of(i))
        self._attention(found, f"{name}.attn", own, config.stage_of(i))
        o = found[f"{name}.attn.out"]
        self._projection(found, f"{name}.attn.proj", own - 3, o)
        found[f"{name}.mid"] = self._tokens("mid", own)
        found[f"{name}.norm2.out"] = n2 = self._tokens("norm2.out", own)
        hidden = self._projection(found, f"{name}.mlp.up", own - 2, n2)
        self._projection(found, f"{name}.mlp.down", own - 1, hidden)
        found[f"{name}.out"] = self._tokens("out", own)

    def _projection(self, found, name: str, row: int, x: np.ndarray) -> np.ndarray:
        inputs, outputs = self.plan.table[row, [columns.INPUTS, columns.OUTPUTS]]
        stored = self.arrays[f"{name}.bits"]
        weight = np.unpackbits(stored, axis=1, count=inputs, bitorder="little").astype(bool)
        found[f"{name}.weight.bit"] = weight
        found[f"{name}.weight.scale"] = self._floats(f"{name}.scale")
        found[f"{name}.z"] = x + self._floats(f"{name}.move")
        lanes = np.stack(self._tiles["bit", row, 0]).reshape(-1, words(inputs), LANES)
        packed = bits.Packed(lanes.view(np.uint32), self._stage(row).tokens, int(inputs))
        found[f"{name}.bit"] = bits.unpack(packed)[None]
        found[f"{name}.int"] = whole = bits.binary_product(packed, bits.pack(_signs(weight)))[None]
        found[f"{name}.linear"] = whole.astype(np.float32) * found[f"{name}.weight.scale"]
        found[f"{name}.norm"] = self._norm(f"{name}.norm", row)
        if ("value.out", row, 0) in self._tiles:
            found[f"{name}.out"] = self._field("value.out", row, every=True)
        else:
            found[f"{name}.out"] = self._tokens("out", row)
        return found[f"{name}.out"]

    def _heads(self, found, name: str, row: int, m: np.ndarray, stage: ModelStage) -> None:
        z = m + self._floats(f"{name}_move")
        found[f"{name}.head_z"] = _cut(z, stage, transposed=name.endswith(".v"))
        rows, length = found[f"{name}.head_z"].shape[2:]
        lanes = self._by_head("head_bit", row, words(length)).view(np.uint32)
        found[f"{name}.head_bit"] = bits.unpack(bits.Packed(lanes, rows, length))

    def _attention(self, found, name: str, own: int, stage: ModelStage) -> None:
        plan, config, keys = self.plan, self.config, stage.keys
        lanes = self._stage(own).slots * LANES
        products = self._by_head("attn.scores", own, 2 * lanes)
        whole = [
            plan.head_dim - 2 * _queries_first(products[..., first : first + keys, :], keys)
            for first in range(0, len(config.bands) * lanes, lanes)
        ]
        for band, product in zip(config.bands, whole, strict=True):
            found[f"{name}.scores{band}.int"] = product
        found[f"{name}.scores"] = self._scores(name, whole)
        weights = self._by_head("attn.weights", own, keys + 1)
        prob = _queries_first(weights[..., :-1, :] / weights[..., -1:, :], keys)
        alpha = np.float32(self.arrays[f"{name}.alpha"])
        found[f"{name}.prob.z"] = boolean.threshold(prob, alpha)[0]
        bit = self._by_head("attn.prob.bit", own, words(keys)).view(np.uint32)
        found[f"{name}.prob.bit"] = bits.unpack(bits.Packed(bit, keys, keys))
        context = _cut(self._tokens("attn.context", own), stage)
        step = np.broadcast_to(boolean.step_of(alpha), (stage.heads, 1, 1))
        found[f"{name}.context.int"] = np.rint(context / step).astype(np.int32)
        found[f"{name}.context"] = context
        found[f"{name}.norm.out"] = self._norm(f"{name}.norm", own)
        if plan.differential:
            found[f"{name}.neighbour_mean"] = self._tokens("attn.neighbour_mean", own)
        found[f"{name}.out"] = self._tokens("attn.out", own)

    def _scores(self, name: str, whole: list[np.ndarray]) -> np.ndarray:
        bands = [product.astype(np.float32) for product in whole]
        if self.plan.haar:
            weight = self._floats(f"{name}.band_weight")
            scores, _ = band_sum.forward(*bands, weight, self.plan.head_dim)
        else:
            scores = bands[0] / math.sqrt(self.plan.head_dim)
        if self.plan.windowed:
            scores, _ = position_bias.forward(scores, self._floats(f"{name}.position_bias"))
        return scores

    def _norm(self, name: str, row: int) -> np.ndarray:
        """LayerNorm of what a unit's product or context differs by from its level (1, N, O)."""
        scale, shift = np.split(self._tokens("norm", row), 2, axis=-1)
        # in double precision, since the kernels round a product and a sum as one
        deviation = self._tokens("deviation", row).astype(np.float64)
        normalised = (deviation * scale + shift).astype(np.float32)
        weight, bias = (self._floats(f"{name}.{leaf}") for leaf in ("weight", "bias"))
        return (normalised.astype(np.float64) * weight + bias).astype(np.float32)

    def _floats(self, name: str) -> np.ndarray:
        return np.asarray(self.arrays[name], np.float32)

    def _tokens(self, what: str, row: int) -> np.ndarray:
        """Tiles (channels, 16) -> (1, N, channels)."""
        stage = self._stage(row)
        tiles = np.stack(self._tiles[what, row, 0]).reshape(1, stage.tiles, -1, LANES)
        return _queries_first(tiles, stage.tokens)

    def _field(self, what: str, row: int, every: bool = False) -> np.ndarray:
        """(channels, pitch) -> (1, gh*gw, channels), or where wanted every token's."""
        (field,), stage = self._tiles[what, row, 0], self._stage(row)
        first = stage.margin + (0 if every else self.plan.first)
        tokens = field.reshape(-1, stage.pitch)[:, first : stage.margin + stage.tokens]
        return np.ascontiguousarray(tokens.T[None])

    def _by_head(self, what: str, row: int, rows: int) -> np.ndarray:
        """(windows, heads, tiles, rows, 16); without windows there is one."""
        stage = self._stage(row)
        tiles = np.stack([np.stack(self._tiles[what, row, head]) for head in range(stage.heads)])
        return tiles.reshape(stage.heads, stage.windows, -1, rows, LANES).swapaxes(0, 1)


def _cut(x: np.ndarray, stage: ModelStage, transposed: bool = False) -> np.ndarray:
    """Tokens (B, N, C) into windows, where there are any, and heads."""
    if stage.window:
        x, _ = windows.forward(x, stage.grid, stage.window, stage.shift)
    return split_heads.forward(x, stage.heads, transposed)[0]


def _queries_first(tiles: np.ndarray, tokens: int) -> np.ndarray:
    """(…, tiles, rows, 16), a token by lane -> (…, N, rows)."""
    *lead, _, rows, _ = tiles.shape
    found = tiles.swapaxes(-1, -2).reshape(*lead, -1, rows)[..., :tokens, :]
    return np.ascontiguousarray(found)


def _signs(bit: np.ndarray) -> np.ndarray:
    return np.where(bit, np.float32(1), np.float32(-1))
