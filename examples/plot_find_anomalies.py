"""
Which voxels of a diffusion scan look unlike those of healthy people?

From synthetic scans of healthy persons (no person was scanned) two detectors learn what is normal: a map of how far the
mean signal of a voxel lies from that of others at its place, and a small autoencoder in the manner of Weninger et al.
(Scientific Reports, 2023). No lesion is seen in training; the threshold is that which 1 % of the voxels of healthy
training persons exceed. At this threshold both are compared on new patients, with masks that learned nothing beside
them. A small network, trained for a minute or less, shows the method, not its best accuracy. Not for clinical use.
"""

from pathlib import Path

import numpy as np

from anomaly import (
    DenoisingAutoencoder,
    FixedThreshold,
    VoxelwiseGaussian,
    evaluate_detectors,
    open_map,
    simulate_dmri,
)
from anomaly.study.evaluation import format_summary
from anomaly.study.plotting import map_limits, plot_panels
from dmrifit import Training

healthy, patients = simulate_dmri(
    20, 6, n_directions=6, shape=(26, 30, 22), spacing=6, random_state=2
)
known, new = healthy[:16], healthy[16:]


def arrays(cases):
    return np.stack([case.signal for case in cases]), np.stack([case.brain for case in cases])


detectors = {
    "z": VoxelwiseGaussian(spacing=6),
    "autoencoder": DenoisingAutoencoder(
        16, widths=(8, 16), spacing=6, training=Training(epochs=40), device="cpu", random_state=0
    ),
}
maps, healthy_maps = {}, {}
for name, detector in detectors.items():
    detector.fit(*arrays(known))
    maps[name] = list(detector.anomaly_map(*arrays(patients)))
    healthy_maps[name] = list(detector.anomaly_map(*arrays(new)))

# One threshold for table, count and picture; the default rules would fit others to the scans above.
thresholds = {name: detector.threshold_.threshold_ for name, detector in detectors.items()}
rules = {"stored": {name: FixedThreshold(value) for name, value in thresholds.items()}}
tables = evaluate_detectors(patients, maps, healthy=new, healthy_maps=healthy_maps, rules=rules)
print("synthetic scans: no clinical result")
print(format_summary(tables, rule="stored")[["AUC", "Dice, raw", "Dice, opened"]].to_string())

found = detectors["z"].predict(*arrays(new))
empty = sum(not open_map(mask).any() for mask in found)
print(f"nothing is found, after opening, in {empty} of {len(new)} new healthy persons")

folder = Path("build/examples")
folder.mkdir(parents=True, exist_ok=True)
limits = map_limits(maps, patients)
largest = int(np.argmax([case.lesion.sum() for case in patients]))
shown = {name: values[largest] for name, values in maps.items()}
plot_panels(patients[largest], shown, thresholds, limits).savefig(
    folder / "find_anomalies.png", dpi=150
)
