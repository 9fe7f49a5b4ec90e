"""`python -m refimpl` is the command `refimpl`."""

import sys

from refimpl.cli import command

if __name__ == "__main__":
    sys.exit(command())
