"""Maps of other programs: shown in the viewer, and taken as the metrics of a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.imaging.image_maps import ImageMaps
from dmrifit.imaging.regions import DIFFUSIVITY_FACTORS, named_maps, plain_unit
from dmrifit.io.atomic_files import write_text
from dmrifit.io.bids_derivatives import (
    common_stem,
    derivative_name,
    describe_prediction,
    summarize_bounds,
)
from dmrifit.io.case_tables import read_on_grid
from dmrifit.io.masks import binarize, whole_labels
from dmrifit.io.nifti import image_of, read_grid

if TYPE_CHECKING:
    from dmrifit.predict.conformal import ConformalIntervals
    from dmrifit.predict.strategies import MapsToMaps

#: Metrics that maps to maps predicts from; S0 gives the predicted amplitude its scale.
METRICS = ("ADC_fast", "ADC_slow", "F")

#: Factors from units of diffusivities and shares to those of this project.
_FACTORS = {"": 1.0, "1": 1.0, "%": 0.01, **DIFFUSIVITY_FACTORS}
_ADC_OF = {"ADC_fast": "of b = 0 to 100 s/mm²", "ADC_slow": "of b from 100 s/mm²"}
#: How the metrics count as fitted.
_FITS = (
    "nonlinear least squares: ADC_fast of b = 0, 50 and 100 s/mm², ADC_slow of b = 100, 400 and "
    "900, F = 1 - S0_slow / S0"
)
_PLAUSIBLE_ADC = (0.05, 10.0)  # µm²/ms, of a median over tissue
MOST_LABELS = 255  # that a page can number


def read_maps(
    maps: Mapping[str, str | Path],
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Read maps (x, y, z) of one grid by name, in the order of the first; also its affine."""
    first = next(iter(maps.values()))
    shape, affine = read_grid(first)
    volumes = {}
    for name, path in maps.items():
        values = read_on_grid(Path(path), shape[:3], affine, str(first))
        volumes[name] = values.astype(np.float64)
    return volumes, affine


def view_maps(
    maps: Mapping[str, str | Path],
    page: Path,
    *,
    units: Mapping[str, str],
    image: Path | None = None,
    labels: Path | None = None,
) -> None:
    """Write a page with the viewer of maps, over an image and with regions, if there are any."""
    from dmrifit.report.page import NOTICE, Page, Section
    from dmrifit.report.viewer import Layer, html_viewer

    units = named_maps(maps, units).units
    kinds: dict[str, Any] = dict.fromkeys(maps, "map")
    files = dict(maps) if image is None else {"image": image, **maps}
    for name, file, kind in (("image", image, "image"), ("labels", labels, "mask")):
        if file is not None:
            if name in maps:
                raise ValueError(
                    f"map {name} has the name of the {name} below it; name it otherwise"
                )
            files[name], kinds[name] = file, kind
    volumes, affine = read_maps(files)
    layers = []
    for name, values in volumes.items():
        volume: NDArray[Any] = values
        names: list[str] = []
        if kinds[name] == "mask":
            # One color for each number that occurs: 1, 2 and 7 are three labels.
            whole = whole_labels(values, str(labels))
            numbers, codes = np.unique(np.append(0, whole), return_inverse=True)
            volume = codes[1:].reshape(values.shape)
            if len(numbers) > MOST_LABELS:
                raise ValueError(f"{labels} has {len(numbers)} numbers: is it a label image?")
            names = [f"label {number}" for number in numbers[1:]]
        layers.append(Layer(name, volume, kinds[name], unit=units.get(name, ""), names=names))
    title = common_stem(list(maps.values()) or list(files.values())[:1]) or "Maps"
    first = next(iter(maps), None)
    below, overlay = (first, None) if image is None else ("image", first)
    viewer = html_viewer(layers, affine, image=below, overlay=overlay, label=title)
    write_text(page, Page(title, [Section("Three planes", viewer)], NOTICE).html())


