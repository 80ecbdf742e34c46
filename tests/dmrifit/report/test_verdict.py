"""The answer of a fit's page: a line, and a row for each parameter."""

import html
import re

import numpy as np
import pytest

from dmrifit._utils.counts import percent
from dmrifit.engine.doubts import DoubtReason
from dmrifit.engine.models import option_words, read_table
from dmrifit.io.bids_derivatives import ALL_VOXELS
from dmrifit.report.page import render
from dmrifit.report.slice_figures import MapPanel
from dmrifit.report.verdict import (
    fit_sentences,
    least_doubted,
    map_verdict,
    parameter_lights,
    precision_sentence,
    prose,
    remedies,
)

DOUBTS = read_table("sentences")["doubts"]
AIR = "68 % of the fitted voxels look like air, left out of medians, intervals and shares"
SHARES = {"S0": 0.02, "D": 0.3, "K": 0.9, "T": 0.0}
REMEDIES = {"D": "average over a region", "K": "rerun with --b-max 1900"}
SIDECAR = {
    "Model": {"Name": "kurtosis"}, "Status": {"Voxels": {"converged": 7, "at bound": 1, "not fitted": 2}},
    "NotFitted": {"Reasons": {"with a negative value": 2}},
    "Doubt": {"Share": SHARES, "MainReason": {"D": "UNCERTAIN", "K": "DECAYED"}, "Remedy": REMEDIES, "BMax": 1900.0},
    "Parameters": {"S0": {}, "D": {"BelievedMedian": 0.8}, "K": {"BelievedMedian": None}, "T": {"Fixed": 80.0}},
}


def test_the_verdict_counts_voxels_and_names_what_is_most_and_least_in_doubt():
    assert map_verdict(SIDECAR) == "8 of 10 voxels fitted (80 %); in doubt in most of them: K (90 %)"
    assert map_verdict(SIDECAR, doubts=False) == "8 of 10 voxels fitted (80 %)"
    assert least_doubted(["D", "S0", "K"], SIDECAR) == "S0"
    assert least_doubted(["D", "K"], {}) == "D"


def test_each_row_says_in_a_sign_and_in_words_what_its_color_says_why_and_what_to_do():
    region = np.ones((2, 2, 1), bool)
    medians = {"S0": 1172.4, "D": 0.000123456, "K": -0.5, "T": 80.0}
    panels = [MapPanel(name, "u", np.full((2, 2, 1), value), (0, 1), (0, 0)) for name, value in medians.items()]
    markup = render(parameter_lights(panels, region, SIDECAR))
    items = re.findall(r'<tr class="(\w+)">(.*?)</tr>', markup, re.DOTALL)
    words = [" ".join(html.unescape(re.sub("<[^>]+>", " ", text)).split()) for _, text in items]
    few = "– (under 10 % left, or most at a bound)"
    lights = dict(zip(medians, zip((kind for kind, _ in items), words, strict=True), strict=True))
    assert lights["S0"] == ("determined", "● S0 1170 u 2 %")
    assert lights["D"] == ("doubted", f"▲ D 0.800 u 30 % {DOUBTS['UNCERTAIN'][0]} average over a region")
    assert lights["K"] == ("undetermined", f"✕ K {few} 90 % {DOUBTS['DECAYED'][0]} rerun with --b-max 1900")
    assert lights["T"] == ("fixed", "■ T 80.0 u fixed")
    panel = MapPanel("S0", "", np.arange(10.0).reshape(10, 1, 1), quartiles=(7.0, 8.0, 9.0))
    assert '<td class="number">8.00</td>' in render(parameter_lights([panel], np.ones((10, 1, 1), bool), SIDECAR))
    markup = render(parameter_lights(panels, region, SIDECAR | {"Model": {"Name": "stretched"}}))
    assert "rerun with b_max=1900" in markup
    assert "--" not in option_words(str(DOUBTS).replace("{name}", "D"), "stretched")
    assert option_words("--fix", "adc-by-te") == "--fix"
    assert DOUBTS.keys() == {reason.name for reason in DoubtReason} - {"NONE"} | {"AT_CAP", "ONE_BOUND"}


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.9961, "99.6 %"), (0.99996, "99.996 %"), (0.0, "0 %"), (0.00506, "0.5 %"), (0.824, "82 %"), (1.000001, "100 %")],
)
def test_a_share_below_all_is_not_written_as_all(share, text):
    assert percent(share) == text
    sidecar = SIDECAR | {"Doubt": {"Share": SHARES | {"K": max(share, 0.6)}}}
    assert f"K ({percent(max(share, 0.6))})" in map_verdict(sidecar)


def test_sentences_of_a_fit_name_warnings_doubts_air_and_lost_voxels_once():
    gain = "volumes b = 0 seem to be scaled differently from volumes b = 500"
    sidecar = SIDECAR | {
        "Warnings": [gain],
        "GainStep": {"Description": gain},
        "Doubt": {"Share": SHARES, "Advice": ["K is uncertain."], "BMax": 2000.0},
        "Air": {"Share": 0.68},
        "Settings": {"Region": ALL_VOXELS},
    }
    sentences = fit_sentences(sidecar)
    assert sentences == [
        gain,
        "K is uncertain.",
        f"{AIR}; --mask auto leaves it out of the fit, too, and perhaps dim tissue",
        "not fitted: 2 voxels with a negative value",
    ]
    assert prose(sentences, sidecar)[1::2] == ["K is uncertain.", "Not fitted: 2 voxels with a negative value."]
    assert remedies(sidecar) == {"mask": "auto", "b_max": 2000.0}
    assert "68 % of the fitted voxels look like air, which medians and shares leave out" in map_verdict(sidecar)
    # In a mask the sentence gives no option that was taken.
    masked = sidecar | {"Settings": {"Region": "the mask above 0.5"}}
    assert AIR in fit_sentences(masked)
    assert remedies(masked) == {"b_max": 2000.0}


def test_a_limit_of_b_takes_the_place_of_the_noise_and_precision_tells_the_snr_from_the_protocol():
    sidecar = SIDECAR | {
        "Doubt": {"Share": SHARES, "Advice": ["K is at its cap; give the noise (--sigma estimate)."]},
        "Settings": {"Region": "the mask above 0.5"},
    }
    assert remedies(sidecar) == {"sigma": "estimate"}
    sidecar["Doubt"]["BMax"] = 1900.0
    assert remedies(sidecar) == {"b_max": 1900.0}
    for deviations, ending in (({"S0": None, "D": 0.2, "K": None}, ": D ±20 %; not determined at this SNR: K; "), ({}, ": ")):
        expected = {"SNR": 6.0, "SNRContrast": "b = 0", "SNROver": "noise", "Inseparable": ["S0"]}
        text = precision_sentence({"ExpectedPrecision": expected | {"CoefficientOfVariation": deviations}})
        assert (f"the noise){ending}not determined by this protocol: S0" in text, "These are" in text) == (True, bool(deviations))
