"""
What does work cost as it grows, and how far does a cluster carry it?

    .venv/bin/python -m benchmarks.costs.bench_scale [--quick --out FILE]

- Growth: processor seconds of fits over voxels (a file read slab by slab) and contrasts, of studies over patients, with
  the slope of the logarithms.
- Workers: the same study in one process and on two workers of dask through joblib.

All data are synthetic. It takes about four minutes of processor time; wall times, which
efficiencies need, mean something on a quiet machine only.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import nibabel as nib
import numpy as np

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import (
    MODELS,
    Cohort,
    Protocol,
    fit_image,
    fit_voxels,
    leave_one_patient_out,
    simulate_cohort,
)
from dmrifit.study.comparison import SIZES

RESULT = measure.RESULTS / "scale.json"
SEED = 20261120


def processor_seconds(function: Callable[[], object], repeats: int) -> float:
    """Run a function several times; its least processor seconds, all threads together."""
    return min(measure.processor_times({"": function}, repeats)[""])


def slopes(points: dict[int, float]) -> dict[str, object]:
    """Fit a line to the logarithms: over all sizes, and from the last size but one to the last."""
    x, y = np.log(list(points)), np.log(list(points.values()))
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return {
        "seconds": {str(n): float(f"{value:.4g}") for n, value in points.items()},
        "slope": round(float(np.polyfit(x, y, 1)[0]), 2),
        "slope_at_the_end": round(float(last), 2),
    }


def protocol_of(model: str, n: int) -> Protocol:
    """Spread contrasts over b-values up to 1500 s/mm² and, for a model with relaxation, three echo times."""
    te = np.resize([55.0, 75.0, 95.0], n) if MODELS[model].needs_te else None
    return Protocol(np.linspace(0, 1500, n), te)


def tissue(model: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw parameters well inside the bounds of a model, with an amplitude of 1000."""
    low, high = np.array(MODELS[model].bounds).T
    parameters = low + (high - low) * rng.uniform(0.3, 0.7, (n, len(low)))
    parameters[:, 0] = 1000
    return parameters


def noisy(model: str, protocol: Protocol, n: int) -> np.ndarray:
    """Simulate magnitudes of a signal-to-noise ratio of 50."""
    rng = np.random.default_rng(SEED)
    clean = MODELS[model].signal(tissue(model, n, rng), protocol)
    return np.abs(clean + rng.normal(0, 20, clean.shape)).astype(np.float32)


def write_slices(one: np.ndarray, n_slices: int, path: Path) -> None:
    """Write an image that has the same slice again and again, without holding all of it."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((*one.shape[:2], n_slices, one.shape[3]))
    header.set_sform(np.eye(4), code="aligned")
    header["vox_offset"] = 352
    with path.open("wb") as file:
        header.write_to(file)
        file.seek(352)
        for contrast in range(one.shape[3]):
            file.write(one[:, :, 0, contrast].tobytes("F") * n_slices)


def over_voxels(quick: bool) -> dict[str, Any]:
    """Fit scans of more and more voxels, each an uncompressed file that is read slab by slab."""
    found = {}
    for model, n_contrasts, exponents in (
        ("adc", 5, (4, 5, 6, 7)),
        ("t2-ivim-kurtosis", 21, (4, 5, 6)),
    ):
        protocol = protocol_of(model, n_contrasts)
        block = noisy(model, protocol, 10_000).reshape(100, 100, 1, n_contrasts)
        points = {}
        for exponent in (3, 4) if quick else exponents:
            part = block[:10] if exponent == 3 else block
            n_slices = max(1, 10 ** (exponent - 4))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "scan.nii"
                write_slices(part, n_slices, path)
                points[10**exponent] = processor_seconds(
                    lambda path=path, model=model, protocol=protocol: fit_image(
                        path, protocol, model, n_threads=1
                    ),
                    1 if exponent >= 6 else 3,
                )
        found[f"{model}, {n_contrasts} contrasts, image in a file"] = slopes(points)
    return found


def over_contrasts(quick: bool) -> dict[str, Any]:
    """Fit the same number of voxels to more and more contrasts."""
    found = {}
    for model, n, counts in (
        ("adc", 50_000, (5, 10, 20, 50, 100)),
        ("ivim", 20_000, (5, 10, 20, 50, 100)),
        ("t2-ivim-kurtosis", 5_000, (10, 20, 50, 100)),
    ):
        n_voxels = n // 40 if quick else n
        points = {}
        for count in counts[::3] if quick else counts:
            protocol = protocol_of(model, count)
            signals = noisy(model, protocol, n_voxels)
            points[count] = processor_seconds(
                lambda s=signals, p=protocol, model=model: fit_voxels(s, p, model, n_threads=1), 3
            )
        found[f"{model}, {n_voxels:,} voxels"] = slopes(points)
    return found


def cohort_of(n: int, shape: tuple[int, int, int] = (12, 12, 3)) -> Cohort:
    """Simulate tiny patients."""
    return simulate_cohort("cohort1", n, shape=shape, random_state=SEED)


def study(cohort: Cohort, algorithms: tuple[str, ...], **options: Any) -> Any:
    """Compare algorithms, by default those that predict signals, without controls."""
    fixed = {"max_voxels": 30, "controls": False, "random_state": SEED, "strategies": ("s2s",)}
    return leave_one_patient_out(cohort, algorithms=algorithms, **fixed | options)


def over_patients(quick: bool) -> dict[str, Any]:
    """Leave one patient out of more and more."""
    sizes = (2, 4) if quick else (2, 4, 8, 16, 32, 64, 128)
    cohorts = {n: cohort_of(n) for n in sizes}
    found = {}
    for algorithm, n_train in (("LR", None), ("ETR", None), ("ETR", 1 if quick else 8)):
        points = {
            n: processor_seconds(
                lambda cohort=cohort, algorithm=algorithm, n_train=n_train: study(
                    cohort, (algorithm,), n_train=n_train, n_jobs=1
                ),
                1,
            )
            for n, cohort in cohorts.items()
            if n_train is None or n > n_train
        }
        found[f"{algorithm}, trained on {n_train or 'all'} others"] = slopes(points)
    return found


@contextmanager
def workers(n: int) -> Iterator[Any]:
    """Start worker processes of one thread each, and warm them up."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def spent(client: Any) -> float:
    """Processor seconds of all workers."""
    return sum(client.run(time.process_time).values())


