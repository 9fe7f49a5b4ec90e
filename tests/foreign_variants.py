"""Right ports of many kinds: sums in other orders, wider types, other formulas that 8.2 allows.

    python -m tests.foreign_variants [--bundle NAME]       # each with every bundle: PASS, no cause

Each is `foreign_port.Port` with methods replaced by ones that are as right; all are run in
float32 and, where the formula is what differs, in float64 too.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refimpl import golden
from refimpl.golden import diagnose
from tests.foreign_mistakes import SHIPPED
from tests.foreign_port import Array, Files, Port, packed, read

BUNDLES = (
    "small_tie_free",
    "small_adversarial",
    "small_batch",
    "small_wide",
    "small_swin",
    "small_deit",
)


class Variant(NamedTuple):
    """Methods that take the place of the port's, the type of its floats, how it writes a tap."""

    name: str
    methods: Mapping[str, Callable]
    dtype: type = np.float32
    written: Callable[[Array], Array] | None = None


def run(variant: Variant, files: Files) -> dict[str, Array]:
    port = type(variant.name, (Port,), dict(variant.methods))(files, variant.dtype).run()
    if variant.written is None:
        return port.dump()
    return {name: variant.written(value) for name, value in port.taps.items()}


# Orders of a sum over the last axis


def one_by_one(terms: Array) -> Array:
    return np.add.accumulate(terms, axis=-1)[..., -1]


def from_behind(terms: Array) -> Array:
    return one_by_one(terms[..., ::-1])


def lanes(width: int) -> Callable:
    """As a vector unit: lane by lane, then the lanes."""

    def order(terms: Array) -> Array:
        tail = -terms.shape[-1] % width
        padded = np.pad(terms, [(0, 0)] * (terms.ndim - 1) + [(0, tail)])
        by_lane = padded.reshape(*terms.shape[:-1], -1, width)
        return one_by_one(np.add.accumulate(by_lane, axis=-2)[..., -1, :])

    return order


def tree(terms: Array) -> Array:
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = np.concatenate([terms, np.zeros_like(terms[..., :1])], axis=-1)
        terms = terms[..., ::2] + terms[..., 1::2]
    return terms[..., 0]


def wide(terms: Array) -> Array:
    return terms.sum(axis=-1, dtype=np.float64).astype(terms.dtype)


def compensated(terms: Array) -> Array:
    total, lost = np.zeros_like(terms[..., 0]), np.zeros_like(terms[..., 0])
    for k in range(terms.shape[-1]):
        y = terms[..., k] - lost
        t = total + y
        lost = (t - total) - y
        total = t
    return total


def shuffled(terms: Array) -> Array:
    return one_by_one(terms[..., np.random.default_rng(5).permutation(terms.shape[-1])])


def largest_first(terms: Array) -> Array:
    return one_by_one(np.take_along_axis(terms, np.argsort(-np.abs(terms), axis=-1), axis=-1))


ORDERS = (
    one_by_one,
    from_behind,
    lanes(4),
    lanes(8),
    lanes(32),
    tree,
    wide,
    compensated,
    shuffled,
    largest_first,
)


def sum_by(order: Callable) -> Callable:
    def total(port, x, axis=-1):
        axes = (axis,) if isinstance(axis, int) else axis
        last = np.moveaxis(x, axes, range(-len(axes), 0))
        found = order(last.reshape(*last.shape[: x.ndim - len(axes)], -1))
        return np.expand_dims(found, axes)

    return total


def matmul_by(order: Callable) -> Callable:
    def product(port, a, b):
        return order(a[..., :, None, :] * b.swapaxes(-1, -2)[..., None, :, :])

    return product


def matmul_fused(port, a, b):
    """One fused multiply-add a term: the product is not rounded."""
    total = np.zeros(np.broadcast_shapes(a[..., :1].shape, b[..., :1, :].shape), port.dtype)
    for k in range(a.shape[-1]):
        product = a[..., k, None].astype(np.float64) * b[..., k, None, :]
        total = (product + total).astype(port.dtype)
    return total


def matmul_wide(port, a, b):
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(port.dtype)


def matmul_in_blocks(port, a, b):
    size = a.shape[-1]
    cuts = range(0, size, 8)
    return sum(a[..., k : k + 8] @ b[..., k : k + 8, :] for k in cuts)


# Formulas

FORMULAS: dict[str, tuple[str, Callable]] = {}  # by name: the method, and what takes its place


def instead_of(method: str) -> Callable:
    def declare(function: Callable) -> Callable:
        FORMULAS[function.__name__] = method, function
        return function

    return declare


