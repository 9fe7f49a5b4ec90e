"""How often the cause of a mistake is named: every list of mistakes, dumped in four ways.

    python -m tests.cause_table [--all] [--words]
    python -m tests.cause_table --bundle FOLDER [--every N]     # time alone, of any network

full        all taps and gradients, forward and backward counted apart
bits        bits, whole numbers and logits alone
shell       what leaves a block, and its middle, alone
right       candidates that are right: none may be given a cause

`--words` prints what was said of each mistake. A cause is right where it reads as its list says,
also as one of equals; else it is beside the point. `--all` has every mistake in all ways, not only
every fourth of the sparse ones.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl import golden
from refimpl.golden import candidate, diagnose, record
from tests import c_port, exported_c, golden_networks, injected_bugs_ops, injected_bugs_python
from tests.injected_bugs import IN_C

SHELL = re.compile(r"patch_embed\.out|tokens|blocks\.\d+\.(mid|out)|merges\.\d+\.proj\.out|logits")
RIGHT = 200  # candidates


class Case(NamedTuple):
    """A mistake of one of the lists."""

    name: str
    network: str
    cause: str | None  # a regular expression; None: there is none to be named
    is_backward: bool
    port: dict[str, np.ndarray]


def cases() -> Iterator[Case]:
    for name, bug in {**injected_bugs_ops.BUGS, **injected_bugs_ops.of_mutants()}.items():
        port = injected_bugs_ops.taps(injected_bugs_ops.bundle(bug.network), bug)
        yield Case(name, bug.network, bug.cause, bug.is_backward, port)
    for name, bug in injected_bugs_python.IN_PYTHON.items():
        port = injected_bugs_python.taps(injected_bugs_ops.bundle(bug.bundle), bug)
        cause = bug.cause and re.escape(bug.cause)
        yield Case(name, bug.bundle, cause, bug.tap.startswith("grads/"), port)
    for name, bug in IN_C.items():
        with tempfile.TemporaryDirectory() as folder:
            path = wrong_port(bug.right, bug.wrong, c_port.GOLDEN / bug.bundle, Path(folder))
            port = dict(candidate.read(path))
        yield Case(name, bug.bundle, bug.cause and re.escape(bug.cause), False, port)


def wrong_port(right: str, wrong: str, bundle: Path, folder: Path) -> Path:
    """The taps of block 0, as a wrong version of the C port computes them."""
    source = c_port.SOURCE.read_text()
    assert source.count(right) == 1
    changed = folder / "wrong.c"
    changed.write_text(source.replace(right, wrong))
    program = c_port.compile(changed, folder / "wrong", c_port.QUICK)
    return c_port.port(program, bundle, 0, folder / "out")


def dumped(case: Case, way: str) -> dict[str, np.ndarray]:
    """What of a port's taps is dumped."""
    return _kept(case, way, injected_bugs_ops.bundle(case.network))


def _kept(case: Case, way: str, bundle: golden.Bundle) -> dict[str, np.ndarray]:
    steps = bundle.reference.steps
    kinds = {name: record.kind_of(steps[name].value) for name in case.port if name in steps}
    keep = {
        "full": lambda name: True,
        "bits": lambda name: kinds[name] != "real" or name == "logits",
        "shell": SHELL.fullmatch,
    }[way]
    return {name: value for name, value in case.port.items() if name in kinds and keep(name)}


def cause_of(bundle: golden.Bundle, port: Mapping[str, np.ndarray]) -> tuple[str, str | None]:
    """The first divergence in replay, "" where none shows, and its cause."""
    comparison = golden.compare(bundle, port, mode="replay", fail_fast=True)
    if comparison.first is None or comparison.first.verdict != "FAIL":
        return "", None
    return comparison.first.name, diagnose.cause(comparison.first, bundle, comparison.taps)


def verdict(case: Case, cause: str | None) -> str:
    if cause is None:
        return "not named"
    return "named" if case.cause and re.search(case.cause, cause) else "beside the point"


