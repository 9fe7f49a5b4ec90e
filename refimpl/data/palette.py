"""A colour for every class of a label map, always the same one for the same number.

That of PASCAL VOC, one further, since there the first is black: the bits of label + 1 are dealt out
to red, green and blue, the lowest three to their highest bits, and so on.

>>> colours(3).tolist()
[[128, 0, 0], [0, 128, 0], [128, 128, 0]]
"""

import numpy as np


def colours(classes: int) -> np.ndarray:
    """uint8 (classes, 3), at most 255 of them; none is black, no two are alike."""
    number = np.arange(1, classes + 1)[:, None]
    channel = np.arange(3)
    found = np.zeros((classes, 3), np.int64)
    for bit in range(3):
        found |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return found.astype(np.uint8)