def timed(function: Callable[[], object], client: Any = None) -> dict[str, float]:
    """Wall seconds; processor seconds of this process, in which the scheduler runs, and of the workers."""
    before = 0.0 if client is None else spent(client)
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "wall_s": wall,
        "here_cpu_s": cpu,
        "workers_cpu_s": 0.0 if client is None else spent(client) - before,
    }


def on_workers(quick: bool) -> dict[str, Any]:
    """Run a study in one process and on two workers."""
    cohort = cohort_of(4) if quick else cohort_of(48, (16, 16, 3))
    options: dict[str, Any] = {"max_voxels": 30 if quick else 100}
    if not quick:
        # The sizes of the study's learning curve.
        options["n_train"] = SIZES
    one, two = [], []
    with workers(2) as client, joblib.parallel_config(backend="dask"):
        study(cohort_of(3), ("ETR",))
        for _ in range(1 if quick else 2):
            with joblib.parallel_config(backend="sequential"):
                one.append(timed(lambda: study(cohort, ("ETR",), **options)))
            two.append(timed(lambda: study(cohort, ("ETR",), **options), client))
    alone, both = (min(run["wall_s"] for run in runs) for runs in (one, two))
    return {
        "trainings": study(cohort, ("ETR",), **options).study["models"]["trained"],
        "wall_of_one_process_s": round(alone, 3),
        "wall_of_two_workers_s": round(both, 3),
        "efficiency": round(alone / 2 / both, 3),
        "cpu_of_one_process_s": round(min(run["here_cpu_s"] for run in one), 3),
        "cpu_of_workers_s": round(min(run["workers_cpu_s"] for run in two), 3),
        "cpu_of_client_and_scheduler_s": round(min(run["here_cpu_s"] for run in two), 3),
        "repeats": len(one),
    }


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure everything."""
    start = time.process_time()
    quick = chosen.quick
    for model in ("adc", "ivim", "t2-ivim-kurtosis"):  # compiles the fits, or loads them
        fit_voxels(noisy(model, protocol_of(model, 10), 100), protocol_of(model, 10), model)
    study(cohort_of(2), ("LR", "ETR"), n_jobs=1)
    growth = {
        "voxels": over_voxels(quick),
        "contrasts": over_contrasts(quick),
        "patients": over_patients(quick),
    }
    return {
        "synthetic": True,
        "seed": SEED,
        "cpu_s": round(time.process_time() - start, 1),
        "growth": growth,
        "study": on_workers(quick),
    }


if __name__ == "__main__":
    packages = ("numpy", "numba", "scikit-learn", "joblib", "dask", "distributed")
    runs.main(run, RESULT, packages=packages)
