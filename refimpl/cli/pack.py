"""`refimpl pack`: a trained model with one bit for each binary weight."""

import argparse

from refimpl.cli.options import FILES, add_output
from refimpl.cli.output import require_other, warn
from refimpl.cli.verbs import Verbs
from refimpl.conventions import ModelFileError


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "write a trained model with one bit for each binary weight",
        "refimpl pack didb_micro_mnist -o packed.safetensors",
    )
    added.add_argument(
        "model", metavar="MODEL", help="a shipped name or a .safetensors file"
    ).complete = FILES
    add_output(added, "the .safetensors file to write")
    added.add_argument(
        "--floats", choices=("float32", "float16"), default="float32",
        help="type of scales, shifts and real layers (default float32)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from refimpl.models import files, packing

    file = files.read(args.model)
    require_other(args.output, file.path, ModelFileError, "the model")
    files.save_packed(
        args.output,
        file.model,
        file.params,
        floats=args.floats,
        class_names=file.class_names,
        preprocessing=file.preprocessing,
    )
    if not packing.binary_matrices(file.model.config):
        warn(f"{args.model}: no binary weights; the engine cannot run what was packed")
    before, after = file.path.stat().st_size, args.output.stat().st_size
    print(f"{args.output}: {after:,} bytes, {before / after:.1f} times smaller than {args.model}")
    return 0
