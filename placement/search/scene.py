"""The scene that a voxel is placed in: the tumor, its grid, and excluded regions."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from dmrifit._utils.affines import voxel_volume
from dmrifit._utils.checks import check_number, errors_about
from dmrifit._utils.counts import first_few, percent
from dmrifit.io.components import check_affine, label_components
from dmrifit.io.grids import cropped, three_axes, turn_to_grid
from dmrifit.io.masks import MASK_THRESHOLD, binarize
from dmrifit.io.nifti import Image, describe_sources, image_name, load_image, values_of
from placement.box.row_integrals import Rows
from placement.box.voxel import MM3_PER_ML, Voxel, nearest_storage, reoriented
from placement.search import tissue_labels

__all__ = ["Scene"]

Labels: TypeAlias = int | Sequence[int]
Index: TypeAlias = tuple[int, int, int]

#: Index of the first voxel in the image, and the mask from there on.
Region: TypeAlias = tuple[Index, NDArray[np.bool_]]

#: Files that scale labels give them back with an error of single precision.
LABEL_TOLERANCE = 1e-4

#: Above this ratio of the longest to the shortest edge of image voxels, an affine is likely wrong.
LARGEST_EDGE_RATIO = 10.0

#: No head is larger, in mm, and memory grows with the third power of a margin.
_MOST_MARGIN = 100.0

#: Steps to the nearest points of image voxels, enough for distances exact to 0.01 mm.
_N_STEPS = 50

#: Above this part of enhancing tissue inside necrosis, the names of labels are doubted.
_MOST_ENCLOSED = 0.5

#: Above this part of a tumor outside the mask of the brain, the mask is doubted.
_CUT_OFF = 0.01


class Scene:
    """
    A tumor on the grid of an image, with excluded regions.

    Parameters
    ----------
    tumor : array_like of shape (x, y, z)
        A mask of two values (False and True, or 0 and one number), probabilities from 0 to 1, or
        whole numbers as labels of which `include` names those to measure. NaN is outside, here
        and in masks. A last dimension of length 1 is dropped.
    affine : array_like of shape (4, 4)
        From voxel indices to mm, RAS+ as in NIfTI. Oblique, flipped, sheared and anisotropic ones
        are fine.
    include : int or sequence of int, default=None
        Labels that count as tumor, such as ``(3, 4)`` for the solid part in BraTS. Needed where
        `tumor` has several.
    exclude : int, sequence of int, array_like, sequence of array_like or mapping, default=None
        What no voxel may touch: labels of `tumor`, such as necrosis; masks on the grid of `tumor`
        (True, or above 0.5), such as ventricles; or a mapping from names to either.
    exclude_margin : float or mapping of str to float, default=0.0
        How far the voxel's faces must stay away from what is excluded, 0 to 100 mm; by name, where
        regions differ.
    exclude_tolerance : float or mapping of str to float, default=0.0
        Which part of the voxel, grown by the margin, may be excluded; by name, where regions
        differ. 0 is strict, as for skull and ventricles. Where single voxels of a label such as
        necrosis lie all over a tumor, no strict box is large: tolerate a few percent of it, such
        as ``{"label 1": 0.05}``, or only leave it out of `include`.
    image : array_like of shape (x, y, z, ...), default=None
        The image that the tumor was drawn on, for figures and for networks.
    labels : str, or mapping of str to int, sequence of int or array_like, default=None
        A scheme ("brats2013", "brats2017", "brats2023") or a table (.tsv) with the columns index
        and name; or values of `tumor`, or masks on its grid, by the names of tissues: "necrosis",
        "necrosis or non-enhancing" (where a scheme merges them), "non-enhancing", "enhancing",
        "edema", "resection cavity". Unless `include` names the target, it is then solid tumor
        (non-enhancing and enhancing), and a box may hold up to `tissue_labels.LIMITS` of the
        others.
    flair_target : bool, default=False
        Whether FLAIR-bright tissue (edema, too) is the target in a tumor in which nothing is
        labeled as enhancing, or solid tumor is smaller than `min_volume`.
    min_volume : float, default=6.0
        The least volume of a box, in mL, that solid tumor is compared with.
    brain : array_like of shape (x, y, z), default=None
        Mask of the brain, outside of which no voxel may reach.
    brain_margin : float, default=2.0
        How far the voxel's faces must stay within the brain, in mm.
    name : str, default=""
        What messages and tables call the case.
    synthetic : bool, default=False
        Whether the case was simulated, which pages and figures say then.

    Attributes
    ----------
    affine : ndarray of shape (4, 4)
        As given.
    shape : tuple of 3 int
        Numbers of voxels of the image.
    origin : tuple of 3 int
        Index of the first voxel of `occupancy` in the image.
    occupancy : ndarray of float32, shape (a, b, c)
        How much of each image voxel is tumor, cropped to where there is any.
    margins, tolerances : dict of str to float
        The margin in mm and the tolerated part of each excluded region, among them the limits of
        labeled tissues and what lies outside the brain.
    excluded : tuple of str
        The regions that were excluded by name, without those limits.
    targets : tuple of str
        The tissues that are the target, empty without `labels` or with `include`.
    cut_off_volume, cut_off_share : float
        Tumor (with `labels`, all labeled tissue) outside the mask of the brain, in mL and as a
        part of that tumor; NaN without `brain`.
    notes : tuple of str
        Why the target is what it is, and what speaks against the names of the labels.
    image, name, synthetic
        As given.

    Raises
    ------
    ValueError
        If there is no tumor or all of it is excluded, labels are not named or not there, a value
        is not finite or neither a label nor a probability, the affine places no voxels, a mask is
        on another grid, or a margin or tolerance is out of range.

    Warns
    -----
    UserWarning
        If edges of image voxels differ more than tenfold, or the tumor reaches the border of the
        image.
    """

    def __init__(
        self,
        tumor: ArrayLike,
        affine: ArrayLike,
        *,
        include: Labels | None = None,
        exclude: Any = None,
        exclude_margin: float | Mapping[str, float] = 0.0,
        exclude_tolerance: float | Mapping[str, float] = 0.0,
        image: ArrayLike | None = None,
        labels: str | Mapping[str, Any] | None = None,
        flair_target: bool = False,
        min_volume: float = 6.0,
        brain: ArrayLike | None = None,
        brain_margin: float = 2.0,
        name: str = "",
        synthetic: bool = False,
    ) -> None:
        self.name = name
        self.synthetic = bool(synthetic)
        self.sources: dict[str, dict[str, str]] = {}
        self.affine = _checked_affine(affine, self._title)
        values = _volume(tumor, f"the tumor of {self._title}")
        self.shape: Index = values.shape
        self.image = None if image is None else np.asarray(image)
        if self.image is not None:
            self._check_shape(self.image, "the image")
        low, crop = _cropped(values)
        self._tissues: dict[str, Region] = {}
        self.targets: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        if isinstance(labels, str):
            labels = tissue_labels.named_labels(labels)
        if labels is not None:
            self._tissues = self._labeled(labels, low, crop)
            self.notes += self._doubtful_labels(labels)
            if include is None:
                volumes = {
                    key: np.count_nonzero(mask) * self.voxel_volume
                    for key, (_, mask) in self._tissues.items()
                }
                self.targets, reason = tissue_labels.target_tissues(
                    volumes,
                    flair_target=flair_target,
                    min_volume=min_volume,
                    title=self._title,
                    is_mask=crop.min() >= 0 and crop.max() == 1,
                )
                self.notes += (reason,) * bool(reason)
        if self.targets:
            _, _, present = _read_values(crop, include, self._title, named=True)
            # Other named tissues may be excluded, such as necrosis.
            entries = [entry for key, entry in (labels or {}).items() if key in self.targets]
            values_included: Collection[int] = tissue_labels.numbers(filter(_are_labels, entries))
            tumor_low, tumor_crop = self._joined(self.targets)
        else:
            tumor_low = low
            tumor_crop, values_included, present = _read_values(crop, include, self._title)
        regions = _named(exclude)
        self._forbidden: dict[str, Region] = {}
        # Regions that fill most of an image are stored as what they leave out.
        self.inverted: set[str] = set()
        for key, region in regions.items():
            self._forbidden[key] = self._region(key, region, low, crop, values_included, present)
        names = list(regions)
        self.excluded = tuple(names)
        self.margins = _by_region(exclude_margin, names, "exclude_margin", _MOST_MARGIN)
        self.tolerances = _by_region(exclude_tolerance, names, "exclude_tolerance", 1.0)
        if self.targets:
            self._limit_tissues()
        self.cut_off_volume = self.cut_off_share = float("nan")
        if brain is not None:
            self._keep_in_brain(brain, brain_margin)
        # Cropped again: included labels may fill less of the image than all labels.
        inner, occupancy = _cropped(tumor_crop)
        self.origin = _shifted(inner, tumor_low)
        self.occupancy = np.ascontiguousarray(occupancy, dtype=np.float32)
        self.occupancy.flags.writeable = False
        if brain is not None:
            self._measure_cut_off()
        if not self.occupancy.any():
            hint = "" if include is None else f" and {include=}"
            raise ValueError(f"{self._title}: no voxel is tumor; check the mask{hint}")
        if self.margins:
            excluded = self.forbidden_in(self.origin, self.occupancy.shape)
            if not (self.occupancy * ~excluded).any():
                raise ValueError(
                    f"{self._title}: all of the tumor is excluded by {', '.join(self.margins)}; "
                    "exclude less"
                )
        #: The image whose frame of reference the case has, where it was read from a file.
        self.placed_in: Path | None = None
        self._is_canonical = False
        if self.touches_border:
            warnings.warn(
                f"{self._title}: the tumor reaches the border of the image; "
                "what lies beyond counts as no tumor",
                UserWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        return f"Scene({self.name!r}, shape={self.shape}, tumor_volume={self.tumor_volume:.3g} mL)"

    @classmethod
    def read(
        cls,
        tumor: Image,
        exclude: Any = None,
        image: Image | None = None,
        *,
        include: Labels | None = None,
        exclude_margin: float | Mapping[str, float] = 0.0,
        exclude_tolerance: float | Mapping[str, float] = 0.0,
        labels: str | Mapping[str, Any] | None = None,
        flair_target: bool = False,
        min_volume: float = 6.0,
        brain: Image | None = None,
        brain_margin: float = 2.0,
        name: str | None = None,
        synthetic: bool = False,
    ) -> Scene:
        """
        Read a scene from NIfTI files.

        Parameters
        ----------
        tumor : path or Nifti1Image
            The mask, probabilities or labels.
        exclude : path, image, int, sequence or mapping of these, default=None
            As for the constructor, with files or Nifti1Image in place of arrays.
        image : path or Nifti1Image, default=None
            The image that the tumor was drawn on.
        include : int or sequence of int, default=None
            As for the constructor.
        exclude_margin : float or mapping of str to float, default=0.0
            In mm, as for the constructor.
        exclude_tolerance : float or mapping of str to float, default=0.0
            Parts of the voxel, as for the constructor.
        labels : str, or mapping of str to int or sequence of int, default=None
            A scheme, a table, or values of the file of the tumor by names of tissues, as for the
            constructor.
        flair_target : bool, default=False
            As for the constructor.
        min_volume : float, default=6.0
            In mL, as for the constructor.
        brain : path, Nifti1Image or array, default=None
            Mask of the brain.
        brain_margin : float, default=2.0
            In mm, as for the constructor.
        name : str, default=None
            What messages call the case; by default, the name of the file of the tumor.
        synthetic : bool, default=False
            Whether the case was simulated.

        Returns
        -------
        Scene
            With the digests of its files in ``sources``.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If a file is no NIfTI image or damaged, has neither an sform nor a qform, or has two
            that place voxels more than 0.5 mm apart (``dmrifit.io.nifti.use_form`` names the one
            to use); if grids differ, or as for the constructor.

        Warns
        -----
        UserWarning
            If sform and qform of a file differ by less than that, when the sform is used, or by
            more, when the one that was named is used; of an image in memory, if they differ at
            all.
        """
        loaded = load_image(tumor, needs_position=True)
        title = image_name(tumor)
        reference = loaded.shape[:3], loaded.affine

        def values(file: Image) -> NDArray:
            on_grid = load_image(file)
            grid = on_grid.shape[:3], on_grid.affine
            turn = turn_to_grid(grid, reference, name=image_name(file), reference_name=title)
            return apply_orientation(values_of(on_grid, image_name(file)), turn)

        files = {}
        regions = _named(exclude)
        for key, region in regions.items():
            if not _are_labels(region):
                files[key] = region
                regions[key] = values(region)
        occupied = values_of(loaded, title)
        picture = None if image is None else values(image)
        brain_mask: Any = brain
        if brain is not None and not isinstance(brain, np.ndarray):
            brain_mask = values(brain)
            # Its key is a part of both names by which messages call it.
            files["the brain"] = brain
        try:
            scene = cls(
                occupied,
                loaded.affine,
                include=include,
                exclude=regions or None,
                exclude_margin=exclude_margin,
                exclude_tolerance=exclude_tolerance,
                image=picture,
                labels=labels,
                flair_target=flair_target,
                min_volume=min_volume,
                brain=brain_mask,
                brain_margin=brain_margin,
                name=title if name is None else name,
                synthetic=synthetic,
            )
        except ValueError as error:
            # The message names cases and regions; users also need the files of these.
            message = str(error)
            involved = [tumor, *(file for key, file in files.items() if key in message)]
            paths = [str(file) for file in involved if isinstance(file, str | Path)]
            unnamed = [path for path in paths if path not in message]
            if unnamed:
                message += f" ({', '.join(unnamed)})"
            raise ValueError(message) from None
        files.pop("the brain", None)
        scene.sources = describe_sources(
            Tumor=tumor, Exclude=list(files.values()), Image=image, Brain=brain
        )
        read_from = [file for file in (image, tumor) if isinstance(file, str | Path)]
        scene.placed_in = Path(read_from[0]) if read_from else None
        return scene

    @property
    def _title(self) -> str:
        return self.name or "the scene"

    @property
    def tumor(self) -> NDArray[np.float32]:
        """Fraction of tumor in each image voxel: shape (x, y, z); a new array at each call."""
        return cropped(self.occupancy, np.negative(self.origin), self.shape)

    @property
    def forbidden(self) -> dict[str, NDArray[np.bool_]]:
        """Masks of excluded regions by name, without margins; new arrays at each call."""
        return {key: self.region(key) for key in self._forbidden}

    @property
    def target_name(self) -> str:
        """What pictures call the tissue that a box is meant for."""
        return "target" if self.targets else "tumor"

    @property
    def outlined(self) -> dict[str, tuple[int, NDArray[np.bool_]]]:
        """Regions to outline in a picture, not tissue without a label: number of color, mask."""
        names = [name for name in self.margins if name != tissue_labels.NORMAL]
        outlined = {}
        for name, number in tissue_labels.color_numbers(names).items():
            # What lies outside the brain would have an outline along the border of the image, too.
            is_outside = name == tissue_labels.OUTSIDE_BRAIN
            mask = ~self.region(name) if is_outside else self.region(name)
            outlined["the brain" if is_outside else name] = number, mask
        return outlined

    def region(self, name: str) -> NDArray[np.bool_]:
        """
        Give the mask of an excluded region, without its margin.

        Parameters
        ----------
        name : str
            One of the names of excluded regions.

        Returns
        -------
        ndarray of bool, shape (x, y, z)
            True inside.
        """
        return self.forbidden_in((0, 0, 0), self.shape, names=[name])

    @property
    def voxel_volume(self) -> float:
        """Volume of an image voxel in mL."""
        return voxel_volume(self.affine) / MM3_PER_ML

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Lengths of the edges of an image voxel in mm: shape (3,)."""
        return np.array([np.linalg.norm(edge) for edge in self.affine[:3, :3].T])

    @cached_property
    def tumor_volume(self) -> float:
        """Volume of the tumor in mL; probabilities count as parts."""
        return float(self.occupancy.sum(dtype=np.float64)) * self.voxel_volume

    @cached_property
    def centroid(self) -> NDArray[np.float64]:
        """Center of mass of the tumor in mm, RAS+: shape (3,)."""
        if not self._is_canonical:
            return self.canonical.centroid
        # Sums of each plane along x, y and z: in double precision without a copy of the volume.
        xy_sums = self.occupancy.sum(axis=2, dtype=np.float64)
        z_sums = self.occupancy.sum(axis=(0, 1), dtype=np.float64)
        profiles = xy_sums.sum(axis=1), xy_sums.sum(axis=0), z_sums
        index = [profile @ np.arange(len(profile)) / profile.sum() for profile in profiles]
        centroid = self.affine[:3, :3] @ np.add(index, self.origin) + self.affine[:3, 3]
        return np.asarray(centroid, dtype=np.float64)

    @property
    def is_cut_off(self) -> bool:
        """Whether more than 1 % of the tumor lies outside the mask of the brain."""
        return self.cut_off_share > _CUT_OFF

    @property
    def cut_off_text(self) -> str:
        """How much of the tumor lies outside the mask of the brain; "" where nothing is known."""
        if not self.cut_off_volume > 0:
            return ""
        volume = tissue_labels.milliliters(self.cut_off_volume)
        what = "what is labeled" if self._tissues else "the tumor"
        brain = "mask of the brain"
        for source, words in (("Image", "brain found in"), ("Brain", "brain mask")):
            if source in self.sources:
                brain = f"{words} {self.sources[source]['Name']}"
        share = percent(self.cut_off_share)
        if self.cut_off_share < 0.1:
            share = f"{100 * self.cut_off_share:.2g} %"
        return f"{volume} ({share}) of {what} lies outside the {brain}"

    @property
    def canonical(self) -> Scene:
        """
        The same scene with its arrays stored along right, front and up as far as they can be.

        All orders and directions in which the axes of one image can be stored lead to equal
        arrays, so that what is computed of these does not depend on the storage.
        """
        return self if self._is_canonical else self._reoriented

    @cached_property
    def _reoriented(self) -> Scene:
        turn = nearest_storage(self.affine)
        order = np.argsort(turn[:, 0])
        canonical = object.__new__(Scene)
        canonical.__dict__.update(self.__getstate__())
        canonical.shape = tuple(np.array(self.shape)[order].tolist())
        canonical.affine = reoriented(turn, self.affine, self.shape)
        canonical.affine.flags.writeable = False

        def moved(low: Sequence[int], shape: Sequence[int]) -> Index:
            first = np.array(low)
            mirrored = np.array(self.shape) - first - np.array(shape[:3])
            x, y, z = np.where(turn[:, 1] < 0, mirrored, first)[order].tolist()
            return (x, y, z)

        canonical.origin = moved(self.origin, self.occupancy.shape)
        canonical.occupancy = np.ascontiguousarray(apply_orientation(self.occupancy, turn))
        canonical.occupancy.flags.writeable = False
        for attribute in ("_forbidden", "_tissues"):
            regions = {}
            for key, (low, region) in getattr(self, attribute).items():
                turned = np.ascontiguousarray(apply_orientation(region, turn))
                regions[key] = moved(low, region.shape), turned
            setattr(canonical, attribute, regions)
        if self.image is not None:
            canonical.image = apply_orientation(self.image, turn)
        canonical._is_canonical = True
        return canonical

    @property
    def touches_border(self) -> bool:
        """Whether the tumor reaches the border of the image, so that some of it may be missing."""
        ends = np.add(self.origin, self.occupancy.shape)
        return bool((np.array(self.origin) == 0).any() or (ends == self.shape).any())

    @cached_property
    def rows(self) -> Rows:
        """The tumor as rows that a box can be laid over, the same for every storage."""
        scene = self.canonical
        return Rows.of(scene.occupancy, scene.affine, scene.origin)

    @cached_property
    def forbidden_rows(self) -> dict[str, Rows | None]:
        """
        Excluded regions as rows, by name, without margins; None where a region is empty.

        Those named in `inverted` are rows of what the region leaves out.
        """
        return _rows_of(self.canonical._forbidden, self.canonical.affine)

    @cached_property
    def tissue_rows(self) -> dict[str, Rows | None]:
        """Labeled tissues as rows, by name; None where a file holds none of it."""
        return _rows_of(self.canonical._tissues, self.canonical.affine)

    def excluded_fraction(self, name: str, voxel: Voxel, *, row_mm: float = 1.0) -> float:
        """
        Compute the fraction of a voxel that an excluded region fills.

        Parameters
        ----------
        name : str
            The region, one of `margins`.
        voxel : Voxel
            The box; no margin is added.
        row_mm : float, default=1.0
            Largest distance between the rows of the integral, in mm.

        Returns
        -------
        float
            From 0 to 1. What lies outside the image is outside the brain.
        """
        rows = self.forbidden_rows[name]
        filled = 0.0 if rows is None else rows.fraction(voxel, row_mm=row_mm)
        return 1.0 - filled if name in self.inverted else filled

    def distance(self, name: str, voxel: Voxel) -> float:
        """
        Measure the distance of a voxel from an excluded region.

        Parameters
        ----------
        name : str
            The region, one of `margins`.
        voxel : Voxel
            The box.

        Returns
        -------
        float
            In mm, from the faces of the box to those of image voxels; 0 where they overlap,
            infinity where the region is empty. What lies outside the image is outside the brain.
        """
        scene, half = self.canonical, voxel.size / 2
        tree, matrix, spacing = scene._rims[name], scene.affine[:3, :3], scene.spacing

        def gaps(points: NDArray[np.float64]) -> NDArray[np.float64]:
            local = (points - voxel.center) @ voxel.rotation
            return np.asarray((np.clip(local, -half, half) - local) @ voxel.rotation.T)

        # No point of an image voxel is farther from its center than half the sum of its edges.
        reach = spacing.sum() / 2
        farthest = tree.query(voxel.center)[0] + np.linalg.norm(half) + reach
        rim = tree.data[tree.query_ball_point(voxel.center, farthest)]
        rough = np.linalg.norm(gaps(rim), axis=1)
        x, y, z = np.rint(apply_affine(np.linalg.inv(scene.affine), voxel.center)).astype(int)
        if 0 in rough or scene.forbidden_in((x, y, z), (1, 1, 1), names=[name]).any():
            return 0.0
        near = points = rim[rough <= rough.min(initial=np.inf) + reach]
        # From the centers of image voxels to their points nearest to the box, by projections.
        inside = np.zeros_like(near)
        for _ in range(_N_STEPS):
            inside = np.clip(inside + gaps(points) @ matrix / spacing**2, -0.5, 0.5)
            points = near + inside @ matrix.T
        return float(np.linalg.norm(gaps(points), axis=1).min(initial=np.inf))

    @cached_property
    def _rims(self) -> dict[str, KDTree]:
        """Centers in mm of the outermost image voxels of each excluded region."""
        rims = {}
        for name, (low, region) in self._forbidden.items():
            origin, shape = np.subtract(low, 1), np.add(region.shape, 2)
            mask = self.forbidden_in(origin.tolist(), shape.tolist(), names=[name])
            rim = np.argwhere(mask & ~binary_erosion(mask, border_value=1))
            rims[name] = KDTree(apply_affine(self.affine, rim + origin))
        return rims

    @property
    def unlimited(self) -> Scene:
        """The same scene without limits of labeled tissues and without the mask of the brain."""
        return self._restricted(self.excluded)

    @property
    def strict(self) -> Scene:
        """The same scene without limits of labeled tissues."""
        return self._restricted([*self.excluded, *({tissue_labels.OUTSIDE_BRAIN} & self.inverted)])

    def _restricted(self, names: Sequence[str]) -> Scene:
        """Copy the scene with some of its excluded regions."""
        return self._changed(
            _forbidden={name: self._forbidden[name] for name in names},
            inverted=self.inverted.intersection(names),
            margins={name: self.margins[name] for name in names},
            tolerances={name: self.tolerances[name] for name in names},
        )

    def with_brain_margin(self, margin: float) -> Scene:
        """
        Give the same scene with another distance to the border of the brain.

        Parameters
        ----------
        margin : float
            How far the voxel's faces must stay within the brain, in mm.

        Returns
        -------
        Scene
            It shares the arrays of this one.
        """
        margins = _by_region(margin, [tissue_labels.OUTSIDE_BRAIN], "brain_margin", _MOST_MARGIN)
        return self._changed(margins=self.margins | margins)

    def _changed(self, **attributes: Any) -> Scene:
        """Copy the scene with other attributes; it shares the arrays of this one."""
        scene = object.__new__(Scene)
        computed = ("forbidden_rows", "_reoriented")
        kept = {key: value for key, value in self.__dict__.items() if key not in computed}
        scene.__dict__.update(kept | attributes)
        return scene

    def __getstate__(self) -> dict[str, Any]:
        # What is computed on demand need not travel to other processes.
        computed = (
            "rows", "forbidden_rows", "tissue_rows", "centroid", "tumor_volume", "_reoriented",
            "_components", "_rims"
        )  # fmt: skip
        return {key: value for key, value in self.__dict__.items() if key not in computed}

    @cached_property
    def _components(self) -> tuple[NDArray[np.int32], int]:
        inside = self.occupancy > MASK_THRESHOLD
        # Of a tumor with low probabilities only, everything counts.
        if not inside.any():
            inside = self.occupancy > 0
        labels = label_components(inside)
        sizes = np.bincount(labels.ravel())[1:]
        n = len(sizes)
        # Components are numbered in the order of a scan, not by size.
        rank = np.zeros(n + 1, dtype=np.int32)
        rank[1 + np.argsort(-sizes, kind="stable")] = np.arange(1, n + 1)
        return rank[labels], n

    @property
    def component_volumes(self) -> NDArray[np.float64]:
        """Volumes in mL of the tumor's components (26-connected), that of most voxels first."""
        scene = self.canonical
        labels, n = scene._components
        weights = np.bincount(
            labels.ravel(), scene.occupancy.ravel().astype(np.float64), minlength=n + 1
        )
        return np.asarray(weights[1:] * self.voxel_volume, dtype=np.float64)

    def component(self, voxel: Voxel) -> int:
        """
        Find the component of the tumor that fills most of a voxel.

        Parameters
        ----------
        voxel : Voxel
            The box.

        Returns
        -------
        int
            Number of the part in the order of `component_volumes`, counted from 0; -1 if it holds
            none.
        """
        scene = self.canonical
        labels, n = scene._components
        # The labels are those of the cropped tumor, whose first voxel is at `origin`.
        shift = scene.affine.copy()
        shift[:3, 3] += scene.affine[:3, :3] @ np.array(scene.origin, dtype=np.float64)
        counts = np.bincount(labels[voxel.mask(labels.shape, shift)], minlength=n + 1)[1:]
        return int(counts.argmax()) if counts.any() else -1

    def holds(self, voxel: Voxel) -> bool:
        """
        Test whether a voxel lies within the image.

        Parameters
        ----------
        voxel : Voxel
            The box.

        Returns
        -------
        bool
            Whether all its corners do, up to the outer faces of the outermost image voxels.
        """
        index = apply_affine(np.linalg.inv(self.affine), voxel.corners)
        last = np.array(self.shape) - 0.5
        return bool((index >= -0.5 - 1e-9).all() and (index <= last + 1e-9).all())

    def moved_inside(self, voxel: Voxel) -> Voxel:
        """
        Shift a voxel that reaches beyond the image into it.

        Parameters
        ----------
        voxel : Voxel
            The box.

        Returns
        -------
        Voxel
            The box, shifted along the image's axes as little as it takes; as it is if it lies
            within, or along an axis that is too short for it.
        """
        if self.holds(voxel):
            return voxel
        index = apply_affine(np.linalg.inv(self.affine), voxel.corners)
        below = -0.5 - index.min(axis=0)
        above = np.array(self.shape) - 0.5 - index.max(axis=0)
        # The smallest shift; a box longer than the image stays where it is along that axis.
        shift = np.where(above >= below, np.clip(0.0, below, np.maximum(above, below)), 0.0)
        return Voxel(voxel.center + self.affine[:3, :3] @ shift, voxel.size, voxel.angles)

    def forbidden_in(
        self, origin: Sequence[int], shape: Sequence[int], *, names: Sequence[str] | None = None
    ) -> NDArray[np.bool_]:
        """
        Give the excluded voxels within a window of the grid, without margins.

        Parameters
        ----------
        origin : sequence of 3 int
            Index of its first voxel; may lie outside the image.
        shape : sequence of 3 int
            Numbers of voxels.
        names : sequence of str, default=None
            Only these regions; all by default.

        Returns
        -------
        ndarray of bool, of the shape given
            Union of the regions.
        """
        out = np.zeros(tuple(shape), dtype=bool)
        for key, (low, region) in self._forbidden.items():
            if names is not None and key not in names:
                continue
            part = cropped(region, np.subtract(origin, low), shape)
            out |= ~part if key in self.inverted else part
        return out

    def _labeled(self, labels: Mapping[str, Any], low: Index, crop: NDArray) -> dict[str, Region]:
        """Find the voxels of named tissues, each cropped to its bounding box."""
        unknown = sorted(set(labels) - set(tissue_labels.TISSUES))
        if unknown:
            raise ValueError(
                f"{self._title}: {unknown[0]!r} is not a known tissue; use one of "
                f"{', '.join(tissue_labels.TISSUES)}"
            )
        values = {key: entry for key, entry in labels.items() if _are_labels(entry)}
        if values:
            _, _, present = _read_values(crop, None, self._title, named=True)
            tissue_labels.check_values(present, values, self._title)
        tissues = {}
        for key, entry in labels.items():
            if key in values:
                inner, mask = _cropped(np.isin(np.rint(crop), np.atleast_1d(entry)))
                tissues[key] = (_shifted(inner, low), np.ascontiguousarray(mask))
            else:
                tissues[key] = self._region(key, entry)
        return tissues

    def _doubtful_labels(self, labels: Mapping[str, Any]) -> tuple[str, ...]:
        """Note where most enhancing tissue lies inside necrosis, which it surrounds in tumors."""
        names = (tissue_labels.ENHANCING, tissue_labels.NECROSIS)
        if not all(name in self._tissues for name in names):
            return ()
        low, necrosis = self._tissues[tissue_labels.NECROSIS]
        own, enhancing = self._tissues[tissue_labels.ENHANCING]
        # What lies beyond the bounding box of necrosis is not inside it.
        inside = cropped(enhancing, np.subtract(low, own), necrosis.shape)
        share = tissue_labels.enclosed_share(inside, necrosis)
        share *= float(inside.sum()) / max(float(enhancing.sum()), 1.0)
        if share <= _MOST_ENCLOSED:
            return ()
        titles = []
        for name in names:
            entry = labels[name]
            value = ", ".join(map(str, np.atleast_1d(entry))) if _are_labels(entry) else ""
            titles.append(f"{name} ({value})" if value else name)
        return (
            f"{percent(share)} of {titles[0]} tissue lies inside {titles[1]}, which it surrounds "
            "in tumors: the labels may be of another scheme; compare them with the image, and "
            "name another scheme or a table (--labels)",
        )

    def _joined(self, names: Sequence[str]) -> Region:
        """Join labeled tissues to one mask: its first voxel in the image, and the mask."""
        parts = [self._tissues[name] for name in names if name in self._tissues]
        parts = [(low, mask) for low, mask in parts if mask.any()]
        first = np.min([low for low, _ in parts], axis=0)
        last = np.max([np.add(low, mask.shape) for low, mask in parts], axis=0)
        joined = np.zeros(tuple(last - first), dtype=bool)
        for low, mask in parts:
            joined |= cropped(mask, first - low, joined.shape)
        return (int(first[0]), int(first[1]), int(first[2])), joined

    def _limit_tissues(self) -> None:
        """Exclude tissues other than the targets where a box has more of them than their limit."""
        for key, limit in tissue_labels.LIMITS.items():
            # A user's exclusion of the same name counts instead.
            if key in self._forbidden:
                continue
            # Normal tissue is what has no label.
            if key == tissue_labels.NORMAL:
                self._forbidden[key] = self._joined(list(self._tissues))
                self.inverted.add(key)
            elif key in self.targets or key not in self._tissues:
                continue
            else:
                self._forbidden[key] = self._tissues[key]
            self.margins[key] = 0.0
            self.tolerances[key] = limit

    def _keep_in_brain(self, brain: ArrayLike, margin: float) -> None:
        """Exclude what lies outside the brain."""
        key = tissue_labels.OUTSIDE_BRAIN
        low, mask = self._region("the mask of the brain", brain)
        if not mask.any():
            raise ValueError(f"{self._title}: the mask of the brain is empty; give another one")
        self._forbidden[key] = (low, mask)
        self.inverted.add(key)
        self.margins |= _by_region(margin, [key], "brain_margin", _MOST_MARGIN)
        self.tolerances[key] = 0.0

    def _measure_cut_off(self) -> None:
        """Measure how much of the tumor lies outside the brain, and warn of it."""
        low = self.origin
        tumor: NDArray[Any] = self.occupancy
        if self._tissues:
            low, tumor = self._joined(list(self._tissues))
        outside = self.forbidden_in(low, tumor.shape, names=[tissue_labels.OUTSIDE_BRAIN])
        self.cut_off_share = float(tumor[outside].sum() / max(tumor.sum(), 1))
        self.cut_off_volume = float(tumor[outside].sum()) * self.voxel_volume
        if self.is_cut_off:
            warnings.warn(
                f"{self._title}: {self.cut_off_text}; look at the mask, or give another",
                UserWarning,
                stacklevel=4,
            )

    def _check_shape(self, values: NDArray, name: str) -> None:
        """Refuse an image or a mask on another grid than the tumor."""
        if values.shape[:3] != self.shape:
            raise ValueError(
                f"{self._title}: {name} has shape {values.shape} and the tumor {self.shape}; "
                "resample one to the grid of the other"
            )

    def _region(
        self,
        key: str,
        region: Any,
        low: Index = (0, 0, 0),
        crop: ArrayLike = (),
        included: Collection[int] = (),
        present: tuple[int, ...] = (),
    ) -> Region:
        """
        Find the voxels of an excluded region, cropped to their bounding box.

        A region of labels is one of `crop`, which begins at `low` and has the labels `present`.
        """
        if _are_labels(region):
            labels = [int(label) for label in np.atleast_1d(np.asarray(region))]
            both = sorted(set(labels) & set(included))
            if both:
                raise ValueError(f"{self._title}: labels {both} are included and excluded at once")
            if not present:
                raise ValueError(
                    f"{self._title}: labels {labels} cannot be excluded from a tumor without "
                    "labels; give a mask"
                )
            inner, mask = _cropped(np.isin(np.rint(crop), labels))
            if not mask.any():
                warnings.warn(
                    f"{self._title}: no voxel has {key}, so nothing is excluded by it; "
                    "check that it is the right one",
                    UserWarning,
                    stacklevel=3,
                )
            return _shifted(inner, low), mask
        values = _volume(region, f"{key} of {self._title}")
        self._check_shape(values, key)
        inner, mask = _cropped(values)
        mask = binarize(mask, name=f"{self._title}: {key}", may_be_empty=True)
        return inner, np.ascontiguousarray(mask)


