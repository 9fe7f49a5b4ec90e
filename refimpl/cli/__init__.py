"""The command `refimpl`: parse, call, print. What is computed is elsewhere.

A verb is a module: `add` says what it reads, `run` does it. To add one, name it in VERBS.

Exit status: 0 done, 1 a check failed, 2 bad usage or bad input, 130 interrupted (Ctrl-C),
141 nobody reads the output any more; `golden` has 3 and 4 too. Errors are one line on stderr,
answers go to stdout.
Modules that take long to import are imported by the `run` that needs them.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

import numpy as np

import refimpl
from refimpl import machine
from refimpl.cli import (
    ablate,
    bench,
    classify,
    compile,
    demo,
    evaluate,
    export,
    golden,
    import_,
    live,
    models,
    options,
    outputs,
    pack,
    report,
    scenes,
    segment,
    show,
    summary,
    train,
)
from refimpl.cli.output import complain, warn
from refimpl.cli.verbs import Parser, Verbs
from refimpl.conventions import RefimplError

# In the order of --help.
VERBS = (
    *(demo, classify, segment, evaluate, train, scenes, ablate, summary, show, pack, import_),
    *(export, models, report, live, compile, golden, bench),
)


def main(argv: Sequence[str] | None = None, *, own_process: bool = False) -> int:
    """Run the command with these arguments (default: the program's) -> exit status.

    own_process: nobody else lives in this process, so that short cuts may be taken in it.
    """
    machine.own_process = own_process
    if own_process:  # one line instead of a place in our sources
        warnings.showwarning = lambda message, *place, **more: warn(" ".join(str(message).split()))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name need not be valid text
            stream.reconfigure(errors="backslashreplace")
    args = None
    try:
        args = _parsed(sys.argv[1:] if argv is None else argv)
        # what overflows is told by the checks of the operations, in one line with a name
        with np.errstate(all="ignore"), outputs.answers(args):
            outputs.check(args)
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
        around = (options.blamed(args, error), outputs.hint(args, error)) if args else ()
        complain(error, *around)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return 2


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    try:
        return parser().parse_args(_meant(argv))
    finally:
        sys.stdout.flush()  # of help, which ends with SystemExit


def _meant(argv: Sequence[str]) -> list[str]:
    """Arguments as the parser has them: `help` and `version` are options there."""
    if argv and argv[0] == "help":
        return [*argv[1:], "--help"]
    return ["--version"] if list(argv) == ["version"] else list(argv)


def _drop_output() -> None:
    """What could not be written: Python would try once more at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments; what it parses has `run`, the verb's function."""
    parser = Parser(
        prog="refimpl",
        description="DIDB-ViT, a 1-bit vision transformer, as an executable NumPy reference.",
        epilog="`refimpl VERB --help` explains a verb and shows examples.",
    )
    parser.add_argument("--version", action="version", version=f"refimpl {refimpl.__version__}")
    verbs = Verbs(parser)
    for module in VERBS:
        module.add(verbs)
    return parser