def right_candidates(count: int = RIGHT) -> Iterator[tuple[golden.Bundle, dict[str, np.ndarray]]]:
    """Ports that are right and round otherwise: the reference in both types, PyTorch, C.

    Sums in other orders, sparse dumps. Where PyTorch or a compiler is missing: the reference.
    """
    ways = ("full", "bits", "shell")
    for i in range(count):
        make = (_of_reference, _of_reference, _of_torch, _of_c)[i % 4]
        network, port = make(i // 4) or _of_reference(i // 4)
        if i % 3 == 2:  # as another order of its sums gives it: off by some of the last place
            rng = np.random.default_rng(i)
            port = {name: _disturbed(value, rng) for name, value in port.items()}
        yield (
            injected_bugs_ops.bundle(network),
            dumped(Case(network, network, None, False, port), ways[i % 7 % 3]),
        )


Port = tuple[str, dict[str, np.ndarray]]
NETWORKS = [name for name in injected_bugs_ops.CONFIGS if name != "negative"]


def _of_reference(i: int) -> Port:
    name = NETWORKS[i % len(NETWORKS)]
    bundle = injected_bugs_ops.bundle(name)
    dlogits = bundle.reference.steps["grads/logits"].value
    dtype = (np.float32, np.float64)[i // len(NETWORKS) % 2]
    return name, golden_networks.taps_of(bundle, dlogits, dtype)


def _of_torch(i: int) -> Port | None:
    """The mirror, float32 or float64, forward and backward."""
    if importlib.util.find_spec("torch") is None:
        return None
    name = NETWORKS[i % len(NETWORKS)]
    torch, room = (importlib.import_module(module) for module in ("torch", "refimpl.torch"))
    bundle = injected_bugs_ops.bundle(name)
    dtype = (torch.float32, torch.float64)[i // len(NETWORKS) % 2]
    module = room.module(bundle.model, bundle.params).to(dtype)
    images, dlogits = bundle.input, bundle.reference.steps["grads/logits"].value
    given = (torch.tensor(np.array(a), dtype=dtype) for a in (images, dlogits))
    return name, dict(room.taps(module, *given))


def _of_c(i: int) -> Port | None:
    """The exported C of a shipped bundle, compiled in one of several ways."""
    if shutil.which("cc") is None:
        return None
    name = SHIPPED[i % len(SHIPPED)]
    return name, dict(_exported(name, FLAGS[i // len(SHIPPED) % len(FLAGS)]))


SHIPPED = ("small_tie_free", "small_batch", "small_swin", "small_deit", "small_wide", "small_long")
FLAGS = ("-O1", "-O3 -ffast-math", "-O2 -ffp-contract=fast")


@functools.cache
def _exported(name: str, flags: str) -> Mapping[str, np.ndarray]:
    bundle = injected_bugs_ops.bundle(name)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        code = exported_c.export(folder, bundle.model, bundle.params)
        program = exported_c.compile(code, folder / "net", *flags.split(), "-DTAPS")
        images = injected_bugs_ops.SHIPPED / name / "input_0.npy"
        found = candidate.read(exported_c.show([program], images, folder / "taps"))
        return {tap: np.array(value) for tap, value in found.items()}


def _disturbed(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if value.dtype.kind != "f":
        return value
    return (value * (1 + np.finfo(value.dtype).eps * rng.integers(-1, 2, value.shape))).astype(
        value.dtype
    )


def false_causes(count: int = RIGHT) -> list[str]:
    """Causes that right candidates were given."""
    found = []
    for bundle, port in right_candidates(count):
        for mode in ("free", "replay"):
            comparison = golden.compare(bundle, port, mode=mode)
            found += diagnose.causes(comparison, bundle, comparison.taps).values()
    return found


def of_bundle(folder: Path, every: int) -> Iterator[str]:
    """Of mistakes of operations that a bundle has: seconds of the comparison and of the cause.

    Last a candidate that no known mistake explains, so that all are tried.
    """
    bundle = golden.read(folder)
    has = {node.op for node in bundle.model.network.nodes}
    with_gradients = "grads/logits" in bundle.reference.steps
    bugs = [
        (name, bug)
        for name, bug in injected_bugs_ops.BUGS.items()
        if bug.target.split(".")[1] in has and (with_gradients or not bug.is_backward)
    ][::every]
    stored = set(bundle.entries)
    for name, bug in bugs:
        try:
            port = injected_bugs_ops.taps(bundle, bug)
        except ValueError:  # it is one of its own network's shapes
            continue
        case = Case(name, "", bug.cause, bug.is_backward, {n: port[n] for n in port if n in stored})
        for way in ("full",) if bug.is_backward else ("full", "shell"):
            yield _timed(f"{way:6} {name}", bundle, _kept(case, way, bundle))
    rng = np.random.default_rng(0)
    step = next(name for name in bundle.reference.steps if name.endswith(".mid"))
    value = bundle.reference.steps[step].value
    yield _timed("noise", bundle, {step: value * (1 + 0.1 * rng.standard_normal(value.shape))})


def _timed(name: str, bundle: golden.Bundle, port: Mapping[str, np.ndarray]) -> str:
    start = time.process_time()
    comparison = golden.compare(bundle, port, mode="replay", fail_fast=True)
    middle = time.process_time()
    first = comparison.first
    if first is None:
        return f"{name}: not shown"
    cause = diagnose.cause(first, bundle, comparison.taps)
    end = time.process_time()
    return f"{middle - start:6.1f} {end - middle:6.1f}  {name} [{first.name}]: {cause}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how often causes are named.")
    parser.add_argument("--bundle", type=Path, help="time alone, on a bundle of any network")
    parser.add_argument("--every", type=int, default=1, help="with --bundle, every n-th mistake")
    parser.add_argument("--all", action="store_true", help="every mistake in every way")
    parser.add_argument("--words", action="store_true", help="print what was said of each")
    args = parser.parse_args()
    if args.bundle:
        print("seconds of CPU: comparison, cause")
        for line in of_bundle(args.bundle, args.every):
            print(line, flush=True)
        return
    counts: dict[str, Counter] = {}
    slowest = 0.0
    total = 0
    for i, case in enumerate(cases()):
        total += 1
        bundle = injected_bugs_ops.bundle(case.network)
        for way in ("full", "bits", "shell"):
            if way != "full" and (case.is_backward or not (args.all or i % 4 == 0)):
                continue
            port = dumped(case, way)
            start = time.process_time()
            tap, cause = cause_of(bundle, port) if port else ("", None)
            slowest = max(slowest, time.process_time() - start)
            side = f", {'backward' if case.is_backward else 'forward'}" if way == "full" else ""
            word = verdict(case, cause) if tap else "not shown"
            counts.setdefault(f"{way}{side}", Counter())[word] += 1
            if args.words and word != "not shown":
                print(f"{way:6} {word:16} {case.name} [{tap}]: {cause}", flush=True)
    columns = ("named", "not named", "beside the point", "not shown")
    print(f"{total} mistakes; the slowest comparison with its cause: {slowest:.1f} s of CPU")
    print("".join(f"{word:>18}" for word in ("", *columns)))
    for row, found in counts.items():
        print(f"{row:>18}" + "".join(f"{found[word]:>18}" for word in columns))
    print(f"right candidates: {RIGHT}; causes given: {len(false_causes())}")


if __name__ == "__main__":
    main()
