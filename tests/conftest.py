"""Settings of the test run: threads, Hypothesis profiles, the table of worst disagreements."""

from __future__ import annotations

import os

# Before NumPy is loaded. The arrays of a test are small, and with one worker a core the threads
# of the linear algebra library would only get in each other's way.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import Phase, settings  # noqa: E402

import refimpl  # noqa: E402
from tests import oracles  # noqa: E402
from tests.browsers import browser  # noqa: E402, F401

# ci, the default: the same examples on every run, so that a red run is the fault of the change
# that it tests.
# dev: new examples on every run. explore: many of them, for an evening. mutants: ci's examples,
# and a failure is left as it was found.
settings.register_profile("ci", derandomize=True, max_examples=20, deadline=None, print_blob=True)
settings.register_profile("dev", max_examples=30, deadline=None, print_blob=True)
settings.register_profile("explore", max_examples=1000, deadline=None, print_blob=True)
settings.register_profile(
    "mutants",
    derandomize=True,
    max_examples=20,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)


SMALLEST = {"image_size": 4, "dim": 2, "heads": 1, "depth": 1}


@pytest.fixture(scope="session", autouse=True)
def _compiled_kernels() -> None:
    """The first run of the engine on a machine says that it compiles; no test expects that line."""
    for fields in ({}, {"decoder": "linear"}):  # what is compiled for classifiers, and for others
        model = refimpl.create_model("didb_micro", **SMALLEST, **fields)
        engine = refimpl.engine.compile(model, model.init(np.random.default_rng(0)))
        engine(np.zeros((1, 1, 4, 4), np.float32))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["worst"] = oracles.WORST


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    for kind, worst in getattr(node, "workeroutput", {}).get("worst", {}).items():
        oracles.note(kind, *worst)


def pytest_terminal_summary(terminalreporter) -> None:
    if not oracles.WORST:
        return
    terminalreporter.section("worst disagreement by kind, relative to the largest entry")
    for kind, (value, where) in sorted(oracles.WORST.items()):
        terminalreporter.write_line(f"{kind:48s} {value:.1e}  {where}")
