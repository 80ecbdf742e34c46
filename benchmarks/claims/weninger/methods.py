"""Names of methods and threshold rules on the board, and their figures in tables of evaluations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from anomaly.detectors.thresholds import RULES, FixedThreshold, HealthyRateThreshold, ThresholdRule
from benchmarks.claims.claim_board import MissingEvidence

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CLASSICAL",
    "COHORTS",
    "FIXED",
    "HEALTHY_RATE",
    "IMAGE_SCALE",
    "NOISES",
    "OWN",
    "REFERENCE",
    "STRICT_RATE",
    "Tables",
    "aucs_of",
    "board_rules",
    "chosen_autoencoder",
    "latents_of",
    "method_name",
    "networks_of",
    "rows_of",
    "value_of",
    "value_or_nan",
]

#: Kinds of noise that the study reports.
NOISES = (
    *("normal random", "normal directional", "uniform random", "uniform directional"),
    *("uniform isotropic", "mix"),
)
#: What networks are compared with: deviations from healthy scans, place by place, to the side of
#: fast diffusion.
REFERENCE = "z, one-sided"
#: The project's own detector.
OWN = "implants"
#: Detectors without a network.
CLASSICAL = (REFERENCE, "z, two-sided", "Mahalanobis", "PCA")
#: Cohorts: registered well, and with residual misregistration.
COHORTS = ("registered", "shifted")
#: Form of an autoencoder whose maps are divided by their own largest values, as in the published
#: code.
IMAGE_SCALE = "image scale"

#: Fixed thresholds, and those of 1 % and 0.2 % false positives on healthy scans.
FIXED, HEALTHY_RATE, STRICT_RATE = "fixed", "healthy rate", "healthy rate, 0.2 %"

_FIXED_DAE, _FIXED_DISC = 0.3, 0.5

#: What `evaluate_detectors` gives.
Tables = Mapping[str, "pd.DataFrame"]


def method_name(
    network: str,
    *,
    output: str = "sigmoid",
    latent: int = 512,
    noise: str = "mix",
    mean: str = "half",
    form: str = "",
) -> str:
    """
    Name a method as the claims know it: "DAE sigmoid 512", "RecDiscNet mix half, residual".

    Output and latent size are those of an autoencoder, noise (one of `NOISES`; a hyphen or an
    underscore counts as a space) and its mean ("half" or "full") those of a RecDiscNet. The form
    is "mean of abs" (residual of an autoencoder), `IMAGE_SCALE` (of its maps) or "residual" (of a
    RecDiscNet, whose plain row is the output of the discriminator). Other names stay as they are.
    """
    name = network
    if network == "DAE":
        name = f"DAE {output} {latent:d}"
    elif network == "RecDiscNet":
        name = f"RecDiscNet {re.sub('[-_]', ' ', noise)} {mean}"
    return f"{name}, {form}" if form else name


def board_rules(methods: Sequence[str]) -> dict[str, ThresholdRule | Mapping[str, ThresholdRule]]:
    """
    List the threshold rules of the board, for `evaluate_detectors`.

    To `anomaly.detectors.thresholds.RULES` come `STRICT_RATE`, the default of the project's own
    detector, and `FIXED`, which is .5 for the discriminator of a RecDiscNet and .3 for maps of
    autoencoders at `IMAGE_SCALE`.
    """
    rules: dict[str, ThresholdRule | Mapping[str, ThresholdRule]] = dict(RULES)
    rules[STRICT_RATE] = HealthyRateThreshold(0.002)
    fixed: dict[str, ThresholdRule] = {}
    for name in methods:
        if name.startswith("RecDiscNet ") and "," not in name:
            fixed[name] = FixedThreshold(_FIXED_DISC)
        elif name.startswith("DAE ") and name.endswith(f", {IMAGE_SCALE}"):
            fixed[name] = FixedThreshold(_FIXED_DAE)
    if fixed:
        rules[FIXED] = fixed
    return rules


def rows_of(
    tables: Tables, method: str, rule: str | None = None, part: str = "all"
) -> pd.DataFrame:
    """Choose rows of the summary by method, rule (by default all) and kind of lesion."""
    summary = tables["summary"]
    rows = summary[(summary["part"] == part) & (summary["method"] == method)]
    return rows if rule is None else rows[rows["rule"] == rule]


def value_or_nan(
    tables: Tables, method: str, measure: str, rule: str | None = None, part: str = "all"
) -> float:
    """Read a figure of the summary; NaN where there is none."""
    rows = rows_of(tables, method, rule, part)
    return float(rows[measure].iloc[0]) if len(rows) else float("nan")


def value_of(
    tables: Tables, method: str, measure: str, rule: str | None = None, part: str = "all"
) -> float:
    """Read a figure of the summary; a row that is not there is missing evidence."""
    if not len(rows_of(tables, method, rule, part)):
        under = "" if rule is None else f" under {rule}"
        where = "" if part == "all" else f" ({part})"
        raise MissingEvidence(f"{measure} of {method}{under}{where}")
    return value_or_nan(tables, method, measure, rule, part)


def aucs_of(tables: Tables) -> dict[str, float]:
    """Give the AUC of every method that is no control, in the order of the table."""
    summary = tables["summary"]
    rows = summary[(summary["part"] == "all") & ~summary["control"].astype(bool)]
    rows = rows.drop_duplicates("method")
    return dict(zip(rows["method"].astype(str), rows["auc"].astype(float), strict=True))


def networks_of(tables: Tables) -> list[str]:
    """Name the residuals of autoencoders and outputs of discriminators: names without a form."""
    networks = ("DAE ", "RecDiscNet ")
    return [name for name in aucs_of(tables) if name.startswith(networks) and "," not in name]


def latents_of(tables: Tables, output: str) -> dict[int, float]:
    """Give the AUC of autoencoders with this output by the size of their latent vector."""
    aucs = {}
    for name, auc in aucs_of(tables).items():
        match = re.fullmatch(rf"DAE {output} (\d+)", name)
        if match:
            aucs[int(match[1])] = auc
    return aucs


def chosen_autoencoder(tables: Tables) -> str:
    """Name the autoencoder with a sigmoid and the largest latent vector, which stands for all."""
    aucs = latents_of(tables, "sigmoid")
    if not aucs:
        raise MissingEvidence("an autoencoder with a sigmoid")
    return method_name("DAE", latent=max(aucs))
