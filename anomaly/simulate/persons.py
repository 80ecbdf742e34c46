"""Synthetic persons for diffusion MRI: healthy, and patients with gliomas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from anomaly.generators.generator_table import GENERATORS
from anomaly.generators.gliomas import GRADES, Component, draw_diffusion_glioma
from anomaly.scans.cases import Case
from dmrifit._utils.checks import check_number, check_word
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit._utils.threads import check_jobs
from dmrifit.io.nifti import Image
from dmrifit.simulate.head_shapes import slow_field, texture_field
from dmrifit.simulate.heads import Head, StandardHead, check_grid

__all__ = ["simulate_dmri"]

#: How well brains lie on each other.
REGISTRATIONS = ("good", "shifted")

_B = 1000.0  # s/mm²
_AGES = (25.0, 75.0)  # years
_SITES = {"A": 1.0, "B": 1.015}  # factor of diffusivities, as gradients are not quite calibrated
_MIDDLE_AGE, _AGING = 50.0, 0.001  # years, by how much diffusivities rise in a year
_VENTRICLES = (0.05, 1.0)  # mm in a year, standard deviation between persons in mm
_VENTRICLE_LIMITS = (-2.5, 4.5)  # mm
_PERSON, _TEXTURE = 0.015, 0.04  # of diffusivities, between persons and within one
_TEXTURE_MM = 6.0
_UNIT, _GAIN, _BIAS = 400.0, 0.1, 0.1  # white matter at b = 0, its spread, the coils' field
# Irrational steps leave no gaps.
_EVEN = {"grade": 0.6180339887498949, "kind": 0.7548776662466927}
#: Least voxels and mm along an axis, and largest edge of a voxel in mm.
_GRID: dict[str, Any] = {"fewest": 12, "field": 60.0, "coarsest": 12.0}
_MOST_DIRECTIONS = 512


_BEND = 16.0  # mm of smoothing of the field that bends fibers
_CROSSING = 0.3  # of white matter, where fibers of a second direction cross
_PARTIAL = 0.3  # of a voxel, smoothing by which voxels see their surroundings
_SHIFT, _SCALE = 2.0, 0.05  # voxels along each axis and share: left by a poor registration
_MS_PER_UM2 = 1e-3  # s/mm² in ms/µm²
_AXIAL, _RADIAL = 1.6, 0.35  # µm²/ms, along and across fibers
_UNORDERED = 0.77  # µm²/ms, of white matter whose fibers have no direction
#: Diffusivity in µm²/ms, and signal at b = 0 relative to white matter's, by T2.
_ISOTROPIC = {"gray": (0.82, 1.15), "deep": (0.74, 0.95), "fluid": (3.0, 2.8)}


@dataclass(frozen=True)
class _Settings:
    """What all persons of a simulation share."""

    directions: NDArray[np.float64]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    shifted: bool
    snr: float
    cellular: float
    generator: str
    standard: Standard
    seed: Seed


def simulate_dmri(
    n_healthy: int,
    n_lesions: int,
    *,
    n_directions: int = 64,
    shape: Sequence[int] = (40, 48, 32),
    spacing: float | Sequence[float] = 4.0,
    registration: str = "good",
    snr: float = 22.0,
    cellular: float = 0.3,
    generator: str = "gliomas",
    tissues: Sequence[Image] | None = None,
    skip: int = 0,
    n_jobs: int | None = None,
    random_state: RandomState = None,
) -> tuple[list[Case], list[Case]]:
    """
    Simulate diffusion scans of healthy persons and of patients with gliomas.

    These are no patients: nobody was scanned, and what a detector finds here says little about
    what it finds in people. All brains are warped from one standard brain of white matter, a
    folded cortex, deep gray matter, ventricles and fluid, whose ventricles and diffusivities
    depend on age. White matter has fibers, in a third of it crossing ones (two tensors of 1.6 and
    0.35 µm²/ms); voxels hold several tissues, which count by their brightness at b = 0; noise is
    Rician, and signals are divided by one noisy volume at b = 0. There are no distortions, no
    motion, and tumors push nothing aside.

    Gliomas are rough ellipsoids, some of them bent, with the volume of balls of 8.5 to 22.5 mm
    radius, whose edges infiltrate: diffusivity is raised
    there, to 1.1 to 1.8 µm²/ms by grade, and anisotropy lowered. Half begin in white matter, 20 %
    near the cortex, 15 % each in deep nuclei and low in the brain. High grades have mostly edema
    along white matter, some of grade IV dead cores. Those of the kind ``"cellular"`` have a core
    whose diffusivity is reduced. Where gliomas of grade III and IV will have grown, tissue is a
    little infiltrated already; the mask of the follow-up scan holds it. Those of grade II stay.

    Parameters
    ----------
    n_healthy, n_lesions : int
        Numbers of healthy persons and of patients.
    n_directions : int, default=64
        Gradient directions on half a sphere.
    shape : sequence of 3 int, default=(40, 48, 32)
        Voxels of the image, 12 to 512 along each axis.
    spacing : float or sequence of 3 floats, default=4.0
        Edges of a voxel in mm, up to 12; at least 60 mm along each axis are needed. The brain
        fills the field of view up to a person's size. A field that is smaller gets a brain that is
        smaller in all its parts.
    registration : {"good", "shifted"}, default="good"
        ``"good"``: brains differ by smooth warps (about 3 mm). ``"shifted"``: registration has
        also left a shift of up to 2 voxels along each axis and a change of size of up to 5 %, of
        healthy persons and patients alike.
    snr : float, default=22.0
        White matter's signal at b = 0 over the standard deviation of the noise; infinity for none.
    cellular : float, default=0.3
        Share of patients with reduced diffusivity, of grades III and IV: 0 to 0.75.
    generator : str, default="gliomas"
        What the patients have, by its name in `anomaly.GENERATORS`: the same patients with
        another anomaly, whose label is `lesion`. Only gliomas grow.
    tissues : sequence of 2 paths or Nifti1Images, optional
        Maps of gray and white matter of one brain, such as those of the MNI, in place of the
        standard brain that is made from formulas.
    skip : int, default=0
        Persons of either list to pass over: those that are made are the ones after them, the same
        as if all were made at once.
    n_jobs : int, optional
        Processes, by joblib's rule. The cases are the same whatever it is.
    random_state : int, RandomState or None, default=None
        Seed. A case depends on it and on its number, not on how many there are. Both cohorts of
        `registration` have the same persons, and patients whose gliomas are of the same grades and
        kinds but begin at other places.

    Returns
    -------
    healthy, lesions : list of Case
        Synthetic cases, named "synthetic-healthy-001" and "synthetic-glioma-001" (or after another
        `generator`) and so on, with `tissue`, `b0`, `directions`, `age`, `sex` and `site`;
        patients have `lesion`, those with gliomas (where it includes edema) also `followup`,
        `grade` and `kind`. The map of tissues is that without the tumor.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    FileNotFoundError
        If there is no such map of tissue.

    Examples
    --------
    >>> from anomaly import simulate_dmri
    >>> options = {"n_directions": 6, "shape": (20, 24, 16), "spacing": 8}
    >>> healthy, lesions = simulate_dmri(1, 1, **options, random_state=0)
    >>> healthy[0].name, healthy[0].signal.shape, lesions[0].healthy
    ('synthetic-healthy-001', (20, 24, 16, 6), False)
    """
    for option, n in (("n_healthy", n_healthy), ("n_lesions", n_lesions), ("skip", skip)):
        check_number(option, n, whole=True)
    check_number("n_directions", n_directions, least=1, most=_MOST_DIRECTIONS, whole=True)
    check_jobs(n_jobs)
    if not n_healthy + n_lesions:
        raise ValueError("n_healthy and n_lesions are 0; ask for at least one person")
    check_word("registration", registration, REGISTRATIONS)
    voxels, steps = check_grid(shape, spacing, (40, 48, 32), "tumors", **_GRID)
    if not (isinstance(snr, float | np.floating) and snr == np.inf):
        check_number("snr", snr, least=1)
    check_number("cellular", cellular, most=1 - GRADES["II"])
    check_word("generator", generator, tuple(GENERATORS))
    settings = _Settings(
        spread_directions(int(n_directions)),
        voxels,
        steps,
        registration == "shifted",
        float(snr),
        float(cellular),
        generator,
        standard_brain(steps, tissues),
        Seed(random_state),
    )
    from joblib import Parallel, delayed

    numbers = [("healthy", number) for number in range(skip, skip + n_healthy)]
    numbers += [("glioma", number) for number in range(skip, skip + n_lesions)]
    jobs = [delayed(_simulate)(group, number, settings) for group, number in numbers]
    cases = list(Parallel(n_jobs=n_jobs)(jobs))
    return cases[:n_healthy], cases[n_healthy:]


def _stream(settings: _Settings, group: str, number: int, purpose: str) -> np.random.Generator:
    """Return the random stream of one ingredient, so that a new one changes no other."""
    return settings.seed.rng("anomaly", group, purpose, number)


def _person(
    group: str, number: int, settings: _Settings
) -> tuple[Brain, NDArray[np.floating], dict[str, Any]]:
    """Draw a healthy person: a brain, the factor of its diffusivities, what a table says."""
    person = _stream(settings, group, number, "person")
    age = float(np.round(person.uniform(*_AGES), 1))
    sex = str(person.choice(["female", "male"]))
    site = str(person.choice(list(_SITES)))
    widening = _VENTRICLES[0] * (age - _MIDDLE_AGE) + _VENTRICLES[1] * person.normal()
    aging = 1 + _AGING * (age - _MIDDLE_AGE)
    factor = _SITES[site] * aging * np.exp(_PERSON * person.normal())
    brain = draw_brain(
        settings.standard,
        settings.shape,
        settings.spacing,
        _stream(settings, group, number, "brain"),
        growth=float(np.clip(widening, *_VENTRICLE_LIMITS)),
        shifted=settings.shifted,
    )
    texture_stream = _stream(settings, group, number, "texture")
    texture = texture_field(settings.shape, _TEXTURE_MM, brain.head.spacing, texture_stream)
    factors = factor * np.exp(_TEXTURE * texture[brain.head.brain])
    return brain, factors, {"age": age, "sex": sex, "site": site}


def _simulate(group: str, number: int, settings: _Settings) -> Case:
    """Make one person's scan."""
    brain, factors, facts = _person(group, number, settings)
    mask = brain.head.brain
    lesion: dict[str, Any] = {}
    components = []
    generator = None
    if group == "glioma" and settings.generator == "gliomas":
        grade, kind = _grade_and_kind(number, settings)
        stream = _stream(settings, group, number, "glioma")
        glioma = draw_diffusion_glioma(brain.head, grade, kind, stream)
        components = glioma.components
        lesion = {key: brain.volume(getattr(glioma, key)) for key in ("lesion", "followup")}
        lesion |= {"grade": grade, "kind": kind}
    elif group == "glioma":
        generator = GENERATORS[settings.generator]
    weighted, b0 = brain_signals(brain, settings.directions, _B, factors, components)
    if generator is not None and generator.before_noise:
        weighted, lesion = _put(weighted / b0[:, None], brain, number, settings)
        weighted *= b0[:, None]
    noise = _stream(settings, group, number, "noise")
    b0 = add_noise(b0, 1 / settings.snr, noise)
    weighted = add_noise(weighted, 1 / settings.snr, noise)
    scanner = _stream(settings, group, number, "scanner")
    gain = _UNIT * np.exp(_GAIN * scanner.standard_normal())
    coils = slow_field(settings.shape, 0.25 * np.array(settings.shape), scanner)[mask]
    field = (gain * np.exp(_BIAS * coils)).astype(np.float32)
    b0 *= field
    weighted *= field[:, None]
    # Files hold both images, so that the ratio of what is read must be the same to the bit.
    weighted /= b0[:, None]
    np.clip(weighted, 0, 1, out=weighted)
    if generator is not None and not generator.before_noise:
        weighted, lesion = _put(weighted, brain, number, settings)
    title = group if generator is None else settings.generator
    name = f"synthetic-{title}-{number + 1:03d}"
    return Case(
        name,
        brain.volume(weighted),
        mask,
        brain.tissue,
        affine=brain.head.affine,
        synthetic=True,
        name=name,
        b0=brain.volume(b0),
        b=_B,
        directions=settings.directions,
        **facts,
        **lesion,
    )


