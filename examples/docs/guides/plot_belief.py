"""
When should a map not be believed?

A map has a value in every voxel, also where the images do not say anything about it. This page gives nine
reasons for doubt, seven of them with a measurement, and says what an interval means. All data are synthetic.
"""

# %%
# The noise is too high
# ---------------------
# Median relative error of the parameters of synthetic tumors, by the signal-to-noise ratio (at b = 0 and the
# shortest echo time), with the protocol of 21 contrasts. The floor of the noise is part of the fit.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dmrifit import MODELS, Protocol, fit_voxels, protocol_precision
from dmrifit.simulate.tissues import tissue_table

model, protocol = MODELS["t2-ivim-kurtosis"], Protocol.preset("cohort1")
rng = np.random.default_rng(0)
tumor = tissue_table()["tissue"]["tumor"]
truth = tumor * np.exp(rng.normal(scale=[0.08, 0.2, 0.3, 0.05, 0.12, 0.15, 0.1], size=(1000, 7)))
clean = model.signal(truth, protocol)
errors, at_bounds = {}, {}
for snr in (10, 20, 40, 80, 160):
    sigma = clean[:, :1].mean() / snr
    real, imaginary = rng.normal(scale=sigma, size=(2, *clean.shape))
    noisy = np.hypot(clean + real, imaginary)
    fitted = fit_voxels(noisy, protocol, model, sigma=sigma)
    errors[snr] = np.median(np.abs(fitted.parameters / truth - 1), axis=0)
    at_bounds[snr] = (fitted.at_low | fitted.at_high).mean(axis=0)
errors = pd.DataFrame(errors, index=model.names)
(100 * errors).round(0).astype(int).add_suffix(" : 1").astype(str) + " %"

# %%
# At 20 : 1 and better, S0, Dt and T2t err by less than a fifth; f, Dv and K err by a quarter to a half at 20 : 1, and
# need better images, or the median of many voxels. A median over a region reduces noise, but not the errors that
# follow.
#
# The value is at a bound
# -----------------------
# Share of the same voxels in which a parameter ended at a bound. Such a value says "beyond what was allowed", and its
# standard error says nothing. ``dmrifit fit`` writes these voxels to the map ``atbound``, and `dmrifit.roi_table` their
# share in a region. T2v is at a bound in most voxels whatever the noise: believe no map of it.

at_bounds = pd.DataFrame(at_bounds, index=model.names)
(100 * at_bounds).round(0).astype(int).add_suffix(" : 1").astype(str) + " %"

# %%
# An interval says how far a value may be off
# -------------------------------------------
# ``FitResult.intervals(0.95)`` gives low and high ends, ``dmrifit fit`` maps of them. They also hold where a parameter
# ended at a bound, where its standard error is empty. How often they hold was measured with synthetic signals of
# t2-ivim-kurtosis at SNR 30 and 60, and with signals of random walks, which were not made with the formula (21 tissues):
#
# .. list-table:: Share of 95 % intervals that contain the value
#    :header-rows: 1
#
#    * - parameter
#      - walks, SNR 30: fit without noise / truth of the walk
#      - walks, SNR 60: fit without noise / truth of the walk
#    * - S0
#      - 93 / 93 %
#      - 95 / 95 %
#    * - f
#      - 97 / 96 %
#      - 95 / 95 %
#    * - Dv
#      - 97 / 97 %
#      - 97 / 96 %
#    * - Dt
#      - 97 / 96 %
#      - 95 / 95 %
#    * - K
#      - 94 / 96 %
#      - 96 / 92 %
#    * - T2t
#      - 94 / 94 %
#      - 95 / 94 %
#
# The fit to the signal without noise is the mean of many repeated scans; the true values of the walk also include
# what the formula leaves out: the K of the fit without noise is 12 % below the walk's (median of the 21). With the
# model's own signals the shares are 91 to 98 %. They are lower where few measurements remain: 86 to 91 % for kurtosis
# with b = 0, 500, 1000 and 2000 s/mm², one measurement more than parameters, where the noise was not measured (96 to
# 97 % where it was). This was not tested outside tissue (f above 0.75, free water).
# An interval over three quarters of the range that was searched reads "not determined"; a fraction that is a
# well-measured zero reads "none found, < 0.02", with its upper end.

