"""The picture of a training."""

import pytest

pytest.importorskip("matplotlib")

from dmrifit.report.training_curve import plot_training


def test_losses_and_scores_have_a_panel_each_with_the_last_value_in_its_heading():
    losses, scores = [0.9, 0.5, 0.4], [0.1, 0.3, 0.2]
    history = [
        {"epoch": i + 1, "train_loss": loss, "valid_score": score}
        for i, (loss, score) in enumerate(zip(losses, scores, strict=True))
    ]
    for keys, values in ((("train_loss",), [losses]), (("train_loss", "valid_score"), [losses, scores])):
        rows = [{key: row[key] for key in ("epoch", *keys)} for row in history]
        figure = plot_training(rows)
        assert [list(ax.lines[0].get_ydata()) for ax in figure.axes] == values
        for ax, drawn in zip(figure.axes, values, strict=True):
            assert list(ax.lines[0].get_xdata()) == [1, 2, 3]
            assert ax.texts[0].get_text() == f"epoch 3: {drawn[-1]:.4g}"
            assert ax.get_xlabel() == "epoch"
            assert "better" in ax.get_ylabel()
