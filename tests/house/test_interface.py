"""Public names keep the signatures that notebooks and scripts call them by."""

from importlib import import_module
from pathlib import Path

import pytest
from front_door import check_signature

import dmrifit

#: Each is written as its definition: what stands there stays; more options by keyword may follow.
LINES = (Path(__file__).parent / "data" / "signatures.txt").read_text(encoding="utf-8").splitlines()
NETWORKS = ("anomaly.DenoisingAutoencoder", "anomaly.RecDiscNet")

RESULT = ("parameters", "standard_errors", "cost", "status", "n_iter", "names", "starts_disagree")
MODEL = ("name", "parameters", "names", "units", "bounds", "needs_te")
SYMBOLS = {"adc": "S0 ADC", "kurtosis": "S0 D K", "ivim": "S0 f Dv Dt", "t2-ivim-kurtosis": "S0 f Dv T2v Dt K T2t"}


def needing_torch(line):
    """Mark the names of networks, which need an extra."""
    return pytest.param(line, marks=pytest.mark.deep) if line.startswith((*NETWORKS, "metastasis.")) else line


@pytest.mark.parametrize("line", [needing_torch(line) for line in LINES])
def test_signatures_are_kept(line):
    package, _, definition = line.partition(".")
    if line.startswith((*NETWORKS, "metastasis.")):
        pytest.importorskip("torch")
    # Detectors may take their main parameter by place.
    by_place = line.startswith(NETWORKS) or (package == "anomaly" and line.endswith("()"))
    check_signature(import_module(package), definition, only_keywords=not by_place)


def test_models_and_results_have_their_symbols_and_fields():
    symbols = {name: " ".join(model.names) for name, model in dmrifit.MODELS.items()}
    assert symbols.items() >= SYMBOLS.items()
    model = dmrifit.MODELS["adc"]
    assert all(hasattr(model, name) for name in MODEL)
    protocol = dmrifit.Protocol([0, 500, 1000])
    result = dmrifit.fit_voxels(model.signal([[100.0, 1.0]], protocol), protocol, model)
    assert all(hasattr(result, name) for name in RESULT)
    assert result["ADC"].shape == (1,)
    assert dmrifit.ALGORITHMS == ("LR", "RFR", "ETR", "GBR", "slNN", "mlNN", "CNN")