# %%
# The protocol does not determine the parameter
# ---------------------------------------------
# The Cramér–Rao bound: no unbiased fit has a smaller standard deviation, whatever its algorithm. The column ``advice``
# says in a sentence which parameters the protocol does not determine, and what would help. The table has the
# coefficients of variation of the tumor's parameters at an SNR of 40, for the model with the protocol that it needs, and
# for simpler models with five clinical images. A value far above 30 % means that a map of single voxels shows only noise
# and bounds of the fit. Fits within bounds may scatter less than the Cramér–Rao bound: the bounds limit them, not the
# images.

sigma = model.signal(tumor, protocol)[0, 0] / 40
table = protocol_precision(protocol, model, tumor, sigma)
clinical = protocol.take(protocol.clinical())
simple = {
    "adc": [tumor[0], 1.2],
    "kurtosis": [tumor[0], 1.2, 0.9],
    "ivim": [tumor[0], 0.12, 30, 1.05],
}
bounds = [table.assign(model="t2-ivim-kurtosis, 21 images")] + [
    protocol_precision(clinical, name, values, values[0] / 40).assign(model=f"{name}, 5 images")
    for name, values in simple.items()
]
percent = pd.concat(bounds).set_index(["model", "parameter"])[["cv"]]
(100 * percent).round(0).rename(columns={"cv": "standard deviation, % of the value"})

# %%
# The voxel contains two tissues
# ------------------------------
# A mixture of two tissues, neither with any kurtosis, without noise: the fit reports kurtosis all the same.

b = Protocol(np.arange(0, 1601, 200))
slow, fast = 0.8, 2.4
shares = np.linspace(0, 1, 41)[:, None]
mixed = fit_voxels(
    shares * np.exp(-b.b_ms_per_um2 * fast) + (1 - shares) * np.exp(-b.b_ms_per_um2 * slow),
    b,
    "kurtosis",
)
# sphinx_gallery_start_ignore
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for axis, name, unit in zip(axes, ("D", "K"), (" (µm²/ms)", ""), strict=True):
    axis.plot(100 * shares[:, 0], mixed[name], label="fit to synthetic signals")
    axis.set(xlabel="share of the fast tissue (%)", ylabel=f"{name} of the fit{unit}")
axes[0].plot([0, 100], [slow, fast], "k:", label="mean of the two")
axes[0].legend(frameon=False)
# sphinx_gallery_end_ignore
print(f"two tissues of {slow} and {fast} µm²/ms without kurtosis:")
print(f"K of the mixture up to {mixed['K'].max():.2f}")

# %%
# K at the rim of a tumor, beside fluid or fat is such a mixture. Scores include these voxels: erode masks yourself.
#
# Tissue does not follow a formula
# --------------------------------
# Signals of random walks of water (``simulate_cohort(truth="walk")``: packed spheres with membranes, blood in
# capillaries), fitted with 21 contrasts up to b = 1600 s/mm²: median error, and its quartiles over 600 tissues. The fit
# agrees with the signals to about a tenth of a percent, so nothing in it warns.

# Read from benchmarks/results/truths.json.
# sphinx_gallery_start_ignore
from pages import result

biases = pd.DataFrame(index=model.names)
for row in result("truths")["biases"]:
    column = "no noise" if row["snr"] is None else f"{row['snr']:.0f} : 1"
    low, high = (round(value) for value in row["quartiles_percent"])
    middle = round(row["median_percent"])
    biases.loc[row["parameter"], column] = f"{middle:+d} % [{low:+d}, {high:+d}]"
biases.rename_axis("parameter")
# sphinx_gallery_end_ignore

