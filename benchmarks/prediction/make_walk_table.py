"""
Walk the microstructures of synthetic patients, and write the tables that the package reads.

    .venv/bin/python -m benchmarks.prediction.make_walk_table [--walkers N --out FOLDER]

Forty tissues (packed spheres, impermeable, permeable, and permeable with two T2) and twenty bloods
(capillary segments) are drawn at random and walked once, for all b-values and echo times. The rows
go to `walks.csv`, the decays to `walk_decays.npz`; the same seed gives the same tables. It takes
about three minutes on one core.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np

from benchmarks.prediction._random_walks import Pulses, pack_spheres, walk_blood, walk_tissue
from dmrifit.io.atomic_files import whole_file
from dmrifit.simulate import walk_table as table

SEED = 20261121
N_WALKERS = 20_000
N_BLOOD_WALKERS = 200_000
FOLDER = Path(table.__file__).parent / "data"
PULSES = Pulses(table.PULSE_START, table.PULSE_DURATION, table.PULSE_SEPARATION)
FAMILIES = {"impermeable": 13, "permeable": 13, "two T2": 14}
N_BLOODS = 20
# Nodes in sqrt(b D), of which decays are even functions.
NODES = np.linspace(0, 4, 49)
BLOOD_NODES = np.linspace(0, 8, 97)
ECHO_TIMES = np.arange(table.SHORTEST_TE, table.LONGEST_TE + 1, 20.0)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def tissue(family: str, seed: np.random.SeedSequence, n_walkers: int) -> tuple[dict, np.ndarray]:
    """Draw and walk a tissue; give its row and its decays, (n_te, n_nodes)."""
    rng = np.random.default_rng(seed)
    row = {
        "kind": family,
        "radius_um": rng.uniform(4, 9),
        "packed": rng.uniform(0.35, 0.6),
        "d_inside": rng.uniform(0.8, 1.5),
        "d_outside": rng.uniform(1.5, 2.5),
        "permeability": 0.0 if family == "impermeable" else log_uniform(rng, 0.001, 0.05),
        "relaxation_difference": rng.uniform(0.002, 0.007) if family == "two T2" else 0.0,
    }
    walks = walk_tissue(
        pack_spheres(row["radius_um"], row["packed"], rng),
        PULSES,
        ECHO_TIMES,
        d_inside=row["d_inside"],
        d_outside=row["d_outside"],
        permeability=row["permeability"],
        n_walkers=n_walkers,
        seed=int(rng.integers(2**31)),
    )
    return finished(row, walks, NODES)


def finished(row: dict, walks: object, nodes: np.ndarray) -> tuple[dict, np.ndarray]:
    """Add the cumulants of a walk to its row, and compute its decays in units of D."""
    difference = row.get("relaxation_difference", 0.0)
    t2_inside = 1 / difference if difference else np.inf
    i_te = int(np.argmin(np.abs(walks.te - table.CUMULANT_TE)))
    row["D"], row["K"] = walks.cumulants(i_te, t2_inside)
    decays = walks.signals(nodes**2 / row["D"], t2_inside).T
    return row, decays


def blood(seed: np.random.SeedSequence, n_walkers: int) -> tuple[dict, np.ndarray]:
    """Draw and walk a blood."""
    rng = np.random.default_rng(seed)
    row = {
        "kind": "blood",
        "speed_mm_per_s": log_uniform(rng, 0.7, 4),
        "segment_um": log_uniform(rng, 30, 150),
    }
    walks = walk_blood(
        PULSES,
        speed=row["speed_mm_per_s"],
        segment=row["segment_um"],
        n_walkers=n_walkers,
        seed=int(rng.integers(2**31)),
    )
    return finished(row, walks, BLOOD_NODES)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Walk the microstructures of synthetic patients.")
    parser.add_argument("--walkers", type=int, default=N_WALKERS, help="walkers in each tissue")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the tables")
    options = parser.parse_args(arguments)
    families = [family for family, n in FAMILIES.items() for _ in range(n)]
    seeds = np.random.SeedSequence(SEED).spawn(len(families) + N_BLOODS)
    began = time.process_time()
    tissues = []
    for family, seed in zip(families, seeds, strict=False):
        tissues.append(tissue(family, seed, options.walkers))
        row = tissues[-1][0]
        print(f"{family}: D {row['D']:.3f}, K {row['K']:.2f}", flush=True)
    n_blood_walkers = N_BLOOD_WALKERS * options.walkers // N_WALKERS
    bloods = [blood(seed, n_blood_walkers) for seed in seeds[len(families) :]]
    print(f"{time.process_time() - began:.0f} s of processor time")
    # Ascending K, because voxels mix neighbors.
    tissues.sort(key=lambda walk: (list(FAMILIES).index(walk[0]["kind"]), walk[0]["K"]))
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [row for row, _ in [*tissues, *bloods]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(options.out / "walks.csv") as part, part.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            written = {k: v if isinstance(v, str) else f"{v:.7g}" for k, v in row.items()}
            writer.writerow(written)
    with whole_file(options.out / "walk_decays.npz") as part, part.open("wb") as stream:
        np.savez_compressed(
            stream,
            nodes=NODES,
            blood_nodes=BLOOD_NODES,
            te=ECHO_TIMES,
            tissue=np.array([decays for _, decays in tissues], dtype=np.float32),
            blood=np.array([decays[0] for _, decays in bloods], dtype=np.float32),
        )


if __name__ == "__main__":
    main()
