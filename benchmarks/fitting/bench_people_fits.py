"""
What do fits say of real scans: legs, a bottle of oil, white matter?

    DMRIFIT_DATA=… .venv/bin/python -m benchmarks.fitting.bench_people_fits [--quick --out FILE]

Legs of one person (`ivim`, 14 muscles), oil in which nothing moves (`kurtosis`), six
voxels of one genu (`t2-ivim-kurtosis`, averaged over directions up to b = 3000 s/mm²). Nobody
knows the truth of the legs and the genu; physics tells that of the oil. Readings at one b-value
(and echo time) are split into two halves, which are fitted each for itself: what differs is noise,
and, as the halves have different directions, anisotropy. Writes a picture beside its result.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.ndimage import find_objects

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import (
    FitResult,
    Protocol,
    average_directions,
    fit_image,
    fit_voxels,
    repeatability,
    roi_table,
)
from dmrifit.engine.doubts import DoubtReason
from dmrifit.report.style import new_figure, shared_style

RESULT = measure.RESULTS / "people_fits.json"
LEG = "Legs: DemoData of mfroeling/QMRITools, BSD-3-Clause."
OIL = "Oil: Szczepankiewicz et al., Data in Brief 25:104208, 2019, BSD-3-Clause."
GENU = (
    "Genu: ISBI 2015 white matter challenge (Ferizi et al., NMR Biomed 30:e3734, 2017), from "
    "AthenaEPI/dmipy, MIT."
)
OIL_SCANS = ("pt1", "pt4")
SLOW = 0.01  # µm²/ms: as good as still
HIGHEST_B = 3000.0
MASK_SHARE = 0.1  # of the 99th percentile of the first image
OIL_SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan with repeats, its averaged contrasts, and where there is something."""

    signals: np.ndarray
    protocol: Protocol
    affine: np.ndarray
    mask: np.ndarray

    def averaged(self) -> tuple[np.ndarray, Protocol]:
        """Average the measurements of each b-value."""
        return average_directions(self.signals, self.protocol, tolerance=0)


def read_scan(place: Path, name: str, share: float) -> Scan:
    """Read a scan; its mask are voxels whose first image has this share of the brightest."""
    image = nib.load(place / f"{name}.nii.gz")
    signals = np.asanyarray(image.dataobj).astype(float)
    protocol = Protocol.read(place / f"{name}.bval", bvec=place / f"{name}.bvec")
    first = signals[..., protocol.b == protocol.b.min()].mean(axis=-1)
    return Scan(signals, protocol, image.affine, first > share * np.percentile(first, 99))


def fit_averages(
    signals: np.ndarray, protocol: Protocol, model: str, mean: str = "geometric"
) -> FitResult:
    """Fit the averages of voxels' readings, which count by their numbers, as in `fit_image`."""
    averaged, contrasts = average_directions(signals, protocol, mean=mean, tolerance=0)
    same = np.equal.outer(contrasts.b, protocol.b)
    if protocol.te is not None:
        assert contrasts.te is not None
        same &= np.equal.outer(contrasts.te, protocol.te)
    return fit_voxels(averaged, contrasts, model, weights=same.sum(axis=1), n_threads=1)


def halves(protocol: Protocol) -> list[np.ndarray]:
    """Deal the readings of each b-value and echo time into two halves; a single one is in both."""
    te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
    parts: list[list[int]] = [[], []]
    for contrast in sorted(set(zip(te.tolist(), protocol.b.tolist(), strict=True))):
        rows = np.flatnonzero((te == contrast[0]) & (protocol.b == contrast[1]))
        for half in (0, 1):
            parts[half] += rows[half::2].tolist() if len(rows) > 1 else rows.tolist()
    return [np.sort(rows) for rows in parts]


def numbers(values: np.ndarray, digits: int = 4) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.nanpercentile(values, (25, 50, 75))
    return {"q25": round(low, digits), "median": round(middle, digits), "q75": round(high, digits)}


