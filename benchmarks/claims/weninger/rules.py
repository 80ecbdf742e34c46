"""Rules of the claims about anomalies, and the claims."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.study.contestants import BRIGHTNESS, ELSEWHERE
from benchmarks.claims.claim_board import Check, MissingEvidence, read_claims
from benchmarks.claims.weninger.methods import (
    CLASSICAL,
    HEALTHY_RATE,
    OWN,
    REFERENCE,
    Tables,
    aucs_of,
    chosen_autoencoder,
    latents_of,
    method_name,
    networks_of,
    rows_of,
    value_of,
)

__all__ = ["CLAIMS", "COHORT_CLAIMS"]

_OTSU = "Otsu"
_LATENT_SPREAD = 0.05  # of AUC between latent sizes that counts as secondary
_OPENED_FACTOR, _MUCH, _LITTLE = 1.15, 2.0, 0.15
_AIM_AUC, _AIM_DICE = 0.95, 0.65
_LOW_RATE, _HIGH_RATE = 0.005, 0.02
_LOST = 0.05  # of AUC that a map of places is expected to lose by shifts

_Rule = Callable[[Any], list[Check]]

_MIX = method_name("RecDiscNet")
_MIX_FULL = method_name("RecDiscNet", mean="full")


def _auc(tables: Tables, method: str, part: str = "all") -> float:
    return value_of(tables, method, "auc", part=part)


def _networks(tables: Tables) -> dict[str, float]:
    """Give the AUC of every network."""
    aucs, names = aucs_of(tables), networks_of(tables)
    if not names:
        raise MissingEvidence("a network")
    return {name: aucs[name] for name in names}


def _both_outputs(tables: Tables) -> list[tuple[int, float, float]]:
    """Give latent size, AUC with a sigmoid and AUC with a linear output."""
    sigmoid, linear = latents_of(tables, "sigmoid"), latents_of(tables, "linear")
    sizes = sorted(sigmoid.keys() & linear.keys())
    if not sizes:
        raise MissingEvidence("autoencoders with both outputs and one latent size")
    return [(size, sigmoid[size], linear[size]) for size in sizes]


def sigmoid_on_average(tables: Tables) -> list[Check]:
    _, sigmoid, linear = np.array(_both_outputs(tables)).T
    return [
        Check("AUC, sigmoid", float(sigmoid.mean()), ">", float(linear.mean()), against="linear")
    ]


def sigmoid_at_each(tables: Tables) -> list[Check]:
    return [
        Check(f"AUC, sigmoid {size}", sigmoid, ">", linear, against=f"linear {size}")
        for size, sigmoid, linear in _both_outputs(tables)
    ]


def _spread_of_latents(tables: Tables) -> float:
    aucs = list(latents_of(tables, "sigmoid").values())
    if len(aucs) < 2:
        raise MissingEvidence("autoencoders of two latent sizes")
    return float(np.ptp(aucs))


def latent_is_secondary(tables: Tables) -> list[Check]:
    spread = _spread_of_latents(tables)
    return [Check("range of AUC over latent sizes, sigmoid", spread, "<=", _LATENT_SPREAD)]


def latent_less_than_output(tables: Tables) -> list[Check]:
    _, sigmoid, linear = np.array(_both_outputs(tables)).T
    gap = float(np.abs(sigmoid.mean() - linear.mean()))
    spread = _spread_of_latents(tables)
    quantity = "range of AUC over latent sizes, sigmoid"
    return [Check(quantity, spread, "<", gap, against="between outputs")]


def half_over_full(tables: Tables) -> list[Check]:
    aucs = aucs_of(tables)
    for name in (_MIX, _MIX_FULL):
        if name not in aucs:
            raise MissingEvidence(f"AUC of {name}")
    result = []
    for half in networks_of(tables):
        full = half.removesuffix("half") + "full"
        if half.endswith(" half") and full in aucs:
            quantity = f"AUC, {half.removeprefix('RecDiscNet ')}"
            result.append(Check(quantity, aucs[half], ">", aucs[full], against="full"))
    return result


def mix_is_best(tables: Tables) -> list[Check]:
    mix, aucs = _auc(tables, _MIX), aucs_of(tables)
    others = [name for name in networks_of(tables) if name.endswith(" half") and name != _MIX]
    if not others:
        raise MissingEvidence("RecDiscNet with noise of one kind, half")
    # A margin, so that every other noise is a quantity of its own.
    return [
        Check(f"AUC, mix − {name.removeprefix('RecDiscNet ')}", mix - aucs[name], ">", 0)
        for name in others
    ]


def better_auc(tables: Tables) -> list[Check]:
    name = chosen_autoencoder(tables)
    return [Check(f"AUC, {name}", _auc(tables, name), ">", _auc(tables, _MIX), against=_MIX)]


def better_dice(measure: str, label: str, factor: float) -> _Rule:
    def checks(tables: Tables) -> list[Check]:
        value = value_of(tables, _MIX, measure, _OTSU)
        limit = factor * value_of(tables, chosen_autoencoder(tables), measure, _OTSU)
        quantity = f"{label}, {_OTSU}, RecDiscNet"
        return [Check(quantity, value, ">=", limit, against=f"{factor:g} × DAE")]

    return checks


def _gain(tables: Tables, method: str) -> float:
    raw = value_of(tables, method, "dice", _OTSU)
    opened = value_of(tables, method, "dice_opened", _OTSU)
    # Of nothing found, nothing is gained.
    return opened / raw if raw > 0 else float("nan")


def opening_helps(tables: Tables) -> list[Check]:
    name = chosen_autoencoder(tables)
    return [Check(f"opened Dice / Dice, {_OTSU}, {name}", _gain(tables, name), ">=", _MUCH)]


def opening_helps_more_than_untrained(tables: Tables) -> list[Check]:
    name = chosen_autoencoder(tables)
    value, limit = _gain(tables, name), _gain(tables, BRIGHTNESS)
    return [Check(f"opened Dice / Dice, {name}", value, ">", limit, against=BRIGHTNESS)]


def opening_helps_little(tables: Tables) -> list[Check]:
    change = abs(_gain(tables, _MIX) - 1)
    return [Check(f"|opened Dice / Dice − 1|, {_OTSU}, RecDiscNet", change, "<=", _LITTLE)]


def order_of_mean(tables: Tables) -> list[Check]:
    name = chosen_autoencoder(tables)
    limit = _auc(tables, f"{name}, mean of abs")
    return [Check(f"AUC, {name}", _auc(tables, name), ">", limit, against="mean of abs")]


def grows_there(method: str) -> _Rule:
    """Ask for mismatches in high grades to co-locate more often than not, and than by chance."""

    def checks(tables: Tables) -> list[Check]:
        table = tables["followup"]
        rows = table[(table["method"] == method) & (table["rule"] == HEALTHY_RATE)]
        rows = rows[rows["grade"].isin(["III", "IV"])]
        n = float(rows["n_mismatch"].sum())
        if not n:
            raise MissingEvidence(f"mismatches of {method} in high grades under {HEALTHY_RATE}")
        share = float(rows["n_colocated"].sum()) / n
        chance = float(rows["expected"].sum()) / n
        return [
            Check("share co-located, grades III and IV", share, ">=", 0.5),
            Check("share co-located", share, ">", 2 * chance, against="twice that by chance"),
        ]

    return checks


def _share_of_lesion(tables: Tables, method: str, stratum: str) -> float:
    table = tables["strata"]
    rows = table[(table["method"] == method) & (table["rule"] == _OTSU)]
    shares = rows.loc[rows["stratum"] == stratum, "sensitivity_opened"]
    if not len(shares) or np.isnan(shares.iloc[0]):
        raise MissingEvidence(f"sensitivity_opened of {method}, {stratum}")
    return float(shares.iloc[0])


def under_segmented(tables: Tables, method: str = _MIX) -> list[Check]:
    limit = _share_of_lesion(tables, method, ELSEWHERE)
    result = []
    for stratum in ("near cortex", "deep nuclei"):
        share = _share_of_lesion(tables, method, stratum)
        quantity = f"share of a lesion found, {stratum}"
        result.append(Check(quantity, share, "<", limit, against=ELSEWHERE))
    return result


def under_segmented_by_autoencoder(tables: Tables) -> list[Check]:
    return under_segmented(tables, chosen_autoencoder(tables))


def reference_is_above(tables: Tables) -> list[Check]:
    reference = _auc(tables, REFERENCE)
    networks = _networks(tables)
    return [Check(f"AUC, z − {name}", reference - auc, ">", 0) for name, auc in networks.items()]


def all_classical(tables: Tables) -> list[Check]:
    aucs, networks = aucs_of(tables), _networks(tables)
    names = [name for name in CLASSICAL if name in aucs]
    if not names:
        raise MissingEvidence("classical detectors")
    best = max(networks, key=networks.__getitem__)
    against = f"best network, {best}"
    return [Check(f"AUC, {name}", aucs[name], ">", aucs[best], against=against) for name in names]


def one_side_misses(tables: Tables) -> list[Check]:
    two_sided, one_sided = (_auc(tables, name, "cellular") for name in ("z, two-sided", REFERENCE))
    quantity = "AUC, reduced diffusivity, two-sided"
    return [Check(quantity, two_sided, ">", one_sided, against="one-sided")]


def training_helps(tables: Tables) -> list[Check]:
    name = chosen_autoencoder(tables)
    auc, auc_untrained = _auc(tables, name), _auc(tables, BRIGHTNESS)
    dice, dice_untrained = (
        value_of(tables, method, "dice_opened", _OTSU) for method in (_MIX, BRIGHTNESS)
    )
    return [
        Check(f"AUC, {name}", auc, ">", auc_untrained, against=BRIGHTNESS),
        Check(f"opened Dice, {_OTSU}, {_MIX}", dice, ">", dice_untrained, against=BRIGHTNESS),
    ]


def reaches_aim(rule: str) -> _Rule:
    def checks(tables: Tables) -> list[Check]:
        dice = value_of(tables, OWN, "dice_opened", rule)
        return [
            Check(f"AUC, {OWN}", _auc(tables, OWN), ">=", _AIM_AUC),
            Check(f"opened Dice, {rule}, {OWN}", dice, ">=", _AIM_DICE),
        ]

    return checks


def own_is_above(tables: Tables) -> list[Check]:
    auc, limit = _auc(tables, OWN), _auc(tables, REFERENCE)
    dice, dice_limit = (
        value_of(tables, name, "dice_opened", HEALTHY_RATE) for name in (OWN, REFERENCE)
    )
    quantity = f"opened Dice, {HEALTHY_RATE}, {OWN}"
    return [
        Check(f"AUC, {OWN}", auc, ">", limit, against=REFERENCE),
        Check(quantity, dice, ">", dice_limit, against=REFERENCE),
    ]


def own_is_above_networks(tables: Tables) -> list[Check]:
    value, networks = _auc(tables, OWN), _networks(tables)
    return [Check(f"AUC, {OWN} − {name}", value - auc, ">", 0) for name, auc in networks.items()]


def rate_is_kept(tables: Tables) -> list[Check]:
    rates = []
    for name in aucs_of(tables):
        if len(rows_of(tables, name, HEALTHY_RATE)):
            rates.append(value_of(tables, name, "false_positive_rate", HEALTHY_RATE))
    rates = [rate for rate in rates if not np.isnan(rate)]
    if not rates:
        raise MissingEvidence("false positives on healthy scans")
    return [
        Check("false positives, method with fewest", min(rates), ">=", _LOW_RATE),
        Check("false positives, method with most", max(rates), "<=", _HIGH_RATE),
    ]


def _lost_by_shifts(cohorts: tuple[Tables, Tables], method: str) -> float:
    registered, shifted = cohorts
    return _auc(registered, method) - _auc(shifted, method)


def suffers(cohorts: tuple[Tables, Tables]) -> list[Check]:
    return [Check("AUC lost by shifts, z", _lost_by_shifts(cohorts, REFERENCE), ">=", _LOST)]


def own_suffers_less(cohorts: tuple[Tables, Tables]) -> list[Check]:
    lost, limit = (_lost_by_shifts(cohorts, method) for method in (OWN, REFERENCE))
    return [Check(f"AUC lost by shifts, {OWN}", lost, "<", limit, against=REFERENCE)]


#: What the study states about its networks, and where detectors without a network and the
#: project's own one stand.
CLAIMS = read_claims(Path(__file__).with_name("claims.toml"), globals())

#: Claims that compare cohorts.
COHORT_CLAIMS = read_claims(Path(__file__).with_name("cohort_claims.toml"), globals())
