"""`refimpl golden`: make, inspect and check golden bundles, and compare a port with one.

Exit status as everywhere; 3 where a bundle or a candidate cannot be read; 4 where nothing was found
wrong, but not all that was dumped could be judged.
"""

import argparse
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

from refimpl.cli import outputs
from refimpl.cli.options import FILES, add_fields, add_json, not_negative, picture, positive
from refimpl.cli.output import complain, print_json, print_table, say, warn
from refimpl.cli.verbs import Parser, Verbs, takes_no_file
from refimpl.conventions import ConfigError, GoldenFileError, shown
from refimpl.disk import write_atomically

UNREADABLE = 3
STATUS = {"PASS": 0, "FAIL": 1, "INCOMPLETE": 4}

Run = Callable[[argparse.Namespace], int]


def add(verbs: Verbs) -> None:
    group = verbs.group("golden", "make golden vectors, and find where a port differs from them")
    _add_make(group)
    _add_inspect(group)
    _add_compare(group)
    _add_diff(group)
    _add_vectors(group)
    added = group(
        selfcheck,
        "recompute a bundle from its own weights and input",
        "refimpl golden selfcheck small_tie_free",
    )
    _add_bundle(added)
    add_json(added)


def _add_make(group: Verbs) -> None:
    added = group(
        make,
        "write a golden bundle: every intermediate value of the reference",
        "refimpl golden make --model didb_micro_mnist --image seven.png -o seven",
        "refimpl golden make --model react_micro --random 1 --grads -o random",
        "refimpl golden make --random 0 --adversarial --grads -o hard",
        "refimpl golden make --model didb_micro --set depth=1 --set haar_mode=periodic --random 1 "
        "--images 3 --taps '*.bit' --taps '*.int' -o bits",
    )
    added.add_argument(
        "--model", metavar="NAME|FILE",
        help="a shipped model, a .safetensors file or, with --random, an architecture; "
        "--adversarial brings its own",
    ).complete = FILES  # fmt: skip
    source = added.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--image", nargs="+", metavar="FILE", help="images, prepared as the model wants them"
    ).complete = FILES
    source.add_argument(
        "--random", type=not_negative, metavar="SEED",
        help="draw the input, and the parameters of an untrained model",
    )  # fmt: skip
    added.add_argument(
        "--images", type=positive, metavar="N", help="images to draw, with --random (default 1)"
    )
    add_fields(added)
    outputs.add_folder(added, "the new folder", "DIR")
    outputs.add_replace(added)
    added.add_argument(
        "--taps", action="append", metavar="GLOB",
        help="all: every value; block: those between blocks and all bits; io: input and logits; or "
        "a pattern of names such as 'blocks.0.*'; repeatable (default all)",
    )  # fmt: skip
    added.add_argument("--grads", action="store_true", help="those of one backward, too")
    added.add_argument(
        "--dtype", choices=("float64", "float32"), default="float64", help="(default float64)"
    )
    kind = added.add_mutually_exclusive_group()
    kind.add_argument(
        "--tie-free", action="store_true",
        help="search for an input on which every correct port is bit-exact",
    )  # fmt: skip
    kind.add_argument(
        "--adversarial", action="store_true",
        help="the hard cases: exact zeros, -0.0, ties, odd sizes; with --random",
    )  # fmt: skip


def _add_inspect(group: Verbs) -> None:
    added = group(
        inspect,
        "show what a bundle holds: conventions, ties, and the values of a tap",
        "refimpl golden inspect small_tie_free",
        "refimpl golden inspect small_tie_free blocks.0.mlp.up.bit",
        "refimpl golden inspect small_wide --power",
    )
    _add_bundle(added)
    what = added.add_mutually_exclusive_group()
    what.add_argument("tap", nargs="?", metavar="TAP", help="the name of one tap")
    what.add_argument(
        "--power", action="store_true",
        help="make every known mistake of a port, and say which this bundle cannot show, and why",
    )  # fmt: skip
    add_json(added)


def _add_compare(group: Verbs) -> None:
    added = group(
        compare,
        "judge a port by a bundle and name the first tap that differs",
        "refimpl golden compare small_tie_free port/",
        "refimpl golden compare small_tie_free port.npz --mode replay --html report.html",
    )
    _add_bundle(added)
    _add_candidate(added)
    added.add_argument("--strict", action="store_true", help="ties and near flips fail, too")
    added.add_argument("--fail-fast", action="store_true", help="stop at the first that fails")
    added.add_argument(
        "--require", action="append", default=[], metavar="GLOB",
        help="taps that fail where they are absent; repeatable",
    )  # fmt: skip
    added.add_argument(
        "--complete", action="store_true", help="every tap of the bundle that is absent fails"
    )
    length = added.add_mutually_exclusive_group()
    length.add_argument(
        "--quiet", action="store_true",
        help="the verdict, the first divergence and its cause alone, or notes where none is known",
    )  # fmt: skip
    length.add_argument("--verbose", action="store_true", help="name the taps that are missing")
    add_json(added)
    _refuse_a_file_of_json(added)
    outputs.add(
        added, "--junit", beside_answer=True,
        help="write the verdicts as JUnit's XML, for a build server",
    )  # fmt: skip
    outputs.add(
        added, "--html", beside_answer=True,
        help="write a page with pictures of the first divergence",
    )  # fmt: skip


