"""What is compared: the packed products, their roofline, and the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from refimpl.bench.measure import OURS, Contender, timed
from refimpl.bench.work import Network, Product
from refimpl.kernels import bits, popcount
from refimpl.kernels.compile import jit
from refimpl.kernels.vector import LANES

ROOFLINE_WORDS = 100_000  # some 50 microseconds


def products(work: Product, threads: int) -> Iterator[Contender]:
    """The kernel on packed operands, from float rows to the product, and what bounds both.

    One thread, whatever the others have: the engine's threads share out images, not products.
    """
    a, w = _pack_a(work), bits.pack(work.b)
    kernel, *arguments = _kernel(work, a, w)

    def run(calls: int) -> float:
        # counted in compiled code: a call from Python costs as much as a small product
        return timed(lambda: kernel(*arguments, calls))(1)

    def answer() -> np.ndarray:
        kernel(*arguments, 1)
        out = arguments[-1].reshape(*work.a.shape[:-1], -1)
        return out[..., : work.b.shape[-2]]

    def from_floats() -> np.ndarray:
        return _product(work, _pack_a(work), w)

    yield Contender(OURS, run, answer, work.macs, threads=1)
    yield Contender(f"{OURS} with packing", timed(from_floats), from_floats, work.macs, threads=1)
    yield Contender("popcount roofline", _roofline_timer(work), None, work.macs, threads=1)


def _pack_a(work: Product) -> bits.Packed:
    return bits.pack(work.a, above=0.5 if work.boolean else None)


def _product(work: Product, a: bits.Packed, w: bits.Packed) -> np.ndarray:
    return bits.boolean_product(a, w) if work.boolean else bits.binary_product(a, w)


def _kernel(work: Product, a: bits.Packed, w: bits.Packed) -> tuple:
    """A compiled function and its arguments up to the number of calls; the last is the result."""
    a_words, w_words = (p.words.reshape(-1, *p.words.shape[-3:]) for p in (a, w))
    out = np.empty((len(a_words), a.rows, w_words.shape[1] * LANES), np.int32)
    if work.boolean:
        return _boolean_calls, popcount.path(), a_words, w_words, out
    return _binary_calls, popcount.path(), a_words, w_words, a.length, out


@jit
def _binary_calls(path, a, w, length, out, calls):
    for _ in range(calls):
        popcount.binary_rows(path, a, w, length, out)


@jit
def _boolean_calls(path, a, v, out, calls):
    for _ in range(calls):
        popcount.boolean_rows(path, a, v, out)


def _roofline_timer(work: Product) -> Callable[[int], float]:
    """How long the multiply-adds of a product take where nothing is loaded or stored."""
    path = popcount.path()
    macs = ROOFLINE_WORDS * path.sums * LANES * popcount.WORD

    def run(calls: int) -> float:
        repeats = max(1, round(calls * work.macs / macs))
        seconds = timed(lambda: popcount.run_roofline(path, ROOFLINE_WORDS, np.int32(1)))(repeats)
        return calls * work.macs / (repeats * macs) * seconds

    return run


def networks(work: Network, threads: int) -> Iterator[Contender]:
    """The engine."""
    from refimpl import engine

    compiled = engine.compile(work.model, work.params, threads=threads)

    def logits() -> np.ndarray:
        return compiled(work.images)

    yield Contender(OURS, timed(logits), logits, work.macs, threads)
