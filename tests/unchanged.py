"""Compare this code with an older checkout: logits, taps and gradients of many drawn networks.

    git worktree add ../before 5f23d1a
    python -m tests.unchanged ../before --networks 300

Names and order of the taps must be equal; logits, forward taps, bits and whole numbers to the bit;
gradients to 1e-12 of the largest entry. Images of other sizes and the bundles that the older
checkout ships are among the cases. Exit status 1 where anything differs; the worst gradient is
printed. The backend is NumPy: tests hold the kernels against it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from refimpl import golden
from refimpl.models import Config, flatten
from tests import networks

GRADIENTS = 1e-12
# Run by either checkout: every case of a folder, results beside it.
CHILD = """
import dataclasses, json, sys
from pathlib import Path
import numpy as np
from refimpl.models import Config, VisionTransformer, flatten, unflatten
for case in sorted(Path(sys.argv[1]).glob("case_*.npz")):
    arrays = dict(np.load(case))
    known = {f.name for f in dataclasses.fields(Config)}
    config = json.loads(str(arrays.pop("config")))
    config = Config.from_json({k: v for k, v in config.items() if k in known})
    model = VisionTransformer(config)
    images, dlogits = arrays.pop("images"), arrays.pop("dlogits")
    names, values, reads = [], {}, []
    def tap(name, value, op, inputs):
        values[f"{len(names):05d}"] = np.copy(value)
        names.append(name)
        reads.append(sorted(inputs))
    params = unflatten(arrays)
    logits, cache = model.forward(params, images, tap=tap)
    model.backward(dlogits, cache, tap=tap)
    silent, cache = model.forward(params, images)
    dimages, grads = model.backward(dlogits, cache)
    flat = {f"silent/{k}": v for k, v in flatten(grads).items()}
    np.savez(sys.argv[2] + "/" + case.name, names=json.dumps(names), reads=json.dumps(reads),
             silent=silent, dimages=dimages, **values, **flat)
"""


def draw(count: int) -> list[Config]:
    """So many different configurations of all kinds, the same on every run."""
    found: list[Config] = []

    @settings(max_examples=5 * count, derandomize=True, phases=[Phase.generate], deadline=None)
    @given(st.one_of(networks.all_configs(), networks.narrow(), networks.pyramids()))
    def collect(config: Config) -> None:
        # what the older code does not know
        if config.context == "sum" and config.neighbours != "none" and config not in found:
            found.append(config)

    collect()
    assert len(found) >= count, f"{len(found)} networks; expected {count}"
    return found[:count]


def drawn(configs: list[Config]) -> Iterator[networks.Network]:
    """A network of each; every fifth has images of another size, a third is float32."""
    for i, config in enumerate(configs):
        network = networks.make(config, i, np.float32 if i % 3 == 2 else np.float64)
        if i % 5 == 1 and not config.window:
            network = networks.with_images_of(network, (2 + i % 3, 4))
        yield network


def shipped(folder: Path) -> Iterator[networks.Network]:
    """The networks and images of bundles."""
    for path in sorted(folder.iterdir()):
        bundle = golden.read(path)
        shape = (len(bundle.input), *bundle.model.config.logits_shape)
        dlogits = np.random.default_rng(0).standard_normal(shape).astype(bundle.input.dtype)
        yield networks.Network(bundle.model, bundle.params, bundle.input, dlogits)


def write(folder: Path, cases: Iterable[networks.Network]) -> list[Config]:
    """A file a network: its arrays; the configurations."""
    configs = []
    for i, network in enumerate(cases):
        configs.append(network.model.config)
        fields = json.dumps(configs[-1].to_json())
        np.savez(
            folder / f"case_{i:04d}.npz", config=fields, images=network.images,
            dlogits=network.dlogits, **flatten(network.params),
        )  # fmt: skip
    return configs


def run(checkout: Path, cases: Path, results: Path) -> None:
    """Run every case with the package of a checkout."""
    results.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", CHILD, str(cases), str(results)]
    subprocess.run(command, check=True, env=environment, cwd=checkout)


def differences(old: Path, new: Path) -> tuple[list[str], float]:
    """What differs between two results, and the worst gradient."""
    before, after = np.load(old), np.load(new)
    names = json.loads(str(before["names"]))
    other = json.loads(str(after["names"]))
    if names != other:
        both = enumerate(itertools.zip_longest(names, other))
        place = next(i for i, (a, b) in both if a != b)
        return [f"names differ from tap {place} on: {names[place : place + 3]} "
                f"before, {other[place : place + 3]} now"], 0.0  # fmt: skip
    if set(before.files) != set(after.files):
        return [f"results differ: {sorted(set(before.files) ^ set(after.files))[:3]}"], 0.0
    found, worst = [], 0.0
    keys = [f"{i:05d}" for i in range(len(names))]
    for key, name in [
        *zip(keys, names),
        ("silent", "logits"),
        ("dimages", "grads/input"),
        *((k, "grads/" + k) for k in before.files if k.startswith("silent/")),
    ]:
        a, b = before[key], after[key]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            found.append(f"{name}: {a.dtype} {a.shape} before, {b.dtype} {b.shape} now")
        elif name.startswith("grads/"):
            size = float(np.abs(a).max(initial=0)) or 1.0
            error = float(np.abs(a - b).max(initial=0)) / size
            worst = max(worst, error if a.dtype == np.float64 else 0.0)
            if not error <= (GRADIENTS if a.dtype == np.float64 else 1e-4):  # nor is NaN
                found.append(f"{name}: {error:.1e}")
        elif a.tobytes() != b.tobytes():  # -0.0 is not 0.0, and NaN is NaN
            found.append(f"{name}: {_unequal(a, b)} of {a.size} entries")
    return found, worst


def _unequal(a: np.ndarray, b: np.ndarray) -> int:
    """Entries of other bits."""
    raw = [np.ascontiguousarray(x).reshape(-1, 1).view(np.uint8) for x in (a, b)]
    return int((raw[0] != raw[1]).any(axis=1).sum())


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="the older checkout")
    parser.add_argument("--networks", type=int, default=300)
    args = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        cases, old, new = (Path(folder) / name for name in ("cases", "old", "new"))
        cases.mkdir()
        before = args.before.resolve()
        bundles = shipped(before / "weights" / "golden")
        configs = write(cases, itertools.chain(drawn(draw(args.networks)), bundles))
        run(before, cases, old)
        run(here, cases, new)
        wrong, worst, equal = 0, 0.0, 0
        for i, config in enumerate(configs):
            name = f"case_{i:04d}.npz"
            found, error = differences(old / name, new / name)
            worst, wrong = max(worst, error), wrong + bool(found)
            equal += json.loads(str(np.load(old / name)["reads"])) == json.loads(
                str(np.load(new / name)["reads"])
            )
            for line in found[:5]:
                print(f"{i} {config}\n    {line}")
    print(
        f"{args.networks} networks and {len(configs) - args.networks} bundles, {wrong} differ; "
        f"worst gradient {worst:.1e}; {equal} whose taps read the same"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