@instead_of("haar")
def high_as_difference(port, x):
    low, _ = Port.haar(port, x)
    return low, x - low


@instead_of("haar")
def columns_first(port, x):
    x00, x01, x10, x11 = port.corners(x)
    quarter = port.dtype(0.25)
    left, right, down, up = x00 + x10, x01 + x11, x00 - x10, x01 - x11
    low = (left + right) * quarter
    return low, (down + up) * quarter + ((left - right) * quarter + (down - up) * quarter)


@instead_of("haar")
def quarters_first(port, x):
    x00, x01, x10, x11 = (t * port.dtype(0.25) for t in port.corners(x))
    low = (x00 + x01) + (x10 + x11)
    rows, columns = (x00 + x01) - (x10 + x11), (x00 - x01) + (x10 - x11)
    return low, rows + (columns + ((x00 - x01) - (x10 - x11)))


@instead_of("divided")
def times_reciprocal_root(port, scores, d):
    return scores * port.dtype(1 / math.sqrt(d))


@instead_of("softmax")
def softmax_times_reciprocal(port, scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e * (1 / port.sum(e))


@instead_of("softmax")
def softmax_of_two(port, scores):
    x = scores - scores.max(axis=-1, keepdims=True)
    e = np.exp2(x * port.dtype(math.log2(math.e)))
    return e / port.sum(e)


@instead_of("softmax")
def softmax_in_double(port, scores):
    return Port.softmax(port, scores.astype(np.float64)).astype(port.dtype)


@instead_of("normed")
def normed_times_reciprocal(port, x):
    d = x - port.mean(x)
    s = port.deviation(d)
    return d * (1 / s), s


@instead_of("normed")
def normed_of_level(port, x):
    """The variance in one pass, of differences to the mean of the first channels [6.3]."""
    level = port.mean(x[..., :16])
    d = x - level
    size = port.dtype(x.shape[-1])
    total, squares = port.sum(d), port.sum(d * d)
    variance = (squares - total * total / size) / size
    mean = level + total / size
    s = np.sqrt(variance + port.dtype(port.config["norm_eps"]))
    return (x - mean) / s, s


@instead_of("mean")
def mean_times_reciprocal(port, x):
    return port.sum(x) * port.dtype(1 / x.shape[-1])


@instead_of("over_alpha")
def times_reciprocal_alpha(port, prob, a):
    return prob * (1 / port.alpha(a))


@instead_of("shifted_in")
def both_shifts_at_once(port, x, path):
    shift = port.params[f"{path}.shift_in"]
    if f"{path}.token_shift_in" in port.params:
        shift = shift + port.params[f"{path}.token_shift_in"][:, None]
    return x - shift


@instead_of("bent")
def both_halves(port, u, slope):
    return np.maximum(u, 0) + slope * np.minimum(u, 0)


@instead_of("shortcuts")
def shortcuts_first(port, norm, m, place):
    nothing = Port.shortcuts(port, np.zeros_like(norm), m, place)
    return norm + nothing


@instead_of("shared")
def times_reciprocal_count(port, total, count):
    return total * (1 / count)


@instead_of("pairs")
def neighbours_from_behind(port, grid):
    return Port.pairs(port, grid)[::-1]


@instead_of("weights")
def weights_of_the_file(port, p):
    """What most ports do: bits and scale as the file has them; Wc is still there to be shown."""
    weight = port.tap(f"{p}.weight.z", port.centred(port.latent(p)))
    bits = np.unpackbits(port.params[f"{p}.bits"], axis=-1, bitorder="little")
    bits = port.tap(f"{p}.weight.bit", bits[:, : weight.shape[-1]].astype(bool))
    return bits, port.tap(f"{p}.weight.scale", port.params[f"{p}.scale"])


@instead_of("binary_product")
def product_of_floats(port, a, b):
    return (port.signs(a) @ port.signs(b).swapaxes(-1, -2)).astype(np.int32)


@instead_of("binary_product")
def product_of_agreements(port, a, b):
    size = a.shape[-1]
    ones = packed(np.ones(size, bool))
    agree = ~(packed(a)[..., :, None, :] ^ packed(b)[..., None, :, :]) & ones
    return 2 * port.popcount(agree) - np.int32(size)


@instead_of("boolean_product")
def boolean_of_floats(port, a, v):
    return (a.astype(port.dtype) @ port.signs(v).swapaxes(-1, -2)).astype(np.int32)


@instead_of("boolean_product")
def boolean_of_both_counts(port, a, v):
    """Ones that meet +1, less ones that meet -1."""
    ones, values = packed(a)[..., :, None, :], packed(v)[..., None, :, :]
    return port.popcount(ones & values) - port.popcount(ones & ~values)


@instead_of("words")
def words_highest_first(port, bits):
    """A private layout: big-endian words, the highest bit first."""
    tail = -bits.shape[-1] % 64
    padded = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, tail)])
    return np.packbits(np.ascontiguousarray(padded), axis=-1).view(">u8")


