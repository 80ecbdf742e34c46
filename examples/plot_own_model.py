"""
How do you fit a signal model of your own?

The stretched exponential S0·exp(−(b·DDC)^α) describes a voxel of many diffusivities by two numbers: how fast the
signal falls, and how far it is from a single exponential (α = 1). It is no built-in model; written down once,
it is fitted like one, with bounds, standard errors and status. The signals are synthetic.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from dmrifit import Parameter, Protocol, SignalModel, fit_voxels

# The model: inside, b is in ms/µm², so that b·DDC has no unit with DDC in µm²/ms.
stretched = SignalModel.from_expression(
    "S0*exp(-(b*DDC)**alpha)",
    [
        Parameter("S0", "signal", 0, np.inf),
        Parameter("DDC", "µm²/ms", 0.05, 5),
        Parameter("alpha", "", 0.2, 1),
    ],
    name="stretched",
)

# Synthetic voxels of known truth, with Rician noise at an SNR of 50.
protocol = Protocol([0, 50, 100, 200, 400, 600, 900, 1200, 1600])
rng = np.random.default_rng(0)
truth = np.column_stack(
    [np.full(2000, 100.0), rng.uniform(0.5, 2, 2000), rng.uniform(0.5, 0.95, 2000)]
)
real, imaginary = rng.normal(scale=2, size=(2, 2000, len(protocol)))
signals = np.hypot(stretched.signal(truth, protocol) + real, imaginary)

result = fit_voxels(signals, protocol, stretched, sigma=2.0)
print(f"{100 * np.mean(result.status <= 1):.1f} % of {len(result)} voxels fitted")

figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for axis, j in zip(axes, (1, 2), strict=True):
    axis.plot(truth[:, j], result.parameters[:, j], ".", markersize=2, color="C0")
    axis.axline((truth[0, j], truth[0, j]), slope=1, color="black", linewidth=1)
    unit = f" ({stretched.units[j]})" if stretched.units[j] else ""
    axis.set(title=stretched.names[j], xlabel=f"truth, synthetic{unit}", ylabel=f"fit{unit}")
folder = Path("build/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "own_model.png", dpi=150)
