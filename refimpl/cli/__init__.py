"""The command `refimpl`: parse, call, print. What is computed is elsewhere.

A verb is a module: `add` says what it reads, `run` does it. To add one, name it in VERBS.

Exit status: 0 done, 1 a check failed, 2 bad usage or bad input, 130 interrupted (Ctrl-C),
141 nobody reads the output any more. Errors are one line on stderr, answers go to stdout.
Modules that take long to import are imported by the `run` that needs them.
"""

import argparse
import gc
import os
import sys
from collections.abc import Sequence

import numpy as np

import refimpl
from refimpl.cli import (
    ablate,
    bench,
    classify,
    compile,
    demo,
    evaluate,
    golden,
    models,
    pack,
    report,
    scenes,
    segment,
    summary,
    train,
)
from refimpl.cli.output import complain
from refimpl.cli.verbs import Verbs
from refimpl.conventions import RefimplError

# In the order of --help.
VERBS = (
    *(demo, classify, segment, evaluate, train, scenes, ablate, summary, pack, models, report),
    compile,
    *(golden, bench),
)


def command() -> int:
    """`main` as a process of its own, the program `refimpl`.

    It looks for garbage seldom, and not once more at its end: among the hundred thousand objects
    with which Numba starts that takes a third of the time of a short command.
    """
    gc.set_threshold(100_000)
    status = main()
    gc.freeze()
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: the program's) -> exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name need not be valid text
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    try:
        # what overflows is told by the checks of the operations, in one line with a name
        with np.errstate(all="ignore"):
            status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `refimpl models | head -1` is done
        _drop_output()
        return 141
    except KeyboardInterrupt as interrupt:
        print(": ".join(["refimpl", "interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130
    except MemoryError as error:
        print(f"refimpl: out of memory: {error}", file=sys.stderr)
        return 2
    except (RefimplError, OSError) as error:
        complain(error)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return 2


def _drop_output() -> None:
    """What could not be written: Python would try once more at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments; what it parses has `run`, the verb's function."""
    parser = argparse.ArgumentParser(
        prog="refimpl",
        description="DIDB-ViT, a 1-bit vision transformer, as an executable NumPy reference.",
        epilog="`refimpl VERB --help` explains a verb and shows examples.",
    )
    parser.add_argument("--version", action="version", version=f"refimpl {refimpl.__version__}")
    verbs = Verbs(parser)
    for module in VERBS:
        module.add(verbs)
    return parser
