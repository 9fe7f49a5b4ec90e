"""Where a tap differs, in coordinates of the grid: worked out by hand for a 5 x 7 grid."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.golden.places import Places, coordinates, describe, places_of
from tests import networks

GRID = (5, 7)
TOKENS = Places(("images", "tokens", "channels"), GRID, first=1, heads=3)


def tokens(cells: np.ndarray, class_token: bool = False) -> np.ndarray:
    """A mask (2, 36, 12) that is true at these cells of image 1."""
    mask = np.zeros((2, 36, 12), bool)
    mask[1, 1:] = np.asarray(cells, bool).reshape(-1, 1)
    mask[1, 0] = class_token
    return mask


def cells(rows, columns) -> np.ndarray:
    found = np.zeros(GRID, bool)
    found[np.ix_(rows, columns)] = True
    return found


ROWS, COLUMNS = range(5), range(7)
BORDER = ~cells(range(1, 4), range(1, 6))


@pytest.mark.parametrize("where, words", [
    (BORDER, "grid rows 0 and 4, columns 0 and 6: the border (of 5 x 7)"),
    (cells([4], COLUMNS) | cells(ROWS, [6]), "grid row 4, column 6 (of 5 x 7)"),
    (cells([0], COLUMNS), "grid row 0 (of 5 x 7)"),
    (cells(ROWS, [2, 3, 4]), "grid columns 2 to 4 (of 5 x 7)"),
    (cells([1, 3], [2, 5]), "grid rows 1 and 3, columns 2 and 5 (of 5 x 7)"),
    (cells([1], [2]), "grid row 1, column 2 (of 5 x 7)"),
    (cells([1], [2]) | cells([2], [3]),
     "2 patches in grid rows 1 and 2, columns 2 and 3 (of 5 x 7)"),
    (cells(ROWS, COLUMNS), "all 35 patches"),
])  # fmt: skip
def test_tokens_are_rows_and_columns_of_the_grid(where, words):
    assert list(describe(TOKENS, tokens(where))) == [
        "images: 1 (of 2)", f"tokens: {words}", "channels: all 12"
    ]  # fmt: skip
    with_class = list(describe(TOKENS, tokens(where, class_token=True)))[1]
    whole = "tokens: all 36" if where.all() else f"tokens: the class token, {words}"
    assert with_class == whole


def test_the_class_token_alone():
    assert "tokens: the class token" in describe(TOKENS, tokens(np.zeros(GRID), class_token=True))


@pytest.mark.parametrize("channels, words", [
    (slice(4, 8), "those of head 1 (of 3)"),
    ([*range(4), *range(8, 12)], "those of heads 0 and 2 (of 3)"),
    ([1, 5, 9], "1 5 9 (of 12)"),
    (slice(0, 10), "10 of 12"),
])  # fmt: skip
def test_channels_are_those_of_heads(channels, words):
    mask = np.zeros((2, 36, 12), bool)
    mask[..., channels] = True
    assert list(describe(TOKENS, mask)) == ["images: all 2", "tokens: all 36", f"channels: {words}"]


def test_windows_heads_queries_and_keys():
    windows = Places(("images", "heads", "queries", "keys"), (2, 2), windows=6)
    mask = np.zeros((12, 3, 4, 4), bool)
    mask[7, 1, 2:, 0] = True  # image 1, window 1
    assert list(describe(windows, mask)) == [
        "images: 1 (of 2)", "windows: 1 (of 6)", "heads: 1 (of 3)",
        "queries: grid row 1 (of 2 x 2)", "keys: grid row 0, column 0 (of 2 x 2)",
    ]  # fmt: skip
    assert coordinates(windows, (7, 1, 2, 0), mask.shape) == (
        "image 1, window 1, head 1, query at grid row 1, column 0, key at grid row 0, column 0"
    )


def test_coordinates_of_one_element():
    shape = (2, 36, 12)
    assert coordinates(TOKENS, (1, 0, 3), shape) == "image 1, the class token, channel 3 (head 0)"
    assert coordinates(TOKENS, (0, 9, 11), shape) == (
        "image 0, grid row 1, column 1, channel 11 (head 2)"
    )


def test_what_has_no_grid_is_numbered():
    mask = np.zeros((30, 5), bool)
    mask[::2, 1] = True
    assert list(describe(Places(("axis 0", "axis 1")), mask)) == [
        "axis 0: 15 of 30", "axis 1: 1 (of 5)"
    ]  # fmt: skip
    assert list(describe(Places(()), np.array(True))) == []


def test_the_grid_is_that_of_the_taps_stage():
    config = networks.swin(depth=(1, 1))
    assert places_of("blocks.0.out", 3, config).grid == (4, 8)
    assert places_of("blocks.1.out", 3, config).grid == (2, 4)
    scores = places_of("blocks.0.attn.scores", 4, config)
    assert (scores.grid, scores.windows) == ((2, 2), 8)
    assert places_of("grads/param.head.weight", 2, config).grid == (0, 0)
    plain = networks.small()
    assert places_of("blocks.1.attn.q.out", 3, plain) == Places(
        ("images", "tokens", "channels"), (2, 3), 1, heads=2
    )
    assert places_of("blocks.1.mlp.up.out", 3, plain).heads == 1
