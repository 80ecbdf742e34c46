"""Synthetic patients with brain metastases: post-contrast images, priors and truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation

from dmrifit._utils.checks import check_number, check_word, is_number
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit._utils.threads import check_jobs
from dmrifit.io.components import label_components
from dmrifit.io.nifti import Image
from dmrifit.simulate.head_shapes import slow_field, texture_field
from dmrifit.simulate.heads import Head, StandardHead, check_grid
from metastasis.scans.cases import Case
from metastasis.simulate import enhancement

__all__ = ["simulate_metastases"]

#: A window of the image, and which of its voxels a lesion fills.
_LesionVoxels: TypeAlias = tuple[tuple[slice, ...], NDArray[np.bool_]]
_Protocol: TypeAlias = tuple[Sequence[float], float, float, float]

#: Smallest, middle and largest diameter of a metastasis in mm: half of them lie on either side of
#: the middle.
DIAMETERS = (2.0, 6.0, 15.0)

#: What a metastasis can be in comparison with the prior image, and how many of all are.
STATUSES = {"new": 0.60, "grown": 0.25, "stable": 0.15}

#: The same in the hard world; shrunk ones were larger by `_SHRINKAGE`.
HARD_STATUSES = {"new": 0.5, "grown": 0.2, "stable": 0.2, "shrunk": 0.1}
_SHRINKAGE = (1.25, 1.6)
_WORLDS = ("easy", "hard")

#: Shares of `STATUSES` up to and above the middle diameter; new metastases are mostly small.
_STATUS_SHARES = ((0.75, 0.20, 0.05), (0.45, 0.30, 0.25))
_GROWTH = (0.45, 0.75)  # diameter in the prior image, of that in the image
_RING, _RING_FROM = 0.5, 8.0  # share of those with a dark core, from a diameter in mm on
# Signals, of white matter's.
_WHITE, _GRAY, _DEEP, _FLUID = 1.0, 0.72, 0.80, 0.28
_UNIT = 100.0  # signal of white matter at the gain of 1
_TEXTURE, _TEXTURE_MM = 0.03, 1.5
_EDEMA = 0.14  # of white matter's signal
_GAIN = 0.10
#: How a patient is scanned: blur in voxels, standard deviation of the field, noise (of white
#: matter's signal) and gamma.
_PROTOCOL: _Protocol = ((0.55, 0.55, 0.55), 0.08, 0.03, 1.0)
# Of the hard world: blur in voxels, standard deviation of the field, noise, gamma.
_HARD_SCANNER = ((0.4, 0.8), (0.05, 0.2), (0.015, 0.05), (0.8, 1.25))
_TIMING = (0.85, 1.15)  # enhancement of the prior image, of that of the image
# Of a prior at misregistration 1: mm along each axis, degrees, share.
_SHIFT, _TURN, _SCALE = 1.0, 1.5, 0.01
_SIZES = (0.93, 1.0)  # of the axes of a brain that fills the field of view
_VENTRICLES = (-1.5, 1.5)  # mm by which their walls lie further out
# Irrational steps leave no gaps.
_EVEN = {"prior": 0.6180339887498949, "number": 0.7548776662466927}
#: Least voxels and mm along an axis, and largest edge of a voxel in mm.
_GRID: dict[str, Any] = {"fewest": 24, "field": 40.0, "coarsest": 4.0}


@dataclass(frozen=True)
class _Settings:
    """What all patients of a simulation share."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    metastases: tuple[int, int]
    mimics: tuple[int, int]
    prior: float
    misregistration: float
    standard: StandardHead | None
    seed: Seed
    world: str


