"""What a port makes of right values that it writes wrongly: bits, places, one number for all.

Each function takes a Case and yields guesses: a cause in words, and the array a port with that
mistake would dump. Whether one explains the candidate is decided in `diagnose`. Mistakes of
operations are in `mistakes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models.packing import WORD, pack_rows


class Case(NamedTuple):
    """One tap that differs."""

    name: str
    kind: str  # "bit", "int" or "real"
    expected: np.ndarray  # bool, int64 or float64
    candidate: np.ndarray  # the same shape, as bool, int64 or float64
    packed: np.ndarray | None = None  # of a bit: the candidate's bytes, as they came
    z: np.ndarray | None = None  # of a bit: the value before the threshold
    threshold: float | None = None
    heads: int = 1
    grid: tuple[int, int] = (1, 1)
    axes: tuple[str, ...] = ()  # what they are
    tolerance: np.ndarray | None = None  # of a real: how far every element may be off


class Guess(NamedTuple):
    cause: str
    value: np.ndarray
    part: tuple[slice, ...] = ()  # of the candidate, where the value is only that of a part


# --- bits -----------------------------------------------------------------------------------------


def polarity(case: Case) -> Iterator[Guess]:
    """+1 stored as 0."""
    yield Guess("polarity inverted: bit 1 is +1 (of a boolean tensor: 1)", ~case.expected)


def layout(case: Case) -> Iterator[Guess]:
    """The right bits in wrong places of the packed rows."""
    for cause, change in LAYOUTS.items():
        yield Guess(
            f"{cause}: least significant bit first, rows padded to 64", change(case.expected)
        )


def _on_bytes(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A change of packed rows uint8 (..., bytes) as one of logical bits (..., K)."""

    def changed(bit: np.ndarray) -> np.ndarray:
        return unpack(change(pack_rows(bit)))[..., : bit.shape[-1]]

    return changed


def unpack(packed: np.ndarray) -> np.ndarray:
    """uint8 (..., bytes) -> bool (..., 8 * bytes), padding and all."""
    return np.unpackbits(packed, axis=-1, bitorder="little").astype(bool)


def _reverse_bits(width: int) -> Callable[[np.ndarray], np.ndarray]:
    def reverse(packed: np.ndarray) -> np.ndarray:
        words = unpack(packed).reshape(*packed.shape[:-1], -1, width)[..., ::-1]
        return np.packbits(words.reshape(*packed.shape[:-1], -1), axis=-1, bitorder="little")

    return reverse


