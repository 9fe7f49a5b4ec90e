"""Writes what `refimpl demo` must answer: run it once after shipped weights have changed.

    python -m tests.make_demo_goldens

The reference in float64, on the float32 weights as they are stored; the images go through the
model's own preprocessing. A bundled digit that the model gets wrong is an error; of a photograph
the answer is stored as it is, since CIFAR-10 is hard for a small network and the photographs are
none of its images.
"""

import json
from pathlib import Path

import numpy as np

from refimpl.classifiers import classifier
from refimpl.conventions import DataError
from refimpl.data import bundled
from refimpl.disk import write_atomically
from refimpl.models import cards, files


def goldens(model: str, paths: list[Path], what: str) -> dict:
    """The content of goldens.json for a shipped model; see refimpl.data.bundled.goldens."""
    exact = classifier(model).astype(np.float64)
    answers = zip(paths, exact(paths), strict=True)
    images = {path.name: {"label": a.label, "probability": a.probability} for path, a in answers}
    sha256 = cards.read(files.find(model))["sha256"]
    dtype = "float64"
    return {
        "model": model,
        "weights_sha256": sha256,
        "dtype": dtype,
        "what": what,
        "images": images,
    }


def digits() -> dict:
    found = goldens("didb_micro_mnist", bundled.digits(), "test images of MNIST")
    for name, answer in found["images"].items():
        if answer["label"] != name[0]:
            raise DataError(f"{name}: the model answers {answer['label']}; pick a plainer digit")
    return found


def photographs() -> dict:
    what = "photographs that are not from CIFAR-10"
    return goldens("didb_cifar10", bundled.photographs(), what)


def main() -> None:
    for folder, content in ((bundled.mnist(), digits()), (bundled.photos(), photographs())):
        path = folder / "goldens.json"
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
        print(path)


if __name__ == "__main__":
    main()
