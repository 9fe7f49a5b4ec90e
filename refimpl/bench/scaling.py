"""`refimpl bench scaling`: how the engine's time grows with the tokens and with the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from refimpl.bench import measure, ours
from refimpl.bench.measure import Row
from refimpl.bench.models import BINARY
from refimpl.bench.work import Network, network
from refimpl.conventions import require_choice
from refimpl.models import architectures, create_model

# windows would not divide every grid
NAMES = tuple(name for name in BINARY if not architectures.named(name).window)
SIDES = (7, 10, 14, 20, 28)  # of the patch grid: 50 … 785 tokens
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def run(
    name: str = "didb_tiny",
    *,
    sides: Sequence[int] = SIDES,
    batches: Sequence[int] = BATCHES,
    threads: int = 1,
    rounds: int = 5,
    turn: float = measure.TURN,
    progress: Callable[[], object] = lambda: None,
) -> list[Row]:
    """A row for each side of the grid with one image, then for each batch, on one thread and on
    `threads`; all in the same rounds.

    `progress` is called after each round. ConfigError for a name that is not in NAMES.
    """
    require_choice("bench", "model", name, NAMES)
    entries = [
        (work.name, contender)
        for work in works(name, sides, batches)
        for count in sorted({1, min(threads, len(work.images))})
        for contender in ours.networks(work, count)
    ]
    return measure.compare(entries, rounds, turn, progress)


def works(name: str, sides: Sequence[int], batches: Sequence[int]) -> list[Network]:
    """The networks in the order of their rows."""
    patch = create_model(name).config.patch_size
    grids = [network(name, 1, image_size=side * patch) for side in sides]
    return [
        *(work._replace(name=f"{name}, {work.config.tokens} tokens") for work in grids),
        *(network(name, batch)._replace(name=f"{name}, batch {batch}") for batch in batches),
    ]
