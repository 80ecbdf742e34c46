"""Options that several commands share, and parsing of their values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RegionOptions:
    """Files and regions of a case: the target of a box, and what the box may not overlap."""

    include: tuple[int, ...] | None = None
    exclude: str | None = None
    margin: float = 0.0
    tolerance: float = 0.0
    image: Path | None = None
    labels: str | None = None
    flair_target: bool = False
    brain: str = "auto"
    brain_margin: float = 2.0

    def of_cases(self) -> dict[str, Any]:
        """Give the options of `read_cases`."""
        return {"image": self.image, "exclude": self.exclude, "brain": self.brain}

    def of_scene(self) -> dict[str, Any]:
        """Give the options of `read_scene`."""
        names = ("include", "margin", "tolerance", "flair_target", "brain_margin")
        return {name: getattr(self, name) for name in names} | {
            "labels": named_tissues(self.labels)
        }


@dataclass(frozen=True)
class ShiftOptions:
    """Chemical-shift displacement of a box."""

    ppm: tuple[float, float] | None = None
    percent_per_ppm: tuple[float, ...] | None = None
    bandwidth: tuple[float, ...] | None = None
    tesla: float = 3.0
    carrier: float = 2.3
    metabolite: float = 3.2

    def of_prescription(self) -> dict[str, Any]:
        """Give the range of chemical shifts and their displacement; empty without either."""
        if self.bandwidth is not None:
            from placement.exchange.displacement import pulse_displacement

            if self.ppm is not None or self.percent_per_ppm is not None:
                raise ValueError("--bandwidth takes the place of --ppm and --percent-per-ppm")
            pulses = list(_one_or_three("--bandwidth", self.bandwidth))
            return pulse_displacement(pulses, self.tesla, self.carrier, self.metabolite)
        if self.ppm is None and self.percent_per_ppm is None:
            return {}
        if self.ppm is None or self.percent_per_ppm is None:
            raise ValueError("chemical-shift displacement needs both --ppm and --percent-per-ppm")
        rate = _one_or_three("--percent-per-ppm", self.percent_per_ppm)
        # The prescription takes one number for all axes, or three.
        return {
            "ppm_range": self.ppm,
            "percent_per_ppm": list(rate) if len(rate) == 3 else rate[0],
        }


def _one_or_three(option: str, numbers: tuple[float, ...]) -> tuple[float, ...]:
    if len(numbers) not in (1, 3):
        text = ",".join(f"{number:g}" for number in numbers)
        raise ValueError(f"{option} {text}: one number, or 3 numbers with commas, are needed")
    return numbers


def named_tissues(text: str | None) -> dict[str, Any] | None:
    """Read the tissues that the values of a tumor file mean."""
    from placement.search.tissue_labels import named_labels

    return None if text is None else named_labels(text)
