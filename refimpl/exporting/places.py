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
        """Say that a line reads or writes it; lines come in order."""
        if self.begin < 0:
            self.begin = line
        self.end = line


class Place(NamedTuple):
    """A value in a block, or a part of it."""

    block: Block
    offset: int

    def __str__(self) -> str:
        offset = self.block.offset + self.offset
        return f"{self.block.array} + {offset}" if offset else self.block.array


def arrange(blocks: Sequence[Block]) -> dict[str, int]:
    """Give every block its offset, so that none overlaps another of its time -> array sizes.

    The largest first, each as low as it fits: seldom far from the least that is possible.
    """
    sizes = {"numbers": 0, "words": 0}
    placed: list[Block] = []
    for block in sorted(blocks, key=lambda b: (-b.size, b.begin)):
        others = [
            other
            for other in placed
            if other.array == block.array and other.begin <= block.end and block.begin <= other.end
        ]
        for other in sorted(others, key=lambda b: b.offset):
            if block.offset + block.size <= other.offset:
                break
            block.offset = max(block.offset, other.offset + other.size)
        placed.append(block)
        sizes[block.array] = max(sizes[block.array], block.offset + block.size)
    return sizes
