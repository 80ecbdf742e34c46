"""Diffusion scans of a BIDS folder: images, what belongs to them, and masks by a pattern."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

from dmrifit._utils.text_files import read_object
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.scan_manifest import Manifest, manifest_of
from dmrifit.io.series import Series
from dmrifit.io.tables import number_in

_IMAGE = re.compile(r"sub-[a-zA-Z0-9+]+(_[a-zA-Z]+-[a-zA-Z0-9+]+)*_dwi\.nii(\.gz)?")
_ENTITY = re.compile(r"(?:^|(?<=_))([a-zA-Z]+)-([a-zA-Z0-9+]+)(?=[_./]|$)")

#: What tells images of several echo times apart, which are one scan.
_ECHO = re.compile(r"_(echo-[a-zA-Z0-9+]+|acq-[tT][eE]\d+(p\d)?)(?=_)")

#: Entities of a mask that only say what kind of file it is.
_OF_KIND = ("desc", "label", "space", "res", "den", "model", "param")


@dataclass(frozen=True)
class DiffusionScan:
    """The images of one diffusion scan: one, or one for each echo time."""

    name: str  # what the names of its images share, without the suffix: sub-01_ses-1
    images: tuple[Path, ...]  # in the order of their names
    folder: Path  # its place among others: sub-01/ses-1/dwi, or its name
    root: Path  # the folder from which sidecars are inherited

    @property
    def entities(self) -> dict[str, str]:
        """Entities that the names of its images share."""
        return dict(_ENTITY.findall(self.name))

    @property
    def subject(self) -> str:
        """Label of its subject; its name where that has none."""
        return self.entities.get("sub", self.name)

    @property
    def visit(self) -> str:
        """Labels of its session and its run (runs are repeats, too), or 1 where it has none."""
        session, run = (self.entities.get(key, "") for key in ("ses", "run"))
        return " ".join(filter(None, (session, run and f"run-{run}"))) or "1"

    def files(self) -> list[dict[str, str]]:
        """Find the b-values, directions and echo times of each image, as absolute paths."""
        rows = []
        for image in self.images:
            files = {
                "image": image,
                "bval": next(_applicable(image, "bval", self.root), None),
                "bvec": next(_applicable(image, "bvec", self.root), None),
                "te": _echo_time_file(image, self.root),
            }
            # Not resolved: files of git-annex are links to files without the names of the scan.
            rows.append({name: str(path.absolute()) for name, path in files.items() if path})
        return rows

    def sidecars(self) -> list[Path]:
        """List the files that its protocol may be read from."""
        paths: list[Path] = []
        for image, ending in product(self.images, ("bval", "bvec", "te", "json")):
            paths += _applicable(image, ending, self.root)
        return list(dict.fromkeys(paths))

    def read(self, te: str | None = None) -> Manifest:
        """Read its protocol; `te`, a number in ms or a file, takes the place of sidecars."""
        if len(self.images) == 1:
            # A single volume needs other volumes before it needs b-values.
            Series.open(self.images[0])
        rows = self.files()
        if te is not None and sum("te" in row for row in rows) > 1:
            raise ValueError(
                f"--te {te}: the {len(rows)} images of {self.name} have echo times of their own; "
                "leave the option out"
            )
        gradient_files: dict[str, None] = {}
        for row in rows:
            if te is not None:
                row["te"] = str(Path(te).absolute()) if number_in(te) is None else te
            gradients = (row[ending] for ending in ("bval", "bvec") if ending in row)
            gradient_files |= dict.fromkeys(gradients)
        named_rows = [(str(image), row) for image, row in zip(self.images, rows, strict=True)]
        # No table need exist: the rows hold absolute paths.
        table = self.root / f"{self.name}.tsv"
        return manifest_of(named_rows, table, source=", ".join(gradient_files))


def is_bids_folder(path: Path) -> bool:
    """Tell whether a folder holds subjects as BIDS names them."""
    return path.is_dir() and any(entry.is_dir() for entry in path.glob("sub-*"))


def find_scans(root: Path) -> list[DiffusionScan]:
    """Find the diffusion scans of a BIDS folder; images of several echo times are one scan."""
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in sorted((*root.glob("sub-*/dwi/*"), *root.glob("sub-*/ses-*/dwi/*"))):
        # Phase, real and imaginary parts are no magnitudes.
        part = dict(_ENTITY.findall(stem(path))).get("part", "mag")
        if _IMAGE.fullmatch(path.name) and part == "mag":
            name = _ECHO.sub("", stem(path)).removesuffix("_dwi")
            groups[path.parent, name].append(path)
    if not groups:
        raise ValueError(
            f"{root} is a BIDS folder without diffusion images (no sub-*/dwi/*_dwi.nii.gz, nor "
            "sub-*/ses-*/dwi/*_dwi.nii.gz); check the folder"
        )
    return [
        DiffusionScan(name, tuple(images), folder.relative_to(root), root)
        for (folder, name), images in sorted(groups.items())
    ]


def plain_scan(name: str, image: Path) -> DiffusionScan:
    """Take an image, whose file is named in any way, as a scan of this name."""
    # In a BIDS folder, which holds that of the subject, an image inherits sidecars from above.
    subject = image.name.partition("_")[0]
    roots = (folder.parent for folder in image.absolute().parents if folder.name == subject)
    root = next(roots, image.parent) if subject.startswith("sub-") else image.parent
    return DiffusionScan(name, (image,), Path(name), root)


def match_files(
    option: str, pattern: str, scans: Sequence[DiffusionScan], root: Path
) -> dict[str, Path | None]:
    """
    Find for each scan the file that a pattern matches and whose name is of the scan.

    Names are compared by the entities that both have (sub-01, ses-1, run-2, not desc- and the
    like), and by those that tell scans of the subject apart; of several files, that with the most
    in common is taken. Where scans' names have no subject, the file's name begins with the longest
    of them that it can, or its folder has that name. Gives None where no file is of a scan.
    """
    absolute = os.path.join(glob.escape(str(root.absolute())), pattern)
    paths = [Path(path) for path in sorted(glob.glob(absolute, recursive=True))]
    if not paths:
        raise FileNotFoundError(
            f"{option} {pattern}: no file matches; patterns such as "
            f"'derivatives/masks/sub-*/**/*_mask.nii.gz' are relative to {root.resolve()}"
        )
    scan_names = [scan.name for scan in scans]
    named: dict[str, list[Path]] = defaultdict(list)
    file_entities: dict[Path, dict[str, str]] = {}
    for path in paths:
        beginnings = [
            name
            for name in scan_names
            if re.match(rf"{re.escape(name)}(?![a-zA-Z0-9])", path.name)
        ]
        # Of folders for each patient, the files may have one name.
        folders = [name for name in scan_names if name == path.parent.name]
        named[max(beginnings or folders, key=len, default="")].append(path)
        # Entities of the folders count too, but the last of a kind is taken: folders of a pipeline
        # may have entities of their own.
        place, top = Path(os.path.abspath(path)), Path(os.path.abspath(root))
        if top not in place.parents:
            place, top = path.parent.resolve() / path.name, root.resolve()
        parts = place.relative_to(top).parts if top in place.parents else (path.name,)
        entities = chain.from_iterable(_ENTITY.findall(stem(part)) for part in parts)
        file_entities[path] = dict(entities)
    matched: dict[str, Path | None] = {}
    for scan in scans:
        candidates = named[scan.name]
        if "sub" in scan.entities:
            siblings = [sibling for sibling in scans if sibling.subject == scan.subject]
            n_shared = {
                path: len(entities.items() & scan.entities.items())
                for path, entities in file_entities.items()
                if _is_of(entities, scan, siblings)
            }
            most = max(n_shared.values(), default=0)
            candidates = [path for path, n in n_shared.items() if n == most]
        if len(candidates) > 1:
            names = ", ".join(path.name for path in candidates[:4])
            raise ValueError(
                f"{option} {pattern}: {scan.name} has {len(candidates)} of them ({names}); write "
                "a pattern that matches one"
            )
        matched[scan.name] = next(iter(candidates), None)
    return matched


def _is_of(
    entities: dict[str, str], scan: DiffusionScan, siblings: Sequence[DiffusionScan]
) -> bool:
    """Tell whether a file with these entities is of one of the scans of a subject."""
    if "sub" not in entities:
        return False
    keys = {key for sibling in siblings for key in sibling.entities}.difference(_OF_KIND)
    for key in keys:
        value = entities.get(key, "")
        if value == scan.entities.get(key, ""):
            continue
        # A file without an entity that all scans of the subject have belongs to all of them.
        if value or not all(key in sibling.entities for sibling in siblings):
            return False
    return True


def _applicable(image: Path, ending: str, root: Path) -> Iterator[Path]:
    """List files that apply to an image: its own, then others of its folder and those above."""
    *entities, suffix = stem(image).split("_")
    beside = image.with_name(f"{stem(image)}.{ending}")
    # A link whose content is yet to be fetched would be the file.
    if os.path.lexists(beside):
        yield beside
    folder, top = (Path(os.path.abspath(path)) for path in (image.parent, root))
    folders = [folder, *folder.parents]
    for folder in folders[: folders.index(top) + 1 if top in folders else 1]:
        shared = []
        for path in folder.glob(f"*{suffix}.{ending}"):
            *words, last = path.name.removesuffix(f".{ending}").split("_")
            if last == suffix and set(words) < set(entities):
                shared.append((len(words), path))
        # The file with more entities is the more specific one.
        yield from [path for _, path in sorted(shared, reverse=True)]


def _echo_time_file(image: Path, root: Path) -> Path | None:
    """Find the text file or sidecar that holds the echo time of an image."""
    text_file = image.with_name(f"{stem(image)}.te")
    if os.path.lexists(text_file):
        return text_file
    for sidecar in _applicable(image, "json", root):
        description = read_object(sidecar)
        # A damaged sidecar is reported where it is read.
        if description is None or "EchoTime" in description:
            return sidecar
    return None
