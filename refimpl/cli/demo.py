"""`refimpl demo`: the bundled digits against their stored goldens."""

import argparse
import time

from refimpl.cli.options import add_backend, start_engine
from refimpl.cli.verbs import Verbs

GOLDEN_TOLERANCE = 1e-3  # of a probability


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "classify the bundled sample digits and check the answers against stored goldens",
        "refimpl demo",
    )
    add_backend(added)


def run(args: argparse.Namespace) -> int:
    from refimpl.classifier import classifier
    from refimpl.data import bundled

    goldens = bundled.goldens()
    start_engine(args.backend)
    ask = classifier(goldens["model"], backend=args.backend)
    if ask.engine is None:
        # In float32 BLAS may round a value next to 0 to the other side on another machine, and a
        # flipped bit moves a probability further than any rounding. The engine's sums are the same
        # everywhere.
        ask = ask.astype(goldens["dtype"])
    how = f"{ask.dtype}, {'NumPy' if ask.engine is None else 'packed engine'}"
    print(f"{goldens['model']} on {len(goldens['images'])} test images of MNIST, {how}\n")
    print("image       label  probability      time  golden")
    agreed = 0
    for name, golden in sorted(goldens["images"].items()):
        start = time.perf_counter()
        (answer,) = ask(bundled.mnist() / name)
        milliseconds = 1000 * (time.perf_counter() - start)
        near = abs(answer.probability - golden["probability"]) <= GOLDEN_TOLERANCE
        agrees = near and answer.label == golden["label"]
        agreed += agrees
        verdict = "agrees" if agrees else f"DIFFERS: {golden['label']} {golden['probability']:.4f}"
        print(
            f"{name:10}  {answer.label:>5}  {answer.probability:11.4f}  {milliseconds:5.1f} ms"
            f"  {verdict}"
        )
    print(f"\n{agreed} of {len(goldens['images'])} agree with the stored goldens")
    return 0 if agreed == len(goldens["images"]) else 1
