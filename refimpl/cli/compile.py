"""`refimpl compile`: compile the kernels now, so that nobody waits for them later."""

import argparse
import os

from refimpl.choice import start_numba
from refimpl.cli.options import FILES, add_json
from refimpl.cli.output import print_json, print_table, progress_bar, say
from refimpl.cli.verbs import Verbs
from refimpl.conventions import ConfigError
from refimpl.machine import cpus


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "compile the kernels of the engine and of training for this CPU, once",
        "refimpl compile",
        "refimpl compile --model didb_micro_mnist",
    )
    added.add_argument(
        "--model", metavar="NAME",
        help="only what answers for this architecture, shipped model or .safetensors file",
    ).complete = FILES  # fmt: skip
    add_json(added)


def run(args: argparse.Namespace) -> int:
    from refimpl.kernels import cache
    from refimpl.models import files

    config = None if args.model is None else files.read_config(args.model)
    _require_compilation()
    start_numba()
    from refimpl import ahead

    chosen = ahead.names(config)
    with progress_bar("compile", ahead.total(chosen), unit="B") as bar:
        results = ahead.compile_all(chosen, cpus(), bar.update)
    if args.json:
        compiled = [result._asdict() for result in results]
        print_json({"folder": str(cache.folder()), "kernels": compiled})
        return 0
    if not results:
        say(f"{args.model}: NumPy answers for it, there is nothing to compile")
        return 0
    rows = [(result.what, _described(result.compiled)) for result in results]
    print_table(("kernels of", "functions"), rows)
    print()
    say(f"kept in {cache.folder()}")
    return 0


def _described(compiled: int) -> str:
    return f"{compiled} compiled" if compiled else "there already"


def _require_compilation() -> None:
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        raise ConfigError("NUMBA_DISABLE_JIT is set, so nothing is compiled; expected it unset")
