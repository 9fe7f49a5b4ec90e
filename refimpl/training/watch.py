"""Whoever looks on while a run trains, may stop it, and is told what its user should know."""

from __future__ import annotations


class Watch:
    """One who does nothing: a run of this machine, which its own terminal shows.

    What `batch` or `saved` raises ends the run as an interrupt would: the last checkpoint stays.
    """

    def batch(self) -> None:
        """Called after every step of the optimizer."""

    def saved(self, steps: int) -> None:
        """Called when a checkpoint is on disk; `steps` were taken since the one before."""

    def tell(self, text: str) -> None:
        """Called with a line: the result of an epoch, or a change of machine."""
