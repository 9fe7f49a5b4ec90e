"""Learning rate: linear warm-up, then a cosine to zero [SPEC 7].

    step < warmup:   peak * (step + 1) / warmup
    otherwise:       peak * (1 + cos(pi * (step - warmup) / (steps - warmup))) / 2

Steps count from 0, so the first step already moves and the rate would be 0 at step `steps`.

>>> [round(warmup_cosine(step, steps=6, peak=1.0, warmup=2), 4) for step in range(6)]
[0.5, 1.0, 1.0, 0.8536, 0.5, 0.1464]
"""

import math


def warmup_cosine(step: int, *, steps: int, peak: float, warmup: int = 0) -> float:
    """Learning rate of one step: `steps` in all, the first `warmup` of them rising to `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
