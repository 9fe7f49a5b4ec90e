"""The engine's values on different CPUs and paths, compared to the bit.

    REFIMPL_PATH=avx512 python -m tests.engine_bits dump avx512.npz
    REFIMPL_PATH=avx2 python -m tests.engine_bits dump avx2.npz
    python -m tests.engine_bits compare avx512.npz avx2.npz

A dump holds every tap and the logits of small networks that cover all readings. NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES make machine code for another CPU of the same family, such as `haswell` and an
empty list; another family takes an emulator. What has no fused multiply-add may differ.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from refimpl import engine
from refimpl.kernels import popcount
from refimpl.kernels.vector import FUSED
from tests import test_engine


def dump(path: Path) -> None:
    """Write the taps of all networks; says which path they took."""
    values: dict[str, np.ndarray] = {}
    for name, config in test_engine.COVERING.items():
        network = test_engine.network(config)
        taps = engine.compile(network.model, network.params).taps(network.images)
        values |= {f"{name}/{tap}": value for tap, value in taps.items()}
    np.savez_compressed(path, **values)
    kind = type(popcount.path()).__name__.lower()
    print(f"{path}: {kind}, {'with' if FUSED else 'without'} fused multiply-add")


def compare(first: Path, second: Path) -> int:
    """Number of values that differ; a line for each array that has some, and one in the end."""
    with np.load(first) as a, np.load(second) as b:
        if set(a.files) != set(b.files):
            raise SystemExit(f"{first}, {second}: found other names of taps; expected the same")
        different, count = 0, 0
        for name in a.files:
            x, y = a[name], b[name]
            wrong = int((x.view(np.uint8) != y.view(np.uint8)).sum()) if x.shape == y.shape else -1
            if wrong:
                print(f"{name}: {wrong} of {x.nbytes} bytes differ")
            different, count = different + (wrong != 0), count + x.size
    print(f"{first}, {second}: {different} of {len(a.files)} arrays differ, {count} values")
    return different


def main() -> int:
    """Exit status 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("dump").add_argument("file", type=Path)
    added = verbs.add_parser("compare")
    added.add_argument("first", type=Path)
    added.add_argument("others", type=Path, nargs="+")
    args = parser.parse_args()
    if args.verb == "dump":
        dump(args.file)
        return 0
    return int(sum(compare(args.first, other) for other in args.others) > 0)


if __name__ == "__main__":
    sys.exit(main())
