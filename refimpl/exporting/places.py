"""Where the values of a program lie: in few static arrays, each place used again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(eq=False)
class Block:
    """A run of entries of an array, from its first use to its last."""

    array: str
    size: int
    begin: int = -1  # lines of the program; -1: not used yet
    end: int = -1
    offset: int = 0  # in the array, once all blocks are arranged

    def use(self, line: int) -> None:
        """Say that a line reads or writes it."""
        self.begin = line if self.begin < 0 else min(self.begin, line)
        self.end = max(self.end, line)


class Place(NamedTuple):
    """A value in a block, or a part of it."""

    block: Block
    offset: int
    step: int = 0  # in a loop, from one number `k` to the next

    def __str__(self) -> str:
        offset = self.block.offset + self.offset
        terms = [str(offset)] * bool(offset) + [f"k * {self.step}"] * bool(self.step)
        return " + ".join([self.block.array, *terms])


def arrange(blocks: Sequence[Block]) -> dict[str, int]:
    """Give every block its offset, so that none overlaps another of its time -> array sizes.

    One after the other, each as low as it fits: the largest first, or those that live last, which
    of the two needs less.
    """
    orders = (lambda b: (-b.size, b.begin), lambda b: -b.end)
    sizes = dict.fromkeys(("numbers", "words", "shown"), 0)
    for array in sizes:
        own = [block for block in blocks if block.array == array]
        sizes[array], offsets = min(
            (_placed(sorted(own, key=order)) for order in orders), key=lambda found: found[0]
        )
        for block, offset in offsets.items():
            block.offset = offset
    return sizes


def _placed(blocks: Sequence[Block]) -> tuple[int, dict[Block, int]]:
    """The size of an array with these blocks, placed in this order, and the offset of each."""
    size = 0
    offsets: dict[Block, int] = {}
    for block in blocks:
        offset = 0
        others = [o for o in offsets if o.begin <= block.end and block.begin <= o.end]
        for other in sorted(others, key=lambda o: offsets[o]):
            if offset + block.size <= offsets[other]:
                break
            offset = max(offset, offsets[other] + other.size)
        offsets[block] = offset
        size = max(size, offset + block.size)
    return size, offsets
