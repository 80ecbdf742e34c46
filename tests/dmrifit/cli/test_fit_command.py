"""A first fit without any option, of six protocols: it ends well, and its maps are those of the tissue (synthetic)."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit.engine.protocol import Protocol


def directions(n):
    vectors = np.random.default_rng(0).normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


SHELLS = np.r_[0, np.repeat([700, 1200, 2800], 12)]
PROTOCOLS = {
    "two b": (Protocol([0, 800]), "adc", {"ADC": 0.05}),
    "three shells": (Protocol([0, 1000, 2000]), "kurtosis", {"D": 0.1, "K": 0.2}),
    "many low b": (Protocol([0, 10, 20, 40, 80, 150, 300, 500, 800]), "ivim", {"f": 0.3, "Dt": 0.1}),
    "directions": (Protocol(SHELLS, directions=directions(37)), "kurtosis", {"D": 0.1, "K": 0.2}),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_scan_is_fitted_without_an_option(run, tmp_path, write_scan, name):
    protocol, model, tolerances = PROTOCOLS[name]
    truth = write_scan(tmp_path, "own_dwi", protocol, model=model)
    code, printed, err = run("fit", tmp_path / "own_dwi.nii.gz", "--out", tmp_path / "maps")
    assert code == 0, err
    assert "using protocol: b = " in err
    assert f"using model {model}: " in err
    assert "100 % fitted" in printed
    assert "time: " in printed
    check(tmp_path / "maps", truth, tolerances)


def test_b_values_of_another_scan_are_refused_before_a_model_is_announced(run, tmp_path, write_scan):
    write_scan(tmp_path, "own", Protocol([0, 50, 100, 400, 900]))
    (tmp_path / "own.bval").write_text("0 50 100")
    code, _, err = run("fit", tmp_path / "own.nii.gz", "--out", tmp_path / "maps")
    assert (code, err.count("using"), "5 volumes, but the protocol of own has 3" in err) == (2, 1, True)


def check(folder, truth, tolerances):
    """Compare the medians of maps with the tissue that was simulated."""
    for parameter, tolerance in tolerances.items():
        path = next(folder.glob(f"*_param-{parameter}_dwimap.nii.gz"))
        assert np.median(np.asarray(nib.load(path).dataobj)) == pytest.approx(truth[parameter], rel=tolerance)


@pytest.mark.parametrize("as_table", [True, False])
def test_seven_b_values_at_three_echo_times_are_fitted_without_an_option(run, tmp_path, write_scan, as_table):
    b, rows = [0, 50, 100, 400, 900, 1200, 1600], []
    for echo, te in enumerate((60, 90, 120), start=1):
        truth = write_scan(tmp_path, f"echo-{echo}", Protocol(b, te), model="t2-ivim-kurtosis", seed=echo)
        rows.append({"image": f"echo-{echo}.nii.gz"})
    source = tmp_path / "scan.tsv"
    if as_table:
        pd.DataFrame(rows).to_csv(source, sep="\t", index=False)
    else:
        parts = [nib.load(tmp_path / row["image"]) for row in rows]
        nib.save(nib.concat_images(parts, axis=3), tmp_path / "own.nii.gz")
        (tmp_path / "own.bval").write_text(" ".join(map(str, b * 3)))
        (tmp_path / "own.json").write_text(json.dumps({"EchoTime": [te for te in (0.06, 0.09, 0.12) for _ in b]}))
        source = tmp_path / "own.nii.gz"
    code, printed, err = run("fit", source, "--out", tmp_path / "maps")
    assert code == 0, err
    assert "using model t2-ivim-kurtosis: 7 b-values at 3 echo times" in err
    assert err.count("using protocol: b = ") == 3
    assert "100 % fitted" in printed
    check(tmp_path / "maps", truth, {"f": 0.3, "Dt": 0.1, "T2t": 0.1})
    (page,) = (tmp_path / "maps").glob("*.html")
    assert f"<h1>{source.stem.removesuffix('.nii')}, model t2-ivim-kurtosis</h1>" in page.read_text(encoding="utf-8")


def test_ivim_by_echo_time_needs_no_model_of_t2(run, output_of, tmp_path, write_scan):
    b = [0, 10, 20, 40, 80, 150, 300, 500, 800] * 2
    protocol = Protocol(b, np.repeat([50, 100], 9))
    truth = write_scan(tmp_path, "own", protocol, model="t2-ivim-kurtosis")
    te = tmp_path / "own.te"
    te.write_text(" ".join(map(str, protocol.te)))
    arguments = ["fit", tmp_path / "own.nii.gz", "--te", te, "--model", "ivim", "--out", tmp_path / "maps"]
    assert re.search(r"least standard deviation .*: S0te50 ±\S+ %, S0te100 ±", output_of(*arguments, "--by-te"))
    amounts = {}
    for echo in (50, 100):
        blood = truth["f"] * np.exp(-echo / truth["T2v"])
        tissue = (1 - truth["f"]) * np.exp(-echo / truth["T2t"])
        amounts[f"fte{echo}"] = blood / (blood + tissue)
    check(tmp_path / "maps", amounts, dict.fromkeys(amounts, 0.3))
    sidecar = json.loads(next((tmp_path / "maps").glob("*_dwimap.json")).read_text())
    assert sidecar["Model"]["Name"] == "ivim-by-te"
    code, _, err = run(*arguments, "--overwrite")
    assert code == 2
    assert "one echo time alone, a model with T2, or S0 by echo time (--by-te)" in err
    assert "does not determine" not in err
