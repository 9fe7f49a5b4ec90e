"""The program `refimpl`, and `python -m refimpl`: the command line as a process of its own.

Nothing is imported at the top that takes time: what comes then may be interrupted.
"""

import gc
import io
import os
import signal
import sys
from types import FrameType


def command() -> int:
    """Run the command line -> exit status.

    It looks for garbage seldom, and not once more at its end: among the hundred thousand objects
    with which Numba starts that takes a third of the time of a short command.
    """
    _open_streams()
    _answer_signals(_stop_at_once)  # an exception out of the middle of an import is a traceback
    gc.set_threshold(100_000)
    from refimpl import cli

    _answer_signals(_interrupt)
    try:
        status = cli.main(own_process=True)
    except KeyboardInterrupt:  # outside of a verb
        print("refimpl: interrupted", file=sys.stderr)
        status = 130
    _answer_signals(_stop_at_once)  # nor out of the end of the process
    gc.freeze()
    return 128 + _received[-1] if status == 130 and _received else status


# A kill and a closed terminal are answered like Ctrl-C: what is half done is taken away.
_SIGNALS = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
_received: list[int] = []


def _answer_signals(answer) -> None:
    for number in filter(None, _SIGNALS):
        # whoever started us may want it ignored, as nohup does
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, answer)


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, b"refimpl: interrupted\n")
    os._exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    from refimpl import machine

    _received.append(number)
    machine.interrupt()


def _open_streams() -> None:
    """Put the null device in the place of standard streams that are closed, as a daemon has them.

    The next file that is opened would else become one of them, and take what is printed. An answer
    that is printed is lost, and has to fail: there the null device cannot be written.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # takes the lowest number that is free
            os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_RDWR)
        if getattr(sys, name) is None:
            opened = open(number, mode, closefd=False, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, opened)
    # a name that is no UTF-8 is printed in escapes, at once and not when a buffer is full
    how = {"encoding": sys.stderr.encoding, "errors": "backslashreplace", "write_through": True}
    sys.stderr = io.TextIOWrapper(_Complaints(2, "w", closefd=False), **how)


class _Complaints(io.FileIO):
    """The standard error, where a full disk is no error: there is nobody who could be told."""

    def write(self, content: bytes) -> int:
        """Write bytes -> how many they were, written or not."""
        try:
            return super().write(content)
        except BrokenPipeError:  # whoever read it has gone, as from the standard output
            raise
        except OSError:
            return len(content)


if __name__ == "__main__":
    sys.exit(command())
