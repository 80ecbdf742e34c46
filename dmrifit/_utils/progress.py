"""How far work is: a bar with the time left in a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def step_bar(
    total: int,
    unit: str,
    task: str | None = None,
    *,
    leave: bool = True,
    n_before: int = 0,
    show: bool = True,
) -> Iterator[Callable[..., None]]:
    """
    Give the function that counts a step: its text, how many units it has, and its state.

    Where there is no terminal, a step with a text is a line on standard error; of steps without
    one, a line tells every ten seconds how many are done, and at times that double how long the
    first one takes. The state, such as a loss, stands beside the bar and in these lines.
    `n_before` units were done by an earlier run. Without `show` nothing is told.
    """
    if not show:
        yield lambda *_, **__: None
        return
    from tqdm import tqdm

    if n_before:
        print(f"resumed after {unit} {n_before} of {total}", file=sys.stderr, flush=True)
    first = "next" if n_before else "first"
    n_done = n_before
    start = last_line = time.monotonic()
    is_over = threading.Event()
    with tqdm(
        total=total, unit=unit, desc=task, disable=None, leave=leave, initial=n_before
    ) as bar:

        def count(text: str = "", n: int = 1, *, state: str = "") -> None:
            nonlocal n_done, last_line
            n_done += n
            bar.set_postfix_str(state, refresh=False)
            bar.update(n)
            now = time.monotonic()
            if not bar.disable or not (text or now - last_line >= _SECONDS_BETWEEN_LINES):
                return
            last_line = now
            remaining = ""
            # The first of many units also holds the start, and compiling.
            if n_done < total and n_done - n_before > total // 100:
                seconds = (now - start) / (n_done - n_before) * (total - n_done)
                remaining = f"(about {tqdm.format_interval(seconds)} left)"
            words = (task, f"{n_done}/{total}", remaining, text or state or f"{unit}s")
            print(" ".join(word for word in words if word), file=sys.stderr, flush=True)

        def watch_first() -> None:
            seconds = waited = 10
            while not is_over.wait(waited) and n_done == n_before and bar.disable:
                print(f"{first} {unit}: over {seconds} s so far", file=sys.stderr, flush=True)
                seconds, waited = 2 * seconds, seconds

        threading.Thread(target=watch_first, daemon=True).start()
        try:
            yield count
        finally:
            is_over.set()


def progress(
    rows: Iterable[Any], total: int, label: str | None = None, unit: str = "case"
) -> Iterator[Any]:
    """Iterate over cases with a bar in a terminal, and with lines now and then elsewhere."""
    with step_bar(total, unit, label) as count:
        for row in rows:
            yield row
            count()
