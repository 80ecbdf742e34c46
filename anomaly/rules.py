"""What is checked to decide the claims about anomalies, and the claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from anomaly.controls import BRIGHTNESS
from anomaly.followup import PUBLISHED_MISMATCHES
from anomaly.methods import (
    CLASSICAL,
    FIXED,
    HEALTHY_RATE,
    IMAGE_SCALE,
    OWN,
    REFERENCE,
    STRICT_RATE,
    Tables,
    aucs_of,
    chosen_autoencoder,
    latents_of,
    method_name,
    networks_of,
    rows_of,
    value_of,
    value_or_nan,
)
from anomaly.strata import ELSEWHERE
from dmrifit.boards import Check, Claim, MissingEvidence, Reading

__all__ = ["CLAIMS", "COHORT_CLAIMS"]

_OTSU, _POOL, _DICE = "Otsu", "mean pool", "best Dice"
_LATENT_SPREAD = 0.05  # of AUC between latent sizes that counts as secondary
_HALF, _ORDER = 0.1, 0.1  # of AUC
_OPENED_FACTOR, _MUCH, _LITTLE = 1.15, 2.0, 0.15
_AIM_AUC, _AIM_DICE = 0.95, 0.65
_LOW_RATE, _HIGH_RATE = 0.005, 0.02
_LOST = 0.05  # of AUC that a map of places is expected to lose by shifts

_Checks = Callable[[Any], Sequence[Check]]

_MIX = method_name("RecDiscNet")
_MIX_FULL = method_name("RecDiscNet", mean="full")


def _auc(tables: Tables, method: str, part: str = "all") -> float:
    return value_of(tables, method, "auc", part=part)


def _both_outputs(tables: Tables) -> list[tuple[int, float, float]]:
    sigmoid, linear = latents_of(tables, "sigmoid"), latents_of(tables, "linear")
    both = [(n, sigmoid[n], linear[n]) for n in sorted(sigmoid) if n in linear]
    if not both:
        msg = "autoencoders with both outputs and one latent size"
        raise MissingEvidence(msg)
    return both


def _sigmoid_on_average(tables: Tables) -> Sequence[Check]:
    _, sigmoid, linear = np.array(_both_outputs(tables)).T
    return [Check("AUC, sigmoid", float(sigmoid.mean()), ">", float(linear.mean()), against="linear")]


def _sigmoid_at_each(tables: Tables) -> Sequence[Check]:
    return [Check(f"AUC, sigmoid {n}", a, ">", b, against=f"linear {n}") for n, a, b in _both_outputs(tables)]


def _spread_of_latents(tables: Tables) -> float:
    values = list(latents_of(tables, "sigmoid").values())
    if len(values) < 2:
        msg = "autoencoders of two latent sizes"
        raise MissingEvidence(msg)
    return float(np.ptp(values))


def _latent_is_secondary(tables: Tables) -> Sequence[Check]:
    return [Check("range of AUC over latent sizes, sigmoid", _spread_of_latents(tables), "<=", _LATENT_SPREAD)]


def _latent_less_than_output(tables: Tables) -> Sequence[Check]:
    _, sigmoid, linear = np.array(_both_outputs(tables)).T
    gap = float(np.abs(sigmoid.mean() - linear.mean()))
    against = "between outputs"
    return [Check("range of AUC over latent sizes, sigmoid", _spread_of_latents(tables), "<", gap, against=against)]


def _half_over_full(tables: Tables) -> Sequence[Check]:
    known = aucs_of(tables)
    pairs = [(name, name.removesuffix("half") + "full") for name in networks_of(tables) if name.endswith(" half")]
    pairs = [(half, full) for half, full in pairs if full in known]
    if (_MIX, _MIX_FULL) not in pairs:
        msg = f"AUC of {_MIX_FULL}" if _MIX in known else f"AUC of {_MIX}"
        raise MissingEvidence(msg)
    return [Check(f"AUC, {half.removeprefix('RecDiscNet ')}", known[half], ">", known[full], against="full")
            for half, full in pairs]  # fmt: skip


def _half_by_much(tables: Tables) -> Sequence[Check]:
    limit = _auc(tables, _MIX_FULL) + _HALF
    return [Check("AUC, mix half", _auc(tables, _MIX), ">=", limit, against=f"full + {_HALF:g}")]


def _mix_is_best(tables: Tables) -> Sequence[Check]:
    own = _auc(tables, _MIX)
    known = aucs_of(tables)
    others = {name: known[name] for name in networks_of(tables) if name.endswith(" half") and name != _MIX}
    if not others:
        msg = "RecDiscNet with noise of one kind, half"
        raise MissingEvidence(msg)
    # A margin, so that every other noise is a quantity of its own.
    return [Check(f"AUC, mix − {name.removeprefix('RecDiscNet ')}", own - auc, ">", 0) for name, auc in others.items()]


def _better_auc(tables: Tables) -> Sequence[Check]:
    name = chosen_autoencoder(tables)
    return [Check(f"AUC, {name}", _auc(tables, name), ">", _auc(tables, _MIX), against=_MIX)]


def _better_dice(rule: str, measure: str = "dice_opened", factor: float = _OPENED_FACTOR) -> _Checks:
    def checks(tables: Tables) -> Sequence[Check]:
        name = chosen_autoencoder(tables)
        if rule == FIXED:
            name = f"{name}, {IMAGE_SCALE}"
        own, other = value_of(tables, _MIX, measure, rule), value_of(tables, name, measure, rule)
        what = "opened Dice" if measure == "dice_opened" else "Dice"
        return [Check(f"{what}, {rule}, RecDiscNet", own, ">=", factor * other, against=f"{factor:g} × DAE")]

    return checks


def _gain(tables: Tables, method: str, rule: str) -> float:
    raw, opened = value_of(tables, method, "dice", rule), value_of(tables, method, "dice_opened", rule)
    # Of nothing found, nothing is gained.
    return opened / raw if raw > 0 else float("nan")


def _opening_helps(rule: str) -> _Checks:
    def checks(tables: Tables) -> Sequence[Check]:
        name = chosen_autoencoder(tables)
        return [Check(f"opened Dice / Dice, {rule}, {name}", _gain(tables, name, rule), ">=", _MUCH)]

    return checks


def _opening_helps_more_than_untrained(tables: Tables) -> Sequence[Check]:
    name = chosen_autoencoder(tables)
    limit = _gain(tables, BRIGHTNESS, _OTSU)
    return [Check(f"opened Dice / Dice, {name}", _gain(tables, name, _OTSU), ">", limit, against=BRIGHTNESS)]


def _opening_helps_little(rule: str) -> _Checks:
    def checks(tables: Tables) -> Sequence[Check]:
        change = abs(_gain(tables, _MIX, rule) - 1)
        return [Check(f"|opened Dice / Dice − 1|, {rule}, RecDiscNet", change, "<=", _LITTLE)]

    return checks


def _order_of_mean(tables: Tables) -> Sequence[Check]:
    name = chosen_autoencoder(tables)
    other = f"{name}, mean of abs"
    limit = _auc(tables, other) + _ORDER
    return [Check(f"AUC, {name}", _auc(tables, name), ">=", limit, against=f"mean of abs + {_ORDER:g}")]


def _grows_there(method: str) -> _Checks:
    """Ask for mismatches in high grades to co-locate more often than not, and than by chance."""

    def checks(tables: Tables) -> Sequence[Check]:
        table = tables["followup"]
        chosen = table[(table["method"] == method) & (table["rule"] == HEALTHY_RATE)]
        chosen = chosen[chosen["grade"].isin(["III", "IV"])]
        n = float(chosen["n_mismatch"].sum()) if len(chosen) else 0.0
        if not n:
            msg = f"mismatches of {method} in high grades under {HEALTHY_RATE}"
            raise MissingEvidence(msg)
        share, chance = float(chosen["n_colocated"].sum()) / n, float(chosen["expected"].sum()) / n
        return [
            Check("share co-located, grades III and IV", share, ">=", 0.5),
            Check("share co-located", share, ">", 2 * chance, against="twice that by chance"),
        ]

    return checks


def _stratum(tables: Tables, method: str, name: str, measure: str) -> float:
    table = tables["strata"]
    chosen = table[(table["method"] == method) & (table["rule"] == _OTSU) & (table["stratum"] == name)]
    if not len(chosen) or np.isnan(chosen[measure].iloc[0]):
        msg = f"{measure} of {method}, {name}"
        raise MissingEvidence(msg)
    return float(chosen[measure].iloc[0])


def _less_in(*names: str, network: str = "RecDiscNet") -> _Checks:
    def checks(tables: Tables) -> Sequence[Check]:
        method = _MIX if network == "RecDiscNet" else chosen_autoencoder(tables)
        limit = _stratum(tables, method, ELSEWHERE, "sensitivity_opened")
        return [Check(f"share of a lesion found, {name}", _stratum(tables, method, name, "sensitivity_opened"), "<",
                      limit, against=ELSEWHERE) for name in names]  # fmt: skip

    return checks


def _artifacts_at_base(tables: Tables) -> Sequence[Check]:
    own, limit = (_stratum(tables, _MIX, name, "false_positive_rate") for name in ("basal", ELSEWHERE))
    return [Check("false positives on healthy scans, basal", own, ">", limit, against=ELSEWHERE)]


def _reference_is_above(tables: Tables) -> Sequence[Check]:
    own, known = _auc(tables, REFERENCE), aucs_of(tables)
    names = networks_of(tables)
    if not names:
        msg = "a network"
        raise MissingEvidence(msg)
    return [Check(f"AUC, z − {name}", own - known[name], ">", 0) for name in names]


def _all_classical(tables: Tables) -> Sequence[Check]:
    known = aucs_of(tables)
    names = [name for name in CLASSICAL if name in known]
    networks = networks_of(tables)
    if not names or not networks:
        msg = "classical detectors and networks"
        raise MissingEvidence(msg)
    best = max(networks, key=known.__getitem__)
    return [Check(f"AUC, {name}", known[name], ">", known[best], against=f"best network, {best}") for name in names]


def _one_side_misses(tables: Tables) -> Sequence[Check]:
    own, limit = (_auc(tables, name, "cellular") for name in ("z, two-sided", REFERENCE))
    return [Check("AUC, reduced diffusivity, two-sided", own, ">", limit, against="one-sided")]


def _training_helps(network: str, measure: str) -> _Checks:
    def checks(tables: Tables) -> Sequence[Check]:
        name = _MIX if network == "RecDiscNet" else chosen_autoencoder(tables)
        rule = _OTSU if measure == "dice_opened" else None
        own, limit = (value_of(tables, one, measure, rule) for one in (name, BRIGHTNESS))
        what = "AUC" if measure == "auc" else "opened Dice, Otsu"
        return [Check(f"{what}, {name}", own, ">", limit, against=BRIGHTNESS)]

    return checks


def _reaches_aim(method: str, rule: str) -> _Checks:
    def checks(tables: Tables) -> Sequence[Check]:
        return [
            Check(f"AUC, {method}", _auc(tables, method), ">=", _AIM_AUC),
            Check(f"opened Dice, {rule}, {method}", value_of(tables, method, "dice_opened", rule), ">=", _AIM_DICE),
        ]

    return checks


def _own_is_above(tables: Tables) -> Sequence[Check]:
    found = [Check(f"AUC, {OWN}", _auc(tables, OWN), ">", _auc(tables, REFERENCE), against=REFERENCE)]
    opened = (value_of(tables, name, "dice_opened", HEALTHY_RATE) for name in (OWN, REFERENCE))
    own, other = opened
    return [*found, Check(f"opened Dice, {HEALTHY_RATE}, {OWN}", own, ">", other, against=REFERENCE)]


def _own_is_above_networks(tables: Tables) -> Sequence[Check]:
    known, own = aucs_of(tables), _auc(tables, OWN)
    names = networks_of(tables)
    if not names:
        msg = "a network"
        raise MissingEvidence(msg)
    return [Check(f"AUC, {OWN} − {name}", own - known[name], ">", 0) for name in names]


def _rate_is_kept(tables: Tables) -> Sequence[Check]:
    methods = [name for name in aucs_of(tables) if len(rows_of(tables, name, HEALTHY_RATE))]
    rates = {name: value_of(tables, name, "false_positive_rate", HEALTHY_RATE) for name in methods}
    rates = {name: rate for name, rate in rates.items() if not np.isnan(rate)}
    if not rates:
        msg = "false positives on healthy scans"
        raise MissingEvidence(msg)
    return [
        Check("false positives, method with fewest", min(rates.values()), ">=", _LOW_RATE),
        Check("false positives, method with most", max(rates.values()), "<=", _HIGH_RATE),
    ]


def _some_are_empty(tables: Tables) -> Sequence[Check]:
    found = {name: value_or_nan(tables, name, "empty_opened", HEALTHY_RATE) for name in aucs_of(tables)}
    found = {name: share for name, share in found.items() if not np.isnan(share)}
    if not found:
        msg = "healthy scans"
        raise MissingEvidence(msg)
    return [
        Check("share of healthy scans that are empty after opening, method with fewest", min(found.values()), ">", 0)
    ]


def _suffers(tables: tuple[Tables, Tables]) -> Sequence[Check]:
    good, bad = (_auc(one, REFERENCE) for one in tables)
    return [Check("AUC lost by shifts, z", good - bad, ">=", _LOST)]


def _own_suffers_less(tables: tuple[Tables, Tables]) -> Sequence[Check]:
    lost = {name: _auc(tables[0], name) - _auc(tables[1], name) for name in (OWN, REFERENCE)}
    return [Check(f"AUC lost by shifts, {OWN}", lost[OWN], "<", lost[REFERENCE], against=REFERENCE)]


def _networks_suffer_less(tables: tuple[Tables, Tables]) -> Sequence[Check]:
    name = chosen_autoencoder(tables[0])
    lost = {one: _auc(tables[0], one) - _auc(tables[1], one) for one in (name, REFERENCE)}
    return [Check(f"AUC lost by shifts, {name}", lost[name], "<", lost[REFERENCE], against=REFERENCE)]


_OURS = "not in the study"
_IV, _III = PUBLISHED_MISMATCHES["IV"], PUBLISHED_MISMATCHES["III"]

#: What the study states about its networks, and where detectors without a network and the project's own one stand.
CLAIMS = (
    Claim(
        1,
        "Autoencoders with a sigmoid output rank voxels better than with a linear one",
        "AUC .803 to .820 (sigmoid) against .739 to .793 (linear), six latent sizes",
        "mean AUC over latent sizes higher with a sigmoid",
        (Reading("on average", _sigmoid_on_average), Reading("at each latent size", _sigmoid_at_each)),
    ),
    Claim(
        2,
        "The size of the latent vector is secondary",
        "AUC .803 to .820 over latent sizes (sigmoid), .054 (linear)",
        f"AUC with a sigmoid differs by at most {_LATENT_SPREAD:g} between latent sizes",
        (Reading("range", _latent_is_secondary), Reading("less than the output matters", _latent_less_than_output)),
    ),
    Claim(
        3,
        "Noise with half the mean of tissue teaches more than with the full mean",
        "AUC .772 against .660 (mix); .061 to .213 higher for every kind of noise",
        "AUC higher for every kind of noise that is there, the mix among them",
        (Reading("every kind", _half_over_full), Reading(f"mix, by {_HALF:g}", _half_by_much)),
    ),
    Claim(
        4,
        "A mix of noises is best",
        "AUC .772 against .763 and .761: inside the noise",
        "AUC of the mix above that of every other noise at half the mean",
        (Reading("best", _mix_is_best),),
    ),
    Claim(
        5,
        "The autoencoder ranks voxels better than RecDiscNet",
        "AUC .820 against .772",
        "AUC of the autoencoder (sigmoid, largest latent size) above that of RecDiscNet (mix, half)",
        (Reading("AUC", _better_auc),),
    ),
    Claim(
        6,
        "RecDiscNet segments better than the autoencoder",
        "opened Dice .598 against .501 (Otsu), Dice .603 against .195; each the best of 12 on the test data",
        f"opened Dice of the discriminator's output under Otsu at least {_OPENED_FACTOR:g} × the autoencoder's",
        (
            Reading("Otsu, opened", _better_dice(_OTSU)),
            Reading("Otsu, raw", _better_dice(_OTSU, "dice", 1.0)),
            Reading("mean pool, opened", _better_dice(_POOL)),
            Reading("healthy rate, opened", _better_dice(HEALTHY_RATE)),
            Reading("fixed, opened", _better_dice(FIXED)),
            Reading("best Dice, opened", _better_dice(_DICE)),
        ),
    ),
    Claim(
        7,
        "Opening helps the autoencoder much",
        "Dice .195 to .501 (Otsu; linear, latent size 32, the best on the test data), .131 to .205 (sigmoid, 512)",
        f"opened Dice at least {_MUCH:g} × Dice under Otsu",
        (
            Reading("Otsu", _opening_helps(_OTSU)),
            Reading("mean pool", _opening_helps(_POOL)),
            Reading("more than without training", _opening_helps_more_than_untrained),
        ),
    ),
    Claim(
        8,
        "Opening hardly changes what RecDiscNet finds",
        "Dice .603 to .598 (Otsu)",
        f"Dice under Otsu changes by at most {100 * _LITTLE:g} %",
        (Reading("Otsu", _opening_helps_little(_OTSU)), Reading("mean pool", _opening_helps_little(_POOL))),
    ),
    Claim(
        9,
        "The mean residual over channels, then its absolute value, cancels noise",
        "stated, no figure",
        f"AUC at least {_ORDER:g} above that of the mean of absolute residuals of the same weights",
        (Reading("order", _order_of_mean),),
    ),
    Claim(
        10,
        "Regions flagged outside the structural lesion belong to later lesions",
        f"{_IV[0]} of {_IV[1]} glioblastomas with mismatches, {_III[0]} of {_III[1]} of grade III, none of grade II; "
        "chance not considered",
        "in grades III and IV at least half of the patients with mismatches co-locate, and more than twice as many as "
        "by chance (simulated lesions of grade II do not grow, so none can)",
        (
            Reading("RecDiscNet", _grows_there(_MIX)),
            Reading("z, one-sided", _grows_there(REFERENCE)),
            Reading(OWN, _grows_there(OWN)),
        ),
    ),
    Claim(
        11,
        "Lesions are under-segmented near the cortex and in deep nuclei",
        "stated, no figure; artifacts mesiotemporal and basal",
        "share of a lesion found (Otsu, opened, RecDiscNet) lower near the cortex and in deep nuclei than elsewhere",
        (
            Reading("both", _less_in("near cortex", "deep nuclei")),
            Reading("near the cortex", _less_in("near cortex")),
            Reading("in deep nuclei", _less_in("deep nuclei")),
            Reading("both, autoencoder", _less_in("near cortex", "deep nuclei", network="DAE")),
            Reading("false positives at the base", _artifacts_at_base),
        ),
    ),
    Claim(
        12,
        "Deviations from healthy scans, place by place, rank voxels better than every network",
        _OURS,
        "AUC of the one-sided z-map above that of every network",
        (Reading("z, one-sided", _reference_is_above), Reading("all classical detectors", _all_classical)),
    ),
    Claim(
        13,
        "A map that looks to one side misses lesions of reduced diffusivity",
        _OURS,
        "AUC in cellular lesions higher for the two-sided than for the one-sided z-map",
        (Reading("cellular", _one_side_misses),),
    ),
    Claim(
        14,
        "Networks are better than one minus the mean signal, which nobody has to train",
        _OURS,
        "AUC of the autoencoder, and opened Dice (Otsu) of RecDiscNet, above those of the untrained map",
        (
            Reading("each where it is strong", lambda tables: [
                *_training_helps("DAE", "auc")(tables), *_training_helps("RecDiscNet", "dice_opened")(tables),
            ]),
            Reading("AUC, RecDiscNet", _training_helps("RecDiscNet", "auc")),
            Reading("opened Dice, autoencoder", _training_helps("DAE", "dice_opened")),
        ),
    ),
    Claim(
        15,
        "The project's own detector reaches what was aimed at",
        _OURS,
        f"AUC at least {_AIM_AUC:g} and opened Dice at least {_AIM_DICE:g} at its threshold from healthy scans",
        (
            Reading(STRICT_RATE, _reaches_aim(OWN, STRICT_RATE)),
            Reading(HEALTHY_RATE, _reaches_aim(OWN, HEALTHY_RATE)),
            Reading(_OTSU, _reaches_aim(OWN, _OTSU)),
            Reading(_POOL, _reaches_aim(OWN, _POOL)),
            Reading(REFERENCE, _reaches_aim(REFERENCE, STRICT_RATE)),
        ),
    ),
    Claim(
        16,
        "The project's own detector is better than the one-sided z-map",
        _OURS,
        "AUC, and opened Dice at a threshold from healthy scans, above those of the z-map",
        (Reading("both", _own_is_above), Reading("AUC above every network", _own_is_above_networks)),
    ),
    Claim(
        17,
        "A threshold at 1 % false positives keeps its promise on new healthy scans",
        _OURS,
        f"{100 * _LOW_RATE:g} to {100 * _HIGH_RATE:g} % of voxels of new healthy scans are above it, for every method",
        (Reading("rate", _rate_is_kept), Reading("healthy scans can be empty", _some_are_empty)),
    ),
)  # fmt: skip

#: What is told by comparing cohorts.
COHORT_CLAIMS = (
    Claim(
        18,
        "Shifts that registration leaves cost a map of places much",
        _OURS,
        f"AUC of the one-sided z-map at least {_LOST:g} lower with shifts of ±2 voxels and 5 % scale",
        (Reading("z, one-sided", _suffers),),
    ),
    Claim(
        19,
        "Shifts cost the project's own detector less than the one-sided z-map",
        _OURS,
        "AUC lost by shifts less than that of the z-map",
        (Reading(OWN, _own_suffers_less), Reading("autoencoder", _networks_suffer_less)),
    ),
)
