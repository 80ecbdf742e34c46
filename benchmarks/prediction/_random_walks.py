"""Random walks of water in packed permeable spheres and of blood in capillaries."""

# Compiled functions call only those of this file: numba's cache on disk would not see other ones.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.compiled import njit

__all__ = ["Pulses", "Spheres", "Walks", "pack_spheres", "walk_blood", "walk_tissue"]

_N_SPHERES = 80
_RADIUS_VARIATION = 0.2
_SMALLEST_RADIUS = 0.4  # of the mean
_DENSEST = 0.62  # random packings jam at about 0.64
_MOST_ROUNDS = 20_000
_MOST_CELLS = 32  # along each axis of the grid of neighbors
_SPEED_VARIATION = 0.5

# Multiples of it modulo 1 fill a cube evenly: the powers of the root of x⁴ = x + 1.
_EVEN = 1.2207440846057596 ** -np.arange(1.0, 4.0)


@dataclass(frozen=True)
class Pulses:
    """A pair of gradient pulses; times in ms after excitation."""

    start: float
    duration: float
    separation: float

    @property
    def end(self) -> float:
        """End of the second pulse."""
        return self.start + self.separation + self.duration

    @property
    def edges(self) -> NDArray[np.float64]:
        """Start and end of the first pulse, then of the second, (4,)."""
        first = np.array([self.start, self.start + self.duration])
        return np.concatenate([first, first + self.separation])

    @property
    def strength(self) -> float:
        """Phase in rad per µm and ms at b = 1 ms/µm²."""
        return 1 / (self.duration * math.sqrt(self.separation - self.duration / 3))


@dataclass(frozen=True)
class Spheres:
    """Spheres in a periodic cube; lengths in µm."""

    centers: NDArray[np.float64]  # (n, 3)
    radii: NDArray[np.float64]  # (n,)
    edge: float

    @property
    def packed(self) -> float:
        """Share of the volume inside."""
        return float(4 / 3 * np.pi * (self.radii**3).sum() / self.edge**3)


@dataclass(frozen=True)
class Walks:
    """Phases of walkers along three axes, and their time inside spheres."""

    phases: NDArray[np.float64]  # (n_walkers, 3) in rad at b = 1 ms/µm²
    time_inside: NDArray[np.float64]  # (n_walkers, n_te) in ms
    te: NDArray[np.float64]  # (n_te,) in ms

    def relaxation(self, t2_inside: float, t2_outside: float) -> NDArray[np.float64]:
        """Relax each walker by the time on each side; (n_walkers, n_te)."""
        difference = 1 / t2_inside - 1 / t2_outside
        return np.exp(-self.te / t2_outside - self.time_inside * difference)

    def signals(
        self, b: ArrayLike, t2_inside: float = np.inf, t2_outside: float = np.inf
    ) -> NDArray[np.float64]:
        """Average signals over walkers and axes, (n_b, n_te), at b in ms/µm²."""
        weights = self.relaxation(t2_inside, t2_outside) / len(self.phases)
        means = [np.cos(np.sqrt(value) * self.phases).mean(axis=1) @ weights for value in _row(b)]
        return np.array(means)

    def cumulants(
        self, i_te: int, t2_inside: float = np.inf, t2_outside: float = np.inf
    ) -> tuple[float, float]:
        """Compute D (µm²/ms) and K of the signal at b → 0 and one echo time."""
        weights = self.relaxation(t2_inside, t2_outside)[:, i_te]
        second, fourth = (
            np.average((self.phases**power).mean(axis=1), weights=weights) for power in (2, 4)
        )
        return float(second / 2), float(fourth / second**2 - 3)