def _add_diff(group: Verbs) -> None:
    added = group(
        diff,
        "show the elements of one tap that differ most, and where they are",
        "refimpl golden diff small_tie_free port/ blocks.0.attn.scores",
        "refimpl golden diff small_tie_free port.npz blocks.1.mlp.up.bit --mode replay --count 30",
    )
    _add_bundle(added)
    _add_candidate(added)
    added.add_argument("tap", metavar="TAP", help="the name of the tap")
    added.add_argument(
        "--count", type=positive, default=10, metavar="N", help="elements at most (default 10)"
    )
    add_json(added)


def _add_vectors(group: Verbs) -> None:
    added = group(
        vectors,
        "write vectors of one operation: inputs, outputs, gradients and bounds, hard values too",
        "refimpl golden vectors layer_norm",
        "refimpl golden vectors binary_linear --text -o bench/vectors",
    )
    added.add_argument(
        "op", metavar="OP", action=_Operation,
        help="an operation, as `refimpl show` names it, or a loss",
    )  # fmt: skip
    text = "the new folder (default: named as the operation)"
    outputs.add_folder(added, text, "FOLDER", required=False)
    added.add_argument(
        "--text", action="store_true",
        help="beside each file its values as hex digits of their bits, and as decimals, one a line",
    )  # fmt: skip
    outputs.add_replace(added)


