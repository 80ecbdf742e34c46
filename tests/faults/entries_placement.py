"""Entries of the corpus for the program and the functions of placement, each in a folder of good files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from driver import after, command, expressions, function
from entries_options import CUBE, cube

import placement
from dmrifit import load_model, save_model
from placement import Scene, Voxel, VoxelOptimizer
from placement.exchange.tables import read_boxes, read_cases, read_experts

#: Edges of a voxel in mm, and a grid that holds a tumor of about 4 cm.
EDGE = 4.0
GRID = (18, 18, 16)
OPTIONS = "--min-volume 2 --no-figure --max-rotations 0"


def write(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(values, affine), path)


def tumors(folder: Path) -> None:
    """Two synthetic tumors: ellipsoids with a core of their own, an image, a ventricle, and experts' boxes."""
    affine = np.diag([-EDGE, EDGE, EDGE, 1.0])
    affine[:3, 3] = (30, -40, -25)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in GRID), indexing="ij"), axis=-1)
    boxes = ["name\texpert\tx\ty\tz\tsize_x\tsize_y\tsize_z\tangle_x\tangle_y\tangle_z"]
    rows = ["name\ttumor\timage\texclude\tpatient\tsynthetic"]
    for name, middle, radii in (("a", (8, 9, 8), (5, 4, 4)), ("b", (9, 8, 7), (4, 5, 4))):
        far = np.sqrt((((index - middle) / radii) ** 2).sum(axis=-1))
        labels = np.zeros(GRID, np.uint8)
        labels[far <= 1] = 3
        write(folder / f"{name}.nii.gz", labels, affine)
        write(folder / f"{name}-image.nii.gz", (100 - 20 * far).astype(np.float32), affine)
        ventricle = np.zeros(GRID, np.uint8)
        ventricle[1:3, 1:4, 1:4] = 1
        write(folder / f"{name}-ventricle.nii.gz", ventricle, affine)
        rows.append("\t".join([name, *(f"{name}{end}.nii.gz" for end in ("", "-image", "-ventricle")), name, "true"]))
        center = affine[:3, :3] @ np.array(middle) + affine[:3, 3]
        for expert in (1, 2):
            numbers = [*(center + expert), 20 + expert, 20, 20, 0, 0, 0]
            boxes.append("\t".join([name, str(expert), *(f"{number:g}" for number in numbers)]))
    (folder / "cases.tsv").write_text("\n".join(rows) + "\n")
    (folder / "experts.tsv").write_text("\n".join(boxes) + "\n")
    first = [line for line in boxes if "\t2\t" not in line[:5]]
    (folder / "placements.tsv").write_text("\n".join(first) + "\n")
    (folder / "moved.txt").write_text("1 0 0 2\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    (folder / "voxel.json").write_text(Voxel((0, 0, 0), (20, 20, 20), (0, 0, 10)).to_json())


def placed(place: Path) -> dict[str, Any]:
    """Read the table that place wrote, without its last column, the digest of the model file."""
    return {"rows": [line.rpartition("\t")[0] for line in (place / "placed" / "placements.tsv").read_text("utf-8").splitlines()]}


def prescribed(place: Path) -> dict[str, Any]:
    content = json.loads((place / "one" / "voxel.json").read_text(encoding="utf-8"))
    return {key: content[key] for key in ("ras", "size_mm", "volume_mL", "scores", "flags")}


command(
    "dmrifit-placement place", tumors, f"place cases.tsv --out placed {OPTIONS}", placed,
    kept=("placed/settings.json", "placed/failed.tsv", "placed/a/*"),
)
command(
    "dmrifit-placement place one", tumors,
    f"place a.nii.gz --out placed --image a-image.nii.gz --exclude a-ventricle.nii.gz {OPTIONS}",
    placed, kept=("placed/settings.json", "placed/failed.tsv"),
)
command(
    "dmrifit-placement prescribe", tumors,
    "prescribe a.nii.gz --center -2,-4,7 --size 20,20,20 --image a-image.nii.gz --exclude "
    "a-ventricle.nii.gz --matrix moved.txt --no-figure --out one",
    prescribed,
)


command(
    "dmrifit-placement place again", after(tumors, f"dmrifit-placement place cases.tsv --out placed {OPTIONS}"), f"place cases.tsv --out placed {OPTIONS}", placed,
    kept=("placed/*", "placed/*/*"),
)


def compared(place: Path) -> dict[str, Any]:
    kinds = ("icc", "summary", "cases", "paired")
    return {kind: (place / "tables" / f"{kind}.csv").read_text(encoding="utf-8") for kind in kinds}


command(
    "dmrifit-placement evaluate", tumors,
    "evaluate cases.tsv experts.tsv --placements mine=placements.tsv --no-figure --out tables", compared,
)


def answers(path: Path) -> dict[str, Any]:
    """Place a voxel by a model file."""
    return {"box": load_model(path).place(Scene.read("a.nii.gz")).as_array()}


command(
    "dmrifit-placement train", tumors,
    "train cases.tsv experts.tsv --out ranker.dmrifit --min-volume 2 --max-rotations 0",
    lambda place: answers(place / "ranker.dmrifit"),
)
NETWORK = "--model network --fast --epochs 1 --channels tumor,image,exclude --groups patient"
command(
    "dmrifit-placement train network", tumors,
    f"train cases.tsv experts.tsv --out network.dmrifit --min-volume 2 {NETWORK}",
    lambda place: {"size": (place / "network.dmrifit").stat().st_size > 0},
)
command(
    "dmrifit-placement simulate", lambda folder: None, "simulate 1 --spacing 6 --out data",
    lambda place: {"text": (place / "data" / "experts.tsv").read_text(encoding="utf-8")},
    kept=("data/settings.json",),
)


def trained(folder: Path) -> None:
    """The same with a model."""
    tumors(folder)
    scenes = [Scene.read(folder / f"{name}.nii.gz") for name in ("a", "b")]
    optimizer = VoxelOptimizer(min_volume=2, max_rotations=0, random_state=0)
    ranker = placement.VoxelRanker(optimizer, n_estimators=3, n_candidates=5, min_samples_leaf=5, random_state=0)
    save_model(ranker.fit(scenes, read_experts(folder / "experts.tsv", ["a", "b"])), folder / "ranker.dmrifit")


command(
    "dmrifit-placement place by model", trained,
    "place a.nii.gz --model ranker.dmrifit --out placed --no-figure", placed,
    kept=("placed/settings.json", "placed/failed.tsv"),
)


@function("placement.read_cases", tumors)
def _read_cases() -> dict[str, Any]:
    table = read_cases("cases.tsv")
    return {name: list(table[name]) for name in ("name", "tumor", "image", "exclude")}


@function("placement.read_experts", tumors)
def _read_experts() -> dict[str, Any]:
    return {"boxes": read_experts("experts.tsv", ["a", "b"])}


@function("placement.read_boxes", tumors)
def _read_boxes() -> dict[str, Any]:
    return {"boxes": read_boxes("placements.tsv", ["a", "b"])}


@function("Scene.read", tumors)
def _read_scene() -> dict[str, Any]:
    scene = Scene.read("a.nii.gz", exclude="a-ventricle.nii.gz", image="a-image.nii.gz", include=3)
    fraction = placement.tumor_fraction(Voxel(scene.centroid, (20, 20, 20)), scene)
    return {"volume": scene.tumor_volume, "fraction": fraction, "forbidden": sum(scene.forbidden.values()).sum()}


@function("Voxel.from_json", tumors, names=False)
def _read_voxel() -> dict[str, Any]:
    return {"box": Voxel.from_json(Path("voxel.json").read_text(encoding="utf-8")).as_array()}


def arrays(folder: Path) -> None:
    """Arrays for functions: a tumor, its affine, boxes."""
    tumors(folder)
    image = nib.load(folder / "a.nii.gz")
    np.save(folder / "tumor.npy", (np.asarray(image.dataobj) > 0).astype(np.float32))
    np.save(folder / "affine.npy", image.affine)
    box = np.array([-2, -4, 7, 20, 20, 20, 0, 0, 0.0])
    np.save(folder / "voxels.npy", np.stack([box, box + np.r_[2.0, np.zeros(8)]])[None])


def scenes() -> list[Any]:
    return [Scene(np.load("tumor.npy", allow_pickle=True), np.load("affine.npy", allow_pickle=True), name="a")]


@function("VoxelRanker.fit and predict", arrays, names=False)
def _rank() -> dict[str, Any]:
    optimizer = VoxelOptimizer(min_volume=2, max_rotations=0, random_state=0)
    ranker = placement.VoxelRanker(optimizer, n_estimators=2, n_candidates=4, min_samples_leaf=2, random_state=0)
    given = scenes() * 2
    boxes = np.load("voxels.npy", allow_pickle=True)
    return {"boxes": ranker.fit(given, np.concatenate([boxes, boxes])).predict(given[:1])}


def arrays_and_options(folder: Path) -> None:
    """The same with groups of cases, and options of a network in the smallest of sizes."""
    arrays(folder)
    np.save(folder / "groups.npy", np.array(["a", "b"]))
    options = {"fast": True, "width": 2, "epochs": 1, "device": "cpu", "augment": False, "random_state": 0}
    (folder / "options.json").write_text(json.dumps(options), encoding="utf-8")


@function("VoxelRegressor.fit and predict", arrays_and_options, names=False)
def _regress() -> dict[str, Any]:
    from dmrifit.networks.training import gather_training

    options = gather_training(json.loads(Path("options.json").read_text(encoding="utf-8")))
    boxes, groups = (np.load(f"{name}.npy", allow_pickle=True) for name in ("voxels", "groups"))
    regressor = placement.VoxelRegressor(min_volume=2, **options)
    return {"boxes": regressor.fit(scenes() * 2, np.concatenate([boxes] * 2), groups=groups).predict(scenes())}


@function("evaluate_placements", arrays, names=False)
def _evaluate() -> dict[str, Any]:
    given, boxes = scenes() * 3, np.load("voxels.npy", allow_pickle=True)
    apart = np.concatenate([boxes + np.r_[shift, np.zeros(8)] for shift in (0.0, 1.0, 3.0)])
    tables = placement.evaluate_placements(given, apart, {"mine": apart[:, 0] + np.r_[1.0, np.zeros(8)]}, random_state=0)
    return {"text": tables["cases"].to_csv()}


# Calls in Python.

BOX = [20.0, 20, 20, 20, 20, 20, 0, 0, 0]
BOXES = np.array([[BOX, BOX], [BOX, BOX]])
DISTANCE = np.linalg.norm(np.indices((30, 32, 28)) - np.reshape((15, 16, 14), (3, 1, 1, 1)), axis=0)
BALL, CORE = DISTANCE <= 8, DISTANCE <= 3
STORED = {"center_mm": [0, 0, 0], "size_mm": [1, 1, 1], "angles_deg": [0, 0, 0]}


def learned_from(voxels: Any = BOXES, second: Any = None, **options: Any) -> None:
    from placement.box.voxel import expert_voxels

    expert_voxels(voxels, [cube(), cube() if second is None else second], **options)


def scene(tumor: Any, affine: Any = None, **options: Any) -> None:
    Scene(tumor, np.eye(4) if affine is None else affine, name="patient 3", **options)


def judged(placements: Any = None, scenes: Any = None, experts: Any = None, **options: Any) -> None:
    names = [Scene(CUBE, np.eye(4), name=f"cube {number}") for number in range(2)] if scenes is None else scenes
    placements = {"a": BOXES[:, 0]} if placements is None else placements
    placement.evaluate_placements(names, BOXES if experts is None else experts, placements, **options)


OF_PLACEMENT = ("box.voxel", "exchange.voxel_files", "learned.views", "search.scene", "search.tissue_labels")
expressions("calls of placement", globals(), ["entries_options", *(f"placement.{name}" for name in OF_PLACEMENT)])