def simulate_metastases(
    n_patients: int,
    *,
    prior: float = 0.75,
    shape: Sequence[int] = (66, 66, 66),
    spacing: float | Sequence[float] = 1.5,
    metastases: tuple[int, int] = (1, 7),
    mimics: tuple[int, int] = (1, 5),
    misregistration: float = 1.0,
    tissues: Sequence[Image] | None = None,
    world: str = "easy",
    skip: int = 0,
    n_jobs: int | None = None,
    random_state: RandomState = None,
) -> list[Case]:
    """
    Simulate patients with brain metastases, one scan each, most with an earlier one.

    These are no patients: nobody was scanned, and what a network finds here says little about what
    it finds in people. The images are like contrast-enhanced T1 images without the skull: gray
    matter, white matter and fluid with texture, vessels and sinuses, enhancing patches of dura,
    falx and tentorium, the plexus, metastases of 2 to 15 mm (half of them below 6 mm; of those
    from 8 mm on half are rings with a dark core), a bias field, blur and noise. Things that look
    like metastases and are none, the mimics, lie on vessels, under the dura, and alone in the
    brain, where only the prior tells them from small metastases: all of them were there before.

    A prior shows the same brain and the same mimics with another gain, bias field, enhancement and
    noise, and not quite in the same place. Of the metastases 60 % are new, 25 % have grown from 45
    to 75 % of their diameter, and 15 % have stayed; small ones are more often new.

    Parameters
    ----------
    n_patients : int
        Number of patients.
    prior : float, default=0.75
        Share of patients with a prior, 0 to 1. Their present images are the same whatever it is.
    shape : sequence of 3 int, default=(66, 66, 66)
        Voxels of the image, 24 to 512 along each axis.
    spacing : float or sequence of 3 floats, default=1.5
        Edges of a voxel in mm, up to 4; at least 40 mm along each axis are needed. The brain fills
        the field of view up to a person's size: by default, of 99 mm, it is smaller than a
        person's, while folds, vessels and metastases keep their sizes in mm.
    metastases : tuple of 2 int, default=(1, 7)
        Fewest and most metastases of a patient; ``(0, 0)`` for patients without any. One that
        finds no place, 3 mm from the others, is left out.
    mimics : tuple of 2 int, default=(1, 5)
        Fewest and most mimics of a patient: 45 % on vessels, 40 % alone, 15 % under the dura.
    misregistration : float, default=1.0
        How badly priors lie on images: at 1 they are shifted by up to 1 mm along each axis, turned
        by up to 1.5 degrees about each and scaled by up to 1 %; larger numbers multiply this, 0 is
        a perfect match.
    tissues : sequence of 2 paths or Nifti1Images, optional
        Maps of gray and white matter of one brain, such as those of the MNI, which are scaled and
        warped for each patient. By default brains are made from formulas.
    world : {"easy", "hard"}, default="easy"
        In the easy world metastases are brighter than all vessels. In the hard one vessels,
        sinuses, dura, falx, tentorium and plexus are as bright as metastases or brighter, vessels
        are dark in one patient of four, and skull remains at the surface; metastases have
        contrasts of 0.15 to 0.9 of white matter and up to 40 mm, as small, solid or irregular
        ones and rings with dark or bleeding cores; 10 % have shrunk; bias field, gamma, noise and
        resolution vary. Metastases that are unchanged in the prior cannot be told from mimics
        that stand alone: 20 % of all in the hard world, so that a prior takes no more than 80 %
        of them out of doubt.
    skip : int, default=0
        Patients to pass over: those that are made are the ones after them, the same as if all were
        made at once.
    n_jobs : int, optional
        Processes, by joblib's rule. The patients are the same whatever it is.
    random_state : int, RandomState or None, default=None
        Seed. A patient depends on it and on the patient's number, not on how many there are.

    Returns
    -------
    list of Case
        Synthetic cases, named "synthetic-001" and so on, with image, label, prior (or None),
        brain, `prior_label`, `mimics` and `lesions`. A label holds the voxels that lie more than
        half inside a metastasis (in the hard world, inside what of it enhances), at least one for
        each; ``lesions["status"]`` is ``"unknown"`` for patients without a prior. Metastases that
        touch in the label (one patient in a hundred, with large voxels) share a number.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    FileNotFoundError
        If there is no such map of tissue.

    Examples
    --------
    >>> from metastasis import simulate_metastases
    >>> case, = simulate_metastases(1, random_state=0)
    >>> case.name, case.synthetic, case.image.shape
    ('synthetic-001', True, (66, 66, 66))
    """
    for name, number, least in (("n_patients", n_patients, 1), ("skip", skip, 0)):
        check_number(name, number, least=least, whole=True)
    check_jobs(n_jobs)
    check_word("world", world, _WORLDS)
    for name, value, most in (("prior", prior, 1.0), ("misregistration", misregistration, 10.0)):
        check_number(name, value, most=most)
    voxels, steps = check_grid(shape, spacing, (66, 66, 66), "metastases", **_GRID)
    n_lesions, n_mimics = _range("metastases", metastases), _range("mimics", mimics)
    # Without maps, each patient has folds of its own.
    standard = None if tissues is None else StandardHead.of(steps, tissues)
    seed = Seed(random_state)
    grid_and_numbers = voxels, steps, n_lesions, n_mimics
    settings = _Settings(*grid_and_numbers, prior, misregistration, standard, seed, world)
    from joblib import Parallel, delayed

    numbers = range(skip, skip + n_patients)
    return list(Parallel(n_jobs)(delayed(_simulate)(number, settings) for number in numbers))


