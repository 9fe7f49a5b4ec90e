"""The engine of the live page as a port: how the tests run it in Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from refimpl import golden
from refimpl.conventions import ConfigError
from refimpl.golden import candidate
from refimpl.golden.compare import Comparison
from refimpl.live.export import export
from refimpl.models import Config, binary, packing, unflatten

ASSETS = Path(refimpl.__file__).parent / "live" / "assets"
GOLDEN = Path(refimpl.__file__).parents[1] / "weights" / "golden"
NODE = shutil.which("node")

needs_node = pytest.mark.skipif(
    NODE is None and os.environ.get("REFIMPL_REQUIRE_NODE") != "1", reason="there is no `node`"
)


def node(script: str, *arguments: object, stdin: str = "") -> str:
    """What a script of this folder prints."""
    command = ["node", str(Path(__file__).with_name(script)), str(ASSETS), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(bundle: Path) -> dict[str, Any]:
    """The network of a bundle as the page has it, packed from its latent parameters."""
    from safetensors.numpy import load_file

    config = Config.from_json(json.loads((bundle / "manifest.json").read_text())["config"])
    stored = load_file(bundle / "weights.safetensors")
    params = unflatten({path: stored[path] for path in binary.network(config).parameters})
    return export(config, packing.pack(config, params))


def is_held(bundle: Path) -> bool:
    """Whether the page can run the network of a bundle."""
    try:
        written(bundle)
    except ConfigError:
        return False
    return True


def images_of(bundle: Path) -> list[dict[str, Any]]:
    """The images of a bundle, for JavaScript: the page reads one at a time."""
    images = np.load(bundle / "input_0.npy").astype(np.float32)
    return [{"shape": image[None].shape, "data": image.ravel().tolist()} for image in images]


def image_of(bundle: Path) -> dict[str, Any]:
    """The only image of a bundle."""
    (image,) = images_of(bundle)
    return image


def together(taps: list[Path]) -> dict[str, np.ndarray]:
    """The taps of several images as those of a batch; a tap of the weights has no images."""
    read = [candidate.read(path) for path in taps]
    return {
        name: read[0][name] if ".weight." in name else np.concatenate([one[name] for one in read])
        for name in read[0]
    }


def port(network: dict[str, Any], image: dict[str, Any], out: Path, **strengths: float) -> Path:
    """The taps of a run in Node, as a .safetensors file."""
    work = {"network": network, "image": image, "strengths": strengths, "out": str(out)}
    node("taps.js", stdin=json.dumps(work))
    return out


def compared(bundle: Path, taps: Path | dict[str, np.ndarray], mode: str) -> Comparison:
    """The judgement of `golden compare`."""
    found = candidate.read(taps) if isinstance(taps, Path) else taps
    return golden.compare(golden.read(bundle), found, mode=mode)


def assert_every_tap_passes(comparison: Comparison) -> None:
    """None fails, all are judged, none is missing but what a packed network does not have."""
    assert comparison.outcome == "PASS", comparison.first
    left_out = [n for n in comparison.missing if not n.startswith("grads/")]
    assert all(name.endswith(".weight.z") for name in left_out)


BUNDLES = sorted(path.name for path in GOLDEN.iterdir() if is_held(path))
