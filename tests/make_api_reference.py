"""Write the API reference from the docstrings: `python -m tests.make_api_reference FOLDER`.

The folder is one that a web server can show; `index.html` is where it begins. A warning is an
error: a name that is public and cannot be found, or a module that cannot be imported. The room
`torch` is left out where PyTorch is not installed.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc

import refimpl

# What the functions of `refimpl` return and raise; rooms that need an extra come on top.
BESIDE = ("classifiers", "segmenters", "metrics", "conventions")


def write(folder: Path) -> None:
    """Write a page for every module of refimpl."""
    public = [name for name in dir(refimpl) if not name.startswith("__")]
    for name in public:  # pdoc finds what is there, not what comes when it is asked for
        getattr(refimpl, name)
    rooms = [name for name in public if name not in refimpl.__all__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # the fields of a NamedTuple are strings to it, whose names it looks for in another module
        warnings.filterwarnings("ignore", r"Error parsing type annotation ForwardRef.*__init__")
        pdoc.render.configure(docformat="markdown", footer_text=f"refimpl {refimpl.__version__}")
        modules = ["refimpl", *(f"refimpl.{name}" for name in (*rooms, *BESIDE))]
        pdoc.pdoc(*modules, output_directory=folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.make_api_reference FOLDER")
    write(Path(sys.argv[1]))
