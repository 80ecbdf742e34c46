"""
Run commands on input that is larger than any of their tests, and say how long it takes and in how much memory.

    .venv/bin/python tests/faults/run_scale.py [--store] [--share S] [KIND ...]

Kinds: an image of 4 GB (all voxels with a signal, in every slice) that is fitted and shown, predicted and preprocessed;
a table of 200 patients in 10,000 rows; 1,000 small scans in one run. --share makes all of it smaller.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from counts import Tally, store
from kill_trials import ONE_THREAD, start_line
from killing import damages

from dmrifit import MODELS, Protocol, SignalToSignal, save_model

B = np.tile([0.0, 200, 400, 600, 800, 1000, 1500, 2000], 32)  # s/mm²
GRID = (256, 256, 64)  # with 256 measurements of 4 bytes: 4.3 GB
BLOCK = 16  # voxels along the edges of what holds a signal in each slice


def write_sparse(path: Path, block: tuple[slice, ...], values: np.ndarray, grid: tuple[int, ...]) -> None:
    """Write an image that is 0 but for a block; of the zeros nothing is stored on the disk."""
    n = values.shape[-1]
    header = nib.Nifti1Image(np.zeros((1, 1, 1, n), values.dtype), np.eye(4)).header.copy()
    header.set_data_shape((*grid, n))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with path.open("wb") as file:
        header.write_to(file)
        file.truncate(352 + values.itemsize * int(np.prod(grid)) * n)
    stored = np.memmap(path, values.dtype, "r+", offset=352, shape=(*grid, n), order="F")
    stored[block] = values
    stored.flush()


def write_image(path: Path, grid: tuple[int, int, int], b: np.ndarray, seed: int = 0) -> None:
    """Write an image that holds a signal in a block of each slice."""
    shape = (min(BLOCK, grid[0]), min(BLOCK, grid[1]), grid[2])
    block = tuple(slice((n - edge) // 2, (n - edge) // 2 + edge) for n, edge in zip(grid, shape, strict=True))
    rng = np.random.default_rng(seed)
    truth = rng.uniform((50, 0.5), (90, 2), (int(np.prod(shape)), 2))
    signals = MODELS["adc"].signal(truth, Protocol(b)) + rng.normal(scale=0.5, size=(len(truth), len(b)))
    write_sparse(path, block, signals.reshape(*shape, len(b)).astype(np.float32), grid)
    np.savetxt(path.with_suffix(".bval"), b[None], fmt="%g")


def measured(program: str, words: list[str], folder: Path) -> dict[str, Any]:
    """Run a program: its exit code and words, the seconds of processor time, and the most memory in MB."""
    reader, writer = os.pipe()
    # In between is a small process: what is started by one counts the memory of that as its own.
    code = (
        "import resource, subprocess, sys, os; done = subprocess.run(sys.argv[2:]); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "os.write(int(sys.argv[1]), f'{used.ru_utime + used.ru_stime} {used.ru_maxrss}'.encode()); "
        "sys.exit(done.returncode)"
    )
    line = [sys.executable, "-c", code, str(writer), *start_line(program), *words]
    done = subprocess.run(line, cwd=folder, pass_fds=[writer], capture_output=True, text=True, check=False)
    os.close(writer)
    seconds, memory = os.read(reader, 100).decode().split()
    os.close(reader)
    figures = {"seconds": round(float(seconds), 1), "memory_mb": round(int(memory) / 1024)}
    return {"code": done.returncode, "said": done.stderr[-2000:], **figures}


def complaints(run: dict[str, Any], out: Path) -> list[str]:
    """Tell what is wrong with a run that has to end well."""
    found = [f"left behind: {damage}" for damage in damages(out)] if out.exists() else []
    if "Traceback" in run["said"]:
        found.append(f"a traceback: {run['said']}")
    elif run["code"] != 0:
        found.append(f"the exit code is {run['code']}: {run['said']}")
    return found


def grows(whole: dict[str, Any], eighth: dict[str, Any]) -> list[str]:
    """Complain where a whole image takes clearly more memory than one of an eighth of its slices."""
    if whole["memory_mb"] <= 1.3 * eighth["memory_mb"] + 200:
        return []
    return [
        f"was accepted with memory that grows with the image: {whole['memory_mb']} MB, "
        f"{eighth['memory_mb']} MB of an eighth of it"
    ]


def large_image(folder: Path, share: float) -> dict[str, Any]:
    """Fit, show, predict and preprocess an image, and one of an eighth of its slices."""
    x, y, z = GRID
    thick = max(8, int(z * share) // 8 * 8)
    model = folder / "model.dmrifit"
    protocol = Protocol(B)
    train = MODELS["adc"].signal(np.random.default_rng(0).uniform((50, 0.5), (90, 2), (200, 2)), protocol)
    train *= np.random.default_rng(1).uniform(0.95, 1.05, train.shape)
    source = list(range(0, 8))
    fitted = SignalToSignal("LR", source=protocol.take(source), target=protocol.take(range(8, 16)), model="adc")
    save_model(fitted.fit(train[:, source], train[:, 8:16]), model)
    tasks = {
        "fit": ["--model", "adc"],
        "predict": ["--average-directions", "arithmetic"],
        "preprocess": ["--steps", "denoise"],
    }
    found: dict[str, Any] = {}
    eighth: dict[str, dict[str, Any]] = {}
    for name, slices in (("eighth", thick // 8), ("whole", thick)):
        write_image(folder / f"{name}.nii", (x, y, slices), B)
        size = (folder / f"{name}.nii").stat().st_size
        for task, options in tasks.items():
            words = [task, *([str(model)] if task == "predict" else []), f"{name}.nii", *options]
            run = measured("dmrifit", [*words, "--out", f"{name}-{task}"], folder)
            run["complaints"] = complaints(run, folder / f"{name}-{task}")
            run["complaints"] += grows(run, eighth.setdefault(task, run))
            found[f"{task}, image of {size / 1e9:.2g} GB"] = run
        (folder / f"{name}.nii").unlink()
    return found


def many_rows(folder: Path, share: float) -> dict[str, Any]:
    """Train on 200 patients with 50 scans each."""
    n_patients, n_scans = max(3, int(200 * share)), max(2, int(50 * share))
    b = B[:8]
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), folder / "mask.nii")
    lines = ["patient\tcohort\timage\tmask\tlesion\tbval"]
    for number in range(n_patients * n_scans):
        write_image(folder / f"{number}.nii", (2, 2, 2), b, number)
        name = f"p{number // n_scans:03}"
        lines.append(f"{name}\tsmall\t{number}.nii\tmask.nii\tmask.nii\t{number}.bval")
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    words = ["train", "participants.tsv", "--model", "adc", "--out", "model.dmrifit"]
    run = measured("dmrifit", words, folder)
    run["complaints"] = complaints(run, folder / "none")
    return {f"train, table of {n_patients} patients in {len(lines) - 1} rows": run}


def many_cases(folder: Path, share: float) -> dict[str, Any]:
    """Fit 1,000 scans in one run, and run it again when all are finished."""
    n = max(3, int(1000 * share))
    for number in range(n):
        write_image(folder / f"case{number:04}_dwi.nii", (3, 3, 2), B[:8], number)
    found = {}
    words = ["fit", *(f"case{number:04}_dwi.nii" for number in range(n)), "--model", "adc", "--no-quicklook"]
    for name in ("first", "again"):
        run = measured("dmrifit", [*words, "--out", "fits"], folder)
        run["complaints"] = complaints(run, folder / "fits")
        n_maps = len(list((folder / "fits").rglob("*ADC_dwimap.nii.gz")))
        if n_maps != n:
            run["complaints"].append(f"was accepted: {n_maps} maps of {n} scans")
        found[f"fit, {n} scans, {name}"] = run
    return found


KINDS: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    "image": large_image,
    "rows": many_rows,
    "cases": many_cases,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {list(KINDS)}; all without any")
    parser.add_argument("--share", type=float, default=1.0, help="of the sizes (default %(default)s)")
    parser.add_argument("--store", action="store_true", help="keep the figures in faults.json")
    chosen = parser.parse_args()
    os.environ.update(ONE_THREAD)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    figures: dict[str, Any] = {}
    tally = Tally()
    for kind in chosen.kinds or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            runs = KINDS[kind](Path(folder), chosen.share)
        for name, run in runs.items():
            print(f"{name}: code {run['code']}, {run['seconds']} s, {run['memory_mb']} MB", flush=True)
            tally.add("large input", name, run["complaints"])
            figures[name] = {key: run[key] for key in ("code", "seconds", "memory_mb")}
        print(f"{kind}: {time.monotonic() - began:.0f} s with what was prepared", flush=True)
    if chosen.store:
        store("scale", tally.rows, figures=figures)
    return int(tally.wrong() > 0)


if __name__ == "__main__":
    sys.exit(main())
