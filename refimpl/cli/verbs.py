"""How the modules of the verbs tell the parser what they do."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from refimpl.conventions import did_you_mean, shown


class Parser(argparse.ArgumentParser):
    """A parser that names what was probably meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; what is left over belongs to nobody, and is told with the verb's own options."""
        self._given = list(args or [])
        found, extra = super().parse_known_args(args, namespace)
        if extra:
            self.refuse(extra, found)
        return found, extra

    def refuse(self, extra: list[str], found: argparse.Namespace) -> NoReturn:
        """Exit because of arguments that are none, after the others were `found`."""
        self.error(f"unrecognized arguments: {' '.join(extra)}{self._slip(extra)}")

    def _slip(self, words: list[str]) -> str:
        """The option that was meant by the first of the words that looks like one and is none."""
        known = self._option_string_actions
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        unknown = [name for name in options if not any(k.startswith(name) for k in known)]
        return did_you_mean(unknown[0], known) if unknown else ""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2, after what was wrong; without a verb after the list of all."""
        if message.endswith("required: VERB"):
            self.print_help(sys.stderr)
            self.exit(2, f"\n{self.prog}: error: {message}\n")
        # argparse says: argument VERB: invalid choice: 'x' (choose from 'a', 'b')
        if found := re.search(r"invalid choice: (.+) \(choose from (.+)\)$", message):
            name, *known = (word.strip("' ") for word in (found[1], *found[2].split(",")))
            message += did_you_mean(name, known)
        # argparse says: argument --strict: ignored explicit argument 'x'
        elif found := re.match(r"argument (\S+): ignored explicit argument (.+)$", message):
            flag, value = found[1].rpartition("/")[2], found[2][1:-1]
            message = f"{flag} takes no value; found {flag}={value}"
            if flag == "--json":
                message = takes_no_file(value)
        elif "required" in message:  # perhaps it is there, misspelt
            message += self._slip(self._given)
        super().error(shown(message))  # it may hold what was typed, whatever that is

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print; that help could not be written is an error, which argparse passes over."""
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """The value of an argument; an empty name of a file would be the folder "."."""
        if not arg_string and hasattr(action, "complete"):  # see options.FILES
            raise argparse.ArgumentError(action, "is empty; expected the name of a file")
        return super()._get_value(action, arg_string)


def takes_no_file(name: str) -> str:
    """What is said of --json with the name of a file."""
    return f"--json prints and takes no file; expected --json > {name or 'FILE'}"


class Verbs:
    """The verbs of a parser. Each is a function: parsed arguments -> exit status."""

    def __init__(self, parser: argparse.ArgumentParser):
        self._parsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def __call__(
        self, run: Callable[[argparse.Namespace], int], summary: str, *examples: str
    ) -> argparse.ArgumentParser:
        """A verb -> its parser, to add options to.

        It is called like its function, or like the function's module where that is `run`, without
        the line behind what Python keeps for itself: `import_`.
        """
        name = run.__module__.rpartition(".")[2] if run.__name__ == "run" else run.__name__
        added = self._parsers.add_parser(
            name.rstrip("_"),
            help=summary,
            description=_sentence(summary),
            epilog="\n  ".join(("examples:", *examples)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run, parser=added)
        return added

    def group(self, name: str, summary: str) -> "Verbs":
        """A verb that has verbs of its own, as in `refimpl NAME VERB`."""
        return Verbs(self._parsers.add_parser(name, help=summary, description=_sentence(summary)))


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."
