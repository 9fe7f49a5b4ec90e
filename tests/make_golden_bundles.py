"""Writes the golden bundles of weights/golden anew; what is there is replaced.

    python -m tests.make_golden_bundles [NAME...]

The seeds are fixed. Another version of NumPy may give other last digits of reals; bits and whole
numbers of the tie-free bundle stay what they are.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from refimpl.data import bundled, images
from refimpl.data.preprocessing import Preprocessing
from refimpl.golden import adversarial, search, store
from refimpl.models import Config, VisionTransformer, create_model, files

FOLDER = Path(__file__).parent.parent / "weights" / "golden"
DIGIT = "7_0000.png"
# Sizes that differ from one another, rows and channels no multiples of 8, hidden one off a word.
SMALL = Config(
    image_size=(6, 8), patch_size=2, channels=5, dim=21, depth=2, heads=3, mlp_ratio=3,
    num_classes=11, similarity="haar", attention="differential", rprelu="token", layer_scale=True,
)  # fmt: skip


def small_tie_free(path: Path) -> None:
    model = VisionTransformer(SMALL)
    params, image = search.draw(SMALL, seed=0)
    found = search.tie_free(model, params, image, seed=0)
    note = {"attempts": found.attempts, "seed": 0}
    store.make(path, model, params, found.images, grads=True, kind="tie-free", search=note)


def small_adversarial(path: Path) -> None:
    model, params, image = adversarial.case(seed=0)
    store.make(path, model, params, image, grads=True, kind="adversarial")


def didb_micro_mnist(path: Path) -> None:
    file = files.read("didb_micro_mnist")
    image = digit(file.model.preprocessing)
    store.make(path, file.model, file.params, image, taps="block")


def react_micro(path: Path) -> None:
    model = create_model("react_micro")
    params, _ = search.draw(model.config, seed=0)
    image = digit(Preprocessing(size=(28, 28), mode="grey", mean=(0.5,), std=(0.25,)))
    store.make(path, model, params, image, taps="block")


BUNDLES: dict[str, Callable[[Path], None]] = {
    bundle.__name__: bundle
    for bundle in (small_tie_free, small_adversarial, didb_micro_mnist, react_micro)
}


def digit(preprocessing: Preprocessing) -> np.ndarray:
    """(1, 1, 28, 28), float32."""
    image = images.open_image(bundled.mnist() / DIGIT)
    return preprocessing.apply(image)[None].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden bundles anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BUNDLES))
    for name in parser.parse_args().names or BUNDLES:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        FOLDER.mkdir(exist_ok=True)
        BUNDLES[name](FOLDER / name)
        print(FOLDER / name)


if __name__ == "__main__":
    main()
