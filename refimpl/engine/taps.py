"""The engine's values under the names of the model's taps [SPEC 8.1].

A run kernel by kernel shows tiles of sixteen tokens; here they become whole tensors. What the
kernels never form, because they fuse it, follows from what they do form by the one operation in
between: z = x + move, the scores (from whole numbers) and q (from the exponentials and their sum).
Centred weights are not in a packed network, so there is no `weight.z`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from refimpl.engine import columns
from refimpl.engine.plan import Plan, words
from refimpl.kernels import bits
from refimpl.kernels.vector import LANES
from refimpl.models import heads
from refimpl.models.config import Config
from refimpl.ops import band_sum, boolean

Arrays = Mapping[str, np.ndarray]


class Listener:
    """Collects the tiles of one image; `taps` gives its tensors, without the batch axis."""

    def __init__(self, config: Config, plan: Plan, arrays: Arrays):
        self.config, self.plan, self.arrays = config, plan, arrays
        self._tiles: dict[tuple[str, int, int], list[np.ndarray]] = defaultdict(list)

    def __call__(self, what: str, row: int, head: int, tile: int, values, at: int) -> None:
        self._tiles[what, row, head].append(values[at : at + self._length(what, row)].copy())

    def _length(self, what: str, row: int) -> int:
        plan = self.plan
        lanes = {
            "bit": words(plan.table[row, columns.INPUTS]),
            "linear": plan.table[row, columns.OUTPUTS],
            "norm": plan.table[row, columns.OUTPUTS],
            "out": plan.table[row, columns.OUTPUTS] or plan.channels,
            "attn.scores": 2 * plan.tiles * LANES,
            "attn.weights": plan.tokens + 1,
            "attn.prob.bit": words(plan.tokens),
            "head_bit": words(plan.head_dim),
        }
        if what == "head_bit" and row % plan.rows == plan.inputs - 1:  # values: over the tokens
            return -(-plan.head_dim // LANES) * words(plan.tokens) * LANES
        return int(lanes.get(what, plan.channels)) * LANES

    def taps(self) -> dict[str, np.ndarray]:
        """Name -> value, in an order in which each comes after what it is computed from."""
        first = self.plan.first
        found = {"patch_embed.out": self._tokens("patch_embed.out", 0)[first:]}
        found["tokens"] = self._tokens("tokens", 0)
        for i in range(self.config.depth):
            self._block(found, i)
        found["norm.out"] = self._tokens("norm.out", 0)
        return found

    def _block(self, found: dict[str, np.ndarray], i: int) -> None:
        config, name = self.config, f"blocks.{i}"
        row, own = i * self.plan.rows, (i + 1) * self.plan.rows - 1
        found[f"{name}.norm1.out"] = n1 = self._tokens("norm1.out", own)
        source = {"": n1}
        if config.similarity == "haar":
            for band in ("low", "high"):
                found[f"{name}.attn.{band}"] = source[f"_{band}"] = self._tokens(
                    f"attn.{band}", own
                )
        for t, unit in enumerate(config.attention_inputs):
            x = n1 if unit == "v" else source[unit[1:]]
            m = self._projection(found, f"{name}.attn.{unit}", row + t, x)
            self._heads(found, f"{name}.attn.{unit}", row + t, m)
        self._attention(found, f"{name}.attn", own)
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
        packed = bits.Packed(lanes.view(np.uint32), self.plan.tokens, int(inputs))
        found[f"{name}.bit"] = bits.unpack(packed)
        found[f"{name}.int"] = bits.binary_product(packed, bits.pack(_signs(weight)))
        found[f"{name}.linear"] = self._tokens("linear", row)
        found[f"{name}.norm"] = self._tokens("norm", row)
        found[f"{name}.out"] = self._tokens("out", row)
        return found[f"{name}.out"]

    def _heads(self, found, name: str, row: int, m: np.ndarray) -> None:
        plan, count = self.plan, self.plan.heads
        to_heads = heads.split_values if name.endswith(".v") else heads.split
        found[f"{name}.head_z"] = to_heads((m + self._floats(f"{name}_move"))[None], count)[0]
        rows, length = found[f"{name}.head_z"].shape[1:]
        tiles = [np.stack(self._tiles["head_bit", row, head]) for head in range(count)]
        lanes = np.stack(tiles).reshape(plan.heads, -1, words(length), LANES).view(np.uint32)
        found[f"{name}.head_bit"] = bits.unpack(bits.Packed(lanes, rows, length))

    def _attention(self, found, name: str, own: int) -> None:
        plan, config = self.plan, self.config
        products = self._by_head("attn.scores", own)  # (heads, tiles, 2 * keys, 16)
        keys = plan.tiles * LANES
        whole = [
            _queries_first(products[:, :, first : first + plan.tokens], plan.tokens)
            for first in range(0, len(config.bands) * keys, keys)
        ]
        for band, product in zip(config.bands, whole, strict=True):
            found[f"{name}.scores{band}.int"] = product
        bands = [product[None].astype(np.float32) for product in whole]
        if plan.haar:
            weight = self._floats(f"{name}.band_weight")
            found[f"{name}.scores"] = band_sum.forward(*bands, weight, plan.head_dim)[0][0]
        else:
            found[f"{name}.scores"] = bands[0][0] / math.sqrt(plan.head_dim)
        weights = self._by_head("attn.weights", own)  # (heads, tiles, keys + 1, 16)
        prob = _queries_first(weights[:, :, :-1] / weights[:, :, -1:], plan.tokens)
        alpha = np.float32(self.arrays[f"{name}.alpha"])
        found[f"{name}.prob.z"] = boolean.threshold(prob, alpha)[0]
        lanes = self._by_head("attn.prob.bit", own).view(np.uint32)
        packed = bits.Packed(lanes, plan.tokens, plan.tokens)
        found[f"{name}.prob.bit"] = bits.unpack(packed)
        context = heads.split(self._tokens("attn.context", own)[None], plan.heads)[0]
        step = np.broadcast_to(boolean.step_of(alpha), (plan.heads, 1, 1))
        found[f"{name}.context.int"] = np.rint(context / step).astype(np.int32)
        found[f"{name}.context"] = context
        found[f"{name}.norm.out"] = self._tokens("attn.norm.out", own)
        if plan.differential:
            found[f"{name}.neighbour_mean"] = self._tokens("attn.neighbour_mean", own)
        found[f"{name}.out"] = self._tokens("attn.out", own)

    def _floats(self, name: str) -> np.ndarray:
        return np.asarray(self.arrays[name], np.float32)

    def _tokens(self, what: str, row: int) -> np.ndarray:
        """Tiles (channels, 16) -> (N, channels)."""
        tiles = np.stack(self._tiles[what, row, 0]).reshape(self.plan.tiles, -1, LANES)
        return _queries_first(tiles[None], self.plan.tokens)[0]

    def _by_head(self, what: str, own: int) -> np.ndarray:
        """(heads, tiles, rows, 16)."""
        tiles = [np.stack(self._tiles[what, own, head]) for head in range(self.plan.heads)]
        return np.stack(tiles).reshape(self.plan.heads, self.plan.tiles, -1, LANES)


def _queries_first(tiles: np.ndarray, tokens: int) -> np.ndarray:
    """(heads, tiles, rows, 16), a token by lane -> (heads, N, rows)."""
    count, _, rows, _ = tiles.shape
    found = tiles.swapaxes(2, 3).reshape(count, -1, rows)[:, :tokens]
    return np.ascontiguousarray(found)


def _signs(bit: np.ndarray) -> np.ndarray:
    return np.where(bit, np.float32(1), np.float32(-1))