def fit_leg(*, quick: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fit the legs as a user does, and its muscles again from halves of the readings."""
    scan = read_scan(measure.data_folder("leg_ivim"), "dwi", MASK_SHARE)
    labels = np.asanyarray(nib.load(measure.data_folder("leg_ivim") / "labels.nii.gz").dataobj)
    if quick:
        scan = Scan(scan.signals[:, :, 11:14], scan.protocol, scan.affine, scan.mask[:, :, 11:14])
        labels = labels[:, :, 11:14]
    averaged, contrasts = scan.averaged()
    inside = labels > 0
    muscles_mask = nib.Nifti1Image(inside.astype(np.uint8), scan.affine)
    mask = nib.Nifti1Image(scan.mask.astype(np.uint8), scan.affine)
    image = nib.Nifti1Image(scan.signals, scan.affine)
    options: dict[str, Any] = {"average": "geometric", "n_threads": 1}
    # The first fit compiles.
    of_muscles = fit_image(image, scan.protocol, "ivim", mask=muscles_mask, **options)
    begun = time.process_time()
    maps = fit_image(image, scan.protocol, "ivim", mask=mask, **options)
    seconds = time.process_time() - begun
    arrays = {name: np.asanyarray(image.dataobj) for name, image in maps.items()}
    bits = np.asanyarray(of_muscles["doubt"].dataobj)[inside].astype(int)
    fits = [
        fit_averages(scan.signals[inside][:, rows], scan.protocol.take(rows), "ivim")
        for rows in halves(scan.protocol)
    ]
    table = roi_table(arrays, labels.astype(np.int16))
    muscles = []
    for label, rows in table.groupby("label"):
        by_map = rows.set_index("map")
        muscle: dict[str, Any] = {"label": int(label), "n": int(by_map["n_voxels"].iloc[0])}
        for name in ("f", "Dv", "Dt"):
            row = by_map.loc[name]
            muscle[name] = {key: round(float(row[key]), 4) for key in ("q25", "median", "q75")}
            muscle[name]["doubtful"] = round(float(row["doubtful"]), 4)
        muscles.append(muscle)
    leg = {
        "shape": [*scan.signals.shape],
        "b": contrasts.b.tolist(),
        "n_voxels": int(scan.mask.sum()),
        "n_labeled": int(inside.sum()),
        "cpu_s": round(seconds, 2),
        "muscles": muscles,
        "in_doubt": {
            name: round(float((bits >> j & 1).mean()), 4)
            for j, name in enumerate(of_muscles.names)
        },
        "advice": of_muscles.advice(),
        "retest": retest(fits, labels[inside]),
        "sides": both_sides(muscles),
    }
    shown = {"b0": averaged[..., 0], "labels": labels, "mask": scan.mask}
    return leg, shown | {name: arrays[name] for name in ("f", "Dt", "doubt")}


def both_sides(muscles: list[dict[str, Any]]) -> dict[str, float]:
    """
    Compare the medians of each muscle of both legs, by the coefficient of variation of a pair.

    Labels of one muscle follow each other: their sizes agree, and they lie on opposite sides.
    """
    pairs = list(zip(muscles[::2], muscles[1::2], strict=True))
    variation = {}
    for name in ("f", "Dt"):
        x = np.array([[one[name]["median"], other[name]["median"]] for one, other in pairs])
        cv = x.std(axis=1, ddof=1) / x.mean(axis=1)
        variation[name] = round(float(np.sqrt((cv**2).mean())), 4)
    return variation


def retest(fits: Sequence[FitResult], labels: np.ndarray) -> list[dict[str, Any]]:
    """Compare two fits of the same voxels by medians of regions and by single voxels."""
    names = fits[0].names
    table = [
        ("one", visit, label, str(label), name, np.nanmedian(fit.parameters[labels == label, j]))
        for visit, fit in enumerate(fits)
        for j, name in enumerate(names)
        for label in np.unique(labels)
    ]
    columns = ["subject", "visit", "label", "name", "map", "median"]
    repeated = repeatability(pd.DataFrame(table, columns=columns))
    values = np.array([fit.parameters for fit in fits])
    errors = np.array([fit.standard_errors for fit in fits])
    within = np.abs(values[0] - values[1]) / np.sqrt(2)
    scale = np.sqrt((errors**2).mean(axis=0))
    rows = []
    for j, name in enumerate(names):
        usable = np.isfinite(scale[:, j]) & (scale[:, j] > 0) & np.isfinite(within[:, j])
        # The median of a half-normal variable is .6745 of its standard deviation.
        ratio = (
            np.median(within[usable, j] / scale[usable, j]) / 0.6745 if usable.any() else np.nan
        )
        regions = repeated.loc[repeated["map"] == name, "wcv"]
        # A parameter at a bound in both halves has no error to compare with.
        compared = round(float(ratio), 3) if usable.any() else None
        variation = np.sqrt((regions**2).mean())
        rows.append({
            "parameter": name,
            "wcv_regions": round(float(variation), 4) if np.isfinite(variation) else None,
            "within_sd_voxels": round(float(np.nanmedian(within[:, j]) / 0.6745), 4),
            "median": round(float(np.nanmedian(values[:, :, j])), 4),
            "ratio_to_standard_error": compared,
            "n_with_error": int(usable.sum()),
        })  # fmt: skip
    return rows


def fit_oil(*, quick: bool) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Fit the whole bottle in both scans."""
    rows = []
    for name in OIL_SCANS:
        scan = read_scan(measure.data_folder("oil_phantom"), name, OIL_SHARE)
        mask = scan.mask.copy()
        if quick:
            middle = mask.shape[2] // 2
            mask[:, :, : middle - 1] = mask[:, :, middle + 2 :] = False
        averaged, contrasts = scan.averaged()
        result = fit_averages(scan.signals[mask], scan.protocol, "kurtosis")
        d, k = result.names.index("D"), result.names.index("K")
        low_end = result.intervals(0.95)[:, d, 0]
        reasons = result.doubt_reasons[:, k]
        slices = np.nonzero(mask)[2]
        medians = [np.median(result["D"][slices == z]) for z in np.unique(slices)]
        whole = fit_voxels(averaged[mask].mean(axis=0)[None], contrasts, "adc")
        rows.append({
            "scan": name,
            "b": contrasts.b.tolist(),
            "n_voxels": int(mask.sum()),
            "D": numbers(result["D"]),
            "D_of_mean_signal": round(float(whole["ADC"][0]), 5),
            "slow_or_at_bound": round(float(((result["D"] <= SLOW) | result.at_low[:, d]).mean()), 4),
            "interval_reaches_slow": round(float((low_end <= SLOW).mean()), 4),
            "largest_slice_median": round(float(max(medians)), 4),
            "K_not_determined": round(float((reasons == DoubtReason.NOT_DETERMINED).mean()), 4),
            "K_in_doubt": round(float((reasons != DoubtReason.NONE).mean()), 4),
            "advice": result.advice(),
        })  # fmt: skip
    shown = np.full(mask.shape, np.nan)
    shown[mask] = result["D"]
    return rows, {"b0": averaged[..., 0], "D": shown}


def read_genu() -> tuple[np.ndarray, Protocol]:
    """Read the six voxels up to the highest b-value, without averaging."""
    table = pd.read_csv(measure.data_folder("isbi2015_wm_genu") / "genu_table.csv")
    b = table.b_s_per_mm2.round().to_numpy()
    te = (1e3 * table.TE_s).round(3).to_numpy()
    rows = b <= HIGHEST_B
    signals = table[[f"vox{i}" for i in range(1, 7)]].to_numpy()[rows].T
    return signals, Protocol(b[rows], te[rows])


def fit_genu() -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit the powder averages, and both halves of the readings."""
    signals, protocol = read_genu()
    averaged, contrasts = average_directions(signals, protocol, mean="arithmetic", tolerance=0)
    result = fit_averages(signals, protocol, "t2-ivim-kurtosis", "arithmetic")
    ends = result.intervals(0.95)
    voxels = []
    for i in range(len(averaged)):
        voxel: dict[str, Any] = {"voxel": i + 1}
        for j, name in enumerate(result.names):
            voxel[name] = {
                "value": round(float(result.parameters[i, j]), 4),
                # Without the sign of a zero.
                "low": round(float(ends[i, j, 0]), 4) + 0.0,
                "high": round(float(ends[i, j, 1]), 4),
                "doubt": DoubtReason(result.doubt_reasons[i, j]).name.lower(),
            }
        voxels.append(voxel)
    fits = [
        fit_averages(signals[:, rows], protocol.take(rows), "t2-ivim-kurtosis", "arithmetic")
        for rows in halves(protocol)
    ]
    genu = {
        "n_readings": len(protocol),
        "n_contrasts": len(contrasts),
        "voxels": voxels,
        "in_doubt": {
            n: round(float(v), 4) for n, v in zip(result.names, result.doubt.mean(0), strict=True)
        },
        "residual": round(
            float(np.median(np.sqrt(result.cost / len(contrasts)) / averaged.max(1))), 4
        ),
        "advice": result.advice(),
        "retest": retest(fits, np.arange(len(signals)) + 1),
    }
    return genu, {"signals": averaged, "contrasts": contrasts, "result": result}


DOUBT_COLORS = ("#e8e8e8", "#9ecae1", "#fdae6b", "#cb181d")
DOUBT_LABELS = ("none", "Dv", "f", "Dt")


def draw(leg: dict, oil: dict, genu: dict, path: Path) -> None:
    """Draw a slice of the legs, one of the bottle, and one voxel of the genu with its fit."""
    from matplotlib.colors import ListedColormap

    z = leg["b0"].shape[2] // 2
    (crop,) = find_objects(leg["mask"][:, :, z].astype(np.uint8))
    inside = leg["mask"][crop][..., z]
    codes = leg["doubt"][crop][..., z].astype(int)
    # Bits follow the parameters S0, f, Dv, Dt.
    is_f, is_dv, is_dt = (codes >> bit & 1 > 0 for bit in (1, 2, 3))
    doubt = np.select([is_dt, is_f, is_dv], [3.0, 2.0, 1.0], 0.0)
    middle = oil["D"].shape[2] // 2
    (bottle,) = find_objects(np.isfinite(oil["D"][:, :, middle]).astype(np.uint8))
    b0 = leg["b0"][crop][..., z]
    panels = [
        ("Both lower legs of a person: signal at b = 0", b0, (0, b0.max()), "gray"),
        ("f, signal fraction", np.where(inside, leg["f"][crop][..., z], np.nan), (0, 0.2), "magma"),
        ("Dt (µm²/ms)", np.where(inside, leg["Dt"][crop][..., z], np.nan), (0.5, 2.5), "viridis"),
        ("What the scan does not tell", np.where(inside, doubt, np.nan), (-0.5, 3.5), None),
        ("Oil: D (µm²/ms): still", oil["D"][bottle][..., middle], (0, 0.1), "viridis"),
    ]
    with shared_style({"font.size": 8}):
        figure = new_figure(7.6, 6.4)
        figure.set_layout_engine("constrained", rect=(0, 0.05, 1, 0.95))
        *planes, curve = figure.subplots(3, 2).ravel()
        for axes, (title, values, clim, colors) in zip(planes, panels, strict=True):
            shown = axes.imshow(
                values.T, colors or ListedColormap(DOUBT_COLORS), clim=clim, origin="lower"
            )
            axes.set_title(title, loc="left", fontsize=8.5)
            axes.set_axis_off()
            bar = figure.colorbar(shown, cax=axes.inset_axes((1.03, 0, 0.03, 1)))
            if colors is None:
                bar.set_ticks(range(len(DOUBT_LABELS)), labels=DOUBT_LABELS)
        draw_genu(curve, genu)
        figure.text(0.01, 0.008, f"{LEG}  {OIL}\n{GENU}", fontsize=6.2, color="0.35", va="bottom")
        figure.savefig(path, dpi=120)


def draw_genu(axes: Any, genu: dict[str, Any]) -> None:
    """Draw readings and fit of the first voxel, a color for each of some echo times."""
    from matplotlib import colormaps

    contrasts, result = genu["contrasts"], genu["result"]
    times = np.unique(contrasts.te)[::3]
    for te, color in zip(times, colormaps["viridis"](np.linspace(0, 0.9, len(times))), strict=True):
        rows = np.flatnonzero(contrasts.te == te)
        values = genu["signals"][0][rows]
        axes.plot(contrasts.b[rows], values, "o", color=color, ms=3.5, label=f"{te:g} ms")
        b = np.linspace(0, contrasts.b[rows].max(), 80)
        curve = result.model.signal(result.parameters[:1], Protocol(b, np.full(80, te)))[0]
        axes.plot(b, curve, "-", color=color, lw=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_yticks((30, 50, 100, 200, 400))
    axes.set_title("Genu: means over directions, and the fit", loc="left", fontsize=8.5)
    axes.set(xlabel="b (s/mm²)", ylabel="signal of one voxel")
    axes.legend(title="TE", frameon=False)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Fit all three."""
    leg, leg_shown = fit_leg(quick=chosen.quick)
    oil, oil_shown = fit_oil(quick=chosen.quick)
    genu, genu_shown = fit_genu()
    picture = chosen.out.with_suffix(".png")
    draw(leg_shown, oil_shown, genu_shown, picture)
    goals = [
        {"what": f"oil {row['scan']}: median of D"}
        | measure.goal(SLOW, row["D"]["median"], "µm²/ms")
        for row in oil
    ] + [
        {"what": f"oil {row['scan']}: voxels with K not determined"}
        | measure.goal(0.95, row["K_not_determined"], "share", at_least=True)
        for row in oil
    ]
    return {
        "synthetic": False,
        "data": [LEG, OIL, GENU],
        "picture": picture.name,
        "leg": leg,
        "oil": oil,
        "genu": genu,
        "goals": goals,
    }


if __name__ == "__main__":
    runs.main(run, RESULT, packages=("numpy", "numba", "scipy"))
