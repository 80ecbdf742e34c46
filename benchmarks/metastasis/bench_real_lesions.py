"""
Do matching, scores and registration hold on shapes and scans of people?

Lesions of multiple sclerosis, not metastases: changed lesions of ten people (`ms_followup`) and label sets of fifteen
(`ms_lesions_mni`). A reader is imitated who misses a quarter of the lesions, adds blobs, and outlines one voxel wider:
scores must be as constructed, by distance whatever the outline is. FLAIR scans of two visits of two people are aligned.

    DMRIFIT_DATA=… .venv/bin/python -m benchmarks.metastasis.bench_real_lesions

Only scores and counts are kept, no image.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit.imaging.rigid_alignment import HeadAlignment
from dmrifit.io.components import label_components
from dmrifit.stats.lesion_matching import lesion_table
from metastasis.study.reader_scores import recall_by_volume, scan_scores

RESULT = measure.RESULTS / "real_lesions.json"
MISSED, BLOBS, SEED = 0.25, 5, 0
VISITS = ("01", "03")


def label_sets(data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the masks and affines of all people, by set and name."""
    sets = {}
    for path in sorted(data.glob("ms_followup/patient*/changed_lesions.nii.gz")):
        sets[f"ms_followup {path.parent.name}"] = path
    for path in sorted(data.glob("ms_lesions_mni/*_lesions.nii.gz")):
        sets[f"ms_lesions_mni {path.name.split('_')[0]}"] = path
    return {
        name: (np.asarray(nib.load(path).dataobj) > 0.5, nib.load(path).affine)
        for name, path in sets.items()
    }


def cropped(mask: np.ndarray) -> np.ndarray:
    """Cut a mask (x, y, z) to what is marked and 16 voxels around, where blobs have room."""
    marked = ndimage.find_objects(mask.astype(np.uint8))[0]
    return np.pad(mask[marked], 16)


def read_by_someone(
    truth: np.ndarray, rng: np.random.Generator, widths: int
) -> tuple[np.ndarray, int, int]:
    """Drop lesions, outline the others wider, and add blobs far from all; give what was done."""
    lesions = label_components(truth)
    n = int(lesions.max())
    kept = rng.permutation(np.arange(1, n + 1))[: n - round(MISSED * n)]
    mask = np.isin(lesions, kept)
    if widths:
        mask = ndimage.binary_dilation(mask, iterations=widths)
        # What is dropped stays dropped, although a neighbor's outline may touch it.
        mask &= ~(truth & ~np.isin(lesions, kept))
    far = ndimage.distance_transform_edt(~(truth | mask)) > 8
    far[:6] = far[-6:] = False
    blobs = np.zeros(truth.shape, bool)
    n_blobs = 0
    places = np.flatnonzero(far)
    while n_blobs < BLOBS:
        index = np.unravel_index(places[rng.integers(len(places))], truth.shape)
        near = tuple(slice(i - 4, i + 4) for i in index)
        if min(index) >= 4 and not blobs[near].any():
            blobs[tuple(slice(i - 1, i + 1) for i in index)] = True
            n_blobs += 1
    return mask | blobs, len(kept), n


def scores(sets: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Score the imitated reader on label sets: masks (x, y, z) and affines by name."""
    rows, tables = [], []
    for number, (name, (truth, affine)) in enumerate(sets.items()):
        truth = cropped(truth)
        lesions = label_components(truth)
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        distance = ndimage.distance_transform_edt(~truth, sampling=edges)
        for widths in (0, 1):
            mask, n_kept, n = read_by_someone(truth, np.random.default_rng([SEED, number]), widths)
            table = lesion_table(truth, mask, affine)
            found = table[table["kind"] == "lesion"]
            row = {"name": name, "wider_voxels": widths, "n_lesions": n, "n_kept": n_kept}
            row["n_found"] = int(found["found"].sum())
            row["n_false"] = int((table["kind"] != "lesion").sum())
            row["n_strict"] = int(found["distinct"].sum())
            by_distance = scan_scores(truth, lesions, distance, mask, affine)
            row |= {"n_by_distance": by_distance["n_found"], "n_wrong_by_distance": by_distance["n_wrong"]}
            f1 = float(by_distance["all_instance_f1"])
            row["f1_mets"] = round(f1, 5) if np.isfinite(f1) else None
            row["median_mm3"] = float(found["volume_mL"].median() * 1000)
            rows.append(row)
            if widths == 0:
                tables.append(table.assign(patient=name, method=name.split()[0]))
    volumes = recall_by_volume(pd.concat(tables, ignore_index=True), n_bootstrap=1000, seed=SEED)
    volumes = volumes.replace({np.inf: None}).astype(object).where(volumes.notna(), None)
    return {"people": rows, "recall_by_volume": volumes.to_dict("records")}


def registrations(data: Path) -> list[dict[str, Any]]:
    """Align the FLAIR scans of two visits, and of two people."""
    rows = []
    for first, second in itertools.product(VISITS, VISITS):
        paths = (f"ms_followup/patient{first}/raw/study1_FLAIR.nii.gz", f"ms_followup/patient{second}/raw/study2_FLAIR.nii.gz")
        begin = time.process_time()
        alignment = HeadAlignment.of(*(data / path for path in paths))
        center = np.array([[0.0, 0, 0], [50, 0, 0], [-50, 0, 0], [0, 60, 0], [0, -60, 0], [0, 0, 50]])
        middle = nib.affines.apply_affine(alignment.affine, np.array(ndimage.center_of_mass(alignment.head)))
        rows.append(
            {
                "earlier": f"patient{first}",
                "later": f"patient{second}",
                "likeness": round(alignment.likeness, 4),
                "same_head": alignment.shows_same_head,
                "disagreement_mm": round(alignment.disagreement(center + middle), 4),
                "cpu_s": round(time.process_time() - begin, 1),
            }
        )
        print(rows[-1], flush=True)
    return rows


def run(_: argparse.Namespace) -> dict[str, Any]:
    """Score the imitated reader, and align heads."""
    data = measure.data_folder("ms_followup").parent
    start = time.process_time()
    return {
        "data": "Lesjak et al., CC BY; lesions of multiple sclerosis",
        "missed": MISSED,
        "blobs": BLOBS,
        "seed": SEED,
        **scores(label_sets(data)),
        "registration": registrations(data),
        "processor_seconds": round(time.process_time() - start),
    }


def markdown(result: dict[str, Any]) -> str:
    """Write the tables."""
    people = [row | {"dataset": row["name"].split()[0]} for row in result["people"]]
    return runs.page("real_lesions", result | {"people": people})


if __name__ == "__main__":
    packages = ("numpy", "scipy", "pandas", "nibabel", "SimpleITK")
    code = ("dmrifit", "metastasis")
    runs.main(run, RESULT, markdown=markdown, code=code, packages=packages, quick=False)
