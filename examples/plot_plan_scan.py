"""
Which image is worth adding to a clinical scan?

A clinical protocol has five b-values at one echo time, an advanced one 21 contrasts. Two ways to plan a scan between
them. The Cramér–Rao bound asks which contrast makes the parameters of T2-IVIM-Kurtosis more precise, for five types
of tumor and a noise level; it needs no data. The other asks which contrast, once measured, helps a linear regression
most to predict those that are still missing, in patients that it has not seen; here the patients are synthetic. The
two need not agree: a fit wants what determines its parameters, a prediction what the clinical images do not hold yet.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from dmrifit import MODELS, Protocol, rank_contrasts, rank_contrasts_by_prediction, simulate_cohort
from dmrifit.simulate.tissues import tissue_table

protocol = Protocol.preset("cohort1")
clinical = protocol.clinical()
model = MODELS["t2-ivim-kurtosis"]

# Five types of tumor, at the noise of an SNR of 30 in the liver: no data needed.
table = tissue_table()
tumors = np.stack([table["tissue"]["tumor"] * factors for factors in table["tumor_type"].values()])
sigma = model.signal(table["tissue"]["liver"], protocol)[0, 0] / 30
by_precision = rank_contrasts(protocol, model, tumors, sigma, start=clinical)

# What helps to predict the rest of the protocol in a patient who was left out: synthetic patients.
by_prediction = rank_contrasts_by_prediction(
    simulate_cohort(protocol, 12, random_state=0), random_state=0
)

for title, order in (("precision", by_precision), ("prediction", by_prediction)):
    print(f"by {title}:", ", ".join(order["contrast"].iloc[1:5]))


def draw_order(axis, order, title):
    """Number the contrasts on the grid of b and TE, from the first one taken (dark) to the last."""
    b, te = np.unique(protocol.b), np.unique(protocol.te)
    numbers = np.full((len(te), len(b)), np.nan)
    for one in order.iloc[1:].itertuples():
        numbers[np.searchsorted(te, one.te), np.searchsorted(b, one.b)] = one.step
    axis.imshow(numbers, cmap="Blues_r", vmin=1, vmax=22, origin="lower", aspect="auto")
    for (row, column), number in np.ndenumerate(numbers):
        text = "clinical" if np.isnan(number) else f"{number:.0f}"
        dark = number < 10
        size = 7 if np.isnan(number) else 10
        axis.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            color="white" if dark else "black",
            fontsize=size,
        )
    axis.set_xticks(range(len(b)), [f"{value:g}" for value in b])
    axis.set_yticks(range(len(te)), [f"{value:g}" for value in te])
    axis.set(title=title, xlabel="b (s/mm²)", ylabel="TE (ms)")


figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained", height_ratios=[1, 1.3])
draw_order(axes[0, 0], by_precision, "order by precision (Cramér–Rao bound)")
draw_order(axes[0, 1], by_prediction, "order by prediction (synthetic patients)")
markers = "osD^vP*"
for name, marker in zip(model.names, markers, strict=True):
    axes[1, 0].semilogy(
        5 + by_precision["step"],
        by_precision[f"cv_{name}"],
        marker=marker,
        markersize=4,
        label=name,
    )
axes[1, 0].set(
    title="precision of a tumor's parameters",
    xlabel="images measured",
    ylabel="coefficient of variation",
)
axes[1, 0].set_yticks([0.1, 0.2, 0.5, 1], ["10 %", "20 %", "50 %", "100 %"])
axes[1, 0].set_ylim(0.07, 2.5)
axes[1, 0].minorticks_off()
axes[1, 0].legend(ncols=4, fontsize=8, loc="upper right")
first = by_prediction.iloc[1:9]
axes[1, 1].bar(first["contrast"].str.removeprefix("S_"), 100 * first["gain"], color="C0")
axes[1, 1].tick_params("x", rotation=40)
axes[1, 1].set(
    title="what an image does for those still missing",
    xlabel="image added, in the order taken",
    ylabel="fall of the relative error\n(percentage points)",
)
folder = Path("build/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "plan_scan.png", dpi=150)
