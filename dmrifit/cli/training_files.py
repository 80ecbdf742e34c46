"""Files beside a model while it is trained: checkpoints to resume from, the curve to look at."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmrifit.cli.options import NewFile, resumable
from dmrifit.io.atomic_files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ENDING = ".dmrifit"

#: Panels: what an epoch of the history holds, the heading, and the label of the axis.
_PANELS = (
    ("train_loss", "Loss in training", "loss (lower is better)"),
    ("valid_score", "Score of held-out subjects", "score (higher is better)"),
)


@dataclass(frozen=True)
class TrainingFiles:
    """
    The model file that a training writes, the checkpoints it resumes from, and its seed.

    Options:
    out: Model file to write, usually named *.dmrifit.
    seed 0..: Random seed: same seed, same model.
    """

    out: NewFile
    checkpoint: Path | None = None
    seed: int = 0
    overwrite: bool = False

    @contextmanager
    def training(self) -> Iterator[dict[str, Any]]:
        """
        Give the fields of a training that writes checkpoints, a curve and messages.

        The default folder for checkpoints is removed once everything is written.
        """
        folder = self.checkpoint or self.out.with_name(f".{self.out.name}.training")
        with resumable("epochs are", folder, files="state.safetensors"):
            yield {"checkpoint": str(folder), "after_epoch": self.draw_curve, "verbose": True}
        # Not after an exception, because the same command resumes from it.
        if self.checkpoint is None:
            shutil.rmtree(folder, ignore_errors=True)

    def draw_curve(self, history: Sequence[Mapping[str, Any]]) -> None:
        """
        Draw the curve of a training beside the model file.

        Without matplotlib the curve is left out with a warning; training goes on.
        """
        try:
            figure = plot_training(history)
        except ImportError as error:
            warnings.warn(f"the curve of the training is not drawn: {error}", stacklevel=2)
            return
        path = self.out.with_name(f"{self.out.name.removesuffix(_ENDING)}.curve.png")
        # Drawn anew after each epoch, so it need not outlast a power cut.
        with whole_file(path, lasting=False) as unfinished:
            figure.savefig(unfinished, dpi=110, format="png")

    @staticmethod
    def kept_epoch(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Give the row of the epoch that is kept: that of the best score, or the last one."""
        from dmrifit.networks.training import best_epoch

        return history[best_epoch(history) if "valid_score" in history[-1] else -1]

    def save(self, model: Any) -> None:
        """Write the model file."""
        from dmrifit.model_files.model_file import save_model

        save_model(model, self.out)


def plot_training(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss and score over the epochs of a training."""
    panels = [panel for panel in _PANELS if any(panel[0] in row for row in history)]
    from dmrifit.report.style import PANEL, add_axes, color_of, head, new_figure, shared_style

    keys = [key for key, _, _ in _PANELS]
    width, height = PANEL
    with shared_style({}):
        # Fixed places: a layout that is computed would take longer than a short epoch.
        figure = new_figure(width * len(panels), height)
        for i, (key, title, label) in enumerate(panels):
            ax = add_axes(figure, i * width + 1.0, 0.6, width - 1.25, height - 1.25)
            points = [(row["epoch"], row[key]) for row in history if key in row]
            ax.plot(*zip(*points, strict=True), marker=".", color=color_of(key, keys))
            ax.set(xlabel="epoch", ylabel=label, xlim=(0.5, len(history) + 0.5))
            ax.locator_params(axis="x", integer=True)
            ax.grid(True)
            kept = TrainingFiles.kept_epoch(history)
            head(ax, f"{title}\nepoch {kept['epoch']} (kept): {kept[key]:.4g}")
    return figure