def pack_spheres(
    radius: float, packed: float, rng: np.random.Generator, *, n_spheres: int = _N_SPHERES
) -> Spheres:
    """
    Pack spheres of normally distributed radii at random without overlap.

    Overlapping neighbors push each other away, which packs more densely (up to about 0.6) than
    placing one after the other. Raises ValueError where they find no room.
    """
    if not 0 < packed <= _DENSEST:
        raise ValueError(
            f"spheres at random fill up to {_DENSEST:g} of the volume, not {packed:g}; fill less"
        )
    radii = 1 + _RADIUS_VARIATION * rng.standard_normal(n_spheres)
    radii = radius * np.maximum(radii, _SMALLEST_RADIUS)
    edge = float((4 / 3 * np.pi * (radii**3).sum() / packed) ** (1 / 3))
    centers = rng.uniform(0, edge, (n_spheres, 3))
    # A little more than touching, so that rounding leaves no overlap.
    reach = 1.001 * (radii[:, None] + radii)
    np.fill_diagonal(reach, 0)
    for _ in range(_MOST_ROUNDS):
        apart = centers[:, None] - centers
        apart -= edge * np.round(apart / edge)
        distance = np.linalg.norm(apart, axis=2)
        overlap = np.maximum(reach - distance, 0)
        if overlap.max() < 5e-4 * radius:
            return Spheres(centers % edge, radii, edge)
        push = overlap / np.where(distance > 0, distance, 1)
        centers += 0.5 * (push[:, :, None] * apart).sum(axis=1)
    raise ValueError(
        f"{n_spheres} spheres find no room where they fill {packed:g} of the volume; fill less"
    )


