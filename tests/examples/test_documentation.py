"""The documentation names all that is public, takes its numbers from the results, and is built without a warning."""

import json
import os
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from zipfile import ZipFile

import pytest
from sphinx.search.en import SearchEnglish
from worked_pages import blocks

DOCS = Path(__file__).parents[2] / "examples" / "docs"
PACKAGES = ("dmrifit", "placement", "metastasis", "anomaly")
#: What a user searches for, and the page that answers.
ANSWERS = {
    **dict.fromkeys(("DTI", "DKI", "FA", "tensor", "ADC", "IVIM", "kurtosis", "T2", "b-values", "BIDS"), "recipes"),
    **dict.fromkeys(("noise floor", "Gibbs", "motion", "ROI", "DICOM segmentation"), "fits"),
    **dict.fromkeys(("IVIM threshold", "tolerance b-values", "merging b-values", "units", "glossary"), "fits"),
    **{"cluster": "scale", "reference": "api", "algorithms": "prediction", "human tumors": "people", "GPU": "install"},
    **{"metastases": "programs/dmrifit-metastasis", "spectroscopy": "programs/dmrifit-placement", "license": "install"},
}


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    return import_module("pages")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_listed_once(pages, package):
    listed = re.findall(rf"^   {package}[.](\w+)$", pages.api(), re.MULTILINE)
    assert sorted(listed) == sorted(import_module(package).__all__)


def test_a_topic_with_a_name_that_there_is_not_is_refused(pages, monkeypatch):
    monkeypatch.setitem(pages.TOPICS, "Scores", ("bias_index", "no_such_name"))
    with pytest.raises(ValueError, match="no_such_name"):
        pages.api()


@pytest.mark.parametrize("program", ["dmrifit", "dmrifit-placement", "dmrifit-metastasis", "dmrifit-anomaly"])
def test_help_of_every_command_is_shown_on_the_page_of_its_program(pages, program):
    import typer

    text = pages.program_page(program)
    commands = typer.main.get_command(import_module(f"{pages.PROGRAMS[program]}.cli.program").app).commands
    assert len(commands) >= 4
    for name in commands:
        shown = text.partition(f"\n{program} {name}\n")[2]
        assert f"Usage: {program} {name}" in shown.partition("\n~~~~")[0] + shown[:2000]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.rst")), ids=lambda path: path.stem)
def test_lines_of_code_do_not_run_off_the_page(pages, page):
    long = [line for _, code in blocks(pages.fill(page)) for line in code.splitlines() if len(line) > 100]
    assert not long


def test_pages_have_claims_of_all_studies_numbers_of_the_results_and_counts_of_faults(pages):
    text = pages.fill(DOCS / "claims.rst")
    for name in ("claims", "placement_claims", "metastasis", "anomaly"):
        assert pages.board(name) in text
        assert pages.board(name).count("   * - ") >= 5
    seconds = pages.longest_compilation()
    assert seconds == max(m["cpu_s"] for m in pages.fitting_row(
        "first fit of a model on a machine (compilation, longest of the models)")["ours"].values())  # fmt: skip
    assert f"about {seconds:.0f} seconds" in pages.fill(DOCS / "index.rst")
    kinds = [row for part in pages.result("faults").values() for row in part["kinds"].values()]
    text = pages.fill(DOCS / "security.rst")
    assert f"- {sum(row['tried'] for row in kinds):,}\n" in text
    assert "what is faulty" in text
    assert text.count("   * - ") == len(kinds) + 2