def scene_list(scenes: Iterable[Scene]) -> list[Scene]:
    """List the scenes to place in; refuse a single one."""
    if isinstance(scenes, Scene):
        raise TypeError("predict takes a sequence of Scene, such as [scene]; place takes one")
    return list(scenes)


def _checked_affine(affine: ArrayLike, title: str) -> NDArray[np.float64]:
    with errors_about(title):
        matrix = check_affine(np.array(affine, dtype=np.float64))
    edges = np.linalg.norm(matrix[:3, :3], axis=0)
    if edges.max() > LARGEST_EDGE_RATIO * edges.min():
        warnings.warn(
            f"{title} has image voxels of {edges.round(3).tolist()} mm; check the affine",
            UserWarning,
            stacklevel=3,
        )
    matrix.flags.writeable = False
    return matrix


def _volume(values: ArrayLike, what: str) -> NDArray:
    array = np.asarray(values)
    if array.ndim < 3 or array.dtype.kind not in "biuf":
        own = f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"{what} must be one volume of numbers of shape (x, y, z), not {own}")
    array = three_axes(array, what)
    # The least value is NaN where one is, and needs no mask of a large volume.
    if array.dtype.kind == "f" and np.isnan(array.min(initial=0)):
        array = np.where(np.isnan(array), array.dtype.type(0), array)
    return array


