"""The samples inside the package.

`samples/mnist/` holds ten test digits and a small data set, `samples/photos/` photographs of things
that CIFAR-10 has a class for. Where they come from and how they were picked is in the README.md
beside them.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from refimpl.conventions import DataError


def mnist() -> Path:
    """The folder of the MNIST samples; `mnist() / "small"` has the layout that mnist.load reads."""
    return Path(str(files("refimpl.data"))) / "samples" / "mnist"


def digits() -> list[Path]:
    """Ten images, one a class in order of the classes, named `<label>_<index in test set>.png`."""
    return sorted(mnist().glob("?_????.png"))


def photos() -> Path:
    """The folder of the photographs."""
    return Path(str(files("refimpl.data"))) / "samples" / "photos"


def photographs() -> list[Path]:
    """RGB images of 256 x 256, named `<class of CIFAR-10>_<what it is>.jpg`, in order of names."""
    return sorted(photos().glob("*_*.jpg"))


def goldens(folder: Path) -> dict[str, Any]:
    """What `refimpl demo` must answer for the images of `mnist()` or `photos()`, as
    `python -m tests.make_demo_goldens` stored it.

    {"model": stem, "weights_sha256": hex, "dtype": "float64", "what": of which images,
     "images": {file name: {"label": class name, "probability": float}}}
    """
    path = folder / "goldens.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot read the stored goldens: {what}") from None
