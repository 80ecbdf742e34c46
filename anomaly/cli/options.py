"""Options that several commands share, and parsing of their values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from anomaly.detectors.detector_table import detector_names, import_detector
from dmrifit._utils.text_files import check_file
from dmrifit.cli.options import named_cases, pairs, say_folder

if TYPE_CHECKING:
    from anomaly.detectors.base import AnomalyDetector
    from anomaly.scans.series import SeriesFiles


def make_detector(
    name: str,
    parameters: Mapping[str, Any],
    *,
    published: bool = False,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> AnomalyDetector:
    """
    Make a detector by its name; the fields of its training stand among its parameters.

    Of the `defaults` those are left out that the detector has no parameter for.
    """
    from dmrifit.networks.training import Training, gather_training

    known_detectors = detector_names()
    if name not in known_detectors:
        raise ValueError(
            f"there is no detector {name!r}; choose one of {', '.join(known_detectors)}"
        )
    detector_class = import_detector(name)
    names = {*detector_class._get_param_names()}
    is_network = "training" in names
    if is_network:
        names = names - {"training"} | {*Training._get_param_names()}
    unknown = [key for key in parameters if key not in names]
    if unknown:
        raise ValueError(
            f"the detector {name} has no parameter {unknown[0]!r}; it has "
            f"{', '.join(sorted(names))}"
        )
    options = {key: value for key, value in defaults.items() if key in names}
    options |= parameters
    if is_network:
        options = gather_training(options)
    if not published:
        return detector_class(**options)
    if not hasattr(detector_class, "published"):
        raise ValueError(
            f"the publication has no sizes of the detector {name}; leave out --published"
        )
    return detector_class.published(**options)


def parameters_of(settings: Sequence[str]) -> dict[str, Any]:
    """Read the parameters of a detector."""
    parameters: dict[str, Any] = {}
    for name, text in pairs("--set", settings):
        name = name.strip()
        if name in parameters:
            raise ValueError(f"--set gives {name} twice")
        try:
            value = json.loads(text)
        except ValueError:
            # What is no JSON is a word, such as low.
            value = text.strip()
        parameters[name] = tuple(value) if isinstance(value, list) else value
    return parameters


def series_of_table(table: Path) -> list[SeriesFiles]:
    """List the series of a table or a folder, and print what a folder holds."""
    from anomaly.scans.cases import SCANS
    from anomaly.scans.series import read_series

    say_folder(table, SCANS.images)
    return read_series(table)


def series_of(
    scans: Sequence[Path],
    *,
    bval: Path | None = None,
    bvec: Path | None = None,
    mask: Path | None = None,
    tissue: Path | None = None,
    failed: list[dict[str, str]] | None = None,
) -> list[SeriesFiles]:
    """
    List series: those of a table or of images, or a single one with the files that options name.

    Rows of a table that are wrong or lack a file go into `failed`, where it is given.
    """
    from anomaly.scans.cases import SCANS
    from anomaly.scans.series import SeriesFiles, read_series

    options = {"--bval": bval, "--bvec": bvec, "--mask": mask, "--tissue": tissue}
    source, is_many = named_cases(scans, "files", options, SCANS.images, "dwi/*_dwi.nii*")
    if isinstance(source, list) or is_many:
        return read_series(source, failed=failed)
    for path in options.values():
        if path is not None:
            check_file(path)
    return [SeriesFiles(source, bval=bval, bvec=bvec, brain=mask, tissue=tissue)]
