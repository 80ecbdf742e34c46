"""Figures of a study by name, and the look that all figures share."""

from dmrifit.controls import is_control
from dmrifit.figures.curves import plot_decays, plot_learning_curve, plot_signal_errors
from dmrifit.figures.ranks import plot_critical_difference
from dmrifit.figures.scatter import plot_bias_dispersion, plot_legend
from dmrifit.figures.voxels import plot_joint_histograms, plot_map_comparison
from dmrifit.look import new_figure, shared_style

__all__ = [
    "is_control",
    "new_figure",
    "plot_bias_dispersion",
    "plot_critical_difference",
    "plot_decays",
    "plot_joint_histograms",
    "plot_learning_curve",
    "plot_legend",
    "plot_map_comparison",
    "plot_signal_errors",
    "shared_style",
]
