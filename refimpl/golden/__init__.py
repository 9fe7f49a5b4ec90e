"""Golden vectors: every tap of the reference in a folder, and a comparison that knows flips.

    make(folder, model, params, images, grads=True)      write a bundle [SPEC 8.1]
    compare(read(folder), candidate, mode="replay")      judge a port by it [SPEC 8.2]

Start with `store.py` (the bundle) and `compare.py`; `bounds.py` says how far a port may be off.
"""

from refimpl.golden.compare import compare, selfcheck
from refimpl.golden.record import trace
from refimpl.golden.search import draw, tie_free
from refimpl.golden.store import Bundle, make, read

__all__ = ["Bundle", "compare", "draw", "make", "read", "selfcheck", "tie_free", "trace"]
