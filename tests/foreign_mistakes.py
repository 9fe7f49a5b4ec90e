"""Mistakes of porters that `golden compare` did not know when they were written.

    python -m tests.foreign_mistakes [--bundle NAME] [--only WORDS] [--counts]
    python -m tests.foreign_mistakes --dump bits|shell [--every N]

Each is a method of `foreign_port.Port` that is replaced by a wrong one, with the truth in plain
words, a bundle that should show it and the first tap that differs from the right port's. The table
has what the command gave: outcome, first tap, cause; and what a person made of the cause, which
`foreign_judged` keeps, also of the first try. There are three parts: PARTS. The first is by
somebody who had not seen which mistakes are known. The second and the third are by the one who then
declared more kinds, each part written as a whole and tried before anything was declared for it.
`--counts` says of each how many causes were right at the first try, and how many are now.

`--dump` gives the comparison bits, whole numbers and logits alone, or what leaves a block and its
middle alone, of forward mistakes, and counts how many causes have the words of RIGHT.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl import golden
from refimpl.golden import diagnose
from refimpl.golden.compare import Comparison
from tests.foreign_judged import FIRST_TRY, JUDGED, RIGHT
from tests.foreign_port import MERGED, NEIGHBOURS, Array, Files, Port, packed, read

SHIPPED = Path(__file__).parent.parent / "weights" / "golden"
HALF = np.float16
KEYS = ("RIGHT", "BESIDE", "FALSE", "NONE", "UNSEEN")
NEVER = "\0"  # words of no cause


class Mistake(NamedTuple):
    """What was done wrong, in the place of which method of the port, and where it shows first."""

    name: str
    truth: str
    hook: str
    wrong: Callable
    bundle: str
    first: str

    @property
    def backward(self) -> bool:
        return self.first.startswith("grads/")


MISTAKES: list[Mistake] = []


def wrong(hook: str, truth: str, bundle: str, first: str) -> Callable:
    """Declare the function as a mistake: it takes the place of the port's method `hook`."""

    def declare(function: Callable) -> Callable:
        MISTAKES.append(Mistake(function.__name__, truth, hook, function, bundle, first))
        return function

    return declare


def run(mistake: Mistake, files: Files) -> dict[str, Array]:
    """What the wrong port dumps: values alone, or gradients too where the mistake is in them."""
    port = type(mistake.name, (Port,), {mistake.hook: mistake.wrong})(files)
    if mistake.backward:
        port.run()
    else:
        port.forward()
    return port.dump()


# Images, patches and tokens


@wrong(
    "patches",
    "the pixels of a patch are flattened row, column, channel (channels last), the kernel is not",
    "small_tie_free",
    "patch_embed.out",
)
def channels_last(port, images):
    p, c = port.config["patch_size"], images.shape[1]
    x = Port.patches(port, images)
    return x.reshape(*x.shape[:2], c, p * p).swapaxes(-1, -2).reshape(x.shape)


@wrong("patches", "patches are numbered column by column", "small_tie_free", "patch_embed.out")
def patches_by_column(port, images):
    place = port.stages[0][0]
    x = Port.patches(port, images)
    grid = x.reshape(len(x), *place.grid, -1)
    return grid.swapaxes(1, 2).reshape(x.shape)


@wrong(
    "patches", "rows and columns inside a patch are exchanged", "small_tie_free", "patch_embed.out"
)
def patch_transposed(port, images):
    p, c = port.config["patch_size"], images.shape[1]
    x = Port.patches(port, images)
    return x.reshape(*x.shape[:2], c, p, p).swapaxes(-1, -2).reshape(x.shape)


@wrong(
    "patches",
    "the planes of the image are read in reverse order (BGR for RGB)",
    "small_adversarial",
    "patch_embed.out",
)
def blue_first(port, images):
    return Port.patches(port, images[:, ::-1])


@wrong(
    "patches",
    "the row stride of the image is its height instead of its width",
    "small_tie_free",
    "patch_embed.out",
)
def stride_is_height(port, images):
    batch, channels, rows, columns = images.shape
    flat = images.reshape(batch, channels, -1)
    r, c = np.arange(rows)[:, None], np.arange(columns)[None, :]
    return Port.patches(port, flat[:, :, r * rows + c])


@wrong("add_bias", "the bias of the patch embedding is left out", "small_deit", "patch_embed.out")
def no_patch_bias(port, y, path):
    return y if path == "patch_embed" else Port.add_bias(port, y, path)


@wrong(
    "matmul",
    "products of floats are taken with 10 bits of mantissa (TF32)",
    "small_deit",
    "patch_embed.out",
)
def tf32(port, a, b):
    def short(x):
        return (np.ascontiguousarray(x).view(np.uint32) + 0x1000 & 0xFFFFE000).view(np.float32)

    return short(a) @ short(b)


@wrong(
    "with_positions",
    "the position embedding is added to the patches only, counted from its first entry",
    "small_tie_free",
    "tokens",
)
def positions_from_zero(port, x):
    y = x.copy()
    y[:, 1:] += port.params["pos_embed"][:, :-1]
    return y


@wrong(
    "with_positions",
    "the position embedding reaches only the first image of the batch",
    "small_batch",
    "tokens",
)
def positions_of_first_image(port, x):
    y = x.copy()
    y[0] += port.params["pos_embed"][0]
    return y


@wrong("with_class_token", "the class token is put behind the patches", "small_deit", "tokens")
def class_token_last(port, x):
    return np.roll(Port.with_class_token(port, x), -1, axis=1)


# LayerNorm


@wrong("deviation", "the variance is divided by C - 1", "small_tie_free", "blocks.0.norm1.out")
def unbiased(port, d):
    return np.sqrt(
        port.sum(d * d) / port.dtype(d.shape[-1] - 1) + port.dtype(port.config["norm_eps"])
    )


@wrong(
    "deviation", "eps is added to the standard deviation, behind the root", "small_swin", "tokens"
)
def eps_behind_root(port, d):
    return np.sqrt(port.mean(d * d)) + port.dtype(port.config["norm_eps"])


@wrong(
    "deviation",
    "eps is 1e-12, that of BERT, instead of the configuration's",
    "small_deit",
    "blocks.0.norm1.out",
)
def eps_of_bert(port, d):
    return np.sqrt(port.mean(d * d) + port.dtype(1e-12))


@wrong(
    "deviation",
    "the reciprocal root is Quake's, with one step of Newton",
    "small_tie_free",
    "blocks.0.norm1.out",
)
def fast_inverse_root(port, d):
    x = port.mean(d * d) + port.dtype(port.config["norm_eps"])
    y = (np.int32(0x5F3759DF) - (x.view(np.int32) >> 1)).view(np.float32)
    return 1 / (y * (np.float32(1.5) - np.float32(0.5) * x * y * y))


@wrong("layer_norm", "the variance is mean(x^2) - mean(x)^2", "small_wide", "blocks.0.norm1.out")
def one_pass(port, x, path):
    mean = port.mean(x)
    variance = np.maximum(port.mean(x * x) - mean * mean, 0)
    n = (x - mean) / np.sqrt(variance + port.dtype(port.config["norm_eps"]))
    return port.params[f"{path}.weight"] * n + port.params[f"{path}.bias"]


@wrong(
    "layer_norm",
    "mean and variance are summed up in float16",
    "small_tie_free",
    "blocks.0.norm1.out",
)
def half_statistics(port, x, path):
    half = x.astype(HALF)
    mean = (np.add.accumulate(half, axis=-1)[..., -1:] / HALF(x.shape[-1])).astype(port.dtype)
    squares = ((x - mean) ** 2).astype(HALF)
    variance = np.add.accumulate(squares, axis=-1)[..., -1:] / HALF(x.shape[-1])
    n = (x - mean) / np.sqrt(variance.astype(port.dtype) + port.dtype(port.config["norm_eps"]))
    return port.params[f"{path}.weight"] * n + port.params[f"{path}.bias"]


@wrong("layer_norm", "the mean is not taken off (RMSNorm)", "small_deit", "blocks.0.norm1.out")
def rms_norm(port, x, path):
    n = x / np.sqrt(port.mean(x * x) + port.dtype(port.config["norm_eps"]))
    return port.params[f"{path}.weight"] * n + port.params[f"{path}.bias"]


@wrong(
    "layer_norm",
    "the norm goes over the tokens of a channel instead of the channels of a token",
    "small_deit",
    "blocks.0.norm1.out",
)
def norm_over_tokens(port, x, path):
    d = x - x.mean(axis=1, keepdims=True)
    s = np.sqrt((d * d).mean(axis=1, keepdims=True) + port.dtype(port.config["norm_eps"]))
    return port.params[f"{path}.weight"] * d / s + port.params[f"{path}.bias"]


@wrong("layer_norm", "norm2 has the weights of norm1", "small_adversarial", "blocks.0.norm2.out")
def norm1_twice(port, x, path):
    return Port.layer_norm(port, x, path.replace("norm2", "norm1"))


@wrong(
    "layer_norm",
    "the bias is added before the weight multiplies",
    "small_batch",
    "blocks.0.norm1.out",
)
def bias_inside_weight(port, x, path):
    d = x - port.mean(x)
    return port.params[f"{path}.weight"] * (d / port.deviation(d) + port.params[f"{path}.bias"])


# Signs, words and popcounts


@wrong(
    "sign",
    "the sign is z > 0, so that 0 gives -1",
    "small_adversarial",
    "blocks.0.attn.q_low.weight.bit",
)
def zero_is_negative(port, z):
    return z > 0


@wrong(
    "sign",
    "the sign is the sign bit of the float, so that -0.0 gives -1",
    "small_adversarial",
    "blocks.0.attn.q_low.weight.bit",
)
def sign_bit(port, z):
    return ~np.signbit(z)


@wrong(
    "dumped_bits",
    "bits are packed with the most significant one first",
    "small_tie_free",
    "blocks.0.attn.q_low.weight.bit",
)
def most_significant_first(port, bits):
    reversed_ = np.unpackbits(packed(bits).view(np.uint8), axis=-1).reshape(*bits.shape[:-1], -1)
    return np.packbits(reversed_, axis=-1, bitorder="little")


@wrong(
    "dumped_bits",
    "words of 64 bits are written by a big-endian machine",
    "small_tie_free",
    "blocks.0.attn.q_low.weight.bit",
)
def big_endian(port, bits):
    return packed(bits).byteswap().view(np.uint8)


@wrong(
    "dumped_bits",
    "the two 32-bit halves of each word are exchanged",
    "small_tie_free",
    "blocks.0.attn.q_low.weight.bit",
)
def halves_exchanged(port, bits):
    words = packed(bits)
    return ((words << np.uint64(32)) | (words >> np.uint64(32))).view(np.uint8)


@wrong(
    "binary_product",
    "XNOR counts the zeros of the padding as agreeing: 2 popcount(~(a ^ w)) - K over whole words",
    "small_tie_free",
    "blocks.0.attn.q_low.int",
)
def padding_agrees(port, a, b):
    agree = ~(packed(a)[..., :, None, :] ^ packed(b)[..., None, :, :])
    return 2 * port.popcount(agree) - np.int32(a.shape[-1])


@wrong(
    "binary_product",
    "the last word, which is not full, is left out of the product",
    "small_adversarial",
    "blocks.0.attn.q_low.int",
)
def tail_left_out(port, a, b):
    full = a.shape[-1] // 64
    differ = packed(a)[..., :, None, :full] ^ packed(b)[..., None, :, :full]
    return np.int32(a.shape[-1]) - 2 * port.popcount(differ)


