"""DICOM folders converted to BIDS: the diffusion series of each patient, by dcm2niix."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit._optional import import_optional
from dmrifit._utils.text_files import read_numbers, read_object
from dmrifit.io.atomic_files import FileSet, write_text
from dmrifit.io.bids_derivatives import describe_dataset
from dmrifit.io.nifti import read_grid
from dmrifit.io.tables import table_text

if TYPE_CHECKING:
    import pandas as pd

_HEADER_TAGS = (
    "PatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "SeriesInstanceUID", "SeriesNumber",
    "SeriesDescription", "Manufacturer", "Modality", "SOPClassUID", "Rows",
)  # fmt: skip
#: Storage classes of spectra and raw data: those of the standard, and of Siemens.
_NO_IMAGES = (
    "1.2.840.10008.5.1.4.1.1.4.2",
    "1.2.840.10008.5.1.4.1.1.66",
    "1.3.12.2.1107.5.9.1",
)
#: Words of the image type of maps that were computed from a series.
_DERIVED = ("ADC", "EADC", "FA", "COLFA", "TENSOR", "AVERAGE_DC", "EXP_ADC")
_SMALLEST_B = 10.0  # s/mm², below it nothing is weighted
_SAME_TE = 1e-4  # s
_ENDINGS = ("nii.gz", "bval", "bvec", "json")
_README = (
    "Diffusion series that dmrifit import converted from DICOM by dcm2niix; the table of all "
    "series is sourcedata/series.tsv.\n"
)


@dataclass
class DicomSeries:
    """One series: what its headers say, the files it became, and why it became none."""

    patient: str
    study: tuple[str, str, str]
    number: int
    description: str
    manufacturer: str
    is_image: bool
    n_files: int = 0
    images: list[Path] = field(default_factory=list)
    refusal: str = ""
    name: str = ""
    b: str = ""
    te: float = np.nan

    @property
    def row(self) -> dict[str, Any]:
        """Its row in the table of series, without what names a person."""
        return {
            "series": self.number,
            "description": self.description,
            "manufacturer": self.manufacturer,
            "files": self.n_files,
            "b": self.b,
            "te": f"{1e3 * self.te:g}" if np.isfinite(self.te) else "",
            "result": self.name or self.refusal,
        }


def import_dicom(
    folder: Path, out: Path, *, subject: str | None = None, overwrite: bool = False
) -> pd.DataFrame:
    """
    Convert the diffusion series of a folder; return the table of all its series.

    Patients are numbered in the order of their identifiers, which appear nowhere, or called
    `subject`, if there is one; several studies of a patient are sessions, in the order of their
    dates. Series of one study with equal grid and b-values that differ in echo time are one scan
    (``acq-TE60`` and so on), others are runs.
    """
    import pandas as pd

    if subject is not None and not re.fullmatch("[a-zA-Z0-9]+", subject):
        raise ValueError(
            f"--subject {subject}: a label has letters and digits only; write such one"
        )
    series = _read_series(folder)
    patients = sorted({item.patient for item in series.values()})
    if subject is not None and len(patients) > 1:
        raise ValueError(
            f"{folder} holds {len(patients)} patients, and --subject names one; leave it out to "
            "number them, or name the folder of one"
        )
    with tempfile.TemporaryDirectory() as name:
        converted = Path(name)
        if any(item.is_image for item in series.values()):
            _convert(folder, converted)
        for uid, item in series.items():
            item.images = _converted_images(converted, uid)
            _judge(item)
        usable = [item for item in series.values() if not item.refusal]
        if not usable:
            reasons = "; ".join(
                f"series {item.number} {item.description!r}: {item.refusal}"
                for item in list(series.values())[:8]
            )
            raise ValueError(f"{folder} holds no diffusion series ({reasons})")
        for number, patient in enumerate(patients, start=1):
            label = subject or f"{number:02d}"
            of_patient = [item for item in usable if item.patient == patient]
            _store(of_patient, label, out, overwrite=overwrite)
    table = pd.DataFrame([item.row for item in series.values()])
    describe_dataset(out, "Diffusion series", "raw", _README, "dcm2niix")
    (out / "sourcedata").mkdir(exist_ok=True)
    rows = table_text(table.replace("", None), digits=None)
    write_text(out / "sourcedata" / "series.tsv", rows)
    return table


def _convert(folder: Path, out: Path) -> None:
    """Convert all series of a folder; names are those of series, without names of persons."""
    program: str | None
    try:
        program = str(import_optional("dcm2niix").bin)
    except ImportError:
        program = shutil.which("dcm2niix")
        if program is None:
            raise
    command = [program, "-b", "y", "-ba", "y", "-z", "i", "-d", "9", "-f", "%j", "-o", str(out)]
    # Its exit code tells of any file that it leaves out; what it converted is looked at instead.
    subprocess.run([*command, str(folder)], capture_output=True, check=False)


def _read_series(folder: Path) -> dict[str, DicomSeries]:
    """Group the DICOM files of a folder by series, from their headers alone."""
    pydicom = import_optional("pydicom")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder; name one of DICOM files")
    series: dict[str, DicomSeries] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
        except (pydicom.errors.InvalidDicomError, OSError, ValueError, AttributeError):
            continue
        uid = str(header.get("SeriesInstanceUID", ""))
        if not uid:
            continue
        item = series.setdefault(uid, _series_of(header))
        item.n_files += 1
    if not series:
        raise ValueError(f"{folder} holds no DICOM file with a series; check the folder")
    return dict(sorted(series.items(), key=lambda pair: (pair[1].patient, pair[1].number)))


def _series_of(header: Any) -> DicomSeries:
    number = str(header.get("SeriesNumber") or 0)
    study = [str(header.get(tag, "")) for tag in ("StudyDate", "StudyTime", "StudyInstanceUID")]
    return DicomSeries(
        str(header.get("PatientID", "")),
        (study[0], study[1], study[2]),
        int(number) if number.isdecimal() else 0,
        str(header.get("SeriesDescription", "")),
        str(header.get("Manufacturer", "")),
        str(header.get("SOPClassUID", "")) not in _NO_IMAGES and bool(header.get("Rows")),
    )


def _converted_images(folder: Path, uid: str) -> list[Path]:
    """Find the images of a series: one, or one for each echo or kind of image."""
    images = []
    for path in sorted(folder.glob(f"{uid}*.nii.gz")):
        rest = path.name.removeprefix(uid).removesuffix(".nii.gz")
        # One identifier may begin with another one: digits and points follow then.
        if not rest[:1].isdigit() and not rest.startswith("."):
            images.append(path)
    return images


def _judge(item: DicomSeries) -> None:
    """Keep the image of a series that is one of diffusion, or say why there is none."""
    if not item.is_image:
        item.refusal = "no images (spectra or raw data)"
        return
    usable = []
    for image in item.images:
        bval = _beside(image, "bval")
        sidecar = _sidecar(image)
        kinds = {str(word).upper() for word in sidecar.get("ImageType", ())}
        derived = sorted(kinds.intersection(_DERIVED))
        if derived:
            item.refusal = f"a map that was computed ({derived[0]})"
        elif not bval.is_file():
            item.refusal = "no b-values"
        elif len(read_grid(image)[0]) != 4 or read_numbers(bval).max() < _SMALLEST_B:
            item.refusal = "no volumes that differ in b"
        elif {"PHASE", "P"} & kinds:
            item.refusal = "phase images"
        else:
            usable.append(image)
    if not item.images:
        item.refusal = "not converted by dcm2niix"
    if usable:
        item.images, item.refusal = usable, ""
        b = np.round(
            np.concatenate([read_numbers(_beside(image, "bval")).ravel() for image in usable])
        )
        values, counts = np.unique(b, return_counts=True)
        texts = [f"{b:g} ({n})" for b, n in zip(values, counts, strict=True)]
        item.b = ", ".join(texts[:12]) + (", …" if len(texts) > 12 else "")
        item.te = float(_sidecar(usable[0]).get("EchoTime", np.nan))


def _store(series: Sequence[DicomSeries], label: str, out: Path, *, overwrite: bool) -> None:
    """Write the images of one patient under their BIDS names."""
    studies = sorted({item.study for item in series})
    for number, study in enumerate(studies, start=1):
        entities = f"sub-{label}"
        folder = out / f"sub-{label}"
        if len(studies) > 1:
            entities += f"_ses-{number}"
            folder /= f"ses-{number}"
        images = []
        for item in series:
            if item.study == study:
                images += [(item, image) for image in item.images]
        if not images:
            continue
        names = _names([image for _, image in images])
        targets = {
            f"{entities}{name}_dwi.{ending}": _beside(image, ending)
            for (_, image), name in zip(images, names, strict=True)
            for ending in _ENDINGS
        }
        existing = {target: path for target, path in targets.items() if path.is_file()}
        with FileSet(folder / "dwi", existing, overwrite=overwrite) as files:
            for target, path in existing.items():
                shutil.copyfile(path, files.path(target))
        for (item, _), name in zip(images, names, strict=True):
            image_name = f"{entities}{name}_dwi.nii.gz"
            item.name = f"{item.name}, {image_name}" if item.name else image_name


def _names(images: Sequence[Path]) -> list[str]:
    """Tell the images of a study apart: by echo time where nothing else differs, else by run."""
    if len(images) == 1:
        return [""]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, image in enumerate(images):
        shape, affine = read_grid(image)
        b = tuple(np.round(read_numbers(_beside(image, "bval")).ravel(), -1))
        key = (shape, tuple(np.round(affine, 3).ravel()), b)
        groups.setdefault(key, []).append(i)
    names = [""] * len(images)
    for run, members in enumerate(groups.values(), start=1):
        times = [float(_sidecar(images[i]).get("EchoTime", np.nan)) for i in members]
        # Without echo times, or with one twice, they are repeats.
        is_multi_echo = len(members) > 1 and np.all(np.diff(np.sort(times)) > _SAME_TE)
        for position, (i, te) in enumerate(zip(members, times, strict=True), start=1):
            words = []
            if is_multi_echo:
                words.append(f"acq-TE{_echo_label(te, times)}")
            if len(groups) > 1 and (is_multi_echo or len(members) == 1):
                words.append(f"run-{run}")
            elif not is_multi_echo:
                words.append(f"run-{position}" if len(groups) == 1 else f"run-{run}{position:02d}")
            names[i] = "".join(f"_{word}" for word in words)
    return names


def _echo_label(te: float, times: Sequence[float]) -> str:
    """Write an echo time in ms, with one decimal (60p4) where whole ones are not all different."""
    if len({round(1e3 * time) for time in times}) == len(times):
        return f"{1e3 * te:.0f}"
    return f"{1e3 * te:.1f}".removesuffix(".0").replace(".", "p")


def _beside(image: Path, ending: str) -> Path:
    return image.with_name(f"{image.name.removesuffix('.nii.gz')}.{ending}")


def _sidecar(image: Path) -> Mapping[str, Any]:
    return read_object(_beside(image, "json")) or {}
