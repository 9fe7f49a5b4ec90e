"""`refimpl pack`: a trained model with one bit for each binary weight."""

import argparse
from pathlib import Path

from refimpl.cli import outputs
from refimpl.cli.options import FILES
from refimpl.cli.output import say, warn
from refimpl.cli.verbs import Verbs
from refimpl.conventions import ModelFileError, NonFiniteError


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "write a trained model with one bit for each binary weight",
        "refimpl pack didb_micro_mnist -o packed.safetensors",
    )
    added.add_argument(
        "model", metavar="MODEL", help="a shipped name or a .safetensors file"
    ).complete = FILES
    outputs.add(
        added, "-o", "--output", required=True,
        help="the .safetensors file to write",
    )  # fmt: skip
    added.set_defaults(beside=_beside)
    added.add_argument(
        "--floats", choices=("float32", "float16"), default="float32",
        help="type of scales, shifts and real layers (default float32)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from refimpl.models import files, packing

    file = files.read(args.model)
    try:
        files.save_packed(args.output, file.model, file.params, floats=args.floats)
    except NonFiniteError as error:  # of a float16
        raise ModelFileError(f"{args.model}: {error}") from None
    outputs.drop_card(args.output)
    if not packing.for_engine(file.model.config):
        warn(f"{args.model}: no network of the engine, which cannot run what was packed")
    before, after = file.path.stat().st_size, args.output.stat().st_size
    # a device keeps nothing
    ratio = f", {before / after:.1f} times smaller than {args.model}" if after else ""
    say(f"{args.output}: {after:,} bytes{ratio}")
    return 0


def _beside(args: argparse.Namespace) -> list[tuple[Path, bool]]:
    """A card that lies there would be taken for that of the packed file; --force removes it."""
    return [(args.output.with_suffix(".json"), False)] if args.output.name else []