def walk_tissue(
    spheres: Spheres,
    pulses: Pulses,
    te: ArrayLike,
    *,
    d_inside: float,
    d_outside: float,
    permeability: float = 0.0,
    n_walkers: int = 20_000,
    step: float = 0.05,
    starts: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Walks:
    """
    Walk through packed spheres, inside and outside.

    Steps have one length, sqrt(6 D step), and any direction. A step that would cross a membrane
    is made with the probability 2/3 · permeability · length / D of the side walked from, and
    otherwise not at all: both keep a uniform density uniform.

    Parameters
    ----------
    spheres : Spheres
        Their positions in a periodic cube.
    pulses : Pulses
        Gradient pulses.
    te : array-like of shape (n_te,)
        Echo times in ms, ascending, none before the end of the second pulse.
    d_inside, d_outside : float
        Diffusivities in µm²/ms.
    permeability : float, default=0.0
        Of membranes in µm/ms.
    n_walkers : int, default=20_000
        Number of walkers.
    step : float, default=0.05
        Time of a step in ms.
    starts : ndarray of shape (n_walkers, 3), optional
        Positions at the start in µm; by default spread evenly over the cube.
    seed : int, default=0
        Seed.

    Returns
    -------
    Walks
        Phases and times inside.

    References
    ----------
    Fieremans and Lee, NeuroImage 182:39–61, 2018 (probability of crossing membranes).
    """
    times = _echo_times(te, pulses)
    rng = np.random.default_rng(seed)
    if starts is None:
        starts = spheres.edge * (np.arange(n_walkers)[:, None] * _EVEN + rng.random(3))
    # Without crossings the time after the second pulse is known.
    last = times[-1] if permeability else pulses.end
    n_steps = round(last / step)
    middles = (np.arange(n_steps) + 0.5) * step
    on, off, on_again, off_again = pulses.edges
    gradient = ((middles > on_again) & (middles < off_again)) * 1.0
    gradient -= (middles > on) & (middles < off)
    displacement_sums, time_inside, began_inside = _walk_tissue(
        starts % spheres.edge,
        np.column_stack([spheres.centers, spheres.radii]),
        _neighbors(spheres),
        spheres.edge,
        np.array([d_outside, d_inside]),
        permeability,
        step,
        gradient * pulses.strength * step,
        np.round(np.minimum(times, last) / step).astype(np.int64),
        rng,
    )
    if not permeability:
        time_inside = began_inside[:, None] * times
    return Walks(_turned(displacement_sums, rng), time_inside, times)


def walk_blood(
    pulses: Pulses,
    *,
    speed: float,
    segment: float,
    diffusivity: float = 1.5,
    n_walkers: int = 200_000,
    seed: int = 0,
) -> Walks:
    """
    Let blood flow through straight segments of capillaries that turn at random.

    Speeds (mean in mm/s) are log-normal and stay; lengths of segments (mean in µm) are
    exponential. Diffusion in the blood (µm²/ms) is added as what it is, a normal phase.
    """
    rng = np.random.default_rng(seed)
    spread = math.sqrt(math.log1p(_SPEED_VARIATION**2))
    speeds = speed * np.exp(spread * rng.standard_normal(n_walkers) - spread**2 / 2)
    flow = _walk_blood(speeds, segment, pulses.edges, pulses.strength, rng)
    diffusion = math.sqrt(2 * diffusivity) * rng.standard_normal(flow.shape)
    return Walks(flow + diffusion, np.zeros((n_walkers, 1)), np.array([pulses.end]))


def _row(values: ArrayLike) -> NDArray[np.float64]:
    return np.atleast_1d(np.asarray(values, dtype=np.float64))


def _echo_times(te: ArrayLike, pulses: Pulses) -> NDArray[np.float64]:
    times = _row(te)
    if times[0] < pulses.end or (np.diff(times) <= 0).any():
        raise ValueError(
            f"echo times must ascend from {pulses.end:g} ms, the end of the second pulse, not "
            f"{', '.join(f'{time:g}' for time in times)}"
        )
    return times


def _turned(vectors: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Turn each walker's frame at random, because few packed spheres differ by direction."""
    from scipy.spatial.transform import Rotation

    return Rotation.random(len(vectors), random_state=rng).apply(vectors)


def _neighbors(spheres: Spheres) -> NDArray[np.int64]:
    """List the spheres that reach into each cell of a cubic grid, filled up with −1."""
    n = int(np.clip(1.5 * spheres.edge / spheres.radii.mean(), 1, _MOST_CELLS))
    size = spheres.edge / n
    middles = (np.indices((n, n, n)).reshape(3, -1).T + 0.5) * size
    apart = middles[:, None] - spheres.centers
    apart -= spheres.edge * np.round(apart / spheres.edge)
    reaches = np.linalg.norm(apart, axis=2) < spheres.radii + size * math.sqrt(3) / 2
    table = np.full((n**3, max(reaches.sum(axis=1).max(), 1)), -1)
    for cell, row in zip(table, reaches, strict=True):
        numbers = np.flatnonzero(row)
        cell[: len(numbers)] = numbers
    return table.reshape(n, n, n, -1)


@njit(cache=True, nogil=True)
def _within(x, y, z, sphere, edge):
    """Tell whether a point is in a sphere or in one of its periodic images."""
    dx = x - sphere[0]
    dy = y - sphere[1]
    dz = z - sphere[2]
    dx -= edge * np.rint(dx / edge)
    dy -= edge * np.rint(dy / edge)
    dz -= edge * np.rint(dz / edge)
    return dx * dx + dy * dy + dz * dz < sphere[3] * sphere[3]


@njit(cache=True, nogil=True)
def _sphere_at(x, y, z, spheres, neighbors, edge):
    """Find the sphere around a point of the cube; −1 outside all."""
    n = neighbors.shape[0]
    scale = n / edge
    # Rounding may put a point onto the far border of the cube.
    i = min(int(x * scale), n - 1)
    j = min(int(y * scale), n - 1)
    k = min(int(z * scale), n - 1)
    for number in neighbors[i, j, k]:
        if number < 0:
            break
        if _within(x, y, z, spheres[number], edge):
            return number
    return -1


@njit(cache=True, nogil=True)
def _direction(rng):
    """Draw a unit vector (Marsaglia, Ann. Math. Stat. 43:645–646, 1972)."""
    while True:
        u = 2 * rng.random() - 1
        v = 2 * rng.random() - 1
        s = u * u + v * v
        if s < 1:
            break
    root = 2 * math.sqrt(1 - s)
    return u * root, v * root, 1 - 2 * s


@njit(cache=True, nogil=True)
def _walk_tissue(
    starts, spheres, neighbors, edge, diffusivities, permeability, step, gradient, echoes, rng
):
    """Walk; `diffusivities` and what follows from them are those outside, then inside."""
    n_walkers = len(starts)
    phases = np.zeros((n_walkers, 3))
    times = np.zeros((n_walkers, len(echoes)))
    began_inside = np.zeros(n_walkers)
    lengths = np.sqrt(6 * diffusivities * step)
    chances = 2 / 3 * permeability * lengths / diffusivities
    for w in range(n_walkers):
        x, y, z = starts[w]
        # Displacements are not wrapped; a start at 0 is enough, because the pulses balance.
        dx, dy, dz = 0.0, 0.0, 0.0
        px, py, pz = 0.0, 0.0, 0.0
        sphere = _sphere_at(x, y, z, spheres, neighbors, edge)
        began_inside[w] = sphere >= 0
        n_inside = 0.0
        i_echo = 0
        for t in range(len(gradient)):
            side = 1 if sphere >= 0 else 0
            u, v, s = _direction(rng)
            u *= lengths[side]
            v *= lengths[side]
            s *= lengths[side]
            nx = (x + u) % edge
            ny = (y + v) % edge
            nz = (z + s) % edge
            next_sphere = sphere
            if sphere < 0 or not _within(nx, ny, nz, spheres[sphere], edge):
                next_sphere = _sphere_at(nx, ny, nz, spheres, neighbors, edge)
            moves = next_sphere == sphere
            # No step leads from a sphere into the next one without time between them.
            if not moves and (sphere < 0 or next_sphere < 0):
                moves = rng.random() < chances[side]
            if moves:
                x, y, z = nx, ny, nz
                px += gradient[t] * (dx + 0.5 * u)
                py += gradient[t] * (dy + 0.5 * v)
                pz += gradient[t] * (dz + 0.5 * s)
                dx += u
                dy += v
                dz += s
                n_inside += 0.5 * (side + (1 if next_sphere >= 0 else 0))
                sphere = next_sphere
            else:
                px += gradient[t] * dx
                py += gradient[t] * dy
                pz += gradient[t] * dz
                n_inside += side
            while i_echo < len(echoes) and echoes[i_echo] == t + 1:
                times[w, i_echo] = n_inside * step
                i_echo += 1
        phases[w] = px, py, pz
    return phases, times, began_inside


@njit(cache=True, nogil=True)
def _walk_blood(speeds, segment, edges, strength, rng):
    """Add up phases piece by piece, between turns and edges of pulses."""
    phases = np.zeros((len(speeds), 3))
    for w in range(len(speeds)):
        speed = speeds[w]
        x, y, z = 0.0, 0.0, 0.0
        time = 0.0
        turn = 0.0
        vx, vy, vz = 0.0, 0.0, 0.0
        for i in range(4):
            gradient = 0.0
            if i == 1:
                gradient = -strength
            if i == 3:
                gradient = strength
            while time < edges[i]:
                if time >= turn:
                    turn = time + segment * rng.standard_exponential() / speed
                    u, v, s = _direction(rng)
                    vx, vy, vz = speed * u, speed * v, speed * s
                until = min(turn, edges[i])
                dt = until - time
                phases[w, 0] += gradient * dt * (x + 0.5 * vx * dt)
                phases[w, 1] += gradient * dt * (y + 0.5 * vy * dt)
                phases[w, 2] += gradient * dt * (z + 0.5 * vz * dt)
                x += vx * dt
                y += vy * dt
                z += vz * dt
                time = until
    return phases
