"""`refimpl export`: a trained model for other places, as ONNX, as C or as hex files."""

import argparse
from pathlib import Path

from refimpl.cli import outputs
from refimpl.cli.options import FILES
from refimpl.cli.output import say
from refimpl.cli.verbs import Verbs


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "write a trained model for other places, as ONNX, as C or as hex files",
        "refimpl export didb_micro_mnist --onnx digits.onnx",
        "refimpl export didb_micro_mnist --c digits",
        "refimpl export didb_micro_mnist --hex memories --word 64",
    )
    added.add_argument(
        "model", metavar="MODEL", help="a shipped name or a .safetensors file, packed or not"
    ).complete = FILES
    added.add_argument(
        "--force", action="store_true",
        help="overwrite a file, or a folder of an earlier export (default: refuse)",
    )  # fmt: skip
    target = added.add_mutually_exclusive_group(required=True)
    action = target.add_argument(
        "--onnx", type=Path, metavar="FILE", help="a graph of ONNX's standard operators"
    )
    outputs.declare(action, (".onnx", ""))
    _add_folder(target, "--c", "C99, a header and a source without malloc, into a new folder")
    _add_folder(target, "--hex", "$readmemh files, an index and a test bench, into a new folder")
    added.add_argument(
        "--taps", action="store_true", help="of the ONNX file: every tap is an output"
    )
    added.add_argument(
        "--word", type=int, choices=(8, 16, 32, 64), metavar="BITS",
        help="of a word of the hex files: 8, 16, 32 or 64 (default 32)",
    )  # fmt: skip
    added.add_argument(
        "--floats", choices=("float", "fixed"),
        help="scales, thresholds and shifts of the hex files: float32, or fixed point in 32 bits "
        "(default float)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from refimpl.exporting import c, hexfiles, onnx, source

    if args.taps and args.onnx is None:
        args.parser.error("--taps: belongs to --onnx")
    for name in ("word", "floats"):
        if getattr(args, name) is not None and args.hex is None:
            args.parser.error(f"--{name}: belongs to --hex")
    read = source.read(args.model)
    if args.onnx is not None:
        say(onnx.write(args.onnx, read, taps=args.taps, overwrite=args.force))
    elif args.c is not None:
        say(c.write(args.c, read, overwrite=args.force))
    elif args.hex is not None:
        options = {"word": args.word or 32, "floats": args.floats or "float"}
        say(hexfiles.write(args.hex, read, overwrite=args.force, **options))
    return 0


def _add_folder(parser: argparse.ArgumentParser, flag: str, help: str) -> None:
    """An option that names a folder, at which the exporter itself looks before it writes."""
    action = parser.add_argument(flag, type=Path, metavar="FOLDER", help=help)
    action.complete, action.writes = FILES, None