def _swap(outer: int, inner: int) -> Callable[[np.ndarray], np.ndarray]:
    """Groups of `inner` bytes in reverse order inside groups of `outer` bytes."""

    def swap(packed: np.ndarray) -> np.ndarray:
        groups = packed.reshape(*packed.shape[:-1], -1, outer // inner, inner)
        return groups[..., ::-1, :].reshape(packed.shape)

    return swap


def _reverse_words(packed: np.ndarray) -> np.ndarray:
    words = packed.reshape(*packed.shape[:-1], -1, WORD // 8)
    return words[..., ::-1, :].reshape(packed.shape)


LAYOUTS = {
    "bit order reversed in every byte": _on_bytes(_reverse_bits(8)),
    "bit order reversed in every 32-bit word": _on_bytes(_reverse_bits(32)),
    "bit order reversed in every 64-bit word": _on_bytes(_reverse_bits(64)),
    "bytes swapped in every 16-bit word": _on_bytes(_swap(2, 1)),
    "bytes swapped in every 32-bit word": _on_bytes(_swap(4, 1)),
    "bytes swapped in every 64-bit word": _on_bytes(_swap(8, 1)),
    "words swapped, the 32-bit halves of every 64-bit word": _on_bytes(_swap(8, 4)),
    "words swapped, the 64-bit words of a row in reverse order": _on_bytes(_reverse_words),
}


# --- numbers --------------------------------------------------------------------------------------


def offset(case: Case) -> Iterator[Guess]:
    """One and the same number added everywhere."""
    difference = np.median(case.candidate - case.expected.astype(np.float64))
    if difference and np.isfinite(difference):
        size = "large" if difference > 0 else "small"
        cause = f"an offset: every value is {abs(difference):.6g} too {size}"
        yield Guess(cause, case.expected + difference)


def scale(case: Case) -> Iterator[Guess]:
    """One factor everywhere."""
    expected, found = case.expected, case.candidate
    square = float(np.vdot(expected, expected))
    factor = float(np.vdot(expected, found)) / square if square else 0.0
    if not np.isfinite(factor) or factor == 0:
        return
    yield Guess(f"scale missing: every value is {factor:.6g} times too large", factor * expected)


# --- places ---------------------------------------------------------------------------------------


def head_order(case: Case) -> Iterator[Guess]:
    """Channels handed to the wrong heads."""
    x, count = case.expected, case.heads
    rule = "heads transposed: channel c belongs to head c // d"
    if count == 1:
        return
    if x.ndim == 3 and x.shape[-1] % count == 0:
        apart = x.reshape(*x.shape[:2], count, -1)  # (B, N, heads, d)
        yield Guess(rule, apart.swapaxes(-1, -2).reshape(x.shape))
        yield Guess(rule, apart.swapaxes(1, 2).reshape(x.shape))
    if x.ndim == 4 and x.shape[1] == count and {"tokens", "channels"} <= set(case.axes):
        values = case.axes[-1] == "tokens"
        (channels,) = ops.split_heads.backward(x, ops.split_heads.Cache(values))  # (B, N, C)
        batch, tokens, width = channels.shape
        interleaved = channels.reshape(batch, tokens, -1, count).transpose(0, 3, 1, 2)
        unmoved = channels.reshape(batch, count, tokens, -1)  # both (B, heads, N, d)
        for wrong in (interleaved, unmoved):
            yield Guess(rule, wrong.swapaxes(-1, -2) if values else wrong)


def grid_order(case: Case) -> Iterator[Guess]:
    """The patch grid walked column by column."""
    x, (gh, gw) = case.expected, case.grid
    if x.ndim == 3 and x.shape[1] in (gh * gw, gh * gw + 1) and min(gh, gw) > 1:
        first = x.shape[1] - gh * gw
        patches = x[:, first:].reshape(len(x), gh, gw, -1).swapaxes(1, 2)
        moved = np.concatenate([x[:, :first], patches.reshape(x[:, first:].shape)], axis=1)
        yield Guess("transposed: the patch grid column by column, not row by row", moved)


def transposed(case: Case) -> Iterator[Guess]:
    """Axes stored in another order: with the same shape, or read as if they had the right one."""
    for order in itertools.permutations(range(case.expected.ndim)):
        if order != tuple(range(case.expected.ndim)):
            value = case.expected.transpose(order)
            yield Guess(
                f"transposed: axes in the order {order}", value.reshape(case.expected.shape)
            )


def shifted(case: Case) -> Iterator[Guess]:
    """Everything one place further along an axis; what entered at the border may be anything."""
    x = case.expected
    names = case.axes or tuple(f"axis {axis}" for axis in range(x.ndim))
    for axis in reversed(range(x.ndim)):
        if x.shape[axis] < 2:
            continue
        before = (slice(None),) * axis
        for here, there, word in (
            ((*before, slice(1, None)), (*before, slice(None, -1)), "late"),
            ((*before, slice(None, -1)), (*before, slice(1, None)), "early"),
        ):
            cause = f"off-by-one shift along the {names[axis]}: one place too {word}"
            yield Guess(cause, x[there], here)
    for step, word in ((1, "late"), (-1, "early")):
        rolled = np.roll(x.reshape(-1), step).reshape(x.shape)
        yield Guess(f"off-by-one shift in memory: one place too {word}", rolled)


def patches_shifted(case: Case) -> Iterator[Guess]:
    """The class token in its place, the patches one further."""
    x = case.expected
    if x.ndim == 3 and x.shape[1] > 3:
        yield Guess(
            "off-by-one shift of the patches: one token too late",
            x[:, 1:-1], (slice(None), slice(2, None)),
        )  # fmt: skip
        yield Guess(
            "off-by-one shift of the patches: one token too early",
            x[:, 2:], (slice(None), slice(1, -1)),
        )  # fmt: skip


def mirrored(case: Case) -> Iterator[Guess]:
    for axis in reversed(range(case.expected.ndim)):
        yield Guess(f"reversed along axis {axis}", np.flip(case.expected, axis))
