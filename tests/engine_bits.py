"""The engine's values on different CPUs and paths, compared to the bit.

    REFIMPL_PATH=avx512 python -m tests.engine_bits dump avx512.npz
    REFIMPL_PATH=avx2 python -m tests.engine_bits dump avx2.npz
    python -m tests.engine_bits compare avx512.npz avx2.npz

A dump holds every tap and the logits of small networks that cover all readings, and of one of usual
width; names with wildcards behind the file choose some of them. What both dumps hold is compared.
NUMBA_CPU_NAME and NUMBA_CPU_FEATURES make machine code for another CPU of the same family, such as
`haswell` and `+avx2,+fma`; another family takes an emulator, as in `.ci/aarch64`. What has no fused
multiply-add may differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from refimpl import engine
from refimpl.kernels import popcount
from refimpl.kernels.vector import FUSED
from refimpl.models import create_model
from tests import test_engine


def dump(path: Path, names: Sequence[str]) -> None:
    """Write the taps of the networks of these names; says which path they took."""
    values: dict[str, np.ndarray] = {}
    networks = {**test_engine.COVERING, "didb_micro": create_model("didb_micro").config}
    for name, config in networks.items():
        if not any(fnmatch(name, wanted) for wanted in names):
            continue
        network = test_engine.network(config)
        taps = engine.compile(network.model, network.params).taps(network.images)
        values |= {f"{name}/{tap}": value for tap, value in taps.items()}
    np.savez_compressed(path, **values)
    kind = type(popcount.path()).__name__.lower()
    print(f"{path}: {kind}, {'with' if FUSED else 'without'} fused multiply-add")


def compare(first: Path, second: Path) -> int:
    """Number of values that differ; a line for each array that has some, and one in the end."""
    with np.load(first) as a, np.load(second) as b:
        both = [name for name in a.files if name in b.files]
        if not both or {_network(name) for name in both} & {
            _network(name) for name in {*a.files} ^ {*b.files}
        }:
            raise SystemExit(f"{first}, {second}: found other names of taps; expected the same")
        different, count = 0, 0
        for name in both:
            x, y = a[name], b[name]
            wrong = int((x.view(np.uint8) != y.view(np.uint8)).sum()) if x.shape == y.shape else -1
            if wrong:
                print(f"{name}: {wrong} of {x.nbytes} bytes differ")
            different, count = different + (wrong != 0), count + x.size
    print(f"{first}, {second}: {different} of {len(both)} arrays differ, {count} values")
    return different


def _network(tap: str) -> str:
    return tap.partition("/")[0]


def main() -> int:
    """Exit status 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    added = verbs.add_parser("dump")
    added.add_argument("file", type=Path)
    added.add_argument("names", nargs="*", default=["*"], metavar="NAME")
    added = verbs.add_parser("compare")
    added.add_argument("first", type=Path)
    added.add_argument("others", type=Path, nargs="+")
    args = parser.parse_args()
    if args.verb == "dump":
        dump(args.file, args.names)
        return 0
    return int(sum(compare(args.first, other) for other in args.others) > 0)


if __name__ == "__main__":
    sys.exit(main())
