"""
Can two shells predict the others, without a model of the tissue?

A short scan has b = 0, 1000 and 2000 s/mm²; a long one has shells up to 3000. Ten synthetic people have both (nobody
was scanned: a spread of diffusivities in every voxel, and noise). A regression of nine of them predicts the long scan
of the tenth from the short one; no model of the signal enters. Beside it stands what a model gives: kurtosis fitted to
the three images and extrapolated, which fails beyond the range of the cumulant expansion, and a measurement.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from dmrifit import Protocol, SignalToSignal, resynthesize

long = Protocol([0, 500, 1000, 1500, 2000, 2500, 3000])
short = long.take([0, 2, 4])
unseen = [1, 3, 5, 6]

# Synthetic voxels: a gamma distribution of diffusivities with mean D and variance V gives S0·(1 +
# b·V/D)^(−D²/V).
rng = np.random.default_rng(0)
people = np.repeat(np.arange(10), 400)
diffusivity, variance = rng.uniform(0.5, 1.4, 4000), rng.uniform(0.05, 0.5, 4000)
scale = diffusivity[:, None] / variance[:, None]
truth = rng.uniform(80, 120, (4000, 1)) * (1 + long.b_ms_per_um2 / scale) ** (
    -diffusivity[:, None] * scale
)
real, imaginary = rng.normal(scale=2, size=(2, *truth.shape))
measured = np.hypot(truth + real, imaginary)
new = people == 9

estimator = SignalToSignal("LR", source=short, target=long, model=None)
estimator.fit(measured[~new][:, [0, 2, 4]], measured[~new])
predicted = estimator.predict(measured[new][:, [0, 2, 4]])
continued = resynthesize(measured[new][:, [0, 2, 4]], short, long, "kurtosis")

error = {
    name: np.median(np.abs(values / truth[new] - 1)[:, unseen], axis=0)
    for name, values in (("two shells, regression", predicted), ("two shells, kurtosis", continued),
                         ("measured", measured[new]))
}  # fmt: skip
for name, values in error.items():
    texts = [f"{100 * value:.1f} %" for value in values]
    print(f"{name:22s} error at b = 500, 1500, 2500, 3000:", "  ".join(texts))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
styles = {"two shells, regression": "o-C0", "two shells, kurtosis": "s--C1", "measured": "^:k"}
for name, values in error.items():
    left.plot(long.b[unseen], 100 * values, styles[name], label=name)
left.set(
    xlabel="b (s/mm²)",
    ylabel="median relative error (%)",
    ylim=(0, None),
    title="One person held out, synthetic",
)
left.legend(frameon=False)
right.plot(truth[new][:, 6], predicted[:, 6], ".", markersize=2, color="C0", label="regression")
right.plot(truth[new][:, 6], continued[:, 6], ".", markersize=2, color="C1", label="kurtosis")
right.axline((10, 10), slope=1, color="black", linewidth=1)
right.set(
    xlabel="true signal, synthetic",
    ylabel="signal from two shells",
    ylim=(0, 80),
    title="Signal at b = 3000 s/mm²",
)
right.legend(frameon=False, markerscale=5)
folder = Path("build/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "predict_shells.png", dpi=150)
