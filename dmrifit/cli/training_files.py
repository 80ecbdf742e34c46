"""Files beside a model while it is trained: checkpoints to resume from, the curve to look at."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmrifit._optional import import_optional

_ENDING = ".dmrifit"


@contextmanager
def training_checkpoint(out: Path, checkpoint: Path | None) -> Iterator[str]:
    """Give the folder for checkpoints; the default one is removed once everything is written."""
    if checkpoint is not None:
        yield str(checkpoint)
        return
    folder = out.with_name(f".{out.name}.training")
    yield str(folder)
    # Not after an exception, because the same command resumes from it.
    shutil.rmtree(folder, ignore_errors=True)


def curve_writer(out: Path) -> Callable[[list[dict[str, Any]]], None] | None:
    """
    Make the function that draws the curve of a training beside the model file.

    Without matplotlib the curve is left out with a warning; training goes on.
    """
    try:
        import_optional("matplotlib")
    except ImportError as error:
        warnings.warn(f"the curve of the training is not drawn: {error}", stacklevel=2)
        return None
    from dmrifit.io.atomic_files import whole_file
    from dmrifit.report.training_curve import plot_training

    path = out.with_name(f"{out.name.removesuffix(_ENDING)}.curve.png")

    def write(history: list[dict[str, Any]]) -> None:
        # Drawn anew after each epoch, so it need not outlast a power cut.
        with whole_file(path, lasting=False) as unfinished:
            plot_training(history).savefig(unfinished, dpi=110, format="png")

    return write
