"""Which backend answers: the rule, and that it is kept to and told."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import refimpl
from refimpl import choice
from refimpl.choice import Backend, Choice, Work, choose
from refimpl.conventions import ConfigError, ModelFileError
from refimpl.data import bundled
from refimpl.kernels import cache
from refimpl.models import architectures, files
from refimpl.models import config as configs
from tests.command_line import MODEL, PATIENCE, SEVEN, SMALL, process, run, save_model

MICRO = architectures.named("didb_micro")
SEGMENTER = architectures.named("segmenter_didb_micro")
EVERY = 10**9  # images


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """A machine on which nothing was compiled."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path) -> Path:
    return save_model(tmp_path / "model.safetensors")


def crossing(config: configs.Config) -> int:
    """The number of images from which on the engine answers, all in one call; by bisection."""
    low, high = 0, EVERY
    while high - low > 1:
        middle = (low + high) // 2
        if choose(config, Work(middle, 1)).backend == "engine":
            high = middle
        else:
            low = middle
    return high


def test_small_work_is_numpys_and_large_work_the_engines(empty):
    for config in (MICRO, SEGMENTER, architectures.named("didb_tiny")):
        assert choose(config, Work(1, 1)) == Choice("numpy", "quicker than to start the engine")
        assert choose(config, Work(EVERY, EVERY)).backend == "engine"


def test_compiled_kernels_bring_the_crossing_nearer(empty):
    fresh = crossing(MICRO)
    cache.write(cache.FORWARD[True] + "0", b"")  # of other networks
    assert crossing(MICRO) == fresh
    cache.write(cache.FORWARD[False] + "0", b"")
    assert crossing(MICRO) < fresh / 5
    assert "its kernels are compiled" in choose(MICRO, Work(fresh, 1)).why


def test_at_the_crossing_both_ways_take_equally_long(empty):
    at = crossing(MICRO)
    numpy = choice.numpy_seconds(MICRO, Work(at, 1))
    engine = choice.START + choice.COMPILE[False] + numpy / choice.SPEED_UP
    assert numpy == pytest.approx(engine, rel=0.01)


def test_more_threads_are_more_of_numpy(empty):
    images = crossing(MICRO)
    assert choose(MICRO, Work(images, 1, threads=1)).backend == "engine"
    assert choose(MICRO, Work(images, 1, threads=4)).backend == "numpy"


def test_an_answer_asked_for_is_given(file):
    read = files.read_any(file)
    assert Backend(read, "numpy").choice == Choice("numpy", "asked for")
    assert Backend(read, "numpy").engine is None
    assert Backend(read, "engine").choice == Choice("engine", "asked for")
    assert Backend(read, "engine").engine is not None


def test_where_there_is_no_choice(file, tmp_path):
    latent = files.read(file)
    packed = tmp_path / "packed.safetensors"
    files.save_packed(packed, latent.model, latent.params)
    read = files.read_any(packed)
    assert Backend(read, "auto").choice == Choice("engine", "the file is packed")
    with pytest.raises(ModelFileError, match="packed, so only the engine can run it"):
        Backend(read, "numpy")
    real = save_model(tmp_path / "real.safetensors", block="real", similarity="plain",
                      attention="plain", rprelu="channel")  # fmt: skip
    backend = Backend(files.read_any(real), "auto")
    assert backend.choice == Choice("numpy", "the engine does not run such a network")
    backend.expect(Work(EVERY, EVERY))
    assert backend.engine is None
    with pytest.raises(ConfigError, match="real.safetensors: engine: found real blocks"):
        Backend(files.read_any(real), "engine")


def test_the_engine_takes_over_when_there_was_enough_to_do(file):
    backend = Backend(files.read_any(file), "auto")
    batch = 100
    calls = 0
    while backend.count(batch) is None:
        calls += 1
    assert choose(MODEL.config, Work(calls * batch, calls)).backend == "numpy"
    assert choose(MODEL.config, Work((calls + 1) * batch, calls + 1)).backend == "engine"
    assert backend.count(1) is backend.engine is not None  # for good


def test_what_is_expected_is_decided_at_once(file):
    ask = refimpl.classifier(file)
    ask.expect(Work(1, 1))
    assert ask.engine is None and ask.backend.choice.backend == "numpy"
    ask.expect(Work(EVERY, EVERY))
    assert ask.engine is not None
    ask.expect(Work(1, 1))
    assert ask.engine is not None


