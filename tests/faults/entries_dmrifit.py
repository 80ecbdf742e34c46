"""Entries of the corpus for the programs and functions of dmrifit, each in a folder of good files."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from driver import entry

from dmrifit import cli
from dmrifit.protocol import Protocol

#: Volumes of the real scan that dipy carries, with b-values from 15 to 4065 s/mm².
VOLUMES = (0, 1, 3, 6, 9, 14, 24, 41, 60, 101)
BLOCK = (slice(1, 5), slice(3, 7), slice(4, 7))


def scan(folder: Path) -> None:
    """A block of a real scan with all that belongs to it."""
    source = files("dipy") / "data" / "files"
    loaded = nib.load(str(source / "small_101D.nii.gz"))
    block = loaded.slicer[BLOCK[0], BLOCK[1], BLOCK[2]]
    values = np.asarray(block.dataobj)[..., VOLUMES]
    order = np.argsort(np.loadtxt(str(source / "small_101D.bval"))[list(VOLUMES)], kind="stable")
    header = block.header.copy()
    nib.save(nib.Nifti1Image(values[..., order], block.affine, header), folder / "dwi.nii.gz")
    nib.save(nib.Nifti1Image(values[..., order], block.affine, header), folder / "plain.nii")
    b = np.loadtxt(str(source / "small_101D.bval"))[list(VOLUMES)][order]
    vectors = np.loadtxt(str(source / "small_101D.bvec"))
    vectors = (vectors if vectors.shape[0] == 3 else vectors.T)[:, list(VOLUMES)][:, order]
    for name in ("dwi", "plain"):
        np.savetxt(folder / f"{name}.bval", b[None], fmt="%g")
    np.savetxt(folder / "dwi.bvec", vectors, fmt="%.6f")
    (folder / "dwi.te").write_text(" ".join(["90"] * len(b)) + "\n")
    (folder / "side.json").write_text('{"EchoTime": 0.09, "RepetitionTime": 4.0}\n')
    grid = block.shape[:3]
    inside = np.ones(grid, np.uint8)
    inside[0] = 0
    write(folder / "mask.nii.gz", inside, block.affine)
    write(folder / "sigma.nii.gz", np.full(grid, 3, np.float32), block.affine)
    regions = np.zeros(grid, np.uint8)
    regions[1:, :2], regions[1:, 2:] = 1, 2
    write(folder / "labels.nii.gz", regions, block.affine)
    (folder / "names.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    for part, chosen in (("low", slice(0, 5)), ("high", slice(5, None))):
        image = nib.Nifti1Image(values[..., order][..., chosen], block.affine, header)
        nib.save(image, folder / f"{part}.nii.gz")
        np.savetxt(folder / f"{part}.bval", b[None, chosen], fmt="%g")
    (folder / "parts.tsv").write_text("image\tbval\tte\nlow.nii.gz\tlow.bval\t90\nhigh.nii.gz\thigh.bval\t90\n")


def write(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(values, affine), path)


def images_in(folder: str) -> Callable[[Path], dict[str, Any]]:
    """Read all images that a program wrote."""

    def read(place: Path) -> dict[str, Any]:
        found = sorted((place / folder).glob("*.nii.gz"))
        assert found, folder
        return {path.name.partition("_")[2]: np.asarray(image.dataobj) for path in found for image in [nib.load(path)]}

    return read


def text_of(name: str) -> Callable[[Path], dict[str, Any]]:
    return lambda place: {name: (place / name).read_text(encoding="utf-8")}


FIT = ("--model", "kurtosis", "--no-quicklook", "--out", "maps", "--threads", "1")

entry(
    "dmrifit fit",
    scan,
    main=cli.main,
    arguments=("fit", "dwi.nii.gz", "--te", "dwi.te", "--mask", "mask.nii.gz", "--sigma", "sigma.nii.gz", *FIT),
    results=images_in("maps"),
)
entry(
    "dmrifit fit plain",
    scan,
    main=cli.main,
    arguments=("fit", "plain.nii", "--te", "side.json", *FIT),
    results=images_in("maps"),
)
entry(
    "dmrifit fit parts",
    scan,
    main=cli.main,
    arguments=("fit", "parts.tsv", *FIT),
    results=images_in("maps"),
)


def protocol_results() -> dict[str, Any]:
    protocol = Protocol.read("dwi.bval", "dwi.te", "dwi.bvec")
    return {"b": protocol.b, "te": protocol.te, "directions": protocol.directions}


entry("Protocol.read", scan, call=protocol_results)
