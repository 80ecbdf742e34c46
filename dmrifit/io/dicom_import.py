"""DICOM folders converted to BIDS: the diffusion series of each patient, by dcm2niix."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit._optional import import_optional
from dmrifit._utils.counts import first_few
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
_NO_IMAGES = ("1.2.840.10008.5.1.4.1.1.4.2", "1.2.840.10008.5.1.4.1.1.66", "1.3.12.2.1107.5.9.1")
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
    """One series: what its headers say, the files it became, and why images were left out."""

    header: Any
    n_files: int = 0
    images: list[Path] = field(default_factory=list)
    refusal: str = "not converted by dcm2niix (a file may be damaged or incomplete)"
    names: list[str] = field(default_factory=list)
    b: str = ""
    te: float = np.nan

    def text(self, tag: str) -> str:
        """Give a text of its headers, an empty one where it is missing."""
        return str(self.header.get(tag) or "")

    @property
    def study(self) -> tuple[str, str, str]:
        """Date and time of its study, and its identifier."""
        return self.text("StudyDate"), self.text("StudyTime"), self.text("StudyInstanceUID")

    @property
    def number(self) -> int:
        """Its number; 0 where that is none."""
        text = self.text("SeriesNumber")
        return int(text) if text.isdecimal() else 0

    @property
    def is_image(self) -> bool:
        """Whether it has rows of pixels and is neither spectra nor raw data."""
        return self.text("SOPClassUID") not in _NO_IMAGES and bool(self.header.get("Rows"))

    @property
    def row(self) -> dict[str, Any]:
        """Its row in the table of series, without what names a person."""
        return {
            "series": self.number,
            "description": self.text("SeriesDescription"),
            "manufacturer": self.text("Manufacturer"),
            "files": self.n_files,
            "b": self.b,
            "te": f"{1e3 * self.te:g}" if np.isfinite(self.te) else "",
            "result": "; left out: ".join(filter(None, (", ".join(self.names), self.refusal))),
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
            f"--subject {subject}: a label has letters and digits only, without umlauts and "
            "accents; write another, such as P01"
        )
    series = _read_series(folder)
    patients = sorted({item.text("PatientID") for item in series.values()})
    if subject is not None and len(patients) > 1:
        raise ValueError(
            f"{folder} holds {len(patients)} patients, and --subject names one; leave it out to "
            "number them, or name the folder of one"
        )
    complaints: list[str] = []
    with tempfile.TemporaryDirectory() as converted:
        if any(item.is_image for item in series.values()):
            try:
                program = str(import_optional("dcm2niix").bin)
            except ImportError:
                program = shutil.which("dcm2niix") or ""
                if not program:
                    raise
            # Names of files are those of series, without names of persons. The exit code tells of
            # any file that is left out; what was converted is looked at instead.
            options = ["-b", "y", "-ba", "y", "-z", "i", "-d", "9", "-f", "%j_", "-o", converted]
            command = [program, *options, str(folder)]
            run = subprocess.run(command, capture_output=True, check=False, errors="replace")
            complaints = list(dict.fromkeys(re.findall("(?:Error|Warning): (.+)", run.stdout)))
        for uid, item in series.items():
            item.images = sorted(Path(converted).glob(f"{uid}_*.nii.gz"))
            _judge(item)
        if complaints and any(item.is_image and not item.images for item in series.values()):
            warnings.warn(f"dcm2niix: {first_few(complaints)}", UserWarning, stacklevel=2)
        usable = [item for item in series.values() if item.b]
        if not usable:
            reasons = "; ".join(
                f"series {item.number} {item.text('SeriesDescription')!r}: {item.refusal}"
                for item in list(series.values())[:8]
            )
            raise ValueError(f"{folder} holds no diffusion series ({reasons})")
        for number, patient in enumerate(patients, start=1):
            of_patient = [item for item in usable if item.text("PatientID") == patient]
            _store(of_patient, subject or f"{number:02d}", out, overwrite=overwrite)
    table = pd.DataFrame([item.row for item in series.values()])
    describe_dataset(out, "Diffusion series", "raw", _README, "dcm2niix")
    write_text(out / "sourcedata" / "series.tsv", table_text(table.replace("", None), digits=None))
    return table


def _read_series(folder: Path) -> dict[str, DicomSeries]:
    """Group the DICOM files of a folder by series, from their headers alone."""
    pydicom = import_optional("pydicom")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder; name one of DICOM files")
    series: dict[str, DicomSeries] = {}
    for path in filter(Path.is_file, sorted(folder.rglob("*"))):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
        except (pydicom.errors.InvalidDicomError, OSError, ValueError, AttributeError):
            continue
        if uid := str(header.get("SeriesInstanceUID", "")):
            series.setdefault(uid, DicomSeries(header)).n_files += 1
    if not series:
        raise ValueError(
            f"{folder} holds no DICOM file (linked folders are not searched); check the folder"
        )
    order = sorted(series, key=lambda uid: (series[uid].text("PatientID"), series[uid].number))
    return {uid: series[uid] for uid in order}


def _judge(item: DicomSeries) -> None:
    """Keep the image of a series that is one of diffusion, or say why there is none."""
    if not item.is_image:
        item.refusal = "no images (spectra or raw data)"
        item.images = []
    usable, reasons = [], []
    for image in item.images:
        bval = _beside(image, "bval")
        kinds = {str(word).upper() for word in _sidecar(image).get("ImageType", ())}
        try:
            n_axes = len(read_grid(image)[0])
        except ValueError:
            reasons.append("no regular grid of slices (a file may be missing)")
            continue
        if derived := kinds.intersection(_DERIVED):
            reasons.append(f"a map that was computed ({min(derived)})")
        elif not bval.is_file():
            reasons.append("no b-values")
        elif n_axes != 4 or read_numbers(bval).max() < _SMALLEST_B:
            reasons.append("no volumes that differ in b")
        elif {"PHASE", "P"} & kinds:
            reasons.append("phase images")
        else:
            usable.append(image)
    if item.images:
        item.refusal = ", ".join(dict.fromkeys(reasons))
    if usable:
        item.images = usable
        b = np.concatenate([read_numbers(_beside(image, "bval")).ravel() for image in usable])
        values, counts = np.unique(np.round(b), return_counts=True)
        texts = [f"{b:g} ({n})" for b, n in zip(values, counts, strict=True)]
        item.b = ", ".join([*texts[:12], "…"] if len(texts) > 12 else texts)
        item.te = _echo_time(usable[0])


def _store(series: Sequence[DicomSeries], label: str, out: Path, *, overwrite: bool) -> None:
    """Write the images of one patient under their BIDS names."""
    studies = sorted({item.study for item in series})
    for number, study in enumerate(studies, start=1):
        entities, folder = f"sub-{label}", out / f"sub-{label}"
        if len(studies) > 1:
            entities, folder = f"{entities}_ses-{number}", folder / f"ses-{number}"
        images = {image: item for item in series if item.study == study for image in item.images}
        files: dict[str, Path] = {}
        for (image, item), name in zip(images.items(), _names(list(images)), strict=True):
            item.names.append(f"{entities}{name}_dwi.nii.gz")
            for ending in _ENDINGS:
                if _beside(image, ending).is_file():
                    files[f"{entities}{name}_dwi.{ending}"] = _beside(image, ending)
        with FileSet(folder / "dwi", files, overwrite=overwrite) as file_set:
            for target, path in files.items():
                shutil.copyfile(path, file_set.path(target))


def _names(images: Sequence[Path]) -> list[str]:
    """Tell the images of a study apart: by echo time where nothing else differs, else by run."""
    if len(images) == 1:
        return [""]
    groups: dict[tuple[Any, ...], list[Path]] = defaultdict(list)
    for image in images:
        shape, affine = read_grid(image)
        b = np.round(read_numbers(_beside(image, "bval")), -1)
        groups[shape, affine.round(3).tobytes(), b.tobytes()].append(image)
    names: dict[Path, str] = {}
    for run, members in enumerate(groups.values(), start=1):
        times = np.array([_echo_time(image) for image in members])
        # With one decimal (60p4) where whole ones are not all different.
        digits = 0 if len(set(np.rint(1e3 * times))) == len(times) else 1
        # Without echo times, or with one twice, they are repeats.
        is_multi_echo = len(members) > 1 and np.all(np.diff(np.sort(times)) > _SAME_TE)
        for position, (image, te) in enumerate(zip(members, times, strict=True), start=1):
            milliseconds = f"{1e3 * te:.{digits}f}".removesuffix(".0").replace(".", "p")
            name = f"_acq-TE{milliseconds}" if is_multi_echo else ""
            if len(groups) > 1 and (is_multi_echo or len(members) == 1):
                name += f"_run-{run}"
            elif not is_multi_echo:
                name += f"_run-{position}" if len(groups) == 1 else f"_run-{run}{position:02d}"
            names[image] = name
    return [names[image] for image in images]


def _echo_time(image: Path) -> float:
    return float(_sidecar(image).get("EchoTime", np.nan))


def _beside(image: Path, ending: str) -> Path:
    return image.with_name(f"{image.name.removesuffix('.nii.gz')}.{ending}")


def _sidecar(image: Path) -> Mapping[str, Any]:
    return read_object(_beside(image, "json")) or {}