@wrong(
    "words",
    "1 << i is an int of 32 bits: bit 32 + i lands on bit i",
    "small_adversarial",
    "blocks.0.attn.q_low.int",
)
def shift_of_int(port, bits):
    words = packed(bits)
    low = (words | (words >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    negative = (low >> np.uint64(31)) & np.uint64(1)
    return low | negative * np.uint64(0xFFFFFFFF00000000)


@wrong(
    "binary_product",
    "the sum is kept in a signed byte and wraps",
    "small_wide",
    "blocks.0.attn.scores.int",
)
def signed_byte(port, a, b):
    return Port.binary_product(port, a, b).astype(np.int8).astype(np.int32)


@wrong(
    "popcount",
    "the popcount of a row is kept in an unsigned byte: 256 becomes 0",
    "small_wide",
    "blocks.0.mlp.down.int",
)
def popcount_in_a_byte(port, words):
    return np.bitwise_count(words).sum(axis=-1, dtype=np.uint8).astype(np.int32)


@wrong(
    "binary_product",
    "signs are multiplied as 0 and 1: popcount(a & w)",
    "small_tie_free",
    "blocks.0.attn.q_low.int",
)
def and_for_xnor(port, a, b):
    return port.popcount(packed(a)[..., :, None, :] & packed(b)[..., None, :, :])


@wrong(
    "binary_product",
    "the number of signs that agree is taken for the product",
    "small_tie_free",
    "blocks.0.attn.q_low.int",
)
def agreements_only(port, a, b):
    return np.int32(a.shape[-1]) - port.popcount(
        packed(a)[..., :, None, :] ^ packed(b)[..., None, :, :]
    )


@wrong(
    "binary_product",
    "the product is 2 popcount(a ^ w) - K, its negative",
    "small_swin",
    "blocks.0.attn.q_low.int",
)
def negative_product(port, a, b):
    return -Port.binary_product(port, a, b)


@wrong(
    "boolean_product",
    "the boolean product is 2 popcount(a & v), without - popcount(a)",
    "small_batch",
    "blocks.0.attn.context.int",
)
def no_count_of_ones(port, a, v):
    return 2 * port.popcount(packed(a)[..., :, None, :] & packed(v)[..., None, :, :])


@wrong(
    "boolean_product",
    "the boolean product is the one of signs: 0 of the attention counts as -1",
    "small_tie_free",
    "blocks.0.attn.context.int",
)
def zeros_as_minus_one(port, a, v):
    return port.binary_product(a, v)


@wrong(
    "boolean_product",
    "the boolean product takes popcount(v) off instead of popcount(a)",
    "small_tie_free",
    "blocks.0.attn.context.int",
)
def ones_of_v(port, a, v):
    words = packed(v)
    both = packed(a)[..., :, None, :] & words[..., None, :, :]
    return 2 * port.popcount(both) - port.popcount(words)[..., None, :]


@wrong(
    "boolean_product",
    "the values are read as if they lay token by token, though they lie channel by channel",
    "small_batch",
    "blocks.0.attn.context.int",
)
def values_not_transposed(port, a, v):
    batch, heads, d, tokens = v.shape
    as_tokens = v.reshape(batch, heads, tokens, d).swapaxes(-1, -2)
    return Port.boolean_product(port, a, as_tokens)


# Weights of a projection


@wrong(
    "centred", "binary weights are not centred", "small_tie_free", "blocks.0.attn.q_low.weight.z"
)
def not_centred(port, weight):
    return weight


@wrong(
    "centred",
    "binary weights are centred over the output channels (axis 0) instead of the inputs",
    "small_batch",
    "blocks.0.attn.q_low.weight.z",
)
def centred_over_outputs(port, weight):
    return weight - weight.mean(axis=0, keepdims=True)


@wrong(
    "scale",
    "the scale is the mean of |W| after centring",
    "small_tie_free",
    "blocks.0.attn.q_low.weight.scale",
)
def scale_of_centred(port, weight):
    return Port.scale(port, port.centred(weight))


@wrong(
    "scale",
    "one scale for the whole matrix instead of one for each output",
    "small_batch",
    "blocks.0.attn.q_low.weight.scale",
)
def one_scale(port, weight):
    return np.full(len(weight), np.abs(weight).mean(), port.dtype)


@wrong(
    "scale",
    "the scale is the root of the mean square",
    "small_tie_free",
    "blocks.0.attn.q_low.weight.scale",
)
def scale_of_squares(port, weight):
    return np.sqrt(port.mean(weight * weight))[:, 0]


@wrong(
    "scale", "scales are stored in float16", "small_tie_free", "blocks.0.attn.q_low.weight.scale"
)
def half_scale(port, weight):
    return Port.scale(port, weight).astype(HALF).astype(port.dtype)


@wrong(
    "latent",
    "square matrices are read transposed, (I, O)",
    "small_tie_free",
    "blocks.0.attn.q_low.weight.z",
)
def matrix_transposed(port, p):
    weight = port.params[f"{p}.weight"]
    return np.ascontiguousarray(weight.T) if weight.shape[0] == weight.shape[1] else weight


@wrong(
    "latent",
    "keys of the low band are made with the matrix of its queries",
    "small_batch",
    "blocks.0.attn.k_low.weight.z",
)
def matrix_of_queries(port, p):
    return Port.latent(port, p.replace("k_low", "q_low"))


@wrong("scaled", "the scale is left out", "small_swin", "blocks.0.attn.q_low.linear")
def no_scale(port, whole, scale):
    return whole.astype(port.dtype)


# The rest of a projection


@wrong("move", "moves are subtracted", "small_tie_free", "blocks.0.attn.q_low.z")
def move_subtracted(port, x, path):
    return x - port.params[path]


@wrong(
    "move",
    "keys of the high band have the move of the queries",
    "small_batch",
    "blocks.0.attn.k_high.z",
)
def move_of_queries(port, x, path):
    return Port.move(port, x, path.replace("k_high.move", "q_high.move"))


@wrong(
    "move",
    "the second move, in front of the heads, is forgotten",
    "small_tie_free",
    "blocks.0.attn.q_low.head_z",
)
def no_head_move(port, x, path):
    return x if path.endswith("_move") else Port.move(port, x, path)


@wrong(
    "with_shortcut",
    "the shortcut of a projection starts behind the move",
    "small_tie_free",
    "blocks.0.attn.q_low.out",
)
def shortcut_of_z(port, norm, x, p):
    return norm + port.fit(port.taps[f"{p}.z"], norm.shape[-1])


@wrong(
    "with_shortcut",
    "the shortcut of mlp.up is forgotten since its sizes differ",
    "small_swin",
    "blocks.0.mlp.up.out",
)
def no_shortcut_up(port, norm, x, p):
    return norm if p.endswith("mlp.up") else Port.with_shortcut(port, norm, x, p)


@wrong(
    "fit",
    "a shortcut to more channels repeats each channel instead of tiling them",
    "small_tie_free",
    "blocks.0.mlp.up.out",
)
def channels_repeated(port, x, size):
    if size > x.shape[-1]:
        return np.repeat(x, size // x.shape[-1], axis=-1)
    return Port.fit(port, x, size)


@wrong(
    "fit",
    "a shortcut to fewer channels averages the tiles instead of neighbouring channels",
    "small_batch",
    "blocks.0.mlp.down.out",
)
def tiles_averaged(port, x, size):
    if size < x.shape[-1]:
        return x.reshape(*x.shape[:-1], -1, size).mean(axis=-2)
    return Port.fit(port, x, size)


@wrong(
    "fit",
    "a shortcut to fewer channels takes the first ones and drops the others",
    "small_tie_free",
    "blocks.0.mlp.down.out",
)
def first_channels(port, x, size):
    return x[..., :size] if size < x.shape[-1] else Port.fit(port, x, size)


@wrong(
    "bent",
    "RPReLU is max(u, slope u), which is another thing where the slope is not in 0 to 1",
    "small_adversarial",
    "blocks.0.attn.k_low.out",
)
def maximum(port, u, slope):
    return np.maximum(u, slope * u)


@wrong(
    "bent",
    "one slope for all channels, the first (PReLU with one parameter)",
    "small_tie_free",
    "blocks.0.attn.q_low.out",
)
def first_slope(port, u, slope):
    return Port.bent(port, u, slope[0])


@wrong("shifted_in", "shift_in is added", "small_batch", "blocks.0.attn.q_low.out")
def shift_in_added(port, x, path):
    u = x + port.params[f"{path}.shift_in"]
    return u - port.params[f"{path}.token_shift_in"][:, None]


@wrong(
    "shifted_in",
    "the token shift of token t is that of token t - 1",
    "small_tie_free",
    "blocks.0.attn.q_low.out",
)
def token_shift_before(port, x, path):
    shift = np.roll(port.params[f"{path}.token_shift_in"], 1)
    return x - port.params[f"{path}.shift_in"] - shift[:, None]


@wrong(
    "shifted_out",
    "the token shift behind RPReLU is left out",
    "small_swin",
    "blocks.0.attn.q_low.out",
)
def no_token_shift_out(port, y, path):
    return y + port.params[f"{path}.shift_out"]


# Bands


@wrong(
    "corners",
    "the grid is padded with zeros behind its last row and column",
    "small_tie_free",
    "blocks.0.attn.low",
)
def zero_padding(port, x):
    x = np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
    return x[:, :-1, :-1], x[:, :-1, 1:], x[:, 1:, :-1], x[:, 1:, 1:]


@wrong(
    "next_index",
    "the grid is padded by reflection, without the last row, instead of by its last row",
    "small_tie_free",
    "blocks.0.attn.low",
)
def reflected(port, size):
    following = np.arange(size) + 1
    following[-1] = max(size - 2, 0)
    return following


@wrong(
    "next_index",
    "the block of a patch is with the row above and the column left of it",
    "small_adversarial",
    "blocks.0.attn.low",
)
def block_before(port, size):
    return np.maximum(np.arange(size) - 1, 0)


@wrong(
    "haar",
    "decimated bands, each value shown at all four patches of its block",
    "small_swin",
    "blocks.0.attn.low",
)
def decimated(port, x):
    rows, columns = (np.arange(size) // 2 * 2 for size in x.shape[1:3])
    low, high = Port.haar(port, x)
    return low[:, rows][:, :, columns], high[:, rows][:, :, columns]


@wrong(
    "corners",
    "the patch right of the last column is the first one of the next row (flat index + 1)",
    "small_tie_free",
    "blocks.0.attn.low",
)
def flat_index(port, x):
    _, rows, columns, _ = x.shape
    flat = x.reshape(len(x), rows * columns, -1)
    here = np.arange(rows * columns)

    def at(offset):
        return flat[:, np.minimum(here + offset, rows * columns - 1)].reshape(x.shape)

    return x, at(1), at(columns), at(columns + 1)


@wrong("bands", "rows and columns of the grid are exchanged", "small_tie_free", "blocks.0.attn.low")
def grid_exchanged(port, x, place):
    return Port.bands(port, x, replace(place, grid=place.grid[::-1]))


@wrong(
    "haar",
    "bands are scaled by 1/2 (orthonormal) instead of 1/4",
    "small_tie_free",
    "blocks.0.attn.low",
)
def orthonormal(port, x):
    low, high = Port.haar(port, x)
    return 2 * low, 2 * high


@wrong(
    "haar",
    "the high band is the sum of two details, the diagonal one is left out",
    "small_batch",
    "blocks.0.attn.high",
)
def no_diagonal(port, x):
    x00, x01, x10, x11 = port.corners(x)
    low, _ = Port.haar(port, x)
    return low, (2 * (x00 - x11)) * port.dtype(0.25)


@wrong(
    "haar",
    "the low band is blurred twice: the high band is made first, and of the low one",
    "small_batch",
    "blocks.0.attn.high",
)
def details_of_low(port, x):
    low, _ = Port.haar(port, x)
    return low, Port.haar(port, low)[1]


@wrong(
    "front_bands",
    "the class token has no part in the high band",
    "small_tie_free",
    "blocks.0.attn.high",
)
def class_token_low(port, front):
    return front, np.zeros_like(front)


@wrong("bands", "the bands are exchanged", "small_tie_free", "blocks.0.attn.low")
def bands_exchanged(port, x, place):
    return Port.bands(port, x, place)[::-1]


# Heads and scores


@wrong(
    "heads", "channel c belongs to head c mod heads", "small_tie_free", "blocks.0.attn.q_low.head_z"
)
def heads_interleaved(port, x, heads):
    batch, tokens, channels = x.shape
    return x.reshape(batch, tokens, channels // heads, heads).transpose(0, 3, 1, 2)


@wrong(
    "heads",
    "tokens are reshaped to (heads, N, d) without a transposition",
    "small_deit",
    "blocks.0.attn.scores",
)
def heads_by_reshape(port, x, heads):
    return x.reshape(len(x), heads, x.shape[1], -1)


@wrong(
    "joined",
    "heads are joined channel by channel: channel i of head h goes to i heads + h",
    "small_tie_free",
    "blocks.0.attn.norm.out",
)
def joined_interleaved(port, x):
    batch, heads, tokens, d = x.shape
    return x.transpose(0, 2, 3, 1).reshape(batch, tokens, heads * d)


@wrong(
    "divided",
    "scores are divided by d instead of its root",
    "small_tie_free",
    "blocks.0.attn.scores",
)
def divided_by_d(port, scores, d):
    return scores / port.dtype(d)


@wrong(
    "divided",
    "scores are divided by the root of all channels, not of a head's",
    "small_deit",
    "blocks.0.attn.scores",
)
def divided_by_channels(port, scores, d):
    return scores / np.sqrt(port.dtype(port.config["dim"]))


@wrong(
    "band_sum",
    "the table of band weights is read as (heads, 2) though it is (2, heads)",
    "small_tie_free",
    "blocks.0.attn.scores",
)
def band_weights_transposed(port, low, high, a):
    w = port.params[f"{a}.band_weight"].reshape(-1, 2).T[:, :, None, None]
    return w[0] * low.astype(port.dtype) + w[1] * high.astype(port.dtype)


@wrong(
    "band_sum",
    "every head has the band weights of the first",
    "small_batch",
    "blocks.0.attn.scores",
)
def band_weights_of_first_head(port, low, high, a):
    w = port.params[f"{a}.band_weight"][:, 0]
    return w[0] * low.astype(port.dtype) + w[1] * high.astype(port.dtype)


@wrong(
    "band_sum",
    "both bands count one half, their learned weights are not read",
    "small_adversarial",
    "blocks.0.attn.scores",
)
def band_weights_half(port, low, high, a):
    return port.dtype(0.5) * (low + high).astype(port.dtype)


@wrong(
    "similarity",
    "queries of the high band meet keys of the low one",
    "small_tie_free",
    "blocks.0.attn.scores_high.int",
)
def keys_of_low(port, bits, band):
    return port.binary_product(bits[f"q_{band}"], bits["k_low"])


@wrong(
    "similarity",
    "keys stand for rows and queries for columns: scores are transposed",
    "small_batch",
    "blocks.0.attn.scores_low.int",
)
def scores_transposed(port, bits, band):
    return port.binary_product(bits[f"k_{band}"], bits[f"q_{band}"])


@wrong(
    "similarity",
    "every image of the batch meets the keys of the first",
    "small_batch",
    "blocks.0.attn.scores_low.int",
)
def keys_of_first_image(port, bits, band):
    return port.binary_product(bits[f"q_{band}"], bits[f"k_{band}"][:1])


@wrong("softmax", "the softmax goes over the queries", "small_deit", "blocks.0.attn.prob")
def softmax_over_queries(port, scores):
    return Port.softmax(port, scores.swapaxes(-1, -2)).swapaxes(-1, -2)


@wrong(
    "softmax",
    "the exponential is 2^x, the argument not scaled by log2 e",
    "small_tie_free",
    "blocks.0.attn.prob.z",
)
def powers_of_two(port, scores):
    e = np.exp2(scores - scores.max(axis=-1, keepdims=True))
    return e / port.sum(e)


@wrong("softmax", "the exponential is (1 + x / 256)^256", "small_deit", "blocks.0.attn.prob")
def exponential_by_squaring(port, scores):
    e = 1 + (scores - scores.max(axis=-1, keepdims=True)) / port.dtype(256)
    for _ in range(8):
        e = e * e
    return e / port.sum(e)


@wrong("softmax", "probabilities are rounded to float16", "small_deit", "blocks.0.attn.prob")
def half_probabilities(port, scores):
    return Port.softmax(port, scores).astype(HALF).astype(port.dtype)


@wrong("alpha", "alpha has no lower bound", "small_batch", "blocks.0.attn.prob.z")
def alpha_unbounded(port, a):
    return port.params[f"{a}.alpha"]


@wrong(
    "alpha", "every head has the alpha of the first", "small_adversarial", "blocks.0.attn.prob.z"
)
def alpha_of_first_head(port, a):
    return Port.alpha(port, a).reshape(-1)[0]


@wrong(
    "boolean",
    "a bit of the attention is 1 from q = 1/2 on, 1/2 included",
    "small_adversarial",
    "blocks.0.attn.prob.bit",
)
def half_included(port, q):
    return q >= port.dtype(0.5)


@wrong(
    "boolean",
    "a bit of the attention is 1 where q reaches 1 (floor instead of round)",
    "small_tie_free",
    "blocks.0.attn.prob.bit",
)
def floor_for_round(port, q):
    return q >= 1


# Differences to the neighbours, and the sum of shortcuts


@wrong(
    "counts",
    "the sum of the neighbours is divided by 8 at the border, too",
    "small_tie_free",
    "blocks.0.attn.neighbour_mean",
)
def always_eight(port, grid):
    return port.dtype(8)


@wrong(
    "neighbour_mean",
    "the mean is over 3 x 3 patches, the patch itself included",
    "small_tie_free",
    "blocks.0.attn.neighbour_mean",
)
def itself_included(port, v, place):
    count = np.broadcast_to(port.counts(place.grid), (*place.grid, 1))
    count = port.with_front(np.zeros((1, place.front, 1), port.dtype), count[None])
    around = Port.neighbour_mean(port, v, place)
    y = (around * count + v) / (count + 1)
    y[:, : place.front] = 0
    return y


@wrong(
    "pairs",
    "neighbours are the four beside, above and below, the diagonal ones are left out",
    "small_swin",
    "blocks.0.attn.neighbour_mean",
)
def four_neighbours(port, grid):
    diagonal = [r * c != 0 for r, c in NEIGHBOURS]
    return [
        pair
        for pair, left_out in zip(Port.pairs(port, grid), diagonal, strict=True)
        if not left_out
    ]


@wrong(
    "neighbour_mean",
    "neighbours are at flat index +-1, +-columns ...: the row's end meets the next row's start",
    "small_tie_free",
    "blocks.0.attn.neighbour_mean",
)
def neighbours_by_flat_index(port, v, place):
    rows, columns = place.grid
    flat = v[:, place.front :]
    total, count = np.zeros_like(v), np.zeros(rows * columns, port.dtype)
    for r, c in NEIGHBOURS:
        there = np.arange(rows * columns) + r * columns + c
        inside = (there >= 0) & (there < rows * columns)
        total[:, place.front :][:, inside] += flat[:, there[inside]]
        count += inside
    total[:, place.front :] /= count[:, None]
    return total


@wrong(
    "neighbour_mean",
    "the mean is written into the buffer that it reads: neighbours before a patch are means",
    "small_tie_free",
    "blocks.0.attn.neighbour_mean",
)
def in_place(port, v, place):
    grid = port.to_grid(v, place).copy()
    rows, columns = place.grid
    for i in range(rows):
        for j in range(columns):
            there = [(i + r, j + c) for r, c in NEIGHBOURS]
            found = [grid[:, r, c] for r, c in there if 0 <= r < rows and 0 <= c < columns]
            grid[:, i, j] = sum(found) / port.dtype(len(found))
    return port.with_front(np.zeros_like(v[:, : place.front]), grid)


@wrong(
    "differential",
    "the neighbours' mean is added instead of taken off",
    "small_batch",
    "blocks.0.attn.out",
)
def neighbours_added(port, v, around, a):
    return port.params[f"{a}.shortcut"] * v + port.params[f"{a}.neighbour"] * around


@wrong(
    "differential",
    "the two factors, of the value and of its neighbours, are exchanged",
    "small_tie_free",
    "blocks.0.attn.out",
)
def factors_exchanged(port, v, around, a):
    return port.params[f"{a}.neighbour"] * v - port.params[f"{a}.shortcut"] * around


@wrong(
    "query_key_names",
    "queries and keys of the high band have no shortcut",
    "small_tie_free",
    "blocks.0.attn.out",
)
def no_high_shortcuts(port, m):
    return [name for name in m if name.endswith("_low")]


@wrong(
    "query_key_names",
    "the shortcut of the queries is added twice, that of the keys is not",
    "react_micro",
    "blocks.0.attn.out",
)
def queries_twice(port, m):
    return ["q", "q"]


# Blocks, the network


@wrong(
    "residual",
    "the residual of a block starts at the normalised tokens",
    "small_deit",
    "blocks.0.mid",
)
def residual_of_norm(port, x, branch):
    norm = [name for name in port.taps if name.endswith(("norm1.out", "norm2.out"))][-1]
    return port.taps[norm] + branch


@wrong(
    "scaled_branch",
    "the second LayerScale has the parameters of the first",
    "small_tie_free",
    "blocks.0.out",
)
def first_scale_twice(port, x, path):
    return Port.scaled_branch(port, x, path.replace("scale2", "scale1"))


@wrong(
    "block", "every block has the parameters of the first", "small_tie_free", "blocks.1.norm1.out"
)
def blocks_share_parameters(port, x, place):
    own = port.params
    port.params = {
        name: own.get(name.replace(place.path, "blocks.0"), value) for name, value in own.items()
    }
    y = Port.block(port, x, place)
    port.params = own
    return y


@wrong(
    "block",
    "block 1 reads the buffer of the tokens, which block 0 should have overwritten",
    "small_deit",
    "blocks.1.norm1.out",
)
def stale_buffer(port, x, place):
    return Port.block(port, port.taps["tokens"], place)


@wrong("pool", "the head sees the last token instead of the class token", "small_deit", "logits")
def last_token(port, x):
    return x[:, -1]


@wrong("pool", "tokens are summed up and not averaged", "small_batch", "logits")
def pooled_sum(port, x):
    return x.sum(axis=1)


@wrong("add_bias", "the head has no bias", "small_wide", "logits")
def no_head_bias(port, y, path):
    return y if path == "head" else Port.add_bias(port, y, path)


# Real blocks


@wrong(
    "qkv",
    "rows of qkv are read head by head (heads, 3, d) instead of (3, heads, d)",
    "small_deit",
    "blocks.0.attn.scores",
)
def qkv_by_head(port, x, place):
    batch, tokens, channels = x.shape
    parts = x.reshape(batch, tokens, place.heads, 3, -1).transpose(3, 0, 2, 1, 4)
    return tuple(parts)


@wrong("qkv", "rows of qkv are taken for k, q, v", "small_deit", "blocks.0.attn.scores")
def keys_first(port, x, place):
    q, k, v = Port.qkv(port, x, place)
    return k, q, v


@wrong("gelu", "GELU is x sigmoid(1.702 x)", "small_deit", "blocks.0.mlp.gelu.out")
def quick_gelu(port, x):
    return x / (1 + np.exp(-port.dtype(1.702) * x))


@wrong("gelu", "GELU is ReLU", "small_deit", "blocks.0.mlp.gelu.out")
def relu(port, x):
    return np.maximum(x, 0)


# Windows


@wrong(
    "rolled",
    "the grid is rolled down and right, the mask is made for up and left",
    "small_swin",
    "blocks.1.attn.q_low.head_z",
)
def rolled_down(port, grid, shift):
    return np.roll(grid, (shift, shift), axis=(1, 2))


@wrong("unrolled", "the context is not rolled back", "small_swin", "blocks.1.attn.norm.out")
def not_rolled_back(port, grid, shift):
    return grid


@wrong("masked", "shifted windows are not masked", "small_swin", "blocks.1.attn.prob.z")
def no_mask(port, place):
    return None


@wrong(
    "sides",
    "the mask knows rows from the other side, but not columns",
    "small_swin",
    "blocks.1.attn.prob.z",
)
def rows_masked_only(port, above, left):
    return 2 * above + 0 * left


@wrong(
    "window_shift",
    "the first block of a stage is shifted, the second is not",
    "small_swin",
    "blocks.0.attn.q_low.head_z",
)
def even_blocks_shifted(port, number, window, grid):
    return Port.window_shift(port, number + 1, window, grid)


@wrong(
    "position_index",
    "the relative position is key minus query",
    "small_swin",
    "blocks.0.attn.scores",
)
def key_minus_query(port, m):
    return Port.position_index(port, m).T


@wrong(
    "position_index",
    "the table of positions has a row stride of M instead of 2 M - 1",
    "small_swin",
    "blocks.0.attn.scores",
)
def stride_of_window(port, m):
    row, column = np.divmod(np.arange(m * m), m)
    rows = row[:, None] - row[None, :] + m - 1
    return rows * m + column[:, None] - column[None, :] + m - 1


@wrong(
    "side_by_side",
    "the four neighbours of a merge are taken row by row",
    "small_swin",
    "merges.0.patches",
)
def merged_by_row(port, x, grid):
    x = x.reshape(len(x), *grid, -1)
    parts = [x[:, r::2, c::2] for r, c in sorted(MERGED)]
    return np.concatenate(parts, axis=-1).reshape(len(x), -1, 4 * x.shape[-1])


@wrong("cut", "windows are numbered column by column", "small_swin", "blocks.0.attn.q_low.head_z")
def windows_by_column(port, x, place):
    windows = Port.cut(port, x, place)
    across, down = place.grid[0] // place.window, place.grid[1] // place.window
    return (
        windows.reshape(-1, across, down, *windows.shape[1:]).swapaxes(1, 2).reshape(windows.shape)
    )


# Backward: signs and weights


@wrong(
    "sign_back",
    "the sign is straight through, without a window",
    "small_tie_free",
    "grads/blocks.1.mlp.down.z",
)
def no_window(port, dy, z):
    return dy


@wrong(
    "sign_back",
    "the polynomial is not cut off: beyond |z| = 1 the gradient turns its sign",
    "small_tie_free",
    "grads/blocks.1.mlp.down.z",
)
def polynomial_below_zero(port, dy, z):
    return dy * (2 - 2 * np.abs(z))


@wrong(
    "sign_back",
    "the window is that of the other estimator, 1 where |z| <= 1",
    "small_tie_free",
    "grads/blocks.1.mlp.down.z",
)
def clip_for_polynomial(port, dy, z):
    return dy * (np.abs(z) <= 1)


@wrong(
    "sign_back",
    "the window of clip is open: |z| = 1 lets nothing through",
    "small_adversarial",
    "grads/blocks.0.mlp.up.z",
)
def open_window(port, dy, z):
    return dy * (np.abs(z) < 1)


@wrong(
    "sign_back",
    "the window is the derivative of tanh, 1 - tanh(z)^2",
    "small_swin",
    "grads/blocks.2.mlp.down.z",
)
def tanh_window(port, dy, z):
    return dy * (1 - np.tanh(z) ** 2)


@wrong(
    "weight_back",
    "the gradient of latent weights is multiplied by their scale",
    "small_tie_free",
    "grads/param.blocks.1.mlp.down.weight",
)
def weight_scaled(port, dbinary, p):
    return Port.weight_back(port, dbinary * port.taps[f"{p}.weight.scale"][:, None], p)


@wrong(
    "weight_back",
    "the gradient of latent weights is not centred",
    "small_batch",
    "grads/param.blocks.0.mlp.down.weight",
)
def weight_not_centred(port, dbinary, p):
    return dbinary * (np.abs(port.taps[f"{p}.weight.z"]) <= 1)


@wrong(
    "weight_back",
    "the gradient of latent weights is not clipped",
    "small_batch",
    "grads/param.blocks.0.mlp.down.weight",
)
def weight_not_clipped(port, dbinary, p):
    return dbinary - port.mean(dbinary)


@wrong(
    "weight_back",
    "the gradient of latent weights is clipped by |W| instead of the centred |Wc|",
    "small_batch",
    "grads/param.blocks.0.mlp.down.weight",
)
def weight_clipped_by_latent(port, dbinary, p):
    g = dbinary * (np.abs(port.latent(p)) <= 1)
    return g - port.mean(g)


@wrong(
    "bit_back",
    "the gradient goes back through the latent weights instead of the binary ones",
    "small_tie_free",
    "grads/blocks.1.mlp.down.bit",
)
def back_through_latent(port, dlinear, binary, p):
    return port.matmul(dlinear, port.latent(p))


@wrong(
    "bit_back",
    "the gradient goes back through the signs of the weights, without the scale",
    "small_batch",
    "grads/blocks.0.mlp.down.bit",
)
def back_without_scale(port, dlinear, binary, p):
    return port.matmul(dlinear, np.sign(binary))


@wrong(
    "bit_back",
    "square matrices are not transposed on the way back",
    "small_tie_free",
    "grads/blocks.1.attn.proj.bit",
)
def back_not_transposed(port, dlinear, binary, p):
    square = binary.shape[0] == binary.shape[1]
    return port.matmul(dlinear, binary.T if square else binary)


@wrong(
    "outer",
    "gradients of matrices are averaged over the rows instead of summed up",
    "small_deit",
    "grads/param.head.weight",
)
def averaged_over_rows(port, rows_dy, rows_x):
    return Port.outer(port, rows_dy, rows_x) / port.dtype(len(rows_dy))


# Backward: norms, RPReLU, shortcuts


@wrong(
    "normed_back", "mean and deviation are taken for constants", "small_deit", "grads/blocks.1.out"
)
def constant_statistics(port, g, n, s):
    return g / s


@wrong(
    "normed_back",
    "the term of the variance, n mean(g n), is left out",
    "small_tie_free",
    "grads/blocks.1.out",
)
def no_variance_term(port, g, n, s):
    return (g - port.mean(g)) / s


@wrong(
    "normed_back",
    "the norm is divided by the variance instead of the deviation",
    "small_batch",
    "grads/blocks.0.out",
)
def divided_by_variance(port, g, n, s):
    return Port.normed_back(port, g, n, s) / s


@wrong(
    "layer_norm_back",
    "the gradient of a norm's input forgets the norm's weight",
    "small_deit",
    "grads/blocks.1.out",
)
def no_norm_weight(port, dy, path):
    Port.layer_norm_back(port, dy, path)
    return port.normed_back(dy, *port.kept[path])


@wrong(
    "slope_back",
    "the gradient of the slope is summed over u > 0",
    "small_tie_free",
    "grads/param.blocks.1.mlp.down.rprelu.slope",
)
def slope_of_other_side(port, dy, u, below):
    return port.total(dy * u * ~below)


@wrong(
    "slope_back",
    "the gradient of the slope forgets the factor u",
    "small_batch",
    "grads/param.blocks.0.mlp.down.rprelu.slope",
)
def slope_without_input(port, dy, u, below):
    return port.total(dy * below)


@wrong(
    "bent_back",
    "below 0 nothing comes back, as in ReLU",
    "small_tie_free",
    "grads/param.blocks.1.mlp.down.rprelu.shift_in",
)
def back_as_relu(port, dy, below, slope):
    return dy * ~below


@wrong(
    "over_tokens",
    "the gradient of token shifts is that of the first image alone",
    "small_batch",
    "grads/param.blocks.0.mlp.down.rprelu.token_shift_in",
)
def token_shift_of_first_image(port, dy):
    return dy[0].sum(axis=-1)


@wrong(
    "with_shortcut_back",
    "the shortcut of a projection sends nothing back",
    "small_tie_free",
    "grads/blocks.1.mlp.up.out",
)
def no_shortcut_back(port, dz, dy, p):
    return dz


@wrong(
    "fit_back",
    "an averaged shortcut spreads its gradient without dividing it",
    "small_batch",
    "grads/blocks.0.mlp.up.out",
)
def spread_undivided(port, dy, size):
    ratio = size // dy.shape[-1]
    return np.repeat(dy, ratio, axis=-1) if ratio > 1 else Port.fit_back(port, dy, size)


@wrong(
    "fit_back",
    "a tiled shortcut sends back the first tile alone",
    "small_tie_free",
    "grads/blocks.1.norm2.out",
)
def first_tile(port, dy, size):
    return dy[..., :size] if size < dy.shape[-1] else Port.fit_back(port, dy, size)


@wrong(
    "residual_back",
    "the branch overwrites the gradient of the residual instead of adding to it",
    "small_deit",
    "grads/blocks.1.mid",
)
def residual_overwritten(port, dx, dbranch):
    return dbranch


# Backward: attention


@wrong(
    "elastic_range",
    "probabilities beyond alpha still get a gradient",
    "small_tie_free",
    "grads/blocks.1.attn.prob",
)
def no_elastic_clip(port, q):
    return np.ones_like(q, bool), q > 1


@wrong(
    "alpha_back",
    "the gradient of alpha forgets what lies above it, q > 1",
    "small_tie_free",
    "grads/param.blocks.1.attn.alpha",
)
def alpha_without_big(port, dy, q, inside, above, a):
    return Port.alpha_back(port, dy, q, inside, np.zeros_like(above), a)


@wrong(
    "alpha_back",
    "the gradient of alpha flows below its minimum, too",
    "small_batch",
    "grads/param.blocks.0.attn.alpha",
)
def alpha_below_minimum(port, dy, q, inside, above, a):
    terms = dy * (inside * (np.round(q) - q) + above)
    alpha = port.params[f"{a}.alpha"]
    return port.sum(terms, (0, 2, 3) if alpha.ndim else (0, 1, 2, 3))[0].reshape(alpha.shape)


@wrong(
    "alpha_back",
    "the gradient of alpha has q - round(q)",
    "small_adversarial",
    "grads/param.blocks.0.attn.alpha",
)
def alpha_sign(port, dy, q, inside, above, a):
    above_only = Port.alpha_back(port, dy, q, np.zeros_like(inside), above, a)
    return 2 * above_only - Port.alpha_back(port, dy, q, inside, above, a)


@wrong(
    "softmax_back",
    "the softmax sends back y dy, without the sum",
    "small_deit",
    "grads/blocks.1.attn.scores",
)
def no_softmax_sum(port, dy, y):
    return y * dy


@wrong(
    "softmax_back",
    "the softmax goes back as a sigmoid would, y (1 - y) dy",
    "small_tie_free",
    "grads/blocks.1.attn.scores",
)
def softmax_diagonal(port, dy, y):
    return y * (1 - y) * dy


@wrong(
    "band_back",
    "the gradients of queries and keys are not divided by the root of d",
    "small_tie_free",
    "grads/blocks.1.attn.q_low.head_bit",
)
def undivided_back(port, dy, a):
    d = port.dtype(port.taps[f"{a}.q_low.head_bit"].shape[-1])
    Port.band_back(port, dy, a)
    w = port.params[f"{a}.band_weight"][:, :, None, None] * np.sqrt(d)
    return {"_low": w[0] * dy, "_high": w[1] * dy}


@wrong(
    "similarity_back",
    "the gradient of the keys is made with the gradient of scores that was not transposed",
    "small_batch",
    "grads/blocks.0.attn.k_low.head_bit",
)
def keys_not_transposed(port, dy, a, band):
    dq, _ = Port.similarity_back(port, dy, a, band)
    return dq, port.matmul(dy, port.signs(port.taps[f"{a}.q{band}.head_bit"]))


@wrong(
    "position_back",
    "the gradient of the position table is that of the first window alone",
    "small_swin",
    "grads/param.blocks.2.attn.position_bias",
)
def positions_of_first_window(port, dscores, place):
    return Port.position_back(port, dscores[:1], place)


@wrong(
    "neighbours_back",
    "the mean of the neighbours goes back by the same mean instead of its adjoint",
    "small_tie_free",
    "grads/blocks.0.attn.v.out",
)
def mean_for_adjoint(port, dy, place):
    return Port.neighbour_mean(port, dy, place)


@wrong(
    "differential_back",
    "the gradient of the neighbours' mean has the sign of the value's",
    "small_batch",
    "grads/blocks.0.attn.neighbour_mean",
)
def neighbours_sign(port, dy, v, around, a):
    dv, daround = Port.differential_back(port, dy, v, around, a)
    return dv, -daround


@wrong(
    "total_of_readers",
    "the gradient of q, k and v is that of the heads alone, the shortcut's is overwritten",
    "small_tie_free",
    "grads/blocks.1.attn.q_low.out",
)
def heads_only(port, moved, shortcut, name):
    return moved


@wrong(
    "haar_back",
    "the gradient of the high band is counted once, not for each of its three details",
    "small_tie_free",
    "grads/blocks.1.norm1.out",
)
def one_detail(port, dlow, dhigh):
    return Port.haar_back(port, dlow, dhigh / 3)


@wrong(
    "haar_back",
    "the adjoint reads the block of a patch again instead of writing into it",
    "small_batch",
    "grads/blocks.0.norm1.out",
)
def forward_for_adjoint(port, dlow, dhigh):
    low, _ = Port.haar(port, dlow)
    _, high = Port.haar(port, dhigh)
    return low + high


@wrong(
    "front_back",
    "the class token gets the gradient of the low band alone",
    "small_adversarial",
    "grads/blocks.0.norm1.out",
)
def class_token_low_back(port, dlow, dhigh):
    return dlow


# Backward: the shell


@wrong(
    "pool_back",
    "the gradient of the mean over tokens is not divided by their number",
    "small_batch",
    "grads/norm.out",
)
def undivided_pool(port, dy, tokens):
    return Port.pool_back(port, dy, tokens) * port.dtype(tokens)


@wrong(
    "unpatches",
    "the gradient of the image is put together channels last",
    "small_tie_free",
    "grads/input",
)
def image_channels_last(port, dx):
    p, channels = port.config["patch_size"], port.images.shape[1]
    x = dx.reshape(*dx.shape[:2], p * p, channels).swapaxes(-1, -2)
    return Port.unpatches(port, x.reshape(dx.shape))


@wrong(
    "scaled_branch_back",
    "LayerScale sends its gradient back without its alpha",
    "small_tie_free",
    "grads/blocks.1.mlp.down.out",
)
def no_layer_scale(port, dy, path):
    Port.scaled_branch_back(port, dy, path)
    return dy


@wrong(
    "gelu_back",
    "the derivative of GELU is its cdf alone, without x times the density",
    "small_deit",
    "grads/blocks.1.mlp.fc1.out",
)
def no_density(port, dy, x):
    return dy * port.gaussian(x)


@wrong(
    "joined_qkv",
    "the gradient of qkv is put together in the order k, q, v",
    "small_deit",
    "grads/blocks.1.attn.qkv.out",
)
def keys_first_back(port, parts):
    q, k, v = parts
    return Port.joined_qkv(port, (k, q, v))


@wrong("apart", "a merge sends its gradient back in row order", "small_swin", "grads/blocks.1.out")
def apart_by_row(port, dy, grid):
    a, b, c, d = np.split(dy, 4, axis=-1)
    return Port.apart(port, np.concatenate([a, c, b, d], axis=-1), grid)


# More of the same kind: what compilers, vector units and memory layouts do to a port


@wrong(
    "patches", "the image is read from its bottom row upwards", "small_tie_free", "patch_embed.out"
)
def bottom_up(port, images):
    return Port.patches(port, images[:, :, ::-1])


@wrong(
    "patches",
    "the image is read as (row, column, channel) though it lies (channel, row, column)",
    "small_adversarial",
    "patch_embed.out",
)
def image_as_channels_last(port, images):
    batch, channels, rows, columns = images.shape
    pixels = images.reshape(batch, rows, columns, channels)
    return Port.patches(port, pixels.transpose(0, 3, 1, 2))


@wrong(
    "linear",
    "tokens of the batch lie (N, B) and are read as (B, N)",
    "small_batch",
    "patch_embed.out",
)
def tokens_before_images(port, x, path):
    y = Port.linear(port, x, path)
    return y.swapaxes(0, 1).reshape(y.shape) if path == "patch_embed" else y


@wrong(
    "with_positions",
    "the position embedding has the class token's entry last",
    "small_deit",
    "tokens",
)
def class_position_last(port, x):
    return x + np.roll(port.params["pos_embed"], 1, axis=1)


@wrong("with_positions", "tokens are stored in bfloat16", "small_tie_free", "tokens")
def bfloat16_tokens(port, x):
    y = np.ascontiguousarray(Port.with_positions(port, x))
    return (y.view(np.uint32) + 0x7FFF + (y.view(np.uint32) >> 16 & 1) & 0xFFFF0000).view(
        np.float32
    )


@wrong(
    "mean",
    "the mean is over whole vectors of 4 channels, the tail is left out of the sum",
    "small_tie_free",
    "blocks.0.norm1.out",
)
def no_tail_in_mean(port, x):
    size = x.shape[-1]
    return x[..., : size // 4 * 4].sum(axis=-1, keepdims=True) / port.dtype(size)


@wrong("layer_norm", "the norm's weight is 1 + weight", "small_batch", "blocks.0.norm1.out")
def one_plus_weight(port, x, path):
    d = x - port.mean(x)
    n = d / port.deviation(d)
    return (1 + port.params[f"{path}.weight"]) * n + port.params[f"{path}.bias"]


@wrong(
    "popcount",
    "the popcount is __builtin_popcount of 64 bits: the upper half is not counted",
    "small_adversarial",
    "blocks.0.attn.q_low.int",
)
def popcount_of_32(port, words):
    return Port.popcount(port, words & np.uint64(0xFFFFFFFF))


@wrong(
    "scaled",
    "the product is stored in fixed point with 8 bits behind the point",
    "small_tie_free",
    "blocks.0.attn.q_low.linear",
)
def fixed_point(port, whole, scale):
    return np.floor(Port.scaled(port, whole, scale) * 256) / port.dtype(256)


@wrong("bent", "below 0 RPReLU is slope |u|", "small_batch", "blocks.0.attn.q_low.out")
def slope_of_magnitude(port, u, slope):
    return np.where(u > 0, u, slope * np.abs(u))


@wrong(
    "projection",
    "the shortcut is added behind RPReLU instead of in front of it",
    "small_tie_free",
    "blocks.0.attn.q_low.out",
)
def shortcut_behind_rprelu(port, x, p):
    Port.projection(port, x, p)
    norm = port.taps[f"{p}.norm"]
    y = port.rprelu(norm, f"{p}.rprelu") + port.fit(x, norm.shape[-1])
    return port.tap(f"{p}.out", y)


@wrong(
    "with_shortcut",
    "the shortcut of a merge takes the patches in front of the norm",
    "small_swin",
    "merges.0.proj.out",
)
def shortcut_of_patches(port, norm, x, p):
    x = port.taps["merges.0.patches"] if p == "merges.0.proj" else x
    return Port.with_shortcut(port, norm, x, p)


@wrong(
    "shifted_in",
    "the token of a row is row / B, as if images were interleaved",
    "small_batch",
    "blocks.0.attn.q_low.out",
)
def token_of_interleaved_rows(port, x, path):
    batch, tokens, _ = x.shape
    token = (np.arange(batch * tokens) // batch).reshape(batch, tokens, 1)
    return x - port.params[f"{path}.shift_in"] - port.params[f"{path}.token_shift_in"][token]


@wrong(
    "to_grid",
    "the grid begins at token 0, the class token is not skipped",
    "small_tie_free",
    "blocks.0.attn.low",
)
def grid_from_class_token(port, x, place):
    rows, columns = place.grid
    return x[:, : rows * columns].reshape(len(x), rows, columns, -1)


@wrong(
    "head_bits",
    "bits of the heads are made of the norm, in front of the shortcut and RPReLU",
    "small_tie_free",
    "blocks.0.attn.q_low.head_z",
)
def heads_of_norm(port, out, name, place):
    return Port.head_bits(port, port.taps[f"{place.path}.attn.{name}.norm"], name, place)


@wrong(
    "band_sum", "band weights are divided by their sum", "small_tie_free", "blocks.0.attn.scores"
)
def band_weights_to_one(port, low, high, a):
    w = port.params[f"{a}.band_weight"][:, :, None, None]
    return (w[0] * low + w[1] * high).astype(port.dtype) / (w[0] + w[1])


@wrong(
    "divided", "the root of d is an integer, rounded down", "small_tie_free", "blocks.0.attn.scores"
)
def integer_root(port, scores, d):
    return scores / port.dtype(int(np.sqrt(d)))


@wrong(
    "softmax", "the exponential is Schraudolph's, made of bits", "small_deit", "blocks.0.attn.prob"
)
def schraudolph(port, scores):
    x = scores - scores.max(axis=-1, keepdims=True)
    bits = (np.float32(12102203.0) * x + np.float32(1064866805.0)).astype(np.int32)
    e = np.maximum(bits, 0).view(np.float32)
    return e / port.sum(e)


@wrong(
    "softmax",
    "the sum of the softmax leaves out what does not fill a vector of 4",
    "small_deit",
    "blocks.0.attn.prob",
)
def no_tail_in_softmax(port, scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / port.sum(e[..., : e.shape[-1] // 4 * 4])


@wrong(
    "alpha",
    "alpha is divided by where it should be multiplied and the other way round",
    "small_tie_free",
    "blocks.0.attn.prob.z",
)
def alpha_inverted(port, a):
    return 1 / Port.alpha(port, a)


@wrong(
    "scaled",
    "the context has alpha without its lower bound, the probabilities have the bounded one",
    "small_batch",
    "blocks.0.attn.context",
)
def context_of_raw_alpha(port, whole, scale):
    return Port.scaled(
        port, whole, port.params["blocks.0.attn.alpha"] if scale.ndim == 3 else scale
    )


@wrong(
    "boolean_product",
    "the loop over the heads stops one early, the last head stays 0",
    "small_tie_free",
    "blocks.0.attn.context.int",
)
def last_head_missing(port, a, v):
    whole = Port.boolean_product(port, a, v)
    whole[:, -1] = 0
    return whole


@wrong(
    "neighbour_mean",
    "the sum of the neighbours is not set to 0 between patches",
    "small_tie_free",
    "blocks.0.attn.neighbour_mean",
)
def running_sum(port, v, place):
    mean = port.to_grid(Port.neighbour_mean(port, v, place), place)
    count = np.broadcast_to(port.counts(place.grid), (*place.grid, 1))
    total = np.cumsum((mean * count).reshape(len(v), -1, v.shape[-1]), axis=1)
    return port.with_front(np.zeros_like(v[:, : place.front]), total.reshape(mean.shape) / count)


@wrong(
    "neighbour_mean",
    "the class token has the mean of all patches for its neighbours'",
    "small_adversarial",
    "blocks.0.attn.neighbour_mean",
)
def class_token_has_neighbours(port, v, place):
    y = Port.neighbour_mean(port, v, place)
    y[:, 0] = v[:, 1:].mean(axis=1)
    return y


@wrong(
    "with_position_bias",
    "the position bias is added before the division by the root of d",
    "small_swin",
    "blocks.0.attn.scores",
)
def bias_before_division(port, scores, place):
    bias = Port.with_position_bias(port, np.zeros_like(scores), place)
    return scores + port.divided(bias, port.taps[f"{place.path}.attn.v.head_bit"].shape[2])


@wrong(
    "with_position_bias",
    "the table of positions is read as (heads, positions)",
    "small_swin",
    "blocks.0.attn.scores",
)
def position_table_transposed(port, scores, place):
    table = port.params[f"{place.path}.attn.position_bias"]
    table = table.reshape(table.shape[::-1])
    return scores + table[:, port.position_index(place.window)]


@wrong(
    "pool", "the norm is taken of the mean over tokens, not of the tokens", "small_batch", "logits"
)
def norm_of_mean(port, x):
    return port.layer_norm(port.taps["blocks.0.out"].mean(axis=1), "norm")


@wrong(
    "gaussian",
    "erf is the polynomial of Abramowitz and Stegun 7.1.26, in float32",
    "small_deit",
    "blocks.0.mlp.gelu.out",
)
def short_erf(port, x):
    f = port.dtype
    z = np.abs(x) / f(np.sqrt(2))
    t = 1 / (1 + f(0.3275911) * z)
    y = f(1.061405429) * t - f(1.453152027)
    for c in (1.421413741, -0.284496736, 0.254829592):
        y = y * t + f(c)
    erf = np.sign(x) * (1 - y * t * np.exp(-z * z))
    return (1 + erf) / 2


@wrong(
    "layer_norm_back",
    "the gradient of the norm's weight is made of its output instead of the normalised input",
    "small_tie_free",
    "grads/param.norm.weight",
)
def norm_weight_of_output(port, dy, path):
    dx = Port.layer_norm_back(port, dy, path)
    y = port.params[f"{path}.weight"] * port.kept[path][0] + port.params[f"{path}.bias"]
    port.grad_param(f"{path}.weight", port.total(dy * y))
    return dx


@wrong(
    "rprelu_back",
    "the gradient of shift_in has the sign of shift_out's",
    "small_batch",
    "grads/param.blocks.0.mlp.down.rprelu.shift_in",
)
def shift_in_sign(port, dy, path):
    du = Port.rprelu_back(port, dy, path)
    port.grad_param(f"{path}.shift_in", port.total(du))
    return du


@wrong(
    "rprelu_back",
    "the gradient of shift_in is minus that of shift_out: the slope is forgotten",
    "small_tie_free",
    "grads/param.blocks.1.mlp.down.rprelu.shift_in",
)
def shift_in_without_slope(port, dy, path):
    du = Port.rprelu_back(port, dy, path)
    port.grad_param(f"{path}.shift_in", -port.total(dy))
    return du


@wrong(
    "binary_linear_back",
    "the gradient of the weights is made of z instead of its signs",
    "small_tie_free",
    "grads/param.blocks.1.mlp.down.weight",
)
def weights_of_z(port, dlinear, p):
    dz = Port.binary_linear_back(port, dlinear, p)
    z = port.taps[f"{p}.z"]
    dbinary = port.outer(dlinear.reshape(-1, dlinear.shape[-1]), z.reshape(-1, z.shape[-1]))
    port.grad_param(f"{p}.weight", port.weight_back(dbinary, p))
    return dz


@wrong(
    "projection_back",
    "the gradient of the move is that of the signs, in front of the window",
    "small_batch",
    "grads/param.blocks.0.mlp.down.move",
)
def move_without_window(port, dout, p):
    dx = Port.projection_back(port, dout, p)
    port.grad_param(f"{p}.move", port.total(port.taps[f"grads/{p}.bit"]))
    return dx


@wrong(
    "boolean_back",
    "the gradient of the values' signs is made of the bits without alpha",
    "small_tie_free",
    "grads/blocks.1.attn.v.head_bit",
)
def values_without_alpha(port, dcontext, place):
    dprob, _ = Port.boolean_back(port, dcontext, place)
    ones = port.taps[f"{place.path}.attn.prob.bit"].astype(port.dtype)
    return dprob, port.matmul(dcontext.swapaxes(-1, -2), ones)


@wrong(
    "boolean_back",
    "the attention is not transposed on the way back to the values",
    "small_batch",
    "grads/blocks.0.attn.v.head_bit",
)
def attention_not_transposed(port, dcontext, place):
    a = f"{place.path}.attn"
    dprob, _ = Port.boolean_back(port, dcontext, place)
    ones = port.taps[f"{a}.prob.bit"].astype(port.dtype) * port.alpha(a)
    return dprob, port.matmul(dcontext.swapaxes(-1, -2), ones.swapaxes(-1, -2))


@wrong(
    "softmax_back",
    "the softmax goes back with the bits of the attention for its probabilities",
    "small_swin",
    "grads/blocks.2.attn.scores",
)
def softmax_of_bits(port, dy, y):
    place = next(p for s in port.stages for p in s if port.kept.get(f"{p.path}.attn.prob") is y)
    return Port.softmax_back(port, dy, port.taps[f"{place.path}.attn.prob.bit"].astype(port.dtype))


@wrong(
    "alpha_back",
    "the gradient of alpha is summed over all heads and given to each",
    "small_adversarial",
    "grads/param.blocks.0.attn.alpha",
)
def alpha_over_heads(port, dy, q, inside, above, a):
    each = Port.alpha_back(port, dy, q, inside, above, a)
    return np.full_like(each, each.sum())


@wrong(
    "band_back",
    "the gradients of the two band weights are exchanged",
    "small_tie_free",
    "grads/param.blocks.1.attn.band_weight",
)
def band_gradients_exchanged(port, dy, a):
    bands = Port.band_back(port, dy, a)
    port.grad_param(f"{a}.band_weight", port.taps[f"grads/param.{a}.band_weight"][::-1])
    return bands


@wrong(
    "differential_back",
    "the gradient of the neighbours' factor has no minus",
    "small_batch",
    "grads/param.blocks.0.attn.neighbour",
)
def neighbour_factor_sign(port, dy, v, around, a):
    found = Port.differential_back(port, dy, v, around, a)
    port.grad_param(f"{a}.neighbour", port.total(dy * around))
    return found


@wrong(
    "value_back",
    "nothing comes back through the mean of the neighbours",
    "small_batch",
    "grads/blocks.0.attn.v.out",
)
def no_neighbours_back(port, dsum, place):
    Port.value_back(port, dsum, place)
    return port.params[f"{place.path}.attn.shortcut"] * dsum


@wrong(
    "sources_back",
    "the gradient of the keys overwrites that of the queries at their band",
    "small_tie_free",
    "grads/blocks.1.attn.low",
)
def keys_overwrite_queries(port, dm, place):
    nothing = np.zeros_like(dm["v"])
    return Port.sources_back(port, {**dm, "q_low": nothing, "q_high": nothing}, place)


@wrong(
    "sources_back",
    "the values send nothing back to the norm",
    "small_batch",
    "grads/blocks.0.norm1.out",
)
def values_send_nothing(port, dm, place):
    return Port.sources_back(port, {**dm, "v": np.zeros_like(dm["v"])}, place)


@wrong(
    "haar_back",
    "the adjoint of the bands drops what went beyond the border",
    "small_tie_free",
    "grads/blocks.1.norm1.out",
)
def border_dropped(port, dlow, dhigh):
    quarter = port.dtype(0.25)
    dx = (dlow + 3 * dhigh) * quarter
    others = (dlow - dhigh) * quarter
    dx[:, :, 1:] += others[:, :, :-1]
    dx[:, 1:] += others[:, :-1]
    dx[:, 1:, 1:] += others[:, :-1, :-1]
    return dx


@wrong(
    "haar_back",
    "the adjoint of the bands wraps around the grid, which the bands do not",
    "small_adversarial",
    "grads/blocks.0.norm1.out",
)
def border_wrapped(port, dlow, dhigh):
    quarter = port.dtype(0.25)
    others = (dlow - dhigh) * quarter
    dx = (dlow + 3 * dhigh) * quarter
    for shift, axis in ((1, 1), (1, 2), ((1, 1), (1, 2))):
        dx = dx + np.roll(others, shift, axis=axis)
    return dx


@wrong(
    "scaled_branch_back",
    "the gradient of LayerScale's alpha is made of what it gave, not of what it read",
    "small_tie_free",
    "grads/param.blocks.1.scale2.alpha",
)
def layer_scale_of_output(port, dy, path):
    dx = Port.scaled_branch_back(port, dy, path)
    y = port.params[f"{path}.alpha"] * port.kept[path] + port.params[f"{path}.beta"]
    port.grad_param(f"{path}.alpha", port.total(dy * y))
    return dx


@wrong(
    "tokens_back",
    "the gradient of the position embedding is averaged over the batch",
    "small_deit",
    "grads/param.pos_embed",
)
def positions_averaged(port, dx):
    Port.tokens_back(port, dx)
    port.grad_param("pos_embed", dx.mean(axis=0))


@wrong(
    "tokens_back",
    "the class token's gradient is summed over all tokens",
    "small_tie_free",
    "grads/param.cls_token",
)
def class_token_of_all(port, dx):
    Port.tokens_back(port, dx)
    port.grad_param("cls_token", dx.sum(axis=(0, 1)))


@wrong(
    "grad_param",
    "gradients of parameters are added to those of the step before, the same one",
    "small_adversarial",
    "grads/param.head.weight",
)
def not_cleared(port, path, value):
    Port.grad_param(port, path, 2 * value)


# The second part: of kinds that stand neither above nor in the lists of `cause_table`

FIRST_PART = len(MISTAKES)


@wrong(
    "patches",
    "the image is read one pixel further right, the last column wraps around",
    "small_tie_free",
    "patch_embed.out",
)
def one_pixel_late(port, images):
    return Port.patches(port, np.roll(images, -1, axis=3))


@wrong("patches", "the image is mirrored, left for right", "small_deit", "patch_embed.out")
def mirrored_image(port, images):
    return Port.patches(port, images[..., ::-1])


@wrong(
    "patches",
    "pixels are normalised once more, (x - 1/2) / (1/2)",
    "small_batch",
    "patch_embed.out",
)
def normalised_twice(port, images):
    return Port.patches(port, (images - port.dtype(0.5)) / port.dtype(0.5))


@wrong(
    "patches",
    "planes of the image are taken in the order 1, 2, 0",
    "small_adversarial",
    "patch_embed.out",
)
def planes_rotated(port, images):
    return Port.patches(port, np.roll(images, -1, axis=1))


@wrong("patches", "pixels are whole multiples of 1/255, rounded", "small_deit", "patch_embed.out")
def pixels_of_a_byte(port, images):
    return Port.patches(port, np.rint(images * port.dtype(255)) / port.dtype(255))


@wrong("add_bias", "the bias of the head is added twice", "small_wide", "logits")
def head_bias_twice(port, y, path):
    y = Port.add_bias(port, y, path)
    return Port.add_bias(port, y, path) if path == "head" else y


@wrong(
    "with_positions",
    "tokens are multiplied by the root of C before positions are added",
    "small_deit",
    "tokens",
)
def tokens_times_root(port, x):
    return x * np.sqrt(port.dtype(x.shape[-1])) + port.params["pos_embed"]


@wrong(
    "with_class_token", "the class token is 0, its parameter not read", "small_tie_free", "tokens"
)
def class_token_of_zeros(port, x):
    return np.concatenate([np.zeros_like(x[:, :1]), x], axis=1)


@wrong(
    "deviation",
    "eps is added to the sum of squares, before the division by C",
    "small_long",
    "blocks.0.norm1.out",
)
def eps_before_division(port, d):
    total = port.sum(d * d) + port.dtype(port.config["norm_eps"])
    return np.sqrt(total / port.dtype(d.shape[-1]))


@wrong(
    "layer_norm",
    "the norm behind the heads is taken over each head's channels alone",
    "small_tie_free",
    "blocks.0.attn.norm.out",
)
def norm_of_each_head(port, x, path):
    if not path.endswith("attn.norm"):
        return Port.layer_norm(port, x, path)
    heads = port.config["heads"]
    n, _ = port.normed(x.reshape(*x.shape[:-1], heads, -1))
    return port.params[f"{path}.weight"] * n.reshape(x.shape) + port.params[f"{path}.bias"]


@wrong(
    "layer_norm",
    "a row is normalised with the mean and deviation of the row before it",
    "small_batch",
    "blocks.0.norm1.out",
)
def statistics_one_row_late(port, x, path):
    rows = x.reshape(-1, x.shape[-1])
    d = rows - np.roll(port.mean(rows), 1, axis=0)
    n = d / np.roll(port.deviation(rows - port.mean(rows)), 1, axis=0)
    return port.params[f"{path}.weight"] * n.reshape(x.shape) + port.params[f"{path}.bias"]


@wrong(
    "deviation",
    "the deviation is the mean of |x - mean|",
    "small_tie_free",
    "blocks.0.norm1.out",
)
def mean_deviation(port, d):
    return port.mean(np.abs(d)) + port.dtype(port.config["norm_eps"])


@wrong(
    "normed",
    "1 / deviation comes from a table, of 8 bits of mantissa",
    "small_deit",
    "blocks.0.norm1.out",
)
def reciprocal_of_a_table(port, x):
    d = x - port.mean(x)
    s = port.deviation(d)
    mantissa, exponent = np.frexp(1 / s)
    return d * np.ldexp(np.rint(mantissa * 256) / port.dtype(256), exponent), s


@wrong(
    "words",
    "words of 32 bits are signed and their sign bit is lost: bit 31 of each is not counted",
    "small_adversarial",
    "blocks.0.attn.q_low.int",
)
def sign_bit_of_words(port, bits):
    return packed(bits) & np.uint64(0x7FFFFFFF7FFFFFFF)


@wrong(
    "binary_product",
    "the second word of a row is that of the row behind it",
    "small_adversarial",
    "blocks.0.attn.q_low.int",
)
def second_word_of_next_row(port, a, b):
    words = packed(b)
    if words.shape[-1] < 2:
        return Port.binary_product(port, a, b)
    words = np.concatenate([words[..., :1], np.roll(words[..., 1:], -1, axis=-2)], axis=-1)
    differ = packed(a)[..., :, None, :] ^ words[..., None, :, :]
    return np.int32(a.shape[-1]) - 2 * port.popcount(differ)


@wrong(
    "boolean_product",
    "popcount(a) is that of the first query for all queries",
    "small_tie_free",
    "blocks.0.attn.context.int",
)
def ones_of_first_query(port, a, v):
    ones = packed(a)
    both = ones[..., :, None, :] & packed(v)[..., None, :, :]
    return 2 * port.popcount(both) - port.popcount(ones)[..., :1, None]


@wrong(
    "scale",
    "the scale is the largest magnitude of a row",
    "small_tie_free",
    "blocks.0.attn.q_low.weight.scale",
)
def scale_of_largest(port, weight):
    return np.abs(weight).max(axis=-1)


@wrong(
    "scale",
    "scales are rounded to powers of two",
    "small_batch",
    "blocks.0.attn.q_low.weight.scale",
)
def scale_as_shift(port, weight):
    return np.exp2(np.rint(np.log2(Port.scale(port, weight)))).astype(port.dtype)


@wrong(
    "scale",
    "the scale is the mean of |W| over the outputs, one for each input",
    "small_tie_free",
    "blocks.0.attn.q_low.weight.scale",
)
def scale_of_columns(port, weight):
    return np.resize(np.abs(weight).mean(axis=0), len(weight)).astype(port.dtype)


@wrong(
    "fit",
    "a shortcut to more channels is padded with zeros",
    "small_tie_free",
    "blocks.0.mlp.up.out",
)
def padded_with_zeros(port, x, size):
    y = Port.fit(port, x, size).copy()
    y[..., x.shape[-1] :] = 0
    return y


@wrong(
    "fit",
    "a shortcut to fewer channels takes the largest of its neighbours",
    "small_batch",
    "blocks.0.mlp.down.out",
)
def largest_neighbour(port, x, size):
    if size >= x.shape[-1]:
        return Port.fit(port, x, size)
    return x.reshape(*x.shape[:-1], size, -1).max(axis=-1)


@wrong("bent", "slopes are clamped to 0 to 1", "small_adversarial", "blocks.0.attn.q_low.out")
def slope_clamped(port, u, slope):
    return np.where(u > 0, u, np.clip(slope, 0, 1) * u)


@wrong(
    "bent",
    "below 0 RPReLU is ELU's curve, slope (e^u - 1)",
    "small_batch",
    "blocks.0.attn.q_low.out",
)
def bent_as_elu(port, u, slope):
    return np.where(u > 0, u, slope * np.expm1(np.minimum(u, 0)))


@wrong(
    "haar",
    "the high band is the sum of the details' magnitudes",
    "small_tie_free",
    "blocks.0.attn.high",
)
def magnitudes_of_details(port, x):
    low, _ = Port.haar(port, x)
    x00, x01, x10, x11 = port.corners(x)
    quarter = port.dtype(0.25)
    rows = np.abs((x00 + x01) - (x10 + x11))
    columns = np.abs((x00 - x01) + (x10 - x11))
    return low, (rows + columns + np.abs((x00 - x01) - (x10 - x11))) * quarter


@wrong(
    "haar",
    "bands of the second level: the transform is applied to its own low band again",
    "small_batch",
    "blocks.0.attn.low",
)
def second_level(port, x):
    return Port.haar(port, Port.haar(port, x)[0])


@wrong(
    "haar",
    "bands are made of the first half of the channels, the others pass as they are",
    "small_tie_free",
    "blocks.0.attn.low",
)
def half_the_channels(port, x):
    low, high = Port.haar(port, x)
    half = x.shape[-1] // 2
    rest = x[..., half:]
    return np.concatenate([low[..., :half], rest], -1), np.concatenate([high[..., :half], rest], -1)


@wrong(
    "neighbour_mean",
    "neighbours beside and above count twice (1 2 1), diagonal ones once",
    "small_batch",
    "blocks.0.attn.neighbour_mean",
)
def weighted_neighbours(port, v, place):
    grid = port.to_grid(v, place)
    total, count = np.zeros_like(grid), np.zeros((*place.grid, 1), port.dtype)
    for (r, c), (here, there) in zip(NEIGHBOURS, port.pairs(place.grid), strict=True):
        weight = port.dtype(1 if r and c else 2)
        total[:, here[0], here[1]] += weight * grid[:, there[0], there[1]]
        count[here] += weight
    return port.with_front(np.zeros_like(v[:, : place.front]), total / count)


@wrong(
    "neighbour_mean",
    "neighbours are two patches away (dilated)",
    "small_adversarial",
    "blocks.0.attn.neighbour_mean",
)
def distant_neighbours(port, v, place):
    grid = port.to_grid(v, place)
    rows, columns = place.grid
    total, count = np.zeros_like(grid), np.zeros((rows, columns, 1), port.dtype)
    for r, c in ((2 * r, 2 * c) for r, c in NEIGHBOURS):
        if abs(r) < rows and abs(c) < columns:
            here = slice(max(-r, 0), rows - max(r, 0)), slice(max(-c, 0), columns - max(c, 0))
            there = slice(max(r, 0), rows + min(r, 0)), slice(max(c, 0), columns + min(c, 0))
            total[:, here[0], here[1]] += grid[:, there[0], there[1]]
            count[here] += 1
    return port.with_front(np.zeros_like(v[:, : place.front]), total / np.maximum(count, 1))


@wrong(
    "shared", "the sum of neighbours is divided by 9", "small_batch", "blocks.0.attn.neighbour_mean"
)
def nine_neighbours(port, total, count):
    return total / port.dtype(9)


@wrong(
    "heads",
    "heads lie in front of images: (B heads) is read as (heads B)",
    "small_batch",
    "blocks.0.attn.q_low.head_z",
)
def heads_before_images(port, x, heads):
    y = Port.heads(port, x, heads)
    return y.swapaxes(0, 1).reshape(y.shape)


@wrong(
    "divided", "scores are multiplied by the root of d", "small_adversarial", "blocks.0.attn.scores"
)
def times_root(port, scores, d):
    return scores * np.sqrt(port.dtype(d))


@wrong(
    "softmax",
    "attention is causal: keys behind the query are masked",
    "small_deit",
    "blocks.0.attn.prob",
)
def causal(port, scores):
    behind = np.triu(np.ones(scores.shape[-2:], bool), 1)
    return Port.softmax(port, np.where(behind, port.dtype(-np.inf), scores))


@wrong(
    "softmax",
    "the sum of the softmax has 1 added (softmax of one more, silent key)",
    "small_tie_free",
    "blocks.0.attn.prob.z",
)
def silent_key(port, scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / (1 + port.sum(e))


@wrong(
    "softmax",
    "the argument of exp is rounded to 1/16 (a table)",
    "small_batch",
    "blocks.0.attn.prob.z",
)
def exponential_of_a_table(port, scores):
    x = scores - scores.max(axis=-1, keepdims=True)
    e = np.exp(np.rint(x * 16) / port.dtype(16))
    return e / port.sum(e)


@wrong(
    "alpha", "alpha is read as a logarithm: e^alpha", "small_adversarial", "blocks.0.attn.prob.z"
)
def alpha_of_logarithm(port, a):
    return np.exp(port.params[f"{a}.alpha"])


@wrong(
    "boolean",
    "the bit of the attention is that of the largest probability of a row alone",
    "small_tie_free",
    "blocks.0.attn.prob.bit",
)
def one_of_a_row(port, q):
    return q == q.max(axis=-1, keepdims=True)


@wrong("joined", "heads are joined in reverse order", "small_batch", "blocks.0.attn.norm.out")
def joined_backwards(port, x):
    return Port.joined(port, x[:, ::-1])


@wrong(
    "shortcuts",
    "the shortcuts of attention are averaged: divided by their number",
    "small_adversarial",
    "blocks.0.attn.out",
)
def shortcuts_averaged(port, norm, m, place):
    return norm + (Port.shortcuts(port, norm, m, place) - norm) / port.dtype(len(m))


@wrong(
    "residual", "the sum of a residual is divided by the root of 2", "small_deit", "blocks.0.mid"
)
def residual_over_root(port, x, branch):
    return (x + branch) / np.sqrt(port.dtype(2))


@wrong(
    "scaled_branch",
    "LayerScale multiplies the branch with its shift added, alpha (x + beta)",
    "small_tie_free",
    "blocks.0.mid",
)
def beta_inside(port, x, path):
    return port.params[f"{path}.alpha"] * (x + port.params[f"{path}.beta"])


@wrong(
    "scaled_branch",
    "dropout stays on in scale: branches are divided by 0.9",
    "small_batch",
    "blocks.0.mid",
)
def dropout_scale(port, x, path):
    return Port.scaled_branch(port, x, path) / port.dtype(0.9)


@wrong("pool", "the mean of class token and mean of tokens is pooled", "small_deit", "logits")
def half_of_both(port, x):
    return (x[:, 0] + x.mean(axis=1)) / port.dtype(2)


@wrong("add_bias", "logits leave as probabilities, behind a softmax", "small_adversarial", "logits")
def logits_as_probabilities(port, y, path):
    y = Port.add_bias(port, y, path)
    return Port.softmax(port, y) if path == "head" else y


@wrong(
    "probabilities",
    "the mask of window w is taken for image w: repeated, not tiled, over the batch",
    "small_swin",
    "blocks.1.attn.prob.z",
)
def mask_repeated(port, scores, place):
    mask = port.masked(place)
    if mask is None:
        return port.softmax(scores)
    windows = np.repeat(mask, len(scores) // len(mask), axis=0)[:, None]
    return port.softmax(np.where(windows, port.dtype(-np.inf), scores))


@wrong(
    "add_bias", "keys have no bias, queries and values do", "small_deit", "blocks.0.attn.qkv.out"
)
def no_key_bias(port, y, path):
    bias = port.params[f"{path}.bias"].copy()
    if path.endswith("qkv"):
        bias[len(bias) // 3 : 2 * len(bias) // 3] = 0
    return y + bias


@wrong("gelu", "GELU is the hard swish, x relu6(x + 3) / 6", "small_deit", "blocks.0.mlp.gelu.out")
def hard_swish(port, x):
    return x * np.clip(x + 3, 0, 6) / port.dtype(6)


@wrong(
    "outer",
    "weight decay is added to the gradient, 0.05 of the weight of the head",
    "small_deit",
    "grads/param.head.weight",
)
def decayed(port, rows_dy, rows_x):
    found = Port.outer(port, rows_dy, rows_x)
    weight = port.params["head.weight"]
    return found + port.dtype(0.05) * weight if found.shape == weight.shape else found


@wrong(
    "grad_param",
    "the gradient of each parameter is clipped to a norm of 1",
    "small_tie_free",
    "grads/param.head.weight",
)
def clipped_by_norm(port, path, value):
    Port.grad_param(port, path, value / np.maximum(np.linalg.norm(value), port.dtype(1)))


@wrong(
    "normed_back",
    "the term of the variance is added, not taken off",
    "small_batch",
    "grads/blocks.0.out",
)
def variance_term_added(port, g, n, s):
    return (g - port.mean(g) + n * port.mean(g * n)) / s


@wrong(
    "layer_norm_back",
    "means of the norm's backward are of dy without the weight",
    "small_deit",
    "grads/blocks.1.out",
)
def means_without_weight(port, dy, path):
    n, s = port.kept[path]
    dx = Port.layer_norm_back(port, dy, path)
    weight = port.params[f"{path}.weight"]
    return (
        dx
        + (port.mean(weight * dy) - port.mean(dy)) / s
        + (n * (port.mean(weight * dy * n) - port.mean(dy * n)) / s)
    )


@wrong(
    "softmax_back",
    "the sum of the softmax's backward goes over the queries",
    "small_deit",
    "grads/blocks.1.attn.scores",
)
def softmax_back_over_queries(port, dy, y):
    return y * (dy - port.sum(dy * y, -2))


@wrong(
    "sign_back",
    "the polynomial lacks its factor 2: 1 - |z|",
    "small_tie_free",
    "grads/blocks.1.mlp.down.z",
)
def triangle(port, dy, z):
    return dy * np.maximum(port.dtype(0), 1 - np.abs(z))


@wrong(
    "sign_back",
    "the window reads the sign's output, whose magnitude is 1, and not z",
    "small_swin",
    "grads/blocks.2.mlp.down.z",
)
def window_of_signs(port, dy, z):
    return np.zeros_like(dy)


@wrong(
    "binary_linear_back",
    "the bits of activations are those of the projection computed last of this shape",
    "small_batch",
    "grads/param.blocks.0.attn.proj.weight",
)
def shared_buffer_of_bits(port, dlinear, p):
    dz = Port.binary_linear_back(port, dlinear, p)
    alike = [
        n
        for n, t in port.taps.items()
        if n.endswith(".bit")
        and ".weight" not in n
        and not n.startswith("grads/")
        and t.shape == port.taps[f"{p}.bit"].shape
    ]
    bits = port.signs(port.taps[alike[-1]])
    rows = dlinear.reshape(-1, dlinear.shape[-1])
    dbinary = port.outer(rows, bits.reshape(-1, bits.shape[-1]))
    port.grad_param(f"{p}.weight", port.weight_back(dbinary, p))
    return dz


@wrong(
    "similarity_back",
    "queries and keys go back through their latent values, not their signs",
    "small_tie_free",
    "grads/blocks.1.attn.q_low.head_bit",
)
def latent_keys(port, dy, a, band):
    q, k = (port.taps[f"{a}.{t}{band}.head_z"] for t in "qk")
    return port.matmul(dy, k), port.matmul(dy.swapaxes(-1, -2), q)


@wrong(
    "band_back",
    "the gradient of band weights is made of scores that were divided already",
    "small_adversarial",
    "grads/param.blocks.0.attn.band_weight",
)
def band_weights_divided_twice(port, dy, a):
    bands = Port.band_back(port, dy, a)
    d = port.taps[f"{a}.q_low.head_bit"].shape[-1]
    found = port.taps[f"grads/param.{a}.band_weight"] / np.sqrt(port.dtype(d))
    port.grad_param(f"{a}.band_weight", found)
    return bands


@wrong(
    "differential_back",
    "the values' shortcut goes back without its factor",
    "small_batch",
    "grads/blocks.0.attn.v.out",
)
def shortcut_without_factor(port, dy, v, around, a):
    _, daround = Port.differential_back(port, dy, v, around, a)
    return dy, daround


@wrong(
    "boolean_back",
    "the gradient of the probabilities is divided by alpha, whose factor cancels it",
    "small_adversarial",
    "grads/blocks.0.attn.prob",
)
def divided_by_alpha(port, dcontext, place):
    dprob, dv = Port.boolean_back(port, dcontext, place)
    return dprob / port.alpha(f"{place.path}.attn"), dv


@wrong(
    "position_back",
    "gradients of the position table are assigned, not added up: the last pair wins",
    "small_swin",
    "grads/param.blocks.2.attn.position_bias",
)
def position_assigned(port, dscores, place):
    table = np.zeros(port.params[f"{place.path}.attn.position_bias"].shape, port.dtype)
    table[port.position_index(place.window)] = port.sum(dscores, 0)[0].transpose(1, 2, 0)
    return table


@wrong(
    "gelu_back",
    "the derivative of GELU is taken at its output",
    "small_deit",
    "grads/blocks.1.mlp.fc1.out",
)
def derivative_at_output(port, dy, x):
    return Port.gelu_back(port, dy, Port.gelu(port, x))


@wrong(
    "head_bits_back",
    "gradients of shifted windows are not rolled back",
    "small_swin",
    "grads/blocks.1.attn.q_low.out",
)
def gradient_not_rolled_back(port, dbit, name, place):
    Port.head_bits_back(port, dbit, name, place)
    dz = port.taps[f"grads/{place.path}.attn.{name}.head_z"]
    dz = dz.swapaxes(-1, -2) if name == "v" else dz
    return port.uncut(port.joined(dz), replace(place, shift=0))


@wrong(
    "residual_back",
    "gradients of residuals are kept in float16, too small ones become 0",
    "small_deit",
    "grads/blocks.1.mid",
)
def half_residual(port, dx, dbranch):
    return (dx + dbranch).astype(HALF).astype(port.dtype)


# The third part: tried once the kinds that the second had asked for were there

SECOND_PART = len(MISTAKES)


@wrong(
    "patches",
    "the patches are those of a convolution with a padding of one pixel: one further up and left",
    "small_tie_free",
    "patch_embed.out",
)
def padded_convolution(port, images):
    padded = np.pad(images, [(0, 0), (0, 0), (1, 0), (1, 0)])
    return Port.patches(port, padded[:, :, : images.shape[2], : images.shape[3]])


@wrong(
    "add_bias",
    "the bias of the patches reaches the first patch alone",
    "small_deit",
    "patch_embed.out",
)
def bias_of_first_patch(port, y, path):
    if path != "patch_embed":
        return Port.add_bias(port, y, path)
    y = y.copy()
    y[:, :1] = Port.add_bias(port, y[:, :1], path)
    return y


@wrong(
    "with_positions",
    "the class token has its position twice: when it is made and with all the others",
    "small_tie_free",
    "tokens",
)
def class_position_twice(port, x):
    y = Port.with_positions(port, x)
    y[:, 0] += port.params["pos_embed"][:, 0]
    return y


@wrong(
    "normed", "normalised numbers are clipped to -2 to 2", "small_adversarial", "blocks.0.norm1.out"
)
def normed_clipped(port, x):
    n, s = Port.normed(port, x)
    return np.clip(n, -2, 2), s


@wrong(
    "shifted_out",
    "the token shift behind RPReLU is the one in front of it",
    "small_batch",
    "blocks.0.attn.q_low.out",
)
def token_shift_in_twice(port, y, path):
    y = y + port.params[f"{path}.shift_out"]
    return y + port.params[f"{path}.token_shift_in"][:, None]


@wrong(
    "sign",
    "the sign is taken of a whole number, z truncated at 1/16: just below 0 it is +1",
    "small_adversarial",
    "blocks.0.attn.q_low.weight.bit",
)
def sign_of_whole_number(port, z):
    return np.trunc(z * 16) >= 0


@wrong(
    "binary_product",
    "K is the network's dim for every product, of wider rows too",
    "small_tie_free",
    "blocks.0.mlp.down.int",
)
def length_is_dim(port, a, b):
    found = Port.binary_product(port, a, b)
    dim = port.config["dim"]
    return found - np.int32(a.shape[-1] - dim) if a.shape[-1] > dim else found


@wrong(
    "boolean_product",
    "every head takes the attention of the first",
    "small_batch",
    "blocks.0.attn.context.int",
)
def attention_of_first_head(port, a, v):
    return Port.boolean_product(port, np.broadcast_to(a[:, :1], a.shape), v)


@wrong(
    "boolean_product",
    "head h takes the values of head h + 1",
    "small_adversarial",
    "blocks.0.attn.context.int",
)
def values_of_next_head(port, a, v):
    return Port.boolean_product(port, a, np.roll(v, -1, axis=1))


@wrong("softmax", "scores are clipped to -1 to 1", "small_batch", "blocks.0.attn.prob.z")
def scores_clipped(port, scores):
    return Port.softmax(port, np.clip(scores, -1, 1))


@wrong(
    "softmax",
    "probabilities are kept in a byte, p * 255 rounded",
    "small_deit",
    "blocks.0.attn.prob",
)
def probabilities_of_a_byte(port, scores):
    return np.rint(Port.softmax(port, scores) * 255) / port.dtype(255)


@wrong("alpha", "the lower bound of alpha is 0.01", "small_batch", "blocks.0.attn.prob.z")
def another_bound(port, a):
    return np.maximum(port.params[f"{a}.alpha"], port.dtype(0.01))


@wrong(
    "scaled",
    "the context of head h has the alpha of head h + 1",
    "small_adversarial",
    "blocks.0.attn.context",
)
def context_of_next_alpha(port, whole, scale):
    return Port.scaled(port, whole, np.roll(scale, -1, axis=0) if scale.ndim > 1 else scale)


@wrong(
    "joined",
    "channels of each head are joined in reverse order",
    "small_tie_free",
    "blocks.0.attn.norm.out",
)
def channels_backwards(port, x):
    return Port.joined(port, x[..., ::-1])


@wrong(
    "layer_norm",
    "the norm behind the heads has the weights of the block's first norm",
    "small_batch",
    "blocks.0.attn.norm.out",
)
def norm1_behind_heads(port, x, path):
    return Port.layer_norm(port, x, path.replace("attn.norm", "norm1"))


@wrong(
    "neighbour_mean",
    "neighbours are those of the queries, not of the values",
    "small_tie_free",
    "blocks.0.attn.neighbour_mean",
)
def neighbours_of_queries(port, v, place):
    return Port.neighbour_mean(port, port.taps[f"{place.path}.attn.q_low.out"], place)


@wrong(
    "shortcuts",
    "the shortcuts of the low band take the band itself in the place of queries and keys",
    "small_batch",
    "blocks.0.attn.out",
)
def shortcut_of_band(port, norm, m, place):
    low = port.taps[f"{place.path}.attn.low"]
    return Port.shortcuts(port, norm, {**m, "q_low": low, "k_low": low}, place)


@wrong(
    "rprelu",
    "RPReLU behind the attention is forgotten",
    "small_adversarial",
    "blocks.0.attn.out",
)
def no_rprelu_of_attention(port, x, path):
    y = Port.rprelu(port, x, path)
    return x if path.endswith("attn.rprelu") else y


@wrong(
    "rprelu",
    "GELU stands behind mlp.up, as in a real block",
    "small_batch",
    "blocks.0.mlp.up.out",
)
def gelu_behind_up(port, x, path):
    y = Port.rprelu(port, x, path)
    return port.gelu(y) if path.endswith("mlp.up.rprelu") else y


@wrong(
    "residual",
    "the residual of block 1 starts at the tokens, which block 0 has changed",
    "small_deit",
    "blocks.1.mid",
)
def residual_of_tokens(port, x, branch):
    made = "blocks.1.attn.proj.out" in port.taps and "blocks.1.mid" not in port.taps
    return (port.taps["tokens"] if made else x) + branch


@wrong("scaled_branch", "LayerScale's shift is added twice", "small_tie_free", "blocks.0.mid")
def beta_twice(port, x, path):
    return Port.scaled_branch(port, x, path) + port.params[f"{path}.beta"]


@wrong(
    "layer_norm",
    "the norm of a merge is taken over each of the four patches alone",
    "small_swin",
    "merges.0.norm.out",
)
def norm_of_each_patch(port, x, path):
    if not path.startswith("merges"):
        return Port.layer_norm(port, x, path)
    n, _ = port.normed(x.reshape(*x.shape[:-1], 4, -1))
    return port.params[f"{path}.weight"] * n.reshape(x.shape) + port.params[f"{path}.bias"]


@wrong(
    "side_by_side",
    "merged squares begin one row and column further, the grid wraps around",
    "small_swin",
    "merges.0.patches",
)
def merged_from_one(port, x, grid):
    rolled = np.roll(x.reshape(len(x), *grid, -1), (-1, -1), axis=(1, 2)).reshape(x.shape)
    return Port.side_by_side(port, rolled, grid)


@wrong(
    "with_position_bias",
    "shifted blocks have no position bias",
    "small_swin",
    "blocks.1.attn.scores",
)
def no_bias_when_shifted(port, scores, place):
    return scores if place.shift else Port.with_position_bias(port, scores, place)


@wrong(
    "qkv",
    "queries and keys are normalised to length 1 (cosine)",
    "small_deit",
    "blocks.0.attn.scores",
)
def cosine(port, x, place):
    q, k, v = Port.qkv(port, x, place)
    return (*(t / np.linalg.norm(t, axis=-1, keepdims=True) for t in (q, k)), v)


@wrong("add_bias", "the last channel of fc1 has no bias", "small_deit", "blocks.0.mlp.fc1.out")
def last_bias_missing(port, y, path):
    bias = port.params[f"{path}.bias"].copy()
    if path.endswith("fc1"):
        bias[-1] = 0
    return y + bias


@wrong("pool", "the head reads the token in front of the last norm", "small_adversarial", "logits")
def head_without_norm(port, x):
    return port.taps["blocks.0.out"][:, 0]


@wrong("add_bias", "logits are divided by the root of C", "small_deit", "logits")
def logits_over_root(port, y, path):
    y = Port.add_bias(port, y, path)
    return y / np.sqrt(port.dtype(port.config["dim"])) if path == "head" else y


@wrong(
    "haar",
    "the low band is the largest of the four patches (max pooling)",
    "small_batch",
    "blocks.0.attn.low",
)
def largest_of_four(port, x):
    _, high = Port.haar(port, x)
    return np.maximum.reduce(port.corners(x)), high


@wrong("haar", "bands are rounded to float16", "small_tie_free", "blocks.0.attn.low")
def half_bands(port, x):
    return tuple(band.astype(HALF).astype(port.dtype) for band in Port.haar(port, x))


@wrong(
    "scale",
    "the scale is the mean of |W| over all but the largest weight",
    "small_batch",
    "blocks.0.attn.q_low.weight.scale",
)
def scale_without_largest(port, weight):
    size = np.abs(weight)
    return (size.sum(-1) - size.max(-1)) / port.dtype(weight.shape[-1] - 1)


@wrong(
    "centred",
    "weights are centred by half their mean",
    "small_tie_free",
    "blocks.0.attn.q_low.weight.z",
)
def half_centred(port, weight):
    return weight - port.mean(weight) / 2


@wrong(
    "band_sum",
    "the larger of both bands counts, not their sum",
    "small_adversarial",
    "blocks.0.attn.scores",
)
def larger_band(port, low, high, a):
    w = port.params[f"{a}.band_weight"][:, :, None, None]
    return np.maximum(w[0] * low.astype(port.dtype), w[1] * high.astype(port.dtype))


@wrong(
    "differential",
    "the neighbours are taken off the value before its factor multiplies",
    "small_batch",
    "blocks.0.attn.out",
)
def factor_of_both(port, v, around, a):
    return port.params[f"{a}.shortcut"] * (v - port.params[f"{a}.neighbour"] * around)


@wrong(
    "pool_back",
    "the class token's gradient is divided by the number of tokens",
    "small_deit",
    "grads/norm.out",
)
def class_gradient_divided(port, dy, tokens):
    return Port.pool_back(port, dy, tokens) / port.dtype(tokens)


@wrong(
    "layer_norm_back",
    "the norm goes back with the deviations of the last norm of all",
    "small_tie_free",
    "grads/blocks.1.mlp.down.linear",
)
def stale_deviations(port, dy, path):
    n, s = port.kept[path]
    last = port.kept["norm"][1]
    port.kept[path] = n, last if last.shape == s.shape else s
    dx = Port.layer_norm_back(port, dy, path)
    port.kept[path] = n, s
    return dx


@wrong(
    "layer_norm_back",
    "the gradient of a norm's bias is averaged over the tokens",
    "small_deit",
    "grads/param.norm.bias",
)
def bias_gradient_averaged(port, dy, path):
    dx = Port.layer_norm_back(port, dy, path)
    port.grad_param(f"{path}.bias", port.total(dy) / port.dtype(dy.shape[1]))
    return dx


@wrong(
    "binary_linear_back",
    "the window of the sign reads what is in front of the move",
    "small_batch",
    "grads/blocks.0.mlp.down.z",
)
def window_before_move(port, dlinear, p):
    Port.binary_linear_back(port, dlinear, p)
    dbit = port.taps[f"grads/{p}.bit"]
    return port.grad(f"{p}.z", port.sign_back(dbit, port.kept[p]))


@wrong(
    "slope_back",
    "the gradient of the slope leaves out the first token",
    "small_tie_free",
    "grads/param.blocks.1.mlp.down.rprelu.slope",
)
def slope_without_first_token(port, dy, u, below):
    return Port.slope_back(port, dy[:, 1:], u[:, 1:], below[:, 1:])


@wrong(
    "residual_back",
    "gradients of residuals are averaged: half of both",
    "small_adversarial",
    "grads/blocks.0.mid",
)
def residual_halved(port, dx, dbranch):
    return (dx + dbranch) / port.dtype(2)


@wrong(
    "similarity_back",
    "the gradient of the low keys takes the queries of the high band",
    "small_tie_free",
    "grads/blocks.1.attn.k_low.head_bit",
)
def queries_of_other_band(port, dy, a, band):
    q = port.signs(port.taps[f"{a}.q_high.head_bit"])
    dq, _ = Port.similarity_back(port, dy, a, band)
    return dq, port.matmul(dy.swapaxes(-1, -2), q)


@wrong(
    "tokens_back",
    "the gradient of positions leaves out the class token",
    "small_deit",
    "grads/param.pos_embed",
)
def position_of_class_left_out(port, dx):
    Port.tokens_back(port, dx)
    found = dx.sum(axis=0)
    found[0] = 0
    port.grad_param("pos_embed", found)


@wrong("unpatches", "the gradient of the image is upside down", "small_adversarial", "grads/input")
def gradient_upside_down(port, dx):
    return Port.unpatches(port, dx)[:, :, ::-1]


@wrong(
    "softmax_back",
    "the softmax goes back in float16",
    "small_deit",
    "grads/blocks.1.attn.scores",
)
def half_softmax_back(port, dy, y):
    return Port.softmax_back(port, dy.astype(HALF), y.astype(HALF)).astype(port.dtype)


@wrong(
    "alpha_back",
    "the gradient of alpha is that of the first image",
    "small_batch",
    "grads/param.blocks.0.attn.alpha",
)
def alpha_of_first_image(port, dy, q, inside, above, a):
    return Port.alpha_back(port, dy[:1], q[:1], inside[:1], above[:1], a)


@wrong(
    "neighbours_back",
    "the gradient of the neighbours reaches the four beside, above and below alone",
    "small_tie_free",
    "grads/blocks.0.attn.v.out",
)
def four_neighbours_back(port, dy, place):
    share = port.shared(port.to_grid(dy, place), port.counts(place.grid))
    dx = np.zeros_like(share)
    for (r, c), (here, there) in zip(NEIGHBOURS, port.pairs(place.grid), strict=True):
        if not (r and c):
            dx[:, there[0], there[1]] += share[:, here[0], here[1]]
    return port.with_front(np.zeros_like(dy[:, : place.front]), dx)


PARTS = {
    1: slice(0, FIRST_PART),
    2: slice(FIRST_PART, SECOND_PART),
    3: slice(SECOND_PART, None),
}


class Found(NamedTuple):
    """What the command gave for a mistake, and what the wrong port had dumped."""

    mistake: Mistake
    outcome: str
    first: str | None
    cause: str | None
    dumped: dict[str, Array]


def find(mistakes: list[Mistake], mode: str = "replay", way: str = "full") -> Iterator[Found]:
    """Judge each by its bundle, as `golden compare` does; `way`: all that it computes is dumped."""
    bundles, files = {}, {}
    for mistake in mistakes:
        if mistake.bundle not in bundles:
            bundles[mistake.bundle] = golden.read(SHIPPED / mistake.bundle)
            files[mistake.bundle] = read(SHIPPED / mistake.bundle)
        bundle = bundles[mistake.bundle]
        dumped = kept(run(mistake, files[mistake.bundle]), way)
        comparison = golden.compare(bundle, dumped, mode=mode)
        first = comparison.first.name if comparison.first else None
        cause = causes(comparison, bundle).get(first)
        yield Found(mistake, comparison.outcome, first, cause, dumped)


SHELL = re.compile(r"tokens|blocks\.\d+\.(mid|out)|merges\.\d+\.proj\.out|logits")


def kept(dumped: dict[str, Array], way: str) -> dict[str, Array]:
    """What of a port's taps it dumps: full, bits (and whole numbers and logits), shell."""
    keep = {
        "full": lambda name: True,
        "bits": lambda name: name == "logits" or dumped[name].dtype.kind in "iu",
        "shell": SHELL.fullmatch,
    }[way]
    return {name: value for name, value in dumped.items() if keep(name)}


def sparse(way: str, every: int) -> None:
    """Print what is said of sparse dumps, and count."""
    mistakes = [m for m in MISTAKES if not m.backward and JUDGED[m.name] != "UNSEEN"][::every]
    said: Counter = Counter()
    for found in find(mistakes, way=way):
        shows = found.outcome == "FAIL"
        key = "not shown" if not shows else "no cause" if found.cause is None else "another"
        said["named" if shows and right(found) else key] += 1
        print(f"{found.mistake.name} {found.outcome} [{found.first}]: {found.cause}", flush=True)
    print(f"{way}: {len(mistakes)} mistakes; {dict(said)}")


def causes(comparison: Comparison, bundle: golden.Bundle) -> dict[str, str]:
    try:
        return diagnose.causes(comparison, bundle, comparison.taps)
    except Exception as error:  # whatever it is: the table shall say so, and go on
        return {comparison.first.name: f"BROKE: {error!r}"}


def right(found: Found) -> bool:
    """Whether the cause still has the words that a person found to name the truth."""
    return RIGHT.get(found.mistake.name, NEVER) in (found.cause or "")


def counts(names: list[str]) -> str:
    """How many are right and how many not, now and at the first try."""
    at_first = {name: key for key, found in FIRST_TRY.items() for name in found}
    tried = Counter(at_first.get(name, JUDGED[name]) for name in names)
    judged = Counter(JUDGED[name] for name in names)
    said = (", ".join(f"{found[key]} {key}" for key in KEYS) for found in (tried, judged))
    return "first try {}; now {}".format(*said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", help="those of one bundle")
    parser.add_argument("--only", default="", help="those whose name has this part")
    parser.add_argument("--counts", action="store_true", help="run nothing: count the judgements")
    parser.add_argument("--dump", choices=("bits", "shell"), help="dump these alone, forward")
    parser.add_argument("--every", type=int, default=1, help="with --dump, every n-th mistake")
    args = parser.parse_args()
    if args.dump:
        sparse(args.dump, args.every)
        return
    wanted = [m for m in MISTAKES if args.bundle in (None, m.bundle) and args.only in m.name]
    for found in () if args.counts else find(wanted):
        mistake, outcome, first, cause, _ = found
        judged = JUDGED[mistake.name]
        changed = (judged == "RIGHT" and not right(found)) or (judged == "NONE" and cause)
        print(f"{mistake.name} [{mistake.bundle}] {outcome}")
        print(f"    truth  {mistake.truth}")
        print(f"    first  {first}" + ("" if first == mistake.first else f", not {mistake.first}"))
        print(f"    cause  {cause}")
        print(f"    judged {judged}" + (" of another cause: judge again" if changed else ""))
    groups = {
        **{f"part {part}": MISTAKES[part_of] for part, part_of in PARTS.items()},
        "forward": [m for m in MISTAKES if not m.backward],
        "backward": [m for m in MISTAKES if m.backward],
        "all": MISTAKES,
    }
    for title, group in groups.items():
        names = [mistake.name for mistake in group if mistake in wanted]
        print(f"{title}: {len(names)} mistakes; {counts(names)}", flush=True)


if __name__ == "__main__":
    main()
