"""dmrifit cite names the version and the publications that live with the models."""

import pickle
import re

import pytest
from typer.testing import CliRunner

import dmrifit
from dmrifit import MODELS
from dmrifit.cli.program import app


def cited(*words):
    result = CliRunner().invoke(app, ["cite", *words])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_a_model_is_cited_with_its_publications():
    software, name, *references = cited("Kurtosis")
    assert f"dmrifit (version {dmrifit.__version__})" in software
    assert name == "kurtosis:"
    assert references == ["  Jensen et al., Magn Reson Med 53:1432–1440, 2005."]


def test_without_a_model_all_are_listed():
    lines = cited()
    assert [line[:-1] for line in lines if line.endswith(":")] == list(MODELS)
    assert len(lines) == 1 + len(MODELS) + sum(len(model.references) for model in MODELS.values())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_references_with_journal_and_year(name):
    assert MODELS[name].references
    for reference in MODELS[name].references:
        assert re.fullmatch(r"\S.+ et al\., .+ \d[\d()]*:N?\d+–N?\d+, (19|20)\d\d\.", reference)
    assert pickle.loads(pickle.dumps(MODELS[name])).references == MODELS[name].references


def test_an_unknown_model_is_refused():
    result = CliRunner().invoke(app, ["cite", "ivm"])
    assert isinstance(result.exception, ValueError)
    assert "did you mean ivim?" in str(result.exception)
