"""Where a block works: the grid, the channels and the windows of its stage [SPEC 6.7].

A network without windows is one stage whose only window is the whole sequence.
"""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """For one block; blocks of a stage differ in the shift alone."""

    grid: tuple[int, int]  # gh, gw
    num_prefix_tokens: int  # in front of the grid's: 1 with a class token, else 0
    dim: int  # C
    heads: int
    window: int  # M, the side of a window; 0: attention over all tokens
    shift: int  # rows and columns by which the grid is rolled before it is cut

    @property
    def num_patches(self) -> int:
        """N without a class token."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.num_prefix_tokens + self.num_patches

    @property
    def num_keys(self) -> int:
        """Tokens among which a query looks: M * M, or N."""
        return self.window**2 or self.num_tokens

    @property
    def num_windows(self) -> int:
        """nW, windows an image."""
        return self.num_tokens // self.num_keys
