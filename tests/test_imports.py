"""The rule of the house: who may import whom, what an op file holds, what the wheel packs."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "refimpl"
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
PICKLES = PACKAGE / "importing" / "containers.py"  # opened by PyTorch alone
OPS = sorted(p.stem for p in (PACKAGE / "ops").glob("[!_]*.py"))

# Room -> rooms that it may import, besides itself and conventions. A new room needs a line here.
MAY_IMPORT = {
    "conventions": set(),
    "disk": set(),
    "machine": set(),
    "ops": set(),
    "models": {"data", "disk", "ops"},
    "data": {"disk", "machine"},
    "training": {"data", "disk", "machine", "metrics", "models", "ops"},
    "kernels": {"disk", "machine", "ops"},
    "choice": {"engine", "kernels", "machine", "models"},
    "ahead": {"engine", "kernels", "machine", "models"},
    "engine": {"kernels", "machine", "models", "ops"},
    "golden": {"data", "disk", "models", "ops"},
    "importing": {"data", "disk", "models"},
    "exporting": {"disk", "models", "ops"},
    "bench": {"__init__", "cluster", "data", "engine", "kernels", "models", "ops", "training"},
    "metrics": set(),
    "predictors": {"choice", "data", "machine", "models"},
    "classifiers": {"choice", "data", "machine", "metrics", "models", "ops", "predictors"},
    "segmenters": {"choice", "data", "machine", "metrics", "models", "ops", "predictors"},
    "live": {"__init__", "data", "models", "report"},
    "report": {
        "__init__",
        "classifiers",
        "data",
        "disk",
        "golden",
        "metrics",
        "models",
        "ops",
        "segmenters",
        "training",
    },
    "cluster": {
        "__init__",
        "choice",
        "data",
        "disk",
        "kernels",
        "machine",
        "models",
        "ops",
        "training",
    },
    "torch": {"models", "ops"},
    "cli": {
        "__init__",
        "ahead",
        "bench",
        "choice",
        "classifiers",
        "cluster",
        "data",
        "disk",
        "engine",
        "exporting",
        "golden",
        "importing",
        "kernels",
        "live",
        "machine",
        "metrics",
        "models",
        "ops",
        "predictors",
        "report",
        "segmenters",
        "training",
    },
    "__init__": {
        "classifiers",
        "cluster",
        "data",
        "engine",
        "exporting",
        "golden",
        "importing",
        "kernels",
        "live",
        "models",
        "ops",
        "report",
        "segmenters",
        "torch",
        "training",
    },
    "__main__": {"cli", "machine"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", files(PACKAGE), ids=identify)
def test_rooms_import_only_what_they_may(path):
    here = room(path)
    assert here in MAY_IMPORT, f"{here}: say in MAY_IMPORT what it may import"
    allowed = MAY_IMPORT[here] | {here, "conventions"}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "refimpl":
            # `import refimpl` alone is `refimpl.__init__`, which imports everything
            target = parts[1] if len(parts) > 1 else "__init__"
            assert target in allowed, f"{identify(path)} imports {name}"


@pytest.mark.parametrize("path", files(ROOT / "refimpl") + files(ROOT / "tests"), ids=identify)
def test_torch_is_imported_where_it_is_read_compared_and_measured_only(path):
    rooms = {"torch_models", "bench", "torch"}
    if not rooms & set(path.parts) and path != PICKLES:
        found = {name.split(".")[0] for name in imports(path)}
        assert not found & {"torch", "torchvision", "transformers", "timm"}, identify(path)


@pytest.mark.parametrize("path", files(PACKAGE / "ops"), ids=identify)
def test_ops_are_numpy_only(path):
    found = {name.split(".")[0] for name in imports(path)}
    standard = {"__future__", "collections", "math", "typing"}
    # scipy for the exact erf, which NumPy lacks
    allowed = standard | {"numpy", "refimpl"} | ({"scipy"} if path.stem == "gelu" else set())
    assert found <= allowed


@pytest.mark.parametrize("path", files(PACKAGE), ids=identify)
def test_the_interpreter_alone_calls_a_listener(path):
    """Whatever else would show a value writes the structure of a network down once more."""
    if path == PACKAGE / "models" / "interpreter.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and len(node.args) > 1:  # name, value, op, inputs
            assert getattr(node.func, "attr", getattr(node.func, "id", "")) != "tap"


def test_operations_of_a_list_are_ops_with_a_place_in_every_backend():
    from refimpl import ops
    from refimpl.kernels import backend
    from refimpl.models.operations import OPERATIONS

    assert set(OPERATIONS) <= set(ops.__all__)
    assert set(OPERATIONS) <= set(backend.__all__)
    assert set(backend.__all__) - {"attention", "projection"} <= set(ops.__all__)  # those of units


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_forward_with_backward_below_it_and_a_test(name):
    tree = ast.parse((PACKAGE / "ops" / f"{name}.py").read_text(encoding="utf-8"))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if name == "haar":
        pairs = [(t, f"{t}_backward") for t in ("swt2", "iswt2", "dwt2", "idwt2")]
    else:
        pairs = [("forward", "backward")]
    for forward, backward in pairs:
        assert functions.index(backward) == functions.index(forward) + 1
    assert ast.get_docstring(tree), f"{name}: the equation belongs into a docstring"
    assert (ROOT / "tests" / f"test_{name}.py").is_file()


def test_the_public_ops_are_the_files():
    from refimpl import ops

    assert sorted(ops.__all__) == OPS


def distributions(requirements: str) -> set[str]:
    """Names of packages as they are imported, of a list of requirements in setup.cfg."""
    names = {re.match(r"[\w-]+", line)[0] for line in requirements.split("\n") if line}
    return {"PIL" if name == "pillow" else name for name in names}


def test_every_import_is_a_declared_dependency():
    """Else a fresh environment has everything but what the last change needed."""
    required = distributions(SETUP["options"]["install_requires"])
    extras = SETUP["options.extras_require"]
    cluster = distributions(extras["cluster"]) | {"dask"}  # which distributed needs
    of_room = {
        "report": distributions(extras["plots"]),
        "bench": distributions(extras["bench"]) | cluster,
        "cluster": cluster,
        "importing": distributions(extras["torch"]),
        "torch": distributions(extras["torch"]),
        "exporting": distributions(extras["onnx"]),
    }
    standard = {*sys.stdlib_module_names, "tomllib", "refimpl"}  # tomllib: Python 3.11
    for path in files(PACKAGE):
        found = {name.split(".")[0] for name in imports(path)} - standard - required
        assert found <= of_room.get(room(path), set()), identify(path)


@pytest.mark.parametrize("name", ["numba", "llvmlite"])
def test_what_is_used_inside_has_an_upper_bound(name):
    """A release of Numba that moves its inner parts must not be installed before it was tried."""
    (line,) = re.findall(rf"^{name}\b.*$", SETUP["options"]["install_requires"], re.MULTILINE)
    assert re.fullmatch(rf"{name}>=[\d.]+,<[\d.]+", line)


def test_every_package_is_in_the_wheel():
    listed = set(SETUP["options"]["packages"].split())
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in PACKAGE.rglob("__init__.py")}
    assert listed == folders | {"refimpl.weights"}
