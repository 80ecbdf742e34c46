"""What may be said of a scan without findings."""

import json

import pytest

from metastasis.study.findings import model_figures, nothing_marked


def test_what_no_finding_means_comes_from_the_card_of_the_model(tmp_path):
    model, card = tmp_path / "small.dmrifit", tmp_path / "small.json"
    assert model_figures(model) == {}
    assert nothing_marked({}).endswith("small metastases this model finds is unknown")
    card.write_text(json.dumps({"figures": {"sensitivity": 0.8, "sensitivity_small": 0.614}, "data": "…"}))
    assert nothing_marked(model_figures(model)) == (
        "nothing marked; this is not 'no metastases': on implants 80 % of all and 61 % of those of 2.5–6 mm are "
        "found; never tried on a labelled real metastasis"
    )
    seen = {"marked": [0.01]}
    card.write_text(json.dumps({"seen": seen}))
    assert model_figures(model) == {"seen": seen}


@pytest.mark.parametrize("content", ["[1]", "{", '{"figures": 3}', '{"figures": {"sensitivity": 80}}'])
def test_a_damaged_card_is_named(tmp_path, content):
    (tmp_path / "small.json").write_text(content)
    with pytest.raises(ValueError, match=r"small\.json"):
        model_figures(tmp_path / "small.dmrifit")