def _shifted(low: Index, by: Index) -> Index:
    return (low[0] + by[0], low[1] + by[1], low[2] + by[2])


def _cropped(values: NDArray) -> tuple[Index, NDArray]:
    """Cut out the bounding box of what is not 0; returns its first index and the view."""
    # Plane by plane, so that no mask of a large volume is made.
    sides = [np.zeros(n, dtype=bool) for n in values.shape]
    for i, plane in enumerate(values):
        inside = plane != 0
        if inside.any():
            sides[0][i] = True
            sides[1] |= inside.any(axis=1)
            sides[2] |= inside.any(axis=0)
    if not sides[0].any():
        return (0, 0, 0), values[:1, :1, :1] != 0
    ends = [np.flatnonzero(side)[[0, -1]] for side in sides]
    low = (int(ends[0][0]), int(ends[1][0]), int(ends[2][0]))
    return low, values[tuple(slice(int(a), int(b) + 1) for a, b in ends)]


def _read_values(
    crop: NDArray, include: Labels | None, title: str, *, named: bool = False
) -> tuple[NDArray, tuple[int, ...], tuple[int, ...]]:
    """Convert values to fractions of tumor; returns the labels of tumor and all labels, too."""
    if crop.dtype == bool:
        if include is not None:
            raise ValueError(
                f"{title}: the tumor is a mask of True and False, which has no labels to include "
                f"({include=})"
            )
        return crop, (), ()
    if np.isinf(crop).any():
        raise ValueError(f"{title}: the tumor holds infinite values; set them to 0 or 1")
    whole = np.rint(crop)
    if crop.dtype.kind == "f" and (np.abs(crop - whole) > LABEL_TOLERANCE).any():
        if include is not None or crop.min() < 0 or crop.max() > 1 + LABEL_TOLERANCE:
            raise ValueError(
                f"{title}: the tumor holds values from {crop.min():g} to {crop.max():g}, some of "
                "them fractions; give probabilities from 0 to 1, or labels as whole numbers"
            )
        return np.minimum(crop, 1), (), ()
    present = tuple(int(label) for label in np.unique(whole) if label != 0)
    if present and present[0] < 0:
        raise ValueError(
            f"{title}: the tumor has the label {present[0]}; labels count from 1, and 0 is outside"
        )
    if include is None:
        if len(present) > 1 and not named:
            raise ValueError(
                f"{title}: the tumor has the values {first_few(present)}, which have no meaning "
                f"until they are named: labels={tissue_labels.describe_schemes()}; or name those "
                f"to measure: include={present[-1]}"
            )
        return whole != 0, present, present
    labels = tuple(int(label) for label in np.atleast_1d(np.asarray(include)))
    mask = np.isin(whole, labels)
    if not mask.any():
        raise ValueError(
            f"{title}: none of the labels {list(labels)} is there; "
            f"labels of the tumor: {first_few(present) or 'none'}"
        )
    return mask, labels, present


