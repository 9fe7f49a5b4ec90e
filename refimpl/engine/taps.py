"""The engine's values under the names of the model's taps [SPEC 8.1].

A run kernel by kernel shows tiles of sixteen tokens; here they become whole tensors. What the
kernels never form, because they fuse it, follows from what they do form by the one operation in
between: z = x + move, linear and the scores (from whole numbers), a projection's norm (from what
its product differs by from a level, and the scale and shift of that) and q (from the exponentials
and their sum).
Centred weights are not in a packed network, so there is no `weight.z`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from refimpl.engine import columns
from refimpl.engine.plan import Plan, Stage, decoded_row, level_row, stage_at, words
from refimpl.kernels import bits
from refimpl.kernels.vector import LANES
from refimpl.models import operations, packing
from refimpl.models.nodes import Node
from refimpl.models.stage import Stage as ModelStage
from refimpl.models.structure import Block, Merge, Projection, Structure
from refimpl.ops import boolean, split_heads, windows

Arrays = Mapping[str, np.ndarray]
FIELDS = ("norm1.out", "value.out")  # whole, of every token
# of the pyramid, whole fields
LEVELS = ("lateral.out", "top", "smooth.out", "decoder.sum", "decoder.gelu.out")


class Listener:
    """Collects the tiles of one image; `taps` gives its tensors, as of a batch of one."""

    def __init__(self, network: Structure, plan: Plan, arrays: Arrays):
        self.network, self.plan, self.arrays = network, plan, arrays
        self._stages = [stage_at(plan, s) for s in range(len(plan.stages))]
        self._tiles: dict[tuple[str, int, int], list[np.ndarray]] = defaultdict(list)
        self.shared: set[str] = set()  # taps of weights, which have no batch axis

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
            "scores": 2 * stage.slots * LANES,
            "weights": stage.keys + 1,
            "boolean": words(stage.keys),
            "head_bit": words(plan.head_dim),
            "patches": inputs,
            **dict.fromkeys(FIELDS, stage.channels * stage.pitch // LANES),
            "norm.out": inputs or stage.channels,
            **dict.fromkeys(LEVELS, self._stages[0].channels * stage.pitch // LANES),
            "head.out": plan.classes * stage.pitch // LANES,
        }
        if what == "head_bit" and row % plan.rows == plan.inputs - 1:  # values: over the tokens
            return -(-plan.head_dim // LANES) * words(stage.keys) * LANES
        return int(lanes.get(what, stage.channels)) * LANES

    def _stage(self, row: int) -> Stage:
        """That of a row of the table; of patch merging the one that it leads to."""
        block, merge = row // self.plan.rows, row - self.plan.blocks * self.plan.rows
        if merge < 0:
            return next(stage for stage in self._stages if block < stage.end)
        level = row - level_row(self.plan, 0)
        return self._stages[merge + 1 if level < 0 else level]

    def taps(self) -> dict[str, np.ndarray]:
        """Name -> value, in an order in which each comes after what it is computed from."""
        plan, network = self.plan, self.network
        found = {network.embed.name: self._tokens("patch_embed.out", 0)[:, plan.first :]}
        found[network.tokens] = self._tokens("tokens", 0)
        row, merges = 0, plan.blocks * plan.rows
        for s, blocks in enumerate(network.stages):
            if s > 0:
                self._merge(found, network.merges[s - 1], merges + s - 1)
            for block in blocks:
                self._block(found, block, row)
                row += plan.rows
        if plan.pyramid:
            self._pyramid(found)
        else:
            found[network.norm.name] = self._tokens("norm.out", decoded_row(plan))
        if plan.decode:
            found[network.head.name] = self._field("head.out", decoded_row(plan))
        return found

    def _pyramid(self, found: dict[str, np.ndarray]) -> None:
        levels = [(level, level_row(self.plan, s)) for s, level in enumerate(self.network.levels)]
        for level, row in levels:
            found[level.norm.name] = self._tokens("norm.out", row)
            found[level.lateral.name] = self._field("lateral.out", row)
        for level, row in reversed(levels[:-1]):
            found[level.top.name] = self._field("top", row)
        for level, row in levels:
            found[level.smooth.name] = self._field("smooth.out", row)
        _, first = levels[0]
        found[self.network.sum.name] = self._field("decoder.sum", first)
        found[self.network.gelu.name] = self._field("decoder.gelu.out", first)

    def _merge(self, found: dict[str, np.ndarray], merge: Merge, row: int) -> None:
        found[merge.patches.name] = self._tokens("patches", row)
        found[merge.norm.name] = self._tokens("norm.out", row)
        self._projection(found, merge.projection, row)

    def _block(self, found: dict[str, np.ndarray], block: Block, row: int) -> None:
        own = row + self.plan.rows - 1
        found[block.norm1.name] = self._field("norm1.out", own, every=True)
        if block.bands:
            for name, band in zip(block.bands.outputs, ("low", "high"), strict=True):
                found[name] = self._tokens(band, own)
        for t, unit in enumerate(block.projections):
            self._projection(found, unit, row + t)
            self._heads(found, unit, row + t, block.context.stage)
        self._attention(found, block, own)
        self._projection(found, block.proj, own - 3)
        found[block.mid.name] = self._tokens("mid", own)
        found[block.norm2.name] = self._tokens("norm2.out", own)
        self._projection(found, block.up, own - 2)
        self._projection(found, block.down, own - 1)
        found[block.out.name] = self._tokens("out", own)

    def _projection(self, found: dict[str, np.ndarray], unit: Projection, row: int) -> None:
        product, inputs = unit.product, unit.shape[1]
        parameter = self.network.network.parameters[product.params[0]]
        stored, scale = (self.arrays[name] for name in packing.stored(parameter))
        weight = np.unpackbits(stored, axis=1, count=inputs, bitorder="little").astype(bool)
        scale = np.asarray(scale, np.float32)
        of_weight = {product.inside["weight.bit"]: weight, product.inside["weight.scale"]: scale}
        self.shared.update(of_weight)
        found.update(of_weight)
        found[unit.shift.name] = found[unit.input] + self._floats(unit.shift)[0]
        lanes = np.stack(self._tiles["bit", row, 0]).reshape(-1, words(inputs), LANES)
        packed = bits.Packed(lanes.view(np.uint32), self._stage(row).tokens, inputs)
        found[product.inside["bit"]] = bits.unpack(packed)[None]
        whole = bits.binary_product(packed, bits.pack(_signs(weight)))[None]
        found[product.inside["int"]] = whole
        found[product.name] = whole.astype(np.float32) * scale
        found[unit.norm.name] = self._norm(unit.norm, row)
        if ("value.out", row, 0) in self._tiles:
            found[unit.activation.name] = self._field("value.out", row, every=True)
        else:
            found[unit.activation.name] = self._tokens("out", row)

    def _heads(self, found, unit: Projection, row: int, stage: ModelStage) -> None:
        z = found[unit.activation.name] + self._floats(unit.moved)[0]
        value = row % self.plan.rows == self.plan.inputs - 1
        (cut,) = unit.bit.inputs
        found[cut] = _cut(z, stage, transposed=value)
        rows, length = found[cut].shape[2:]
        lanes = self._by_head("head_bit", row, words(length)).view(np.uint32)
        found[unit.bit.name] = bits.unpack(bits.Packed(lanes, rows, length))

    def _attention(self, found: dict[str, np.ndarray], block: Block, own: int) -> None:
        plan, stage, context = self.plan, block.context.stage, block.context
        lanes, keys = self._stage(own).slots * LANES, stage.num_keys
        ones = self._by_head("scores", own, 2 * lanes)
        for band, product in enumerate(block.products):
            here = ones[..., band * lanes : band * lanes + keys, :]
            found[product.name] = plan.head_dim - 2 * _queries_first(here, keys)
        self._scores(found, block)
        weights = self._by_head("weights", own, keys + 1)
        prob = _queries_first(weights[..., :-1, :] / weights[..., -1:, :], keys)
        (alpha,) = self._floats(context)
        found[context.inside["prob.z"]] = boolean.threshold(prob, alpha)[0]
        bit = self._by_head("boolean", own, words(keys)).view(np.uint32)
        found[context.inside["prob.bit"]] = bits.unpack(bits.Packed(bit, keys, keys))
        value = _cut(self._tokens("context", own), stage)
        step = np.broadcast_to(boolean.step_of(alpha), (stage.heads, 1, 1))
        found[context.inside["context.int"]] = np.rint(value / step).astype(np.int32)
        found[context.name] = value
        found[block.norm.name] = self._norm(block.norm, own)
        if block.mean:
            found[block.mean.name] = self._tokens("neighbour mean", own)
        found[block.activation.name] = self._tokens("attended", own)

    def _scores(self, found: dict[str, np.ndarray], block: Block) -> None:
        """By the model's own operations, of the whole numbers."""
        last = block.scores
        bands = [found[product.name].astype(np.float32) for product in block.products]
        scores = operations.forward(last, [*bands, *self._floats(last)])
        if block.position_bias:
            last = block.position_bias
            scores = operations.forward(last, [scores, *self._floats(last)])
        found[last.name] = scores

    def _norm(self, norm: Node, row: int) -> np.ndarray:
        """LayerNorm of what a unit's product or context differs by from its level (1, N, O)."""
        scale, shift = np.split(self._tokens("norm", row), 2, axis=-1)
        # in double precision, since the kernels round a product and a sum as one
        deviation = self._tokens("deviation", row).astype(np.float64)
        normalised = (deviation * scale + shift).astype(np.float32)
        weight, bias = self._floats(norm)
        return (normalised.astype(np.float64) * weight + bias).astype(np.float32)

    def _floats(self, node: Node) -> list[np.ndarray]:
        """The parameters of a node."""
        arrays = (self.arrays[self.network.path(name)] for name in node.params)
        return [np.asarray(array, np.float32) for array in arrays]

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