def test_both_backends_answer_alike(file):
    images = np.random.default_rng(0).integers(256, size=(5, 28, 28), dtype=np.uint8)
    few, many, numpy, engine = (
        refimpl.classifier(file, backend=backend) for backend in ("auto", "auto", "numpy", "engine")
    )
    many.expect(Work(EVERY, EVERY))
    for ask, same in ((few, numpy), (many, engine)):
        for answer, expected in zip(ask(images), same(images), strict=True):
            np.testing.assert_array_equal(answer.probabilities, expected.probabilities)
            assert answer.probabilities.dtype == ask.dtype == np.float32


def test_json_says_who_answered_and_why(file):
    (answer,) = json.loads(run("classify", SEVEN, "--model", file, "--json").out)
    assert (answer["backend"], answer["why"]) == ("numpy", "quicker than to start the engine")
    data = ("--data", SMALL, "--model", file, "--json", "--limit", 4)
    answer = json.loads(run("evaluate", *data, "--backend", "engine").out)
    assert (answer["backend"], answer["why"]) == ("engine", "asked for")
    assert "(numpy: asked for)" in run("evaluate", *data[:-3], "--backend", "numpy").out


def test_classify_on_a_fresh_machine_names_compile_once(file, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    command = ("classify", SEVEN, "--model", file)
    assert run(*command, "--backend", "numpy").err == ""
    told = run(*command).err
    assert told.startswith("refimpl: NumPy answered; `refimpl compile` makes the engine ready")
    assert told.count("\n") == 1
    assert run(*command).err == ""


def test_classify_is_silent_where_the_engine_is_ready_or_of_no_use(file, empty, tmp_path):
    real = save_model(tmp_path / "real.safetensors", block="real", similarity="plain",
                      attention="plain", rprelu="channel")  # fmt: skip
    assert run("classify", SEVEN, "--model", real).err == ""
    cache.write(cache.FORWARD[False] + "0", b"")
    assert run("classify", SEVEN, "--model", file).err == ""


def test_a_fresh_machine_that_keeps_nothing_answers_all_the_same(file, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder\n")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    for _ in range(2):
        result = run("classify", SEVEN, "--model", file)
        assert result.status == 0 and result.err.count("\n") == 1


@pytest.mark.parametrize("command", [("classify", SEVEN), ("demo",)], ids=["classify", "demo"])
def test_a_short_command_does_not_import_numba(command, tmp_path):
    """Which takes longer than the answer, without the kernels that would be compiled then."""
    code = "import sys; from refimpl.cli import main; main(); assert 'numba' not in sys.modules"
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        capture_output=True, text=True, timeout=PATIENCE, env={"NUMBA_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("backend", ["numpy", "engine"])
def test_the_demo_agrees_with_both_backends(backend):
    result = run("demo", "--backend", backend)
    assert result.status == 0
    assert "10 of 10 agree" in result.out and "8 of 8 agree" in result.out


def test_no_time_of_an_image_holds_the_compilation(monkeypatch, file):
    """All that is compiled or loaded is so when the table begins."""
    order = []
    started = refimpl.engine.Engine.__call__
    monkeypatch.setattr(
        refimpl.engine.Engine, "__call__",
        lambda self, x: order.append("engine") or started(self, x),
    )  # fmt: skip
    ask = refimpl.classifier(file, backend="engine")
    ask.backend.warm()
    assert order == ["engine"]
    order.clear()
    monkeypatch.setattr(bundled, "photos", bundled.mnist)
    monkeypatch.setattr("builtins.print", lambda *a, **k: order.append("print"))
    run("demo", "--backend", "engine")
    assert order.index("engine") < order.index("print")


def test_process_of_its_own(tmp_path):
    """The README's first command on an empty cache."""
    found = process("demo", env={"NUMBA_CACHE_DIR": str(tmp_path)})
    assert found.returncode == 0, found.stderr
    assert "compiling" not in found.stderr


def test_threads_side_by_side_start_one_engine(file, monkeypatch):
    """As those of a segmenter's evaluation, of which each image has more windows than one."""
    backend, meeting, started = Backend(files.read(file), "auto"), threading.Barrier(2), []
    assert backend.engine is None

    def start(self) -> None:
        started.append(self)
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(0.5)  # for another that starts
        self.engine = len(started)

    monkeypatch.setattr(Backend, "_start", start)
    monkeypatch.setattr(choice, "choose", lambda config, work: Choice("engine", "enough to do"))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(backend.count, (10, 10))) == [1, 1]
    assert started == [backend]