def predict_from_maps(
    estimator: MapsToMaps | ConformalIntervals,
    maps: Mapping[str, str | Path],
    out: Path,
    *,
    units: Mapping[str, str],
    mask: Path | None = None,
    overwrite: bool = False,
    command: str | None = None,
    model_file: Path | None = None,
) -> ImageMaps:
    """
    Predict the maps of an advanced protocol from clinical metrics that another program fitted.

    `maps` has ADC_fast, ADC_slow and F, and may have S0; without it the amplitude is relative.
    Intervals, which are learned from signals, are left out.
    """
    from dmrifit.engine.models import resolve_model
    from dmrifit.predict.conformal import strategy_of
    from dmrifit.predict.strategies import Clinical, MapsToMaps

    estimator = strategy_of(estimator)
    if not isinstance(estimator, MapsToMaps) or estimator.source is None:
        raise ValueError(
            "this model was trained with s2s, which predicts from an image; maps are the input of "
            "a model of --strategy m2m"
        )
    if estimator.patch_shape_ is not None:
        raise ValueError(
            "the model predicts from neighborhoods of signals, not from single voxels of maps; "
            "train one without --patch-shape"
        )
    missing = [name for name in METRICS if name not in maps]
    unknown = sorted(set(maps) - {*METRICS, "S0"})
    if missing or unknown:
        problems = [f"no map of {name}" for name in missing[:1]]
        problems += [f"{name} is no input" for name in unknown[:1]]
        inputs = f"m2m predicts from {', '.join(METRICS)} and, if given, S0"
        raise ValueError(f"{', '.join(problems)}; {inputs}")
    # Without a unit these count as µm²/ms, which is checked below.
    named_maps(maps, {**dict.fromkeys(METRICS[:2], "um2/ms"), **units})
    files = dict(maps)
    if mask is not None:
        files["mask"] = mask
    volumes, affine = read_maps(files)
    region = np.any([np.nan_to_num(volumes[name]) for name in METRICS], axis=0)
    region_text = "nonzero in any map"
    inside = region & np.all([np.isfinite(volumes[name]) for name in METRICS], axis=0)
    if mask is not None:
        region, region_text = binarize(volumes["mask"], name=str(mask)), f"{mask.name} above 0.5"
        inside &= region
    metrics = [_in_units(x, volumes[x][inside], units.get(x, ""), str(maps[x])) for x in METRICS]
    features = np.column_stack(metrics)
    s0 = volumes["S0"][inside] if "S0" in volumes else np.ones(len(features))
    predicted = estimator.maps_from(Clinical(features, s0, s0))
    model = resolve_model(estimator.model)
    scan = common_stem(list(maps.values())) or out.name
    entities = {"model": model.name, "desc": "predicted"}
    names = {x: derivative_name(scan, "dwimap.nii.gz", **entities, param=x) for x in model.names}
    sidecar = derivative_name(scan, "dwimap.json", **entities)
    target = estimator.target
    assert target is not None
    # By which the maps were multiplied, to µm²/ms and shares.
    factors = {name: _FACTORS[plain_unit(units.get(name, ""))] for name in METRICS}
    settings: dict[str, Any] = {"Metrics": {name: Path(path).name for name, path in maps.items()}}
    settings |= {"Units": units, "Factors": factors, "TakenAs": _FITS}
    settings |= {"Region": region_text, "Command": command}
    counts = {"InMask": int(region.sum()), "WithSignal": len(features), "NegativeSignal": 0}
    description = describe_prediction(estimator, model, target, 1.0, names, settings, counts)
    description["Description"] = "Predicted from maps of a clinical protocol by another program"
    amplitude = next(parameter.name for parameter in model.parameters if parameter.is_amplitude)
    if "S0" not in maps:
        description["Parameters"][amplitude]["Units"] = "multiples of the signal at b = 0"
    summarize_bounds(description, model.parameters, predicted.T)
    images = {}
    for name, column in zip(model.names, predicted.T, strict=True):
        values = np.zeros(inside.shape, np.float32)
        values[region & ~inside] = np.nan
        values[inside] = column
        images[name] = image_of(values, affine)
        images[name].header["descrip"] = f"dmrifit predicted {name}".encode()
    sources = {**files, "Model file": model_file}
    predicted_maps = ImageMaps(images, description, names | {"sidecar": sidecar}, sources=sources)
    predicted_maps.save(out, overwrite=overwrite)
    return predicted_maps


def _in_units(name: str, values: NDArray[np.float64], unit: str, file: str) -> NDArray[np.float64]:
    """Bring a metric to µm²/ms or shares; refuse values that cannot be of that unit."""
    key = plain_unit(unit)
    if key not in _FACTORS:
        raise ValueError(f"--unit {name}={unit}: choose from {', '.join(filter(None, _FACTORS))}")
    converted = values * _FACTORS[key]
    if not converted.size:
        raise ValueError(f"{file}: no voxel has a value of {name}; check map and mask")
    median = float(np.median(converted))
    if name != "F" and not _PLAUSIBLE_ADC[0] <= median <= _PLAUSIBLE_ADC[1]:
        raise ValueError(
            f"{file}: the median of {name} is {median:.3g} µm²/ms, which no tissue has; check the "
            f"unit {unit or '(--unit)'}, and that the map is an ADC ({_ADC_OF[name]}), not a "
            "diffusivity of IVIM such as D*"
        )
    if name == "F" and not 0 <= median <= 1:
        raise ValueError(
            f"{file}: the median of F is {median:.3g}, and F is a share from 0 to 1; name its "
            "unit, --unit F=%"
        )
    return converted
