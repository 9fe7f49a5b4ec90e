"""A small network in which the hard cases of [SPEC 8.1] happen, exactly and in every float type.

Values at a threshold must not depend on rounding. So they are made of numbers that every type
holds: channels that LayerNorm sets to a constant (weight 0, the constant as bias) and moves that
take them to the threshold; rows of weights with an exact mean of 0; heads whose scores are all 0,
whose probabilities are then 1 / N with N = 16.
"""

from __future__ import annotations

import numpy as np

from refimpl.golden import search
from refimpl.models import Config, VisionTransformer, flatten, structure
from refimpl.models.params import Params
from refimpl.models.structure import Block

# A grid of 3 x 5 and a class token: N = 16. Rows of 65 bits are one longer than a word.
CONFIG = Config(
    image_size=(6, 10), patch_size=2, channels=3, dim=65, depth=1, heads=5, mlp_ratio=1,
    num_classes=7, ste="clip", alpha_scope="head", similarity="haar", attention="differential",
    rprelu="token",
)  # fmt: skip
# Constant channels of the normalised tokens, and moves that bring z to 0, 0, -0.0 or 0.0, 1, -1.
CONSTANTS = np.array([0.5, -2.0, -0.0, 0.25, 0.75])
MOVES = np.array([-0.5, 2.0, -0.0, 0.75, -1.75])
# Heads: q = 1/2 everywhere, q = 1 everywhere, q = 0 or far above 1, alpha below its minimum 1e-5.
ALPHAS = np.array([1 / 8, 1 / 16, 1 / 8, 1e-6])
BAND_WEIGHTS = np.array([0.0, 0.0, 1024.0, 0.0])
EQUAL = 64.0  # a move that makes all bits equal


def case(seed: int) -> tuple[VisionTransformer, Params, np.ndarray]:
    """The network, its float32 parameters and an image (1, 3, 6, 10)."""
    params, image = search.draw(CONFIG, seed)
    model, flat = VisionTransformer(CONFIG), flatten(params)
    (block,) = structure.find(model.network).blocks
    _ties_of_activations(block, flat)
    _equal_bits(block, flat)
    _probabilities(block, flat)
    for unit in block.units:
        _ties_of_weights(flat[unit.product.params[0]])
    return model, params, image


def _ties_of_activations(block: Block, flat: dict[str, np.ndarray]) -> None:
    """z of 0, -0.0, 1 and -1 in q_low, k_low, v and up, and in all of the high band a z of 0."""
    count = len(CONSTANTS)
    q_low, k_low, q_high, _, value = block.projections
    for norm in (block.norm1, block.norm2):
        weight, bias = norm.params
        flat[weight][:count], flat[bias][:count] = 0, CONSTANTS
    for unit in (q_low, k_low, value, block.up):
        flat[unit.shift.params[0]][:count] = MOVES
    # a constant channel has no details
    flat[q_high.shift.params[0]][:count] = 0


def _equal_bits(block: Block, flat: dict[str, np.ndarray]) -> None:
    _, k_low, q_high, k_high, value = block.projections
    flat[k_low.shift.params[0]][-1] = EQUAL
    flat[k_high.shift.params[0]][:] = EQUAL
    flat[block.proj.shift.params[0]][:] = -EQUAL
    flat[q_high.moved.params[0]][:] = -EQUAL
    flat[value.moved.params[0]][: CONFIG.head_dim] = EQUAL


def _probabilities(block: Block, flat: dict[str, np.ndarray]) -> None:
    count = len(ALPHAS)
    flat[block.context.params[0]][:count, 0, 0] = ALPHAS
    flat[block.scores.params[0]][:, :count] = BAND_WEIGHTS


def _ties_of_weights(weight: np.ndarray) -> None:
    """Rows of fractions of 64 in opposite pairs: their means are 0, in whatever order, and Wc = W.

    Among them 0, -0.0, 1 and -1.
    """
    pairs = weight.shape[1] // 2
    half = np.round(64 * weight[:4, :pairs]) / 64
    half[:, 0], half[:, 1] = 1.0, 0.0
    weight[:4] = 0
    weight[:4, :pairs], weight[:4, pairs : 2 * pairs] = half, -half
