"""What may be said of the findings in a scan, and of a scan without any."""

import json

import pandas as pd
import pytest

from metastasis.study import findings
from metastasis.study.findings import findings_in_words, model_figures, open_ring_notes
from metastasis.study.lesion_sizes import CLOSED_GAP_MM


def test_the_card_of_the_model_tells_what_findings_and_none_mean(tmp_path):
    model, card = tmp_path / "small.dmrifit", tmp_path / "small.json"
    assert model_figures(model) == {}
    assert findings_in_words(0, {}, n_models=2).endswith("small metastases these models find is unknown")
    card.write_text(json.dumps({"figures": {"sensitivity": 0.8, "sensitivity_small": 0.614}, "data": "…"}))
    assert findings_in_words(0, model_figures(model)) == (
        "nothing marked; this is not 'no metastases': on implants (synthetic lesions) 80 % of all and 61 % of those of 2.5–6 mm are "
        "found; never tried on a labeled real metastasis"
    )
    noted = findings_in_words(0, model_figures(model), is_noted=True)
    assert noted.endswith("scan say how it differs from those scans: the figures may not hold for it")
    seen = {"marked": [0.01]}
    card.write_text(json.dumps({"seen": seen}))
    assert model_figures(model) == {"seen": seen}
    begin = "the model marks candidates, many of which may be false positives: "
    assert findings_in_words(3, {}) == f"{begin}how much is marked in brains without metastases is unknown"
    figures = {"sensitivity": 0.8, "sensitivity_small": 0.614}
    assert findings_in_words(3, figures) == findings_in_words(3, {})
    (tmp_path / "small.json").write_text(json.dumps({"figures": figures | {"false_findings": [30, 4]}}))
    assert findings_in_words(1, model_figures(tmp_path / "small.dmrifit")) == (
        f"{begin}on implants (synthetic lesions) 80 % of all and 61 % of those of 2.5–6 mm are found; in brains without metastases 4 to 30 "
        "findings are marked; never tried on a labeled real metastasis"
    )
    assert "metastases 4 findings are marked" in findings_in_words(1, figures | {"false_findings": [4]})
    figures |= {"false_findings": [4, 120], "false_mL": [0.0141, 4.53]}
    assert "metastases 4 to 120 findings (0.014 to 4.5 mL together) are marked" in findings_in_words(1, figures)


def test_notes_name_findings_larger_than_the_model_is_meant_for():
    sizes = {"volume_with_core_mL": [4.284, 1.7], "sphere_diameter_mm": [20.15, 14.8]}
    lesions = pd.DataFrame({"number": [1, 2], **sizes})
    (note,) = findings.large_finding_notes("p1", lesions, {"largest_mL": 1.77})
    assert note.startswith("p1: finding 1 has 4.3 mL (a sphere of 20 mm); the model is meant for up to 1.8 mL, so it is ")
    assert findings.large_finding_notes("p1", lesions, {}) == []


def test_notes_name_open_rings_with_all_their_volumes():
    sizes = {"volume_mL": [17.61, 3.0], "volume_with_core_mL": [18.4, 3.0], "hull_mL": [55.0, 3.1]}
    lesions = pd.DataFrame({"number": [4, 5], **sizes, "open_ring": [True, False]})
    (note,) = open_ring_notes("p1", lesions)
    assert note.startswith("p1: finding 4 ")
    for text in ("17.6 mL", "18.4 mL", "55.0 mL", f"{CLOSED_GAP_MM:g} mm"):
        assert text in note
    assert open_ring_notes("p1", lesions[1:]) == []


@pytest.mark.parametrize(
    "content",
    [
        *("[1]", "{", '{"figures": 3}', '{"figures": {"sensitivity": 80}}'),
        *('{"figures": {"false_findings": 3}}', '{"figures": {"false_findings": ["a"]}}'),
    ],
)
def test_a_damaged_card_is_named(tmp_path, content):
    (tmp_path / "small.json").write_text(content)
    with pytest.raises(ValueError, match=r"small\.json"):
        model_figures(tmp_path / "small.dmrifit")