SCRIPTS = sorted([*DOCS.glob("*/plot_*.py"), *DOCS.parent.glob("plot_*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_code_of_scripts_does_not_run_off_the_page_and_names_nothing_that_it_hides(script):
    text = re.sub(r'\A"""[\s\S]*?"""', "", script.read_text(encoding="utf-8"))
    text = re.sub(r"# sphinx_gallery_start_ignore.*?# sphinx_gallery_end_ignore", "", text, flags=re.DOTALL)
    code = re.sub(r"^# %%\n(?:#.*\n)*", "", text, flags=re.MULTILINE)
    assert not [line for line in code.splitlines() if len(line) > 100]
    # A reader who copies the code of a page gets what stands there, without the blocks that draw and read results.
    hidden = r"# sphinx_gallery_start_ignore.*?# sphinx_gallery_end_ignore"
    shown = re.sub(hidden, "", script.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "concise", "-"]
    done = subprocess.run(words, input=shown, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


def test_downloaded_scripts_are_without_the_code_that_pages_hide(tmp_path):
    script = (DOCS / "guides" / "plot_belief.py").read_text(encoding="utf-8")
    (tmp_path / "plot_belief.py").write_text(script, encoding="utf-8")
    with ZipFile(tmp_path / "plot_belief.zip", "w") as file:
        file.writestr("plot_belief.py", script)
    runpy.run_path(str(DOCS / "build.py"))["remove_hidden_code"](tmp_path)
    shown = (tmp_path / "plot_belief.py").read_text(encoding="utf-8")
    assert "K of the mixture up to" in shown
    assert "from pages import" not in shown
    with ZipFile(tmp_path / "plot_belief.zip") as file:
        assert file.read("plot_belief.py").decode() == shown


def test_the_fit_on_the_first_page_finds_what_it_was_given(pages, capsys):
    code = re.search(r"code-block:: python\n\n((?:   .*\n|\n)+)", pages.fill(DOCS / "index.rst"))[1]
    names = {}
    exec(compile(re.sub("^   ", "", code, flags=re.MULTILINE), "index.rst", "exec"), names)
    assert names["result"].parameters[0] == pytest.approx([1000, 1.1, 0.8], rel=1e-4)
    assert "S0" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.deep
def test_the_documentation_is_built_without_a_warning_or_a_link_to_elsewhere(tmp_path):
    pytest.importorskip("torch")
    # Examples have tests of their own; the other scripts run here.
    kept = tmp_path / "build" / "kept"
    kept.mkdir(parents=True)
    run = "models|belief|coming_from|own_scan"
    done = subprocess.run(
        [sys.executable, str(DOCS / "build.py"), "--run", run, "--out", str(tmp_path / "docs")],
        # The list of fonts that matplotlib keeps for all environments of a user may be that of one that is gone.
        env={**os.environ, "DMRIFIT_DATA": "", "MPLCONFIGDIR": str(tmp_path / "matplotlib")},
        cwd=tmp_path,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    # A model that was never fitted on this machine is compiled, and says so.
    lines = [line for line in done.stdout.splitlines() if "compiling the fit" not in line]
    assert not [line for line in lines if "WARNING" in line]
    assert kept.is_dir()
    html = tmp_path / "docs" / "html"
    for package in PACKAGES:
        for name in import_module(package).__all__:
            assert (html / "api" / f"{package}.{name}.html").is_file()
    fetched = [
        f"{page.name}: {found}"
        for page in html.rglob("*.html")
        for found in re.findall(
            r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//[^\"]+", page.read_text()
        )
        if 'rel="canonical"' not in found
    ]
    assert not fetched
    belief = (html / "guides" / "plot_belief.html").read_text()
    assert "K of the mixture up to" in belief
    assert "<img" in belief
    shown = (html / "examples" / "plot_own_scan.html").read_text()
    assert "D: in doubt in" in shown
    assert "sphx-glr-single-img" in shown
    assert "six people" in (html / "limits.html").read_text()
    index = json.loads((html / "searchindex.js").read_text().removeprefix("Search.setIndex(").removesuffix(")"))
    for words, answer in ANSWERS.items():
        assert answer in titled(index, words), words


def titled(index, words):
    """List the pages with a title or heading that holds all the words, which a search shows first."""
    found = [index["titleterms"].get(SearchEnglish({}).stem(word.lower()), []) for word in re.findall(r"\w+", words)]
    pages = [set(numbers if isinstance(numbers, list) else [numbers]) for numbers in found]
    return {index["docnames"][number] for number in set.intersection(*pages)}
