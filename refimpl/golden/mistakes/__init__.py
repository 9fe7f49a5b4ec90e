"""Known mistakes of ports: small edits of the list of operations, declared once for each of them.

    for known in mistakes.known(bundle.reference):
        known.words, known.nodes                      what is done wrongly, and where
        known.taps()                                  what a port with it dumps, by tap

`declared.py` says what a mistake is; `general.py` has those that every operation has, the other
files those of single operations, forward and backward.
"""

from refimpl.golden.mistakes import (  # noqa: F401  declare theirs
    activations,
    attention,
    binary,
    grid,
    norms,
    tokens,
)
from refimpl.golden.mistakes.catalogue import Known, known, of_site
from refimpl.golden.mistakes.declared import Call, Edit, Mistake, Site

__all__ = ["Call", "Edit", "Known", "Mistake", "Site", "known", "of_site"]
