"""`refimpl import`: a checkpoint of timm, transformers, Swin or BinaryViT as a model file."""

import argparse
from pathlib import Path

from refimpl.cli import options, outputs
from refimpl.cli.options import FILES
from refimpl.cli.output import say
from refimpl.cli.verbs import Verbs
from refimpl.conventions import ModelFileError


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "turn a checkpoint of timm, transformers, Swin or BinaryViT into a model file",
        "refimpl import vit-tiny -o vit_tiny.safetensors",
        "refimpl import model.safetensors --config heads.json --mean 0.485 0.456 0.406 "
        "--std 0.229 0.224 0.225 --crop 0.875 --resample bicubic -o vit.safetensors",
    )
    added.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path,
        help="a .safetensors file, one of PyTorch (.pth, .pt, .bin, .tar, .ckpt; needs it), or a "
        "folder of one",
    ).complete = FILES  # fmt: skip
    added.add_argument(
        "--config", metavar="FILE", type=Path,
        help="JSON with what no tensor says, such as num_heads (default: config.json beside it)",
    ).complete = FILES  # fmt: skip
    added.add_argument(
        "--classes", metavar="FILE", type=Path,
        help="names of the classes in their order, one a line or JSON",
    ).complete = FILES  # fmt: skip
    outputs.add(
        added, "-o", "--output", required=True,
        help="the .safetensors file to write",
    )  # fmt: skip
    added.set_defaults(beside=_beside)
    images = added.add_argument_group(
        "images", "how they are made ready, in the place of what the configuration says"
    )
    images.add_argument("--mean", nargs="+", type=float, metavar="X", help="one a channel, 0 to 1")
    images.add_argument("--std", nargs="+", type=float, metavar="X", help="one a channel")
    images.add_argument(
        "--size", type=options.size, metavar="H[xW]", help="what the network reads, in pixels"
    )
    images.add_argument("--crop", type=float, metavar="PART", help="of each side, in the middle")
    images.add_argument(
        "--resample", metavar="NAME", help="nearest, box, bilinear, bicubic or lanczos"
    )


def run(args: argparse.Namespace) -> int:
    from refimpl.importing import checkpoint, containers
    from refimpl.models import files

    outputs.check(args, *(("checkpoint", part) for part in containers.parts_of(args.checkpoint)))
    found = checkpoint.read(
        args.checkpoint,
        config=args.config,
        classes=args.classes,
        size=args.size,
        mean=args.mean,
        std=args.std,
        crop=args.crop,
        resample=args.resample,
    )
    if found.missing:
        names = ", ".join(f"--{name}" for name in found.missing)
        raise ModelFileError(
            f"{args.checkpoint}: nothing beside it says how images are made ready; expected {names}"
        )
    files.save(args.output, found.model, found.params)
    outputs.drop_card(args.output)
    config = found.model.config
    say(
        f"{args.output}: {found.family}, {config.num_blocks} blocks, "
        f"{config.num_classes} classes, images of {config.image_size[0]} x {config.image_size[1]}"
    )
    return 0


def _beside(args: argparse.Namespace) -> list[tuple[Path, bool]]:
    """A card that lies there would be taken for that of the imported file; --force removes it."""
    return [(args.output.with_suffix(".json"), False)] if args.output.name else []