# %%
# K is too low: it is the kurtosis of the measured range of b and not that at b = 0, and noise lowers it further. Maps
# of one protocol can be compared with each other, K of different largest b-values cannot. T2v is random.
#
# Patients are unlike those that a predictor learned from
# --------------------------------------------------------
# Predicted signals have these relative errors on two kinds of synthetic cohorts, which differ only in what was assumed
# about tissues and noise. Real patients are a third kind. A predicted map is a guess from similar patients: in a tumor
# unlike all training tumors, it shows what is usual and not what is there.

# Read from benchmarks/results/claims.json.
# sphinx_gallery_start_ignore
claims = result("claims")["claims"]
print(claims[0]["statement"], "- the study:", claims[0]["study"], "- ours:", claims[0]["ours"], sep="\n")
# sphinx_gallery_end_ignore

# %%
# ``ConformalIntervals`` says how far the guess may be off, and ``typicality`` which voxels are unlike those of training.
# Intervals of 90 % around linear regression, learned from 16 synthetic patients and tested on new ones: share of the
# references that they contain (coverage), and the worst patient. In the body the coverage is nominal. Tumors differ more
# between patients and have fewer voxels: there the mean is close to nominal, but a single patient may be far off.

# Read from benchmarks/results/uncertainty.json.
# sphinx_gallery_start_ignore
measured = result("uncertainty")
rows = pd.DataFrame(measured["rows"]).query("truth == 'formula' and strategy == 's2s' and cohort == 'cohort1'")
held = rows.pivot_table(index="parameter", columns="region", values=["coverage", "worst_patient"])
held.loc[list(model.names)].map("{:.0%}".format)
# sphinx_gallery_end_ignore

# %%
# Voxels flagged as unlike the training (5 % of those of training patients are). A tissue that was left out is found where
# its signals differ from those of all others. The same body at 3 T is not detected: at one echo time, another T2 looks
# like another proton density. Nor is tissue such as muscle, whose signals lie among those of other tissues; there the
# coverage is below nominal. A missing flag proves nothing.

# Read from benchmarks/results/uncertainty.json.
# sphinx_gallery_start_ignore
novelty = pd.DataFrame(measured["novelty"]).set_index("what")[["flagged", "coverage", "coverage_flagged"]]
novelty.rename(columns={"flagged": "unlike", "coverage_flagged": "coverage of the unlike"}).map("{:.0%}".format)
# sphinx_gallery_end_ignore

# %%
# An earlier scan, or an atlas, is misaligned
# -------------------------------------------
# Detection of synthetic metastases by networks that see an earlier scan, well registered, and with that scan moved
# (means over ten seeds of the hard synthetic setting, of ``benchmarks/metastasis/bench_metastasis.py``). In the rows "as
# zeros" the network sees no earlier scan at all: if this does not make it worse, it does not use that scan, and a moved
# scan cannot harm it either. Aligned scans are assumed wherever two images are combined: look at the overlay first.

# Read from benchmarks/results/metastasis.json.
# sphinx_gallery_start_ignore
methods = pd.DataFrame(result("metastasis")["methods"]).query("part == 'all' and world == 'hard world'").set_index("method")
moved = methods[methods.index.str.contains("JVSS") & methods.index.str.contains("prior")]
columns = ["sensitivity", "precision", "false_positives_per_scan"]
moved[columns].map(lambda values: round(float(np.mean(values)), 2))
# sphinx_gallery_end_ignore

# %%
# Scanner effects that no model has
# ---------------------------------
# A protocol here is b, echo time and direction. The diffusion time and the lengths of the gradient pulses are not
# modeled: two scans with the same b and other timings give other D and K in tissue that hinders water, and are fitted
# as if they were one. Nor is the non-linearity of the gradients, through which b differs by some percent toward the
# ends of a bore: correct it before, or compare only the same positions.
#
# The test was too easy
# ---------------------
# Scores of this project are scores on synthetic data, except those of :doc:`a few real people </people>`. Detectors that
# learned from lesions like those they are tested on look best of all. Before a map is used for anything, look at the
# share of voxels at bounds, the doubts, the intervals, the controls in the report, and a scan of which you know the
# answer.
