"""The measurements of a scan, in one file or several, read slab by slab."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from dmrifit._utils.checks import filled
from dmrifit._utils.counts import counted, size_text
from dmrifit._utils.progress import step_bar
from dmrifit.engine.protocol import Protocol
from dmrifit.io.atomic_files import NO_ROOM
from dmrifit.io.bids_derivatives import common_stem
from dmrifit.io.chunked_arrays import Array, placed, slices_of
from dmrifit.io.grids import three_axes, turn_to_grid
from dmrifit.io.nifti import (
    COMPRESSED,
    DAMAGED,
    Image,
    Images,
    check_length,
    check_magnitudes,
    check_real,
    damaged,
    file_of,
    image_name,
    load_image,
    spatial_header,
    unpack,
    values_of,
    warn_of_two_positions,
)

#: Measurements are read and worked on in slabs of whole slices of about this many values (16 MB).
SLAB_VALUES = 2**21

_SAMPLE = 10**5  # values that are compared with the largest one


@dataclass(frozen=True)
class Part:
    """
    One image of a series: its name in messages, its file if it has one, and its measurements.

    Shapes: `data` (x, y, z, m) or (x, y, z); slicing it applies the scale factors of the file.
    """

    name: str
    path: Path | None
    data: Any

    @property
    def n_measurements(self) -> int:
        """Number of volumes."""
        return self.data.shape[3] if len(self.data.shape) == 4 else 1

    def read(self, index: tuple[slice, ...]) -> NDArray:
        """Read a block of voxels and measurements (x, y, z, m)."""
        try:
            # A value that scale factors make too large is infinite, and left out of fits.
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.asarray(filled(self.data[index[: len(self.data.shape)]]))
        except DAMAGED as error:
            raise damaged(self.name, error, self.data) from error
        return values if values.ndim == 4 else values[..., None]

    @contextmanager
    def unpacked(self) -> Iterator[Part]:
        """Check that the file is whole, and unpack a compressed one while the block lasts."""
        if self.path is None:
            yield self
            return
        with ExitStack() as stack:
            try:
                if not self.path.name.lower().endswith(COMPRESSED):
                    check_length(self.path.stat().st_size, self.data, self.name)
                    data = self.data
                else:
                    # A slice can only be reached by unpacking from the start, so all is unpacked
                    # once, into a file without a name that vanishes even if the process is killed.
                    file = stack.enter_context(tempfile.TemporaryFile())
                    data = unpack(self.path, self.data, file, self.name)
            except DAMAGED as error:
                if getattr(error, "errno", None) in NO_ROOM:
                    raise type(error)(
                        f"no room to unpack {self.name} in {tempfile.gettempdir()}; "
                        "set TMPDIR to a larger place"
                    ) from error
                raise damaged(self.name, error) from error
            yield replace(self, data=data)


#: Takes a slab and its values (x, y, slices, m).
WholeSlab = Callable[[slice, NDArray], None]


@dataclass(frozen=True)
class Series:
    """
    The measurements of a scan, in one 4-D image or in several, read slab by slab.

    The volumes of `parts` follow each other; the header is that of the first image.
    """

    parts: tuple[Part, ...]
    affine: NDArray[np.float64]
    header: nib.Nifti1Header
    image_class: type[nib.Nifti1Pair]
    dtype: ClassVar[np.dtype] = np.dtype(np.float32)  # of the values of blocks

    @classmethod
    def open(cls, images: Images) -> Series:
        """Read and check the headers of one image or several."""
        sources = placed(images, None)
        if not isinstance(sources, list | tuple):
            sources = [sources]
        names = [image_name(source) for source in sources]
        if not names:
            raise ValueError("a list of images must name at least one")
        loaded = [load_image(source) for source in sources]
        if isinstance(sources[0], nib.Nifti1Pair):
            warn_of_two_positions(loaded[0], names[0])
        first = loaded[0]
        members = []
        for image, name in zip(loaded, names, strict=True):
            shape = image.shape
            if len(shape) != 4 and not (len(shape) == 3 and len(names) > 1):
                message = (
                    f"{name} is {len(shape)}-D ({size_text(shape)}); "
                    "a 4-D image (x, y, z, measurements) is needed"
                )
                if len(shape) <= 4:
                    message += "; join the images of a scan (nibabel.concat_images)"
                    message += ", or name them in a table (.tsv)"
                raise ValueError(message)
            check_real(image.get_data_dtype(), name)
            if 0 in shape:
                raise ValueError(f"{name} is empty, its shape is {shape}; convert the scan again")
            members.append(Part(name, file_of(image), image.dataobj))
            grid, reference = (image.shape[:3], image.affine), (first.shape[:3], first.affine)
            turn = turn_to_grid(grid, reference, name=name, reference_name=names[0])
            # Not turned here: the gradient directions beside a file are along its axes.
            if (turn != io_orientation(np.eye(4))).any():
                axes, first_axes = ("".join(nib.aff2axcodes(x.affine)) for x in (image, first))
                raise ValueError(
                    f"the axes of {name} are stored in the order {axes}, those of {names[0]} in "
                    f"{first_axes}: convert all files of a scan in one order of axes, their .bvec "
                    "files too"
                )
        # Maps are single files, also when the input is a pair of .hdr and .img.
        is_nifti2 = isinstance(first.header, nib.Nifti2Header)
        image_class = nib.Nifti2Image if is_nifti2 else nib.Nifti1Image
        return cls(tuple(members), first.affine, first.header, image_class)

    @property
    def name(self) -> str:
        """Its name in messages."""
        more = f" and {len(self.parts) - 1} more" if len(self.parts) > 1 else ""
        return self.parts[0].name + more

    @property
    def stem(self) -> str:
        """What the names of its files share, without folder and extensions; may be empty."""
        return common_stem([image.path for image in self.parts if image.path is not None])

    @property
    def grid(self) -> tuple[int, int, int]:
        """Numbers of voxels."""
        x, y, z = self.parts[0].data.shape[:3]
        return x, y, z

    @property
    def n_measurements(self) -> int:
        """Number of volumes."""
        return sum(image.n_measurements for image in self.parts)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Numbers of voxels and volumes."""
        return *self.grid, self.n_measurements

    @property
    def chunks(self) -> Any:
        """Blocks that the first image is stored in, if it is."""
        return getattr(self.parts[0].data, "chunks", None)

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[np.float32]:
        """Read a block (x, y, z, m); `index` has a slice for each axis."""
        # In the order of files: to turn the axes around takes longer than to read.
        return self._read(index, np.float32, "F")

    def check_count(self, protocol: Protocol) -> None:
        """Make sure that there is one volume for each measurement of a protocol."""
        if self.n_measurements != len(protocol):
            title = f"the protocol of {protocol.name}" if protocol.name else "the protocol"
            raise ValueError(
                f"{self.name} has {counted(self.n_measurements, 'volume')}, but {title} has "
                f"{counted(len(protocol), 'b-value')}; check that both belong to one scan"
            )

    @contextmanager
    def unpacked(self) -> Iterator[Series]:
        """Check that all files are whole, and unpack compressed ones while the block lasts."""
        with ExitStack() as stack:
            unpacked = [stack.enter_context(image.unpacked()) for image in self.parts]
            yield replace(self, parts=tuple(unpacked))

    def read(self, slab: slice, dtype: type[np.floating] = np.float64) -> NDArray:
        """Read slices (x, y, slices, m); all of them at once are checked for extreme values."""
        every = slice(None)
        values = self._read((every, every, slab, every), dtype)
        # Voxels that are fitted alone spoil no other; whole images are filtered and normalized.
        if slab == every:
            check_magnitudes(values, self.name)
        return values

    def check_magnitudes(self) -> None:
        """Refuse, or warn of, values that spoil what is made of the whole image."""
        step = max(1, math.prod(self.shape) // _SAMPLE)
        samples, extremes = [], []
        for _, values in read_slabs(self):
            flat = values.ravel(order="K")
            samples.append(flat[flat != 0][::step])
            extremes += [np.fmax.reduce(values, axis=None), np.fmin.reduce(values, axis=None)]
        if step > 1:
            samples.append(np.array([np.fmax.reduce(extremes), np.fmin.reduce(extremes)]))
        check_magnitudes(np.concatenate(samples), self.name)

    def _read(
        self, index: tuple[slice, ...], dtype: type[np.floating], order: Literal["C", "F"] = "C"
    ) -> NDArray:
        """Read a block of all images, the measurements of one behind those of the other."""
        ranges = [range(n)[part] for n, part in zip(self.shape, index, strict=True)]
        columns = ranges[3]
        values = np.empty([len(part) for part in ranges], dtype, order)
        end = 0
        for image in self.parts:
            first, end = end, end + image.n_measurements
            start, stop = max(columns.start, first), min(columns.stop, end)
            if start < stop:
                block = image.read((*index[:3], slice(start - first, stop - first)))
                with np.errstate(over="ignore"):
                    values[..., start - columns.start : stop - columns.start] = block
        return values

    def slabs(
        self,
        region: NDArray[np.bool_] | None,
        *,
        progress: bool,
        task: str,
        whole: WholeSlab | None = None,
    ) -> Iterator[tuple[slice, NDArray[np.bool_], NDArray[np.float64]]]:
        """
        Read the voxels of a region, or all with signal, some slices at a time.

        `whole` is shown each slab with what lies outside the region, too.

        Shapes: `region` (x, y, z); yields a slab, inside (x, y, slices), voxels (n_voxels, m).
        """
        for slab in self._slabs_of_region(region, progress=progress, task=task):
            signals = self.read(slab)
            inside = _inside(region, slab, signals)
            if inside.any():
                if whole is not None:
                    whole(slab, signals)
                voxels = signals[inside]
                # The whole slab would stay in memory while the caller works on its voxels.
                del signals
                yield slab, inside, voxels

    def slabs_with_margin(
        self, region: NDArray[np.bool_] | None, margin: int, *, progress: bool, task: str
    ) -> Iterator[tuple[slice, slice, NDArray[np.bool_], NDArray[np.float64]]]:
        """
        Read slices, some at a time, with their neighbors above and below.

        Shapes: yields a slab, the slab with its neighbors, inside (x, y, slices), values (x, y,
        slices, m).
        """
        for slab in self._slabs_of_region(region, margin, progress=progress, task=task):
            around = slice(max(0, slab.start - margin), min(self.grid[2], slab.stop + margin))
            values = self.read(around)
            yield slab, around, _inside(region, around, values), values

    def _slabs_of_region(
        self, region: NDArray[np.bool_] | None, margin: int = 0, *, progress: bool, task: str
    ) -> Iterator[slice]:
        """Choose slabs that hold a voxel of the region, and show how far the work is."""
        x, y, n_slices = self.grid
        # The margins are in memory with their slab.
        thickness = max(1, SLAB_VALUES // (x * y * self.n_measurements) - 2 * margin)
        with step_bar(n_slices, "slice", task, leave=False, show=progress) as count:
            for slab in slices_of(n_slices, thickness, [image.data for image in self.parts]):
                if region is None or region[:, :, slab].any():
                    yield slab
                count(n=slab.stop - slab.start)

    def read_map(self, image: Image, unnamed: str = "the map") -> NDArray:
        """Read a 3-D image on this grid, with its axes; in messages one in memory is `unnamed`."""
        loaded, name = load_image(image, unnamed), image_name(image, unnamed)
        # Before the values are read: a whole series may be named as a mask.
        shape = three_axes(np.broadcast_to(np.float32(0), loaded.shape), name).shape
        grid, reference = (shape, loaded.affine), (self.grid, self.affine)
        turn = turn_to_grid(grid, reference, name=name, reference_name=self.name)
        return apply_orientation(values_of(loaded, name).reshape(shape), turn)

    def map(self, values: NDArray, description: str) -> nib.Nifti1Pair:
        """Make an image of values (x, y, z) on this grid, with the spatial part of the header."""
        # The other fields of a header describe the measurements or the patient, not the map.
        header = spatial_header(self.header)
        header.set_data_dtype(values.dtype)
        header["descrip"] = description.encode("ascii", "replace")[:79]
        return self.image_class(values, self.affine, header)

    def describe(self) -> dict[str, Any]:
        """Describe the grid for a sidecar."""
        return {"Grid": {"Shape": list(self.grid), "Affine": self.affine.tolist()}}


def read_slabs(signals: Array) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Read slabs (x, y, slices, m) of an array, in the order that it is stored in."""
    x, y, z, n = signals.shape
    every = slice(None)
    for slab in slices_of(z, max(1, SLAB_VALUES // (x * y * n)), [signals]):
        yield slab, np.asarray(signals[every, every, slab, every], dtype=np.float32)


def _inside(
    region: NDArray[np.bool_] | None, slab: slice, signals: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Take a slab of a region; by default voxels with a measurement that is neither 0 nor NaN."""
    if region is not None:
        return region[:, :, slab]
    return ((signals != 0) & ~np.isnan(signals)).any(axis=-1)
