"""
What do the models describe, and where are they valid?

Seven models of the signal of a voxel are built in, all isotropic: no tensor, so no FA (DTI, DKI). Inside a formula b is
in ms/µm² (the scanner's s/mm² divided by 1000), so that b·D has no unit with D in µm²/ms; echo times are in ms. All data
of this page are synthetic.
"""

# %%
# Mono-exponential decay: ``adc``
# -------------------------------
# .. math:: S(b) = S_0 \, e^{-b \, ADC}
#
# Le Bihan et al., Radiology 161:401, 1986. Water spreads freely, at one rate. Neither holds in tissue: ADC depends on
# the b-values it was fitted to, and values of two protocols must not be compared.
#
# Kurtosis: ``kurtosis``
# ----------------------
# .. math:: S(b) = S_0 \, e^{-bD + K (bD)^2 / 6}
#
# Jensen et al., Magn Reson Med 53:1432, 2005. The first two terms of the expansion of ln S around b = 0. At
# :math:`bD = 3/K` the formula has its minimum and then rises, which no real signal does; it is not valid at higher b.
# K is therefore limited to 3/(b·D) of the highest b-value, and a fit that ends there is at a bound and in doubt. This
# happens in fluid, whose signal is at the noise floor. ``bounds={"K": (0, 5)}`` removes the limit; ``method="ols"`` and
# ``"wls"`` have no bounds; ``t2-ivim-kurtosis`` has the limit only on request, ``bounds={"K": (0, "monotonic")}``.
#
# Two compartments: ``ivim``
# --------------------------
# .. math:: S(b) = S_0 \, [f e^{-b D_v} + (1-f) e^{-b D_t}]
#
# Le Bihan et al., Radiology 168:497, 1988. Flow in capillaries dephases the signal like fast diffusion. f is the share of
# the *signal*, a T2-weighted signal fraction: it depends on the echo time, because blood and tissue have different T2. Dv
# is determined by the few smallest b-values.
#
# Relaxation, perfusion and kurtosis: ``t2-ivim-kurtosis``
# --------------------------------------------------------
# .. math:: S(b, T_E) = S_0 \, [f e^{-bD_v - T_E/T_{2v}} + (1-f) e^{-bD_t + K(bD_t)^2/6 - T_E/T_{2t}}]
#
# Macarro et al., J Magn Reson Imaging 61:1018, 2025. With several echo times in the fit, f no longer depends on the echo
# time. Seven parameters need far more than seven images; T2v and Dv are the least certain.
#
# Relaxation alone and with diffusion: ``t2`` and ``t2-adc``
# -----------------------------------------------------------
# .. math:: S(T_E) = S_0 \, e^{-T_E/T_2}, \qquad S(b, T_E) = S_0 \, e^{-b \, ADC - T_E/T_2}
#
# Poon and Henkelman, J Magn Reson Imaging 2:541, 1992. For several echo times at one b-value, or at few. One pool of water
# relaxes at one rate; where free water is beside tissue, T2 is too long, and in doubt where the data do not exclude that.
#
# Curves divided by their own b = 0: ``t2-ivim-relative``
# --------------------------------------------------------
# .. math:: \frac{S(b, T_E)}{S(0, T_E)} = S_0 \, \frac{f e^{-bD_v - T_E \Delta R_2} + (1-f) e^{-bD_t}}
#    {f e^{-T_E \Delta R_2} + 1 - f}, \qquad \Delta R_2 = 1/T_{2v} - 1/T_{2t}
#
# The same two compartments, for data that are published as ratios: at every echo time the curve is divided by its own
# value at b = 0. No T2 is left in them, only the difference dR2 of the two relaxation rates, through which f rises with
# the echo time. S0 is near 1; it absorbs the noise of the b = 0 that all other values were divided by.
#
# Symbols, units, bounds
# ----------------------
# Read from `dmrifit.MODELS`. Bounds of an amplitude are multiples of the largest signal of the voxel.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dmrifit import MODELS, Protocol, fit_voxels

# sphinx_gallery_start_ignore
pd.set_option("display.max_rows", None)
# sphinx_gallery_end_ignore
pd.DataFrame(
    [
        (name, p.name, p.unit or "none", p.low, p.high)
        for name, model in MODELS.items()
        for p in model.parameters
    ],
    columns=["model", "parameter", "unit", "low", "high"],
).set_index(["model", "parameter"])

# %%
# What each parameter does
# ------------------------
# The signal of a synthetic tumor, and of the same tumor with one parameter changed by half. A fit cannot distinguish
# curves that coincide.

from dmrifit.simulate.tissues import tissue_table

tumor = tissue_table()["tissue"]["tumor"]
# sphinx_gallery_start_ignore
model = MODELS["t2-ivim-kurtosis"]
b = np.linspace(0, 1600, 81)
figure, axes = plt.subplots(2, 3, figsize=(9, 5), layout="constrained", sharex=True, sharey=True)
for axis, j in zip(axes.flat, range(1, 7), strict=True):
    for factor, style in ((0.5, "C0--"), (1, "k-"), (1.5, "C1--")):
        changed = tumor.copy()
        changed[j] *= factor
        axis.semilogy(b, model.signal(changed, Protocol(b, 93))[0], style, label=f"× {factor:g}")
    axis.set_title(f"{model.names[j]} = {tumor[j]:g} {model.units[j]}", fontsize=10)
axes[0, 0].legend(frameon=False)
for axis in axes[1]:
    axis.set_xlabel("b (s/mm²)")
for axis in axes[:, 0]:
    axis.set_ylabel(f"signal at TE 93 ms (S0 = {tumor[0]:g})")
# sphinx_gallery_end_ignore

# %%
# Where the kurtosis model fails
# ------------------------------
# A voxel with a spread of diffusivities (gamma distribution, mean 1, variance 0.4), and the kurtosis fit to b up to
# 2000. Both agree within the protocol; above its highest b-value the fit reaches a minimum and rises.

measured = Protocol(np.arange(0, 2001, 250))
continued = Protocol(np.linspace(0, 5000, 101))


def truth(protocol):
    return (1 + protocol.b_ms_per_um2 * 0.4) ** (-1 / 0.4)


fitted = fit_voxels(truth(measured)[None], measured, "kurtosis")
turn = 3 / (fitted["K"][0] * fitted["D"][0])
# sphinx_gallery_start_ignore
figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
axis.plot(continued.b, truth(continued), "k", label="truth, synthetic")
axis.plot(continued.b, MODELS["kurtosis"].signal(fitted.parameters, continued)[0], "C1--", label="kurtosis, continued")
axis.plot(measured.b, truth(measured), "ko", markersize=4, label="measured")
axis.axvline(1000 * turn, color="gray", linewidth=1)
axis.text(1000 * turn + 40, 0.6, "b = 3/(K·D)", color="gray")
axis.set(xlabel="b (s/mm²)", ylabel="signal", ylim=(0, 1.05))
axis.legend(frameon=False)
# sphinx_gallery_end_ignore
print(f"D = {fitted['D'][0]:.2f} µm²/ms, K = {fitted['K'][0]:.2f}")
print(f"the fit has its minimum at b = {1000 * turn:.0f} s/mm²")

# %%
# How a fit works
# ---------------
# Least squares within the bounds, from starting points that a dictionary of tissues gives, with analytic derivatives.
# With ``sigma``, √(S² + πσ²/2) is compared with the data in place of S, because magnitudes do not fall below the noise
# floor. Every voxel has a status, standard errors, intervals, and doubts: other parameters that fit
# about as well, and parameters that the data do not determine. A model of your own is a formula:
# `dmrifit.SignalModel.from_expression`.
