"""
Does a box return to the same tissue on a later scan, and is changed tissue told?

    DMRIFIT_DATA=FOLDER .venv/bin/python -m benchmarks.placement.bench_repeat
    DMRIFIT_DATA=FOLDER .venv/bin/python -m benchmarks.placement.bench_repeat --quick --out FILE

Real T1 scans of three people without skull are moved by known motions of ± 20 degrees and ± 30 mm and scanned
again with noise, a bias field, other voxels and a cropped field; boxes are cubes of 20 mm. Then
tissue is changed (cavity, enhancement, midline shift), scalp and neck are added, and heads of other
people and two visits of one person, 155 to 671 days apart, are compared. Motions and changes are simulated; the
seeds were not used in development. Seconds are of the processor, for the call that reads the scans
from memory and moves the box.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.placement._repeat_scans import (
    Head,
    Visit,
    draw_box,
    visit,
    with_cavity,
    with_enhancement,
    with_scalp,
    with_shift,
)
from dmrifit._optional import import_optional
from placement import Voxel, repeat_voxel
from placement.exchange.repeats import OTHER_HEAD, REPEATED

RESULT = measure.RESULTS / "repeat.json"
SEED = 20261203
SCANS = {
    "Osprey sub-01": "mrs_boxes/t1_brain.nii.gz",
    "MS patient 19": "ms_lesions_mni/patient19_T1POST.nii.gz",
    "MS patient 26": "ms_lesions_mni/patient26_T1POST.nii.gz",
}
VISITS = tuple(f"ms_followup/patient01/raw/study{number}_T1W.nii.gz" for number in (1, 2))
OTHER = "ms_followup/patient03/raw/study2_T1W.nii.gz"
N_MOTIONS, N_EACH, N_TURNED, N_SPOILED = 20, 3, 3, 6
VOLUMES = (20.0, 60.0)  # mL, of changed tissue
SHIFTED = 5.0  # mm of the midline
STILL = 1.0  # mm of displacement up to which tissue is the rest of the head
FAR = 2.0  # mm


def read_heads() -> list[Head]:
    heads = []
    for name, file in SCANS.items():
        folder, _, path = file.partition("/")
        image = nib.load(measure.data_folder(folder) / path)
        heads.append(Head(name, np.asarray(image.dataobj, dtype=np.float32), image.affine))
    return heads


def measured(
    kind: str, head: Head, later: Visit, voxel: Voxel, rest: np.ndarray | None = None
) -> dict[str, Any]:
    """Repeat a box, and compare it with the truth; `rest` (n, 3) are places of the head that did not change."""
    start = time.process_time()
    try:
        repeat = repeat_voxel(voxel, head.image, later.image)
    except ValueError as error:
        return {"kind": kind, "head": head.name, "answer": f"refused: {error}", "seconds": 0.0}
    seconds = time.process_time() - start
    places = voxel.corners if rest is None else rest
    error = repeat.matrix - later.motion
    return {
        "kind": kind,
        "head": head.name,
        "answer": repeat.answer,
        "reliable": repeat.reliable,
        "flags": list(repeat.flags),
        "dice": repeat.voxel.dice(voxel.transform(later.motion)),
        "corner_mm": _largest(voxel.corners, error),
        "rest_mm": _largest(places, error),
        "agreement": repeat.agreement,
        "changed_share": repeat.changed_share,
        "disagreement_mm": repeat.disagreement,
        "seconds": seconds,
    }


def _largest(places: np.ndarray, error: np.ndarray) -> float:
    """Give the largest distance in mm by which a difference of matrices misplaces points (n, 3)."""
    return float(np.linalg.norm(places @ error[:3, :3].T + error[:3, 3], axis=1).max())


def motions(heads: list[Head], n: int) -> Iterator[dict[str, Any]]:
    for i in range(n):
        rng = np.random.default_rng([SEED, 1, i])
        head = heads[i % len(heads)]
        later = visit(head, rng)
        yield measured("motion", head, later, draw_box(head, rng, later))


def turns(heads: list[Head], n: int) -> Iterator[dict[str, Any]]:
    """Turns of up to 50 degrees about each axis."""
    for i in range(n):
        rng = np.random.default_rng([SEED, 2, i])
        head = heads[i % len(heads)]
        later = visit(head, rng, turn=50.0)
        yield measured("turn of 50 degrees", head, later, draw_box(head, rng, later))


def changes(heads: list[Head], n: int) -> Iterator[dict[str, Any]]:
    for i in range(n):
        rng = np.random.default_rng([SEED, 3, i])
        head = heads[i % len(heads)]
        voxel = draw_box(head, rng)
        near = voxel.center + rng.normal(0, 4, 3)
        volume = rng.uniform(*VOLUMES)
        rest = head.places[head.brain][::999]
        for kind, later_head in (
            ("cavity", with_cavity(head, near, volume, rng)),
            ("enhancing rim", with_enhancement(head, near, volume / 2, rng, rim=True)),
            ("enhancing tumor", with_enhancement(head, near, volume / 2, rng, rim=False)),
        ):
            yield measured(kind, head, visit(later_head, rng, cut=None), voxel, rest)
        shifted, pushed = with_shift(head, near, SHIFTED)
        still = head.places[head.brain & (pushed < STILL)][::999]
        yield measured("midline shift", head, visit(shifted, rng, cut=None), voxel, still)
        bare, bent = with_scalp(head, 0.9, 0.0), with_scalp(head, 0.4, 15.0)
        # The first scan has another scalp and a straight neck.
        later = visit(bent, rng, cut=None)
        yield measured("scalp and neck", bare, later, voxel, rest)


def spoiled(heads: list[Head], n: int) -> Iterator[dict[str, Any]]:
    """Scans so bad that registration can fail: does the box say so?"""
    for i in range(n):
        rng = np.random.default_rng([SEED, 4, i])
        head = heads[i % len(heads)]
        noise = (0.4, 0.8)[i % 2]
        later = visit(head, rng, noise=noise, cut=(50.0, 70.0))
        yield measured("spoiled scan", head, later, draw_box(head, rng, later))


def pairs(heads: list[Head], quick: bool) -> Iterator[dict[str, Any]]:
    """Scans of two people, and two visits of one."""
    folder = measure.data_folder("ms_followup").parent
    scans = {head.name: head.image for head in heads}
    scans |= {"MS patient 1": folder / VISITS[0], "MS patient 3": folder / OTHER}
    names = list(scans)
    two = [(names[0], names[1]), (names[1], names[2]), (names[0], names[3]), (names[3], names[4])]
    rows = [("two people", a, b, scans[a], scans[b]) for a, b in two[: 1 if quick else 4]]
    rows.append(("two visits", VISITS[0], VISITS[1], folder / VISITS[0], folder / VISITS[1]))
    for kind, first, second, old, new in rows:
        loaded = nib.load(old) if isinstance(old, Path) else old
        middle = loaded.affine[:3, :3] @ (np.array(loaded.shape) / 2) + loaded.affine[:3, 3]
        start = time.process_time()
        repeat = repeat_voxel(Voxel(middle, (20, 20, 20)), old, new)
        yield {
            "kind": kind,
            "head": f"{first}, {second}",
            "answer": repeat.answer,
            "reliable": repeat.reliable,
            "agreement": repeat.agreement,
            "changed_share": repeat.changed_share,
            "disagreement_mm": repeat.disagreement,
            "seconds": time.process_time() - start,
        }


def goals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def of(*kinds: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["kind"] in kinds]

    moved = of("motion")
    altered = of("cavity", "enhancing rim", "enhancing tumor", "midline shift")
    unsound = [row for row in of("spoiled scan") if row.get("corner_mm", 0) > FAR]
    unsaid = [row for row in unsound if row["reliable"]]
    silent = [row for row in altered if row["answer"] == REPEATED]
    mistaken = [row for row in of("two people") if row["answer"] != OTHER_HEAD]
    return {
        "worst Dice": measure.goal(0.98, min(row["dice"] for row in moved), "", at_least=True),
        "slowest": measure.goal(5.0, max(row["seconds"] for row in moved), "s"),
        "motions not called repeated": measure.goal(
            0, sum(row["answer"] != REPEATED for row in moved), ""
        ),
        "rest of changed heads": measure.goal(
            FAR, max(row["rest_mm"] for row in [*altered, *of("scalp and neck")]), "mm"
        ),
        "changes without a warning": measure.goal(0, len(silent), ""),
        "other people not told": measure.goal(0, len(mistaken), ""),
        "errors above 2 mm not told": measure.goal(0, len(unsaid), f"of {len(unsound)}"),
    }


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Repeat boxes in all kinds of later scans."""
    import_optional("SimpleITK")
    heads = read_heads()
    sizes = (1, 1, 1, 1) if chosen.quick else (N_MOTIONS, N_TURNED, N_EACH, N_SPOILED)
    rows: list[dict[str, Any]] = []
    start = time.process_time()
    sources = [make(heads, n) for make, n in zip((motions, turns, changes, spoiled), sizes, strict=True)]
    for row in itertools.chain(*sources, pairs(heads, chosen.quick)):
        rows.append(row)
        print(row["kind"], row["head"], row["answer"], f"{row['seconds']:.1f} s", flush=True)
    cases = [
        {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]
    return {
        "seed": SEED,
        "data": "real T1 scans; motions, noise and changes are simulated",
        "seconds": round(time.process_time() - start, 1),
        "goals": goals(rows),
        "cases": cases,
    }


if __name__ == "__main__":
    code = ("dmrifit", "placement", "benchmarks/placement/_repeat_scans.py")
    runs.main(run, RESULT, code=code, packages=("numpy", "scipy", "SimpleITK"))
