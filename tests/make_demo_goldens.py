"""Writes what `refimpl demo` must answer: run it once after the shipped weights have changed.

    python -m tests.make_demo_goldens [MODEL]

The reference in float64, on the float32 weights as they are stored; the images go through the
model's own preprocessing. A bundled digit that the model gets wrong is an error.
"""

import argparse
import json

import numpy as np

from refimpl.classifier import classifier, read_card
from refimpl.conventions import DataError, write_atomically
from refimpl.data import bundled


def goldens(model: str) -> dict:
    """The content of goldens.json for a shipped model; see refimpl.data.bundled.goldens."""
    exact = classifier(model).astype(np.float64)
    images = {}
    for path in bundled.digits():
        (answer,) = exact(path)
        if answer.label != path.name[0]:
            raise DataError(f"{path.name}: the model answers {answer.label}; pick a plainer digit")
        images[path.name] = {"label": answer.label, "probability": answer.probability}
    sha256 = read_card(model)["sha256"]
    return {"model": model, "weights_sha256": sha256, "dtype": "float64", "images": images}


def main() -> None:
    parser = argparse.ArgumentParser(description="Store what `refimpl demo` must answer.")
    parser.add_argument("model", nargs="?", default="didb_micro_mnist", help="a shipped model")
    path = bundled.mnist() / "goldens.json"
    content = json.dumps(goldens(parser.parse_args().model), indent=2) + "\n"
    write_atomically(path, content.encode())
    print(path)


if __name__ == "__main__":
    main()