def _simulate(number: int, settings: _Settings) -> Case:
    """Make one patient, each ingredient from its own stream: a new one changes no other."""

    def stream(purpose: str) -> np.random.Generator:
        return settings.seed.rng("metastasis", purpose, number)

    def evenly_drawn(purpose: str) -> float:
        return settings.seed.evenly(number, _EVEN[purpose], "metastasis", purpose)

    head_stream, size_stream = stream("head").spawn(2)
    head = Head.draw(
        settings.shape,
        settings.spacing,
        head_stream,
        standard=settings.standard,
        growth=size_stream.uniform(*_VENTRICLES),
        scale=size_stream.uniform(*_SIZES, 3),
    )
    hard = settings.world == "hard"
    contrasts = enhancement.draw_contrasts(stream("contrasts")) if hard else enhancement.CONTRASTS
    vascular = enhancement.draw_enhancement(head, stream("enhancement"), contrasts)
    # Metastases grow mostly between gray and white matter, never in fluid.
    border = gaussian_filter(head.gray + head.deep, 1.0) * gaussian_filter(head.white, 1.0)
    likely = (4 * border + 0.12 * head.matter) * ((head.fluid < 0.3) & (head.depth > 2.5))
    fewest, most = settings.metastases
    n = fewest + int(evenly_drawn("number") * (most - fewest + 1))
    lesions = _draw_lesions(n, likely, head, stream("metastases"), stream("course"), hard=hard)
    mimic_stream = stream("mimics")
    n_mimics = int(mimic_stream.integers(settings.mimics[0], settings.mimics[1] + 1))
    taken = [(lesion.center, lesion.radius) for lesion in lesions]
    mimics = enhancement.draw_mimics(
        n_mimics, vascular.points, likely, taken, head, mimic_stream, contrasts
    )

    texture = texture_field(settings.shape, _TEXTURE_MM, head.spacing, stream("texture"))
    matter = _WHITE * head.white + _GRAY * head.gray + _DEEP * head.deep + _FLUID * head.fluid
    # In even tissue every step of the signal would be a lesion or a vessel.
    matter *= 1 + _TEXTURE * texture.astype(np.float32)
    # What is there without contrast agent, and what it adds: later it adds more or less.
    plain = matter + vascular.share * (_WHITE - matter)
    added = vascular.contrast
    is_mimic = np.zeros(settings.shape, dtype=bool)
    for mimic in mimics:
        window, share, _ = enhancement.shares(mimic, head)
        share *= head.brain[window]
        plain[window] += share * (_WHITE - plain[window])
        added[window] += share * (mimic.contrast - added[window])
        is_mimic[window] |= enhancement.filled_voxels(share)

    image, mask, masks = _with_lesions(plain + added, lesions, head)
    scanner, protocol = stream("scanner"), _PROTOCOL
    if hard:
        # Follow-up scans are made by the same protocol; field and noise differ.
        blur, bias, noise, gamma = (float(scanner.uniform(*ends)) for ends in _HARD_SCANNER)
        # Voxels are acquired at other edges than they are stored, and thicker along one axis.
        blurs = scanner.permutation([blur, blur, blur * scanner.uniform(1, 1.6)]).tolist()
        protocol = blurs, bias, noise, gamma
    scan = _scanned(image, head.brain, scanner, *protocol)
    prior, prior_label = None, None
    has_prior = evenly_drawn("prior") < settings.prior
    if has_prior:
        misplaced = settings.misregistration, stream("registration")
        earlier, prior_label = _earlier(plain, added, lesions, head, *misplaced)
        prior = _scanned(earlier, head.brain, stream("earlier scanner"), *protocol)
    name = f"synthetic-{number + 1:03d}"
    return Case(
        name,
        scan,
        mask,
        prior=prior,
        prior_label=prior_label,
        affine=head.affine,
        brain=head.brain,
        synthetic=True,
        name=name,
        mimics=(is_mimic & (mask == 0)).astype(np.uint8),
        lesions=_lesion_table(lesions, masks, mask, head.spacing, has_prior=has_prior),
    )


