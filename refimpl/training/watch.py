"""Whoever looks on while a run trains, may stop it, and is told what its user should know."""

from __future__ import annotations

from refimpl.training.history import EpochResult


class Watch:
    """One who does nothing: a run of this machine, which its own terminal shows.

    What `batch` or `epoch` raises ends the run as an interrupt would: the last checkpoint stays.
    """

    def batch(self) -> None:
        """Called after every step of the optimizer."""

    def epoch(self, result: EpochResult, steps: int) -> None:
        """Called when the checkpoint after an epoch of so many steps is on disk."""

    def tell(self, text: str) -> None:
        """Called with a line for the user: a resumed run computes on another kind of CPU."""
