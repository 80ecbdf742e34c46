"""The start of programs: an interrupt at any moment, while they are loaded too, is one line."""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys

# No other imports: until they are done an interrupt shows a traceback of Python's.
_INTERRUPTED = 130


def main() -> None:
    """Run dmrifit."""
    run_program("dmrifit", "dmrifit.cli.program")


def is_interrupt(error: BaseException | None) -> bool:
    """Tell whether an error is an interrupt, or comes of one."""
    # Python raises SystemErrors, one from another, where compiled code is interrupted.
    while isinstance(error, SystemError):
        error = error.__cause__
    return isinstance(error, KeyboardInterrupt)


def run_program(name: str, module: str) -> None:
    """Load and run a program."""

    def leave(*_: object) -> None:
        # No exception: libraries that are being loaded, or end, print or swallow it.
        if sys.stderr is not None:
            os.write(2, f"{name}: interrupted\n".encode())
        os._exit(_INTERRUPTED)

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, leave)  # what is tidied up is not interrupted a second time
        raise KeyboardInterrupt

    def tell_unraisable(event: sys.UnraisableHookArgs) -> None:
        if event.exc_type is KeyboardInterrupt:
            leave()
        sys.__unraisablehook__(event)

    # A shell lets programs in the background ignore interrupts.
    is_heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_heeded:
        signal.signal(signal.SIGINT, leave)
    is_done = False
    try:
        run = importlib.import_module(module).main
        if is_heeded:
            sys.unraisablehook = tell_unraisable
            signal.signal(signal.SIGINT, interrupt)
        run()
        is_done = True
    except SystemExit as stop:
        is_done = not stop.code
        raise
    except (KeyboardInterrupt, SystemError) as error:
        if not is_interrupt(error):
            raise
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    finally:
        # Python may yet wait for threads.
        if is_heeded:
            signal.signal(signal.SIGINT, leave)
        if is_heeded and is_done:
            # Called after threads have ended; Python's last steps would let the signal kill the
            # process without a word.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
