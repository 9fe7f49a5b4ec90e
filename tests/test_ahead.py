"""`refimpl compile`: what it compiles, in which processes, and how far it says to be."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
from numba.core import event

from refimpl import ahead
from refimpl.conventions import RefimplError
from refimpl.engine import parts
from refimpl.engine import run as engine_run
from refimpl.kernels import attention, cache, levels, progress, tiles, windows
from refimpl.models import architectures
from tests.command_line import SEVEN, assert_one_line, process, run

ENGINE, EXTRAS, TRAINING = "engine", "engine, windows and decoders", "training"


def plain(kernel):
    return getattr(kernel, "__wrapped__", kernel)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("didb_micro", [ENGINE]),
        ("react_tiny", [ENGINE]),
        ("didb_swin_micro", [EXTRAS]),
        ("segmenter_didb_micro", [EXTRAS]),
        ("deit_micro", []),
    ],
)
def test_what_a_network_needs(network, expected):
    assert ahead.names(architectures.named(network)) == expected


def test_without_a_network_it_is_everything():
    assert sorted(ahead.names()) == sorted([ENGINE, EXTRAS, TRAINING])


def test_what_the_engine_consists_of():
    """Found by name through modules and calls; what only windows and decoders need is extra."""
    everything = progress.shares([engine_run.forward])
    of_all = {plain(kernel) for kernel in (tiles.pack, tiles.finish, attention.weigh)}
    of_some = {plain(kernel) for kernel in (levels.gelu, windows.cut_words)}
    assert of_all | of_some | {engine_run.forward} <= set(everything)
    some = progress.shares([engine_run.forward], left_out=parts.is_extra)
    assert of_all <= set(some)
    assert not of_some & set(some)
    assert all(share > 0 for share in everything.values())
    assert everything[engine_run.forward] > some[engine_run.forward]  # it takes more in


def compiled(function):
    details = {"dispatcher": SimpleNamespace(py_func=function)}
    with event.trigger_event("numba:compile", data=details):
        pass


def test_a_function_counts_once_and_the_end_counts_the_rest():
    def other():
        """Of nobody's share."""

    mine = plain(tiles.pack)
    told = []
    with progress.Count({mine: 3, plain(tiles.finish): 5}, told.append) as count:
        compiled(mine)
        compiled(mine)
        compiled(other)
        assert told == [3]
    assert told == [3, 5]
    assert count.compiled == 2
    compiled(mine)  # nobody listens any more
    assert count.compiled == 2


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_there_is_not_compiled_again(processes):
    told = []
    chosen = [EXTRAS, ENGINE]
    assert ahead.compile_all(chosen, processes, told.append) == [(EXTRAS, 0), (ENGINE, 0)]
    assert sum(told) == ahead.total(chosen)
    assert ahead.compile_all([], processes, told.append) == []


def test_a_process_that_dies_is_told(capfd):
    with pytest.raises(RefimplError, match="no task: the process that compiles has died, status 1"):
        ahead.compile_all(["no task", ENGINE], 2, lambda share: None)
    assert "KeyError: 'no task'" in capfd.readouterr().err


def test_a_fresh_machine(tmp_path):
    """Everything of the engine is kept, so that whoever comes next starts at once."""
    fresh = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first = process("compile", "--model", "didb_micro", "--json", env=fresh)
    assert (first.returncode, first.stderr) == (0, "")
    answer = json.loads(first.stdout)
    (kernels,) = answer["kernels"]
    assert kernels["what"] == ENGINE and kernels["compiled"] > 20
    assert answer["folder"].startswith(f"{tmp_path}{os.sep}kernels-")
    assert [name.rpartition("-")[0] for name in os.listdir(answer["folder"])] == ["forward"]
    asked = process("classify", SEVEN, "--backend", "engine", env=fresh)
    assert (asked.returncode, asked.stderr) == (0, "")


def test_the_verb_says_what_it_did():
    result = run("compile", "--model", "didb_micro_mnist")
    assert (result.status, result.err) == (0, "")
    assert "there already" in result.out and str(cache.folder()) in result.out
    result = run("compile", "--model", "deit_micro")
    assert result.status == 0
    assert result.out == "deit_micro: NumPy answers for it, there is nothing to compile\n"


def test_bad_usage(monkeypatch, tmp_path):
    assert_one_line(run("compile", "--model", "nobody"), "nobody", "no such file or model")
    (tmp_path / "file").write_text("no folder\n")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert_one_line(run("compile", "--model", "didb_micro"), str(tmp_path), "Not a directory")
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert_one_line(run("compile"), "NUMBA_DISABLE_JIT is set")