class _Operation(argparse.Action):
    """An operation; it gives the folder its name where none is given."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        namespace.op, namespace.output = values, namespace.output or Path(values)


def _add_candidate(added: argparse.ArgumentParser) -> None:
    added.add_argument(
        "candidate", metavar="CANDIDATE",
        help="what the port computed: a folder of .npy files, an .npz or a .safetensors",
    ).complete = FILES  # fmt: skip
    added.add_argument(
        "--mode", choices=("free", "replay"), default="free",
        help="free: values as they are, up to the first flip; replay: every tap from what was "
        "dumped before it (default free)",
    )  # fmt: skip
    added.add_argument(
        "--forced", action="store_true",
        help="the candidate was fed the bundle's inputs at every segment: judge all taps; in "
        "replay every operation alone, with the bundle's value of an input that is missing",
    )  # fmt: skip
    added.add_argument(
        "--map", type=Path, metavar="FILE",
        help='names of the candidate, as JSON: {"name in the candidate": "tap"}',
    ).complete = FILES  # fmt: skip
    added.add_argument(
        "--unit-roundoff", metavar="U|FILE",
        help="of the port's arithmetic: a number, float16, bfloat16, float32, float64, or a .json "
        "file of them by pattern of taps (default: that of its files)",
    ).complete = FILES  # fmt: skip
    added.add_argument(
        "--ignore", action="append", default=[], metavar="GLOB",
        help="names of the candidate that are no taps and shall not be judged; repeatable",
    )  # fmt: skip


def _refuse_a_file_of_json(parser: Parser) -> None:
    """A line of its own for `--json FILE`, which the flag once took."""
    refuse = parser.refuse

    def refuse_file(extra: list[str], found: argparse.Namespace) -> NoReturn:
        # where it stands in front, it was taken for the bundle, and the candidate is left over
        files = [name for name in (extra[0], str(found.bundle)) if name.endswith(".json")]
        if found.json and files:
            parser.error(takes_no_file(files[0]))
        refuse(extra, found)

    parser.refuse = refuse_file  # type: ignore[method-assign]


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", metavar="DIR", help="a bundle's folder, or the name of a shipped one"
    ).complete = FILES


def _reads_bundles(run: Run) -> Run:
    """A verb of which files that cannot be read are an answer of its own."""

    @wraps(run)
    def wrapper(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except GoldenFileError as error:
            complain(error)
            return UNREADABLE

    return wrapper


def make(args: argparse.Namespace) -> int:
    from refimpl.golden import idle, search, store
    from refimpl.models import flatten

    store.require_free(args.output, overwrite=args.force)  # before a search that may take a minute
    model, params, images = _adversarial(args) if args.adversarial else _case(args)
    taps = args.taps or ["all"]
    store.require_taps(model.network, taps, args.grads)
    if text := idle.warning(model.network, flatten(params)):
        warn(f"{args.model}: {text}")
    kind, found = "adversarial" if args.adversarial else "ordinary", None
    seed = args.random or 0
    if args.tie_free:
        kind, found = "tie-free", search.tie_free(model, params, images, seed)
        images = found.images
        print(f"tie-free: input {found.attempts} of the search, {found.seconds:.1f} s")
    store.make(
        args.output,
        model,
        params,
        images,
        taps=taps,
        grads=args.grads,
        dtype=args.dtype,
        seed=seed,
        kind=kind,
        search={"attempts": found.attempts, "seed": seed} if found else None,
        overwrite=args.force,
    )
    files = [path for path in args.output.rglob("*") if path.is_file()]
    count, size = len(list(args.output.glob("*/*.npy"))), sum(f.stat().st_size for f in files)
    say(f"{args.output}: {count} tap{'s' * (count != 1)}, {size:,} bytes")
    return 0


def _require_room(model: Any, dtype: Any, count: int) -> None:
    """ConfigError for images so large, or so many of them, that memory does not hold their values.

    All of them are kept, as float64; those of one are the business of whoever takes the network.
    """
    from refimpl.models.summary import value_bytes
    from refimpl.predictors import ROOM, require_room

    require_room(model.config, dtype)
    needed = count * value_bytes(model.network, number=8)
    if count > 1 and needed > 2 * ROOM:
        raise ConfigError(
            f"all values of {count:,} images take {needed / 1e9:,.1f} GB, expected at most "
            f"{2 * ROOM / 1e9:,.1f}; fewer images do"
        )


def _adversarial(args: argparse.Namespace) -> Any:
    from refimpl.golden import adversarial

    if args.model is not None or args.random is None or args.set or args.images:
        raise ConfigError(
            "--adversarial has a model and an image of its own; expected --random and no --model, "
            "--set or --images"
        )
    return adversarial.case(args.random)


def _case(args: argparse.Namespace) -> Any:
    """Model, parameters and images that the options name."""
    import numpy as np

    from refimpl.golden import search
    from refimpl.models import architectures, create_model, files
    from refimpl.predictors import ready

    if args.model is None:
        raise ConfigError("--model is missing; expected a model's name or file")
    if args.images and args.random is None:
        raise ConfigError("--images draws images; expected --random beside it")
    count = args.images or len(args.image or [None])
    if args.random is not None and args.model in architectures.NAMES:
        model = create_model(args.model, **dict(args.set))
        _require_room(model, np.dtype(args.dtype), count)
        return model, *search.draw(model.config, args.random, count)
    file = files.read(args.model)
    if args.set:
        raise ConfigError(
            f"--set changes an architecture, and {args.model} has parameters of its own; "
            "expected an architecture with --random"
        )
    try:
        _require_room(file.model, np.dtype(args.dtype), count)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from None
    if args.random is not None:
        return file.model, file.params, search.draw(file.model.config, args.random, count)[1]
    preprocessing = ready(file, "numpy", None)[2]
    images = [preprocessing.apply(picture(name)) for name in args.image]
    return file.model, file.params, np.stack(images)


@_reads_bundles
def inspect(args: argparse.Namespace) -> int:
    from refimpl.golden import census, store

    bundle = store.read(_find(args.bundle))
    if args.power:
        from refimpl.golden import power

        found = power.of(bundle)
        if args.json:
            print_json(power.to_json(found))
        else:
            print(*power.lines(found, shown(args.bundle)), sep="\n")
        return 0
    if args.tap is None:
        found = census.of_bundle(bundle)
        print_json(found) if args.json else _print_bundle(found)
        return 0
    found = census.of_tap(bundle, args.tap)
    if args.json:
        print_json(found)
        return 0
    for key, value in (found | found.pop("statistics")).items():
        words = " ".join(map(str, value)) if isinstance(value, list) else value
        if words is not None:
            print(f"{key:14} {words}")
    if found["class"] == "bit":
        print("", *census.first_row(bundle, args.tap), sep="\n")
    return 0


def _print_bundle(found: dict[str, Any]) -> None:
    ties = found["ties"]
    classes = ", ".join(f"{count} {kind}" for kind, count in found["classes"].items())
    say(f"{found['path']}: {found['kind']}, {found['dtype']}, {found['images']} image(s)")
    print(f"\n{len(found['taps'])} taps: {classes}")
    print(f"ties: {ties['ties']:,} of {ties['bits']:,} bits, in {ties['taps_with_ties']} taps")
    if ties["smallest_margin_at"] is not None:
        print(
            f"smallest margin {ties['smallest_margin']:.3g} at {ties['smallest_margin_at']}; "
            f"{ties['taps_with_margin_in_tolerance']} taps may flip in float32"
        )
    print("\nconfiguration")
    for field, value in found["config"].items():
        print(f"  {field:14} {value}")
    print("\nconventions")
    for name, text in found["conventions"].items():
        print(f"  {shown(name):15} {shown(text)}")
    print()
    rows = [
        (
            tap["name"],
            tap["class"],
            " ".join(map(str, tap["shape"])),
            *("-" if tap[key] is None else f"{tap[key]:.3g}" for key in ("tolerance", "margin")),
            "-" if tap["ties"] is None else f"{tap['ties']}",
        )
        for tap in found["taps"]
    ]
    print_table(("tap", "class", "shape", "tolerance", "margin", "ties"), rows)


@_reads_bundles
def compare(args: argparse.Namespace) -> int:
    from refimpl.golden import diagnose, junit, text
    from refimpl.report import comparison as report

    outputs.check(args, ("bundle", _find(args.bundle)))
    bundle, comparison = _compared(
        args,
        strict=args.strict,
        fail_fast=args.fail_fast,
        require=args.require,
        complete=args.complete,
    )
    causes = diagnose.causes(comparison, bundle, comparison.taps)
    total = len(bundle.entries.keys() | {verdict.name for verdict in comparison.verdicts})
    if args.quiet:
        words = text.short(comparison, causes, total)
    else:
        words = text.report(comparison, causes, total, args.verbose)
    try:
        print(words, end="", file=sys.stderr if args.json else sys.stdout)
        if args.json:
            print_json(text.to_json(comparison, causes, total))
        sys.stdout.flush()
    finally:  # after the answer, since it may fail, and also where nobody reads that
        if args.junit:
            write_atomically(args.junit, junit.to_xml(comparison, causes))
        if args.html:
            write_atomically(args.html, report.page(comparison, causes, total))
    return STATUS[comparison.outcome]


@_reads_bundles
def diff(args: argparse.Namespace) -> int:
    from refimpl.golden import census, elements, record

    bundle, comparison = _compared(args)
    found = [verdict for verdict in comparison.verdicts if verdict.name == args.tap]
    if not found and args.tap in bundle.reference.steps and args.tap != record.INPUT:
        print(f"{args.tap}: MISSING: neither {shown(bundle.path)} nor the candidate holds it")
        return STATUS["INCOMPLETE"]
    if not found:
        raise ConfigError(f"{bundle.path}: {census.no_tap(args.tap, bundle.reference.steps)}")
    (verdict,) = found
    if args.json:
        print_json(elements.to_json(verdict, args.count))
    else:
        print(*elements.lines(verdict, args.count), sep="\n")
    return {"FAIL": 1, "MISSING": 4, "UNJUDGED": 4, "TAINTED": 4}.get(verdict.verdict, 0)


def _compared(args: argparse.Namespace, **options: Any) -> Any:
    """The bundle and the comparison that the options ask for."""
    from refimpl import golden
    from refimpl.golden import candidate, precision

    try:
        names = candidate.read_names(args.map) if args.map else None
        unit = None if args.unit_roundoff is None else precision.read(args.unit_roundoff)
    except GoldenFileError as error:  # files of an option are usage, and neither side of the two
        raise ConfigError(str(error)) from None
    dumped = candidate.read(args.candidate, names)
    bundle = golden.read(_find(args.bundle))
    precision.require_fitting(unit, bundle.reference.steps, args.unit_roundoff)
    found = golden.compare(
        bundle,
        dumped,
        mode=args.mode,
        forced=args.forced,
        ignore=args.ignore,
        unit_roundoff=unit,
        **options,
    )
    return bundle, found


def vectors(args: argparse.Namespace) -> int:
    from refimpl.golden import vectors

    count = vectors.write(args.op, args.output, text=args.text, overwrite=args.force)
    say(f"{args.output}: {count} files; {args.output / vectors.INDEX} lists them")
    return 0


@_reads_bundles
def selfcheck(args: argparse.Namespace) -> int:
    from refimpl import golden
    from refimpl.golden import text

    comparison = golden.selfcheck(_find(args.bundle))
    total = len(comparison.verdicts)
    if args.json:
        print_json(text.to_json(comparison, {}, total))
    else:
        print(*text.first_divergence(comparison, None), sep="\n")
        print("", *text.summary(comparison, total), sep="\n")
    return STATUS[comparison.outcome]


def _find(name: str) -> Path:
    """A folder by its path, or a shipped bundle by its name."""
    from importlib import resources

    if Path(name).exists():
        return Path(name)
    shipped = resources.files("refimpl.weights") / "golden"
    names = sorted(bundle.name for bundle in shipped.iterdir()) if shipped.is_dir() else []
    if name in names:
        return Path(str(shipped / name))
    listing = ", ".join(names) or "none is shipped"
    raise GoldenFileError(f"{name}: no such folder or bundle; shipped bundles: {listing}")