def _put(
    signals: NDArray[np.float32], brain: Brain, number: int, settings: _Settings
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Put an anomaly into a patient's signals (n_voxels, m) divided by those at b = 0."""
    generator, mask = GENERATORS[settings.generator], brain.head.brain
    source = None
    if generator.needs_source:
        # A person that is in no cohort.
        foreign, factors, _ = _person("source", number, settings)
        weighted, b0 = brain_signals(foreign, settings.directions, _B, factors)
        source = foreign.volume(weighted / b0[:, None])
    seed = settings.seed.derived("anomaly", settings.generator, number)
    changed, label = generator(brain.volume(signals), mask, source=source, random_state=seed)
    return changed[mask], {"lesion": label}


def _grade_and_kind(number: int, settings: _Settings) -> tuple[str, str]:
    """Choose grade and kind of a glioma so that even few patients have the intended shares."""
    place = settings.seed.evenly(number, _EVEN["grade"], "anomaly", "grade")
    borders = np.cumsum(list(GRADES.values()))[:-1]
    grade = list(GRADES)[int(np.searchsorted(borders, place, side="right"))]
    # Grade II has none, so the others have more.
    cellular_share = settings.cellular / (1 - GRADES["II"])
    place = settings.seed.evenly(number, _EVEN["kind"], "anomaly", "kind")
    is_cellular = grade != "II" and place < cellular_share
    return grade, "cellular" if is_cellular else "infiltrating"


@dataclass(frozen=True)
class Standard:
    """The brain from which all persons' brains are made."""

    head: StandardHead
    # Share of the second fiber direction, order, and the two directions: (8, x, y, z).
    fibers: NDArray[np.float32]


@dataclass(frozen=True)
class Brain:
    """A person's brain: values of its n voxels in the order of ``head.brain.nonzero()``."""

    head: Head
    shares: dict[str, NDArray[np.float32]]  # of white, gray, fluid and deep gray matter (n,)
    fibers: NDArray[np.float32]  # (2, n, 3): two directions, unit vectors
    crossing: NDArray[np.float32]  # share of the second direction
    order: NDArray[np.float32]  # share of white matter with these directions; the rest has all

    @property
    def tissue(self) -> NDArray[np.uint8]:
        """Main tissue of each voxel: 1 white, 2 gray, 3 fluid, 4 deep gray, 0 outside."""
        shares = np.stack(list(self.shares.values()))
        return self.volume((1 + shares.argmax(axis=0)).astype(np.uint8))

    def volume(self, values: NDArray) -> NDArray:
        """Put values (n, ...) into a volume (x, y, z, ...) that is 0 outside the brain."""
        mask = self.head.brain
        volume = np.zeros((*mask.shape, *values.shape[1:]), dtype=values.dtype)
        volume[mask] = values
        return volume


def standard_brain(spacing: tuple[float, float, float], tissues: Any = None) -> Standard:
    """Make the brain from which all others are made, blurred by voxels of a spacing in mm."""
    head = StandardHead.of(spacing, tissues)
    return Standard(head, _fibers(head, spacing))


@lru_cache(maxsize=4)
def _fibers(head: StandardHead, spacing: tuple[float, float, float]) -> NDArray[np.float32]:
    """
    Make fiber directions from formulas.

    Across near the midline, up and down beside it, from front to back at the sides, outward at the
    rim. Shapes: returns (8, x, y, z) as in `Standard`.
    """
    local = head.local
    steps = np.linalg.norm(head.affine[:3, :3], axis=0)
    x, y, z = np.moveaxis(local, -1, 0)
    side = np.abs(x)
    rng = np.random.default_rng(0)

    def field() -> NDArray:
        # The same on both sides, as brains are.
        random_volume = texture_field(x.shape, _BEND, steps, rng)
        return (random_volume + random_volume[::-1]) / 2**0.5

    across = np.exp(-((side / 0.22) ** 2) - ((z - 0.25) / 0.25) ** 2)
    along = np.exp(-(((side - 0.55) / 0.2) ** 2))
    upward = np.exp(-(((side - 0.28) / 0.14) ** 2) - (y / 0.4) ** 2)
    radius = np.sqrt((local**2).sum(axis=-1)) + 1e-3
    outward = np.clip((radius - 0.5) / 0.4, 0, 1) / radius
    bent = np.stack([0.35 * field() for _ in range(3)])
    first = np.stack([2 * across + outward * x, along + outward * y, 1.5 * upward + outward * z])
    # Formulas alone would give every person the same straight tracts.
    first += bent
    first /= np.linalg.norm(first, axis=0) + 1e-6
    second = np.cross(first, np.stack([field() for _ in range(3)]), axis=0)
    second /= np.linalg.norm(second, axis=0) + 1e-6
    mixed = field()
    limit = np.quantile(mixed, 1 - _CROSSING)
    crossing = 0.5 * np.clip(0.5 + (mixed - limit) / 0.4, 0, 1)
    order = np.clip(0.8 + 0.12 * field(), 0.4, 1)
    blur = _PARTIAL * np.asarray(spacing) / steps
    maps = [crossing, order, *first, *second]
    return np.stack([gaussian_filter(values.astype(np.float32), blur) for values in maps])


def draw_brain(
    standard: Standard,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    growth: float = 0.0,
    shifted: bool = False,
) -> Brain:
    """Draw a person's brain, registered to the standard brain."""
    head_rng, registration_stream = rng.spawn(2)
    shift, scale = np.zeros(3), 1.0
    if shifted:
        shift = registration_stream.uniform(-_SHIFT, _SHIFT, 3) * spacing
        scale = 1 + registration_stream.uniform(-_SCALE, _SCALE)
    head = Head.draw(
        shape, spacing, head_rng, standard=standard.head, growth=growth, scale=scale, shift=shift
    )
    places = head.local[head.brain]
    crossing, order, *vectors = standard.head.sampled(standard.fibers, places)
    fibers = np.moveaxis(np.reshape(vectors, (2, 3, -1)), 1, 2)
    fibers = fibers / np.maximum(np.linalg.norm(fibers, axis=-1, keepdims=True), np.float32(1e-6))
    return Brain(
        head,
        {name: getattr(head, name)[head.brain] for name in ("white", "gray", "fluid", "deep")},
        np.ascontiguousarray(fibers, dtype=np.float32),
        crossing,
        order,
    )


def spread_directions(n: int) -> NDArray[np.float64]:
    """
    Give directions that cover half a sphere evenly, on a spiral by the golden ratio.

    Shapes: returns (n, 3).
    """
    number = np.arange(n)
    z = 1 - (number + 0.5) / n
    turn = number * np.pi * (3 - 5**0.5)
    return np.stack(
        [np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z], axis=1
    )


def tensor_signals(
    fibers: NDArray, axial: float, radial: float, weights: ArrayLike, directions: NDArray
) -> NDArray[np.float32]:
    """
    Compute the signals, divided by that at b = 0, of axially symmetric tensors.

    Shapes: `fibers` (n, 3), `weights` (b-values, n), `directions` (m, 3); returns (n, m).

    References
    ----------
    Basser et al., Biophys J 66:259–267, 1994.
    """
    # Not a matrix product, whose last bits depend on the number of threads.
    aligned = np.zeros((len(fibers), len(directions)), dtype=np.float32)
    vectors = np.asarray(fibers, dtype=np.float32), directions.astype(np.float32)
    for along, direction in zip(*(vector.T for vector in vectors), strict=True):
        aligned += along[:, None] * direction
    exponent = np.float32(radial - axial) * np.square(aligned) - np.float32(radial)
    return np.exp(exponent * np.asarray(weights, dtype=np.float32)[:, None])


def brain_signals(
    brain: Brain, directions: NDArray, b: float, factors: NDArray, lesion: Sequence[Component] = ()
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Compute the signals of a brain without noise.

    Shapes: `directions` (m, 3), `factors` (of diffusivities, n); returns signals (n, m), those at
    b = 0 (n,).
    """
    weights = (b * _MS_PER_UM2 * factors).astype(np.float32)
    white = brain.shares["white"]
    ordered = white * brain.order
    signals = np.zeros((len(white), len(directions)), dtype=np.float32)
    # Signals of crossing fibers add up, not their tensors.
    for fibers, share in zip(brain.fibers, (1 - brain.crossing, brain.crossing), strict=True):
        tensor = tensor_signals(fibers, _AXIAL, _RADIAL, weights, directions)
        signals += tensor * (ordered * share)[:, None]
    alike = (white - ordered) * np.exp(-_UNORDERED * weights)
    b0 = white.copy()
    for name, (diffusivity, brightness) in _ISOTROPIC.items():
        bright = np.float32(brightness) * brain.shares[name]
        b0 += bright
        alike += bright * np.exp(np.float32(-diffusivity) * weights)
    signals += alike[:, None]
    healthy = np.ones_like(b0)
    for component in lesion:
        healthy -= component.share
    signals *= healthy[:, None]
    b0 *= healthy
    for component in lesion:
        bright = np.float32(component.brightness) * component.share
        b0 += bright
        decay = np.exp(np.float32(-component.diffusivity) * weights)
        signals += (bright * decay)[:, None]
    return signals, b0


def add_noise(
    values: NDArray[np.float32], sigma: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """
    Give magnitudes the noise of a scanner (Rician).

    References
    ----------
    Gudbjartsson and Patz, Magn Reson Med 34:910–914, 1995.
    """
    real, imaginary = (
        np.float32(sigma) * rng.standard_normal(values.shape, dtype=np.float32) for _ in range(2)
    )
    return np.hypot(values + real, imaginary)