def _draw_lesions(
    n: int,
    likely: NDArray[np.float32],
    head: Head,
    rng: np.random.Generator,
    course: np.random.Generator,
    *,
    hard: bool,
) -> list[enhancement.Nodule]:
    """Draw metastases, with the status and size of each at the time of the prior."""
    if hard:
        # Rings of 40 mm do not fit into a small field of view.
        largest = 0.5 * float(head.half_axes.min())
        kinds = [enhancement.draw_kind(rng) for _ in range(n)]
        drawn = [(kind, min(size, largest)) for kind, size in kinds]
    else:
        small = rng.random(n) < 0.5
        low, middle, high = np.log(DIAMETERS)
        sizes = np.where(small, rng.uniform(low, middle, n), rng.uniform(middle, high, n))
        drawn = [("", size) for size in np.exp(sizes).tolist()]
    # The large ones first, as they need room.
    drawn.sort(key=lambda item: -item[1])
    places = enhancement.draw_places(likely, [size / 2 for _, size in drawn], [], head, rng)
    lesions = []
    for (kind, size), place in zip(drawn, places, strict=True):
        odds = HARD_STATUSES
        if not hard:
            odds = dict(zip(STATUSES, _STATUS_SHARES[int(size > DIAMETERS[1])], strict=True))
        status = str(course.choice(list(odds), p=list(odds.values())))
        earlier = {"new": 0.0, "grown": course.uniform(*_GROWTH), "stable": 1.0}
        if hard:
            earlier["shrunk"] = course.uniform(*_SHRINKAGE)
        if place is None:
            continue
        if hard:
            lesion = enhancement.draw_varied_nodule(
                place, kind, size, rng, contrasts=enhancement.HARD_CONTRASTS
            )
        else:
            lesion = enhancement.draw_nodule(
                place, size, rng, ring=_RING if size > _RING_FROM else 0.0
            )
        lesions.append(replace(lesion, status=status, earlier_size=earlier[status]))
    return lesions


def _with_lesions(
    picture: NDArray[np.float32], lesions: Sequence[enhancement.Nodule], head: Head
) -> tuple[NDArray[np.float32], NDArray[np.uint8], list[_LesionVoxels]]:
    """Put metastases into an image; label voxels filled by more than half, at least one each."""
    picture = picture.copy()
    label = np.zeros(picture.shape, dtype=np.uint8)
    for lesion in lesions:
        if lesion.edema:
            window, edema = enhancement.swelling(lesion, head)
            picture[window] -= _EDEMA * edema * head.white[window]
    masks = []
    for lesion in lesions:
        window, share, core = enhancement.shares(lesion, head)
        share *= head.brain[window]
        level = (_WHITE + lesion.contrast) * (1 - core) + lesion.core_level * core
        picture[window] += share * (level - picture[window])
        # What enhances is outlined in the hard world: nobody sees a cavity's edge in the cavity.
        voxels = enhancement.filled_voxels(share - core if lesion.kind else share)
        label[window] |= voxels
        masks.append((window, voxels))
    return picture, label, masks


