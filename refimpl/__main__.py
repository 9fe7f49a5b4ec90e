"""`python -m refimpl` is the command `refimpl`."""

import sys

from refimpl.cli import main

if __name__ == "__main__":
    sys.exit(main())
