"""Runs over many scans: what they write for each, their table and page, and reading it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dmrifit.cli.case_runs import join_tables, picture_parts, run_parts, table_text
from dmrifit.io.case_tables import file_stems, save_values
from dmrifit.io.nifti import image_of
from dmrifit.networks.volume_cases import called
from dmrifit.report.html import NOTICE
from metastasis.scans.cases import Case

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RESULTS", "read_segmentations", "scans_of", "segment_cases", "write_batch"]

_T = TypeVar("_T", int, float)

#: Files that are only there after a run.
RESULTS = ("segmentations.tsv", "lesions.tsv", "index.html")

_PROBABILITY, _LABEL, _LESIONS, _OVERLAY = (
    "probability.nii.gz",
    "label.nii.gz",
    "lesions.tsv",
    "overlay.png",
)
_VIEW = "view.html"
_DESCRIPTION = "segmentation.json"
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    **{
        "name": str,
        "patient": str,
        "folder": str,
        "synthetic": bool,
        "threshold": (float, type(None)),
    },
    **{
        "min_voxels": (int, type(None)),
        "n_lesions": int,
        "n_confirmed": (int, type(None)),
        "volume_mL": float,
    },
    "sources": str,
}
_COLUMNS = (
    *(
        "patient",
        "probability",
        "label",
        "threshold",
        "min_voxels",
        "n_lesions",
        "n_confirmed",
        "volume_mL",
    ),
    "synthetic",
)
_OF_SINGLE_MODELS = (
    *("number", "volume_mL", "diameter_mm", "x", "y", "z", "probability", "mean_probability"),
)  # a single model confirms nothing, and segments no prior scan


def scans_of(cases: Sequence[Case]) -> dict[str, list[Any]]:
    """Give cases as the segmenter takes them: images that know their grid."""
    parts = {"volumes": "image", "priors": "prior", "masks": "brain"}
    return {
        key: [
            None if (part := getattr(case, name)) is None else image_of(part, case.affine)
            for case in cases
        ]
        for key, name in parts.items()
    }


def segment_cases(
    segmenter: Any,
    cases: Sequence[Case],
    out: Path,
    *,
    figure: bool,
    overwrite: bool,
    source: Path | None = None,
) -> list[dict[str, Any]]:
    """
    Segment cases, each into a folder of its own; those that an earlier run has finished are not
    done again.
    """
    stems = file_stems((case.patient, case.name) for case in cases)
    figure = figure and find_spec("matplotlib") is not None

    def make(part: tuple[Case, str]) -> dict[str, Any]:
        case, stem = part
        with called([case.name], source):
            return _segment_case(segmenter, case, out / stem, _digest(case), figure=figure)

    return run_parts(
        zip(cases, stems, strict=True),
        lambda part: out / part[1] / _DESCRIPTION,
        make,
        fields=_FIELDS,
        # A case whose files have changed, or what is known of it, is segmented anew.
        same=lambda part, old: (
            _known(part[0]).items() <= old.items() and old["sources"] == _digest(part[0])
        ),
        overwrite=overwrite,
    )


def write_batch(
    out: Path, contents: Sequence[Mapping[str, Any]], *, figure: bool, heading: str
) -> None:
    """Write the tables of all cases, and the page with their overlays."""
    import pandas as pd

    from dmrifit.io.atomic_files import write_text

    keys = (
        "name",
        "patient",
        "threshold",
        "min_voxels",
        "n_lesions",
        "n_confirmed",
        "volume_mL",
        "synthetic",
    )
    rows = []
    for content in contents:
        files = {
            key: f"{content['folder']}/{file}"
            for key, file in (("probability", _PROBABILITY), ("label", _LABEL))
        }
        rows.append(
            {key: content[key] for key in keys[:2]}
            | files
            | {key: content[key] for key in keys[2:]}
        )
    table = pd.DataFrame(rows)
    for key in ("threshold", "min_voxels", "n_confirmed"):
        table[key] = table[key].astype(object)
    table["synthetic"] = table["synthetic"].map({True: "true", False: "false"})
    found = join_tables(
        contents, (_read_lesions(out / content["folder"] / _LESIONS) for content in contents)
    )
    write_text(out / "lesions.tsv", table_text(found))
    write_text(out / "segmentations.tsv", table_text(table))
    if figure and find_spec("jinja2") is not None:
        from metastasis.study.report import batch_page

        shown = {
            content["name"]: picture_parts(
                out / content["folder"],
                _OVERLAY,
                _VIEW,
                f"Lesions of {content['name']} in three planes",
            )
            for content in contents
        }
        write_text(out / "index.html", batch_page(heading, contents, found, shown))


def read_segmentations(
    table: Path, cases: Sequence[Case]
) -> tuple[list[NDArray[Any]], float, int]:
    """
    Read what a run has written about cases.

    Shapes: returns predictions (x, y, z).
    """
    from dmrifit.io.masks import check_same_grid
    from dmrifit.io.nifti import load_image, values_of
    from dmrifit.io.tables import read_rows

    rows = {row["name"]: row for _, row in read_rows(table, required=("name",), optional=_COLUMNS)}
    if missing := [case.name for case in cases if case.name not in rows]:
        raise ValueError(
            f"{table} has no segmentation of {', '.join(missing[:5])}; segment these cases, or leave them out"
        )
    limit, least = (
        _one_of(table, [rows[case.name] for case in cases], key)
        for key in ("threshold", "min_voxels")
    )
    predictions = []
    for case in cases:
        name = rows[case.name].get("probability" if limit else "label", "")
        path = table.parent / name
        if not name:
            raise ValueError(
                f"{table}: {case.name} has no {'probability' if limit else 'label'}; give the table that segment wrote"
            )
        if not path.is_file():
            raise FileNotFoundError(
                f"{table}: there is no {path}, the segmentation of {case.name}; segment this case again"
            )
        image = load_image(path)
        values = values_of(image, str(path))
        if wrong := np.count_nonzero(~np.isfinite(values)):
            raise ValueError(
                f"{path} holds {wrong} values that are not finite; segment the case {case.name} again"
            )
        check_same_grid(
            values.shape,
            image.affine,
            case.shape,
            case.affine,
            name=str(path),
            reference_name=f"the case {case.name}",
        )
        predictions.append(
            values.astype(np.float32) if limit else np.rint(values).astype(np.uint8)
        )
    return (
        predictions,
        _number(table, "threshold", limit or "0.5", float),
        _number(table, "min_voxels", least or "1", int),
    )


def _number(table: Path, key: str, text: str, kind: type[_T]) -> _T:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{table}: the {key} {text!r} is no number") from None


def _one_of(table: Path, rows: Sequence[Mapping[str, str]], key: str) -> str:
    """Give what all cases have in common."""
    values = {row.get(key, "") for row in rows}
    if len(values) > 1:
        raise ValueError(
            f"{table}: the cases were segmented at different values of {key} ({', '.join(sorted(values))})"
        )
    return values.pop()


def _segment_case(
    segmenter: Any, case: Case, folder: Path, digest: str, *, figure: bool
) -> dict[str, Any]:
    from dmrifit.io.atomic_files import FileSet
    from metastasis.segmentation.ensemble import SensitivitySpecificityEnsemble, segment_by
    from metastasis.study.followup import reader_table

    ensemble = isinstance(segmenter, SensitivitySpecificityEnsemble)
    scan = scans_of([case])
    labels, probability = next(iter(segment_by(segmenter, **scan)))
    earlier = None
    if ensemble and case.prior is not None:
        past = {"volumes": scan["priors"], "priors": [None], "masks": scan["masks"]}
        earlier = next(iter(segment_by(segmenter, **past)))[0]
    table = reader_table(labels, case.affine, probability=probability, prior=earlier)
    if not ensemble:
        table = table[list(_OF_SINGLE_MODELS)]
    now = table if not ensemble else table[table["finding"] != "prior only"]
    content: dict[str, Any] = {
        **_known(case),
        "folder": folder.name,
        "threshold": None if ensemble else float(getattr(segmenter, "threshold_", 0.5)),
        "min_voxels": None if ensemble else int(getattr(segmenter, "min_voxels", 1)),
        "n_lesions": len(now),
        "n_confirmed": int((now["finding"] == "confirmed").sum()) if ensemble else None,
        "volume_mL": float(now["volume_mL"].sum()),
        "sources": digest,
        "notice": NOTICE,
    }
    with FileSet(
        folder, [_PROBABILITY, _LABEL, _LESIONS, _OVERLAY, _VIEW, _DESCRIPTION], overwrite=True
    ) as files:
        for name, values in ((_PROBABILITY, probability), (_LABEL, labels)):
            save_values(values, case.affine, files.path(name))
        files.path(_LESIONS).write_text(table_text(table), encoding="utf-8")
        if figure:
            from metastasis.study.plotting import plot_overlay

            plot_overlay(case, labels, confirmable=ensemble).savefig(files.path(_OVERLAY), dpi=120)
            if find_spec("jinja2") is not None:
                from metastasis.study.report import scan_page

                picture = files.path(_OVERLAY).read_bytes()
                page = scan_page(
                    case, labels, probability, now, threshold=content["threshold"], picture=picture
                )
                files.path(_VIEW).write_text(page, encoding="utf-8")
        files.write_json(_DESCRIPTION, content)
    return content


def _known(case: Case) -> dict[str, Any]:
    """Tell what the table says of a case."""
    return {"name": case.name, "patient": case.patient, "synthetic": case.synthetic}


def _digest(case: Case) -> str:
    """Tell whether a case is still what was segmented."""
    digest = hashlib.sha256()
    for part in (case.image, case.prior, case.brain, case.label, case.affine):
        digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _read_lesions(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(
            f"{path} is damaged ({' '.join(str(error).split())}); remove its folder, so that the case is done again"
        ) from None
