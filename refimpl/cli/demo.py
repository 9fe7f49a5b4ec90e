"""`refimpl demo`: the bundled images against their stored goldens."""

import argparse
import time
from pathlib import Path

from refimpl.cli.options import add_backend
from refimpl.cli.verbs import Verbs

# Of a probability. The goldens are of float64; float32, that of the engine, puts a number next to a
# threshold on its other side now and then, and one flipped bit moves it by some thousandths.
TOLERANCES = {"float64": 1e-3, "float32": 1e-2}


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "classify the bundled digits and photographs and check the answers against stored goldens",
        "refimpl demo",
    )
    add_backend(added)


def run(args: argparse.Namespace) -> int:
    from threadpoolctl import threadpool_limits

    from refimpl.data import bundled

    # On matrices as small as these more threads of BLAS gain nothing, and on a busy machine they
    # wait for each other, ten times as long. All sets are shown, also where the first one differs.
    with threadpool_limits(1):
        agrees = [_show(folder, args.backend) for folder in (bundled.mnist(), bundled.photos())]
    return 0 if all(agrees) else 1


def _show(folder: Path, backend: str) -> bool:
    """Classify the images of a folder; whether all answers are those that are stored."""
    from refimpl.choice import Work
    from refimpl.classifiers import classifier
    from refimpl.data import bundled

    goldens = bundled.goldens(folder)
    images = sorted(goldens["images"].items())
    ask = classifier(goldens["model"], backend=backend)
    ask.expect(Work(images=len(images), calls=len(images)))
    ask.backend.warm()
    if ask.engine is None:
        # In float32 BLAS may round a value next to 0 to the other side on another machine, and a
        # flipped bit moves a probability further than any rounding. The engine's sums are the same
        # everywhere.
        ask = ask.astype(goldens["dtype"])
    how = f"{ask.dtype}, {'NumPy' if ask.engine is None else 'packed engine'}"
    wide = max(len(name) for name, _ in images)
    print(f"{goldens['model']} on {len(images)} {goldens['what']}, {how}\n")
    print(f"{'image':{wide}}  {'label':>10}  probability      time  golden")
    agreed = 0
    for name, golden in images:
        start = time.perf_counter()
        (answer,) = ask(folder / name)
        milliseconds = 1000 * (time.perf_counter() - start)
        near = abs(answer.probability - golden["probability"]) <= TOLERANCES[str(ask.dtype)]
        agrees = near and answer.label == golden["label"]
        agreed += agrees
        verdict = "agrees" if agrees else f"DIFFERS: {golden['label']} {golden['probability']:.4f}"
        print(
            f"{name:{wide}}  {answer.label:>10}  {answer.probability:11.4f}  {milliseconds:5.1f} ms"
            f"  {verdict}"
        )
    print(f"\n{agreed} of {len(images)} agree with the stored goldens\n")
    return agreed == len(images)
