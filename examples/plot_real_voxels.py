"""
Does the comparison run on signals of a real scanner?

Six voxels of the genu of one brain were measured at 34 combinations of b-value and echo time (ISBI 2015 white matter
challenge; CSV file of the joined table, given on the command line). Each voxel stands for a patient: five train, from
three contrasts to all 34, and the sixth is predicted. This shows that real signals go through the same code as
cohorts do. It is no clinical result: six voxels of one healthy head say nothing about patients, and they are so alike
that the constant prediction, drawn beside, is as good. To run it::

    python examples/plot_real_voxels.py genu_table.csv
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dmrifit import Cohort, Protocol, Scan, SignalToSignal, compare

if len(sys.argv) != 2:
    sys.exit("name the table: python examples/plot_real_voxels.py genu_table.csv")
table = pd.read_csv(sys.argv[1])
table = table.assign(te=(1e3 * table.TE_s).round(3), b=table.b_s_per_mm2.round(-1))
table = table[table.b <= 3000]
protocol = Protocol(table.b, table.te, directions=table[["gx", "gy", "gz"]])
one = np.ones((1, 1, 1))
voxels = Cohort(
    [
        Scan(
            f"voxel {i}",
            table[f"vox{i}"].to_numpy()[None, None, None],
            protocol,
            one,
            np.eye(4),
            lesion=one,
            average="arithmetic",
        )
        for i in range(1, 7)
    ],
    "six voxels",
)
target = voxels.scans[0].protocol
source = target.take(
    [target.labels.index(label) for label in ("S_b0_TE49", "S_b500_TE49", "S_b0_TE152")]
)

result = compare(
    {"LR s2s": SignalToSignal("LR", source=source, target=target)},
    [voxels],
    train_mask="body",
    random_state=0,
)
unseen = result.signals[result.signals["contrast"] != "all unseen"]
error = unseen[unseen["algorithm"].isin(["LR", "constant"])].pivot_table(
    "relative_error", ["b", "te"], "algorithm"
)
print("mean relative error (%) of unseen contrasts; six real voxels, one left out at a time:")
print("no clinical result")
print((100 * error.mean()).round(1).to_string())

figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
for name, marker in (("LR", "o"), ("constant", "x")):
    axis.plot(error.index.get_level_values("b"), 100 * error[name], marker, label=name)
axis.set(xlabel="b (s/mm²), all echo times", ylabel="mean relative error (%)", ylim=(0, None),
         title="Six real voxels of one brain: no clinical result")  # fmt: skip
axis.legend(frameon=False)
folder = Path("build/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "real_voxels.png", dpi=150)