def _rows_of(regions: Mapping[str, Region], affine: NDArray[np.float64]) -> dict[str, Rows | None]:
    return {
        key: Rows.of(region, affine, low) if region.any() else None
        for key, (low, region) in regions.items()
    }


def _are_labels(region: Any) -> bool:
    """Test whether a region is given by labels rather than by a mask or a file."""
    # A bool is an int to Python.
    if isinstance(region, bool | str) or hasattr(region, "affine"):
        return False
    if isinstance(region, int | np.integer):
        return True
    if isinstance(region, np.ndarray):
        return region.ndim <= 1 and region.dtype.kind in "iu"
    if not isinstance(region, Sequence):
        return False
    return all(
        isinstance(label, int | np.integer) and not isinstance(label, bool) for label in region
    )


def _named(exclude: Any) -> dict[str, Any]:
    """Give each excluded region a name."""
    if exclude is None:
        return {}
    if isinstance(exclude, Mapping):
        return {str(key): region for key, region in exclude.items() if region is not None}
    if _are_labels(exclude):
        return {f"label {label}": int(label) for label in np.atleast_1d(np.asarray(exclude))}
    is_sequence = isinstance(exclude, list | tuple)
    # Nested lists are one volume rather than a sequence of regions.
    if is_sequence and not all(isinstance(plane, list | tuple) for plane in exclude):
        return {f"region {n}": region for n, region in enumerate(exclude, start=1)}
    return {"exclude": exclude}


def _by_region(
    values: float | Mapping[str, float], regions: list[str], option: str, most: float
) -> dict[str, float]:
    """Give each excluded region its margin or tolerance, from 0 to `most`."""
    if isinstance(values, Mapping):
        unknown = sorted(set(values) - set(regions))
        if unknown:
            raise ValueError(
                f"{option} names {unknown}, which are not among the excluded regions {regions}"
            )
        numbers = {name: float(values.get(name, 0.0)) for name in regions}
        checked = list(numbers.values())
    else:
        numbers = dict.fromkeys(regions, float(values))
        # A bad number is refused even where no region is excluded.
        checked = [float(values)]
    for value in checked:
        check_number(option, value, most=most)
    return numbers