def _earlier(
    plain: NDArray[np.float32],
    added: NDArray[np.float32],
    lesions: Sequence[enhancement.Nodule],
    head: Head,
    misregistration: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Make the prior image: the brain slightly displaced, with the metastases of that time."""
    steps, origin = head.spacing, head.affine[:3, 3]
    timing = rng.uniform(*_TIMING)
    shift = rng.uniform(-_SHIFT, _SHIFT, 3) * misregistration
    size = 1 + rng.uniform(-_SCALE, _SCALE) * misregistration
    angles = rng.uniform(-_TURN, _TURN, 3) * misregistration
    turn = size * Rotation.from_euler("XYZ", angles, degrees=True).as_matrix()
    # Place x of the prior shows what lies at turn·x + shift.
    before = []
    for lesion in lesions:
        if lesion.earlier_size:
            center = np.linalg.solve(turn, lesion.center - shift)
            size_then = lesion.radius * lesion.earlier_size
            before.append(replace(lesion, center=center, radius=size_then))
    matrix = turn * steps / steps[:, None]
    offset = (turn @ origin + shift - origin) / steps
    # Only the anatomy is interpolated; metastases are drawn anew at their displaced places, so
    # that small ones are not blurred away.
    plain, added = (
        affine_transform(volume, matrix, offset, order=1, mode="nearest")
        for volume in (plain, added)
    )
    image, label, _ = _with_lesions(plain + timing * added, before, head)
    return image, label


def _scanned(
    picture: NDArray[np.float32],
    brain: NDArray[np.bool_],
    rng: np.random.Generator,
    blurs: Sequence[float],
    bias: float,
    noise: float,
    gamma: float,
) -> NDArray[np.float32]:
    """Add blur in voxels, coil field, gain and noise to an image; zero outside the brain."""
    shape = picture.shape
    if gamma != 1:
        picture = np.clip(picture, 0, None) ** np.float32(gamma)
    field = slow_field(shape, 0.25 * np.array(shape), rng)
    gain = _UNIT * np.exp(_GAIN * rng.standard_normal())
    blurred = gaussian_filter(picture * brain, blurs) * np.exp(bias * field)
    # Magnitudes of complex noise are what scanners write: Rician, never negative.
    real, imaginary = (noise * rng.standard_normal(shape) for _ in range(2))
    return (gain * np.hypot(blurred + real, imaginary) * brain).astype(np.float32)


def _lesion_table(
    lesions: Sequence[enhancement.Nodule],
    masks: Sequence[_LesionVoxels],
    mask: NDArray[np.uint8],
    steps: NDArray[np.float64],
    *,
    has_prior: bool,
) -> Any:
    """List the metastases, each with its largest connected component's number in the label."""
    import pandas as pd

    components = label_components(mask)
    rows = []
    for lesion, (window, voxels) in zip(lesions, masks, strict=True):
        # Uneven walls of rings may lie in pieces.
        number = int(np.bincount(components[window][voxels]).argmax())
        volume = round(float(voxels.sum() * np.prod(steps)) * 1e-3, 6)
        status = lesion.status if has_prior else "unknown"
        rows.append((number, round(2 * lesion.radius, 3), status, volume))
    columns = ["number", "diameter_mm", "status", "volume_mL"]
    return pd.DataFrame(sorted(rows, key=lambda row: row[0]), columns=columns)


def _range(name: str, limits: Any) -> tuple[int, int]:
    are_whole = np.shape(limits) == (2,) and all(is_number(n, whole=True) for n in limits)
    if not are_whole or not 0 <= limits[0] <= limits[1] <= 40:
        raise ValueError(
            f"{name} must be two whole numbers up to 40, the smaller one first, not {limits!r}"
        )
    return int(limits[0]), int(limits[1])