@instead_of("gaussian")
def gaussian_of_erfc(port, x):
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    return (erfc(-x.astype(np.float64) / math.sqrt(2)) / 2).astype(port.dtype)


@instead_of("gelu")
def half_times_one_plus(port, x):
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return port.dtype(0.5) * x * (1 + erf(x / port.dtype(math.sqrt(2))).astype(port.dtype))


@instead_of("normed_back")
def normed_back_at_once(port, g, n, s):
    size = port.dtype(g.shape[-1])
    return (size * g - port.sum(g) - n * port.sum(g * n)) / (size * s)


@instead_of("softmax_back")
def softmax_back_apart(port, dy, y):
    shares = y * dy
    return shares - y * port.sum(shares)


@instead_of("sign_back")
def window_doubled(port, dy, z):
    if port.config["ste"] == "clip":
        return np.where(np.abs(z) > 1, 0, dy).astype(port.dtype)
    return dy * (2 * np.maximum(port.dtype(0), 1 - np.abs(z)))


@instead_of("probabilities")
def masked_by_a_hundred(port, scores, place):
    """As Swin does it: masked keys have 100 less."""
    mask = port.masked(place) if place.window else None
    if mask is not None:
        windows = np.tile(mask, (len(scores) // len(mask), 1, 1))[:, None]
        scores = scores - port.dtype(100) * windows
    return port.softmax(scores)


# Ways to write a tap


def bits_unpacked(value: Array) -> Array:
    return value.astype(np.int64) if value.dtype == np.int32 else value


def bits_in_short_words(value: Array) -> Array:
    return packed(value).view("<u4") if value.dtype == bool else value


def variants() -> Iterator[Variant]:
    for number, order in enumerate(ORDERS):
        name = f"{order.__name__}_{number}"
        yield Variant(f"sum_{name}", {"sum": sum_by(order)})
        yield Variant(f"matmul_{name}", {"matmul": matmul_by(order)})
        both = {"sum": sum_by(order), "matmul": matmul_by(order)}
        yield Variant(f"double_{name}", both, np.float64)
    for product in (matmul_fused, matmul_wide, matmul_in_blocks):
        yield Variant(product.__name__, {"matmul": product})
    for name, (method, function) in FORMULAS.items():
        yield Variant(name, {method: function})
        yield Variant(f"{name}_in_double", {method: function}, np.float64)
    last = dict(FORMULAS.values())
    first = dict(reversed(FORMULAS.values()))
    yield Variant("many_formulas", last)
    yield Variant("many_others", first)
    yield Variant("many_formulas_from_behind", {**last, "sum": sum_by(from_behind)})
    for written in (bits_unpacked, bits_in_short_words):
        yield Variant(written.__name__, {}, np.float32, written)


VARIANTS = list(variants())


class Found(NamedTuple):
    """What the command gave for a right port: nothing but the outcome should be there."""

    variant: Variant
    bundle: str
    mode: str
    outcome: str
    first: str | None
    causes: Mapping[str, str]


def find(
    chosen: list[Variant], name: str, modes: Sequence[str] = ("free", "replay")
) -> Iterator[Found]:
    bundle, files = golden.read(SHIPPED / name), read(SHIPPED / name)
    for variant in chosen:
        dumped = run(variant, files)
        for mode in modes:
            comparison = golden.compare(bundle, dumped, mode=mode)
            causes = diagnose.causes(comparison, bundle, comparison.taps)
            first = comparison.first.name if comparison.first else None
            yield Found(variant, name, mode, comparison.outcome, first, causes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", help="this one alone")
    args = parser.parse_args()
    candidates = wrong = 0
    for bundle in [args.bundle] if args.bundle else BUNDLES:
        for found in find(VARIANTS, bundle):
            candidates += found.mode == "replay"
            if found.outcome != "PASS" or found.causes:
                wrong += 1
                print(*found[1:], found.variant.name, flush=True)
    print(f"{candidates} right candidates, {wrong} comparisons did not pass or gave a cause")


if __name__ == "__main__":
    main()
