"""The Python API explains itself: types, docstrings, examples, `dir`, `help` and a reference."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pydoc
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import refimpl
from refimpl import segmenters
from tests import make_api_reference

ROOT = Path(__file__).parent.parent
ROOMS = (
    *("refimpl", "refimpl.classifiers", "refimpl.cluster", "refimpl.engine", "refimpl.golden"),
    *("refimpl.importing", "refimpl.metrics", "refimpl.models", "refimpl.segmenters"),
    "refimpl.training",
    *(["refimpl.torch"] if importlib.util.find_spec("torch") else []),
)


def names_of(room: ModuleType) -> list[str]:
    """What a room lists as public, or, where it lists nothing, what it defines."""
    own = [name for name, value in vars(room).items()
           if getattr(value, "__module__", None) == room.__name__ and name[0] != "_"]  # fmt: skip
    return getattr(room, "__all__", own)


def public() -> dict[str, object]:
    """Public functions and classes of the package and its rooms, by where they are found."""
    found = {}
    for room in map(importlib.import_module, ROOMS):
        for name in names_of(room):
            value = getattr(room, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found.setdefault(value, f"{room.__name__}.{name}")
    return {name: value for value, name in found.items()}


PUBLIC = public()


def methods(value: object) -> list:
    """The function itself, or the public methods of a class."""
    if not inspect.isclass(value):
        return [inspect.unwrap(value)]
    own = {name: held for name, held in vars(value).items() if not name.startswith("_")}
    return [inspect.unwrap(held) for held in own.values() if inspect.isfunction(held)]


def test_they_are_as_many_as_the_tables_say() -> None:
    assert len(PUBLIC) > 25
    assert {"refimpl.load", "refimpl.engine.Engine", "refimpl.training.train"} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name: str) -> None:
    value = inspect.unwrap(PUBLIC[name])
    text = inspect.getdoc(value) or ""
    assert ">>> " in text, "an example that `test_doctests` runs"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_is_typed_and_described(name: str) -> None:
    for function in methods(PUBLIC[name]):
        signature = inspect.signature(function)
        assert function.__doc__, function.__qualname__
        assert signature.return_annotation is not inspect.Signature.empty, function.__qualname__
        for parameter in signature.parameters.values():
            if parameter.name not in ("self", "cls"):
                assert parameter.annotation is not inspect.Parameter.empty, (function, parameter)


SCRIPT = """
import numpy as np
import refimpl
from refimpl import ops
from refimpl.training import Recipe

ask = refimpl.classifier("didb_micro_mnist")
label: str = ask(np.zeros((28, 28), np.uint8))[0].label
model, params = refimpl.load("didb_micro_mnist")
x: np.ndarray = model.prepare(np.zeros((1, 28, 28), np.uint8))
logits, cache = model.forward(params, x)
dimages, grads = model.backward(np.ones_like(logits), cache)
bits, sign_cache = ops.sign.forward(x)
run = refimpl.engine.compile(model, params)
answer: np.ndarray = run(x)
refimpl.save("mine.safetensors", model, params)
verdict: str = refimpl.golden.compare(refimpl.golden.read("bundle"), {"logits": logits}).outcome
names: list[str] = refimpl.list_models("didb*")
flat: dict[str, np.ndarray] = refimpl.flatten(params)
rate: float = Recipe(epochs=1).learning_rate
"""
WRONG = """
import refimpl
refimpl.load("didb_micro_mnist", 3)
label: int = refimpl.classifier("didb_micro_mnist")("seven.png")[0].label
refimpl.create_model(7)
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> str:
    """What mypy says of two scripts of a user."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "right.py").write_text(SCRIPT)
    (folder / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "."]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.stdout


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(refimpl.__file__).parent / "py.typed").is_file()


def test_a_type_checker_accepts_what_a_user_writes(checked) -> None:
    assert "right.py" not in checked and "checked 2 source files" in checked


def test_a_type_checker_sees_mistakes(checked) -> None:
    assert "Found 3 errors in 1 file" in checked, checked


def test_everything_public_is_in_dir_and_can_be_had() -> None:
    shown = set(dir(refimpl))
    assert set(refimpl.__all__) <= shown
    assert {"training", "report", "data", "importing", "cluster"} <= shown
    for name in shown:
        getattr(refimpl, name)


def test_all_of_it_can_be_imported_at_once() -> None:
    names: dict = {}
    exec("from refimpl import *", names)
    assert set(refimpl.__all__) <= set(names)


def test_what_needs_an_extra_is_not_shown_without_it(monkeypatch) -> None:
    monkeypatch.delitem(vars(refimpl), "cluster", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "cluster" not in dir(refimpl) and "training" in dir(refimpl)


def test_help_begins_with_the_calls_that_matter() -> None:
    text = pydoc.plain(pydoc.render_doc(refimpl))
    calls = ("classifier(", "segmenter(", "load(", "prepare(", "forward(", "backward(", "save(",
             "create_model(", "engine.compile(", "golden.compare(")  # fmt: skip
    places = [text.index(call) for call in calls]
    assert max(places) < text.index("PACKAGE CONTENTS")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: refimpl.create_model("react_micro", depth=2),
            "VisionTransformer(28 x 28 x 1 -> 10 classes, dim=64, depth=2, heads=2, "
            "block='binary')",
        ),
        (
            lambda: refimpl.classifier("didb_cifar10"),
            "Classifier(VisionTransformer(32 x 32 x 3 -> 10 classes, dim=192, depth=4, heads=3, "
            "block='binary', pool='mean', similarity='haar', attention='differential', "
            "rprelu='token'), "
            "knows airplane, automobile, bird, cat, deer, ...)",
        ),
        (
            lambda: refimpl.create_model("deit_micro").network,
            "Network(78 operations, 56 parameters, logits (1, 10) for one image)",
        ),
        (
            lambda: segmenters.Segmentation(np.array([[0, 1, 1, 1]], np.uint8), ("sky", "road")),
            "Segmentation(1 x 4: road 75%, sky 25%, warning=None)",
        ),
    ],
)
def test_what_is_printed_says_something(make, said) -> None:
    assert repr(make()) == said


def test_no_repr_is_an_address_or_a_page(tmp_path) -> None:
    model, params = refimpl.load("didb_micro_mnist")
    _, cache = model.forward(params, model.prepare(np.zeros((1, 28, 28), np.uint8)))
    bundle = refimpl.golden.read(ROOT / "weights" / "golden" / "react_micro")
    found = refimpl.golden.compare(bundle, {"logits": bundle.value("logits")})
    network = refimpl.segmenter("segmenter_didb_scenes")
    answer = network(np.zeros((56, 60), np.uint8))
    for value in (model, cache, bundle, found, network, network.backend, answer):
        text = repr(value)
        assert " at 0x" not in text and len(text) < 400, text


def test_the_reference_has_a_page_for_every_module(tmp_path) -> None:
    pytest.importorskip("pdoc")
    make_api_reference.write(tmp_path)
    assert (tmp_path / "index.html").is_file()
    rooms = ("ops/rprelu", "engine", "training", "classifiers", "cluster", "models")
    for module in ("refimpl", *(f"refimpl/{room}" for room in rooms)):
        page = (tmp_path / f"{module}.html").read_text()
        assert "<h1" in page and "&gt;&gt;&gt;" in page, module
