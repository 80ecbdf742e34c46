"""The documentation names all that is public, takes its numbers from the results, and is built without a warning."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "examples" / "docs"
PACKAGES = ("dmrifit", "placement", "metastasis", "anomaly")


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


def test_help_of_every_command_is_shown(pages):
    import typer

    text = pages.commands()
    for program, package in pages.PROGRAMS.items():
        commands = typer.main.get_command(import_module(f"{package}.cli.program").app).commands
        assert len(commands) >= 4
        for name in commands:
            shown = text.partition(f"\n{program} {name}\n")[2]
            assert f"Usage: {program} {name}" in shown.partition("\n~~~~")[0] + shown[:2000]


def test_numbers_on_the_first_page_are_those_of_the_results(pages):
    seconds = pages.longest_compilation()
    assert seconds == max(m["cpu_s"] for m in pages.fitting_row(
        "first fit of a model on a machine (compilation, longest of the models)")["ours"].values())  # fmt: skip
    assert f"about {seconds:.0f} seconds" in pages.fill(DOCS / "index.rst")


@pytest.mark.parametrize("script", sorted(DOCS.glob("*/plot_*.py")), ids=lambda path: path.stem)
def test_what_a_page_shows_of_a_script_names_nothing_that_it_hides(script):
    # A reader who copies the code of a page gets what stands there, without the blocks that draw and read results.
    hidden = r"# sphinx_gallery_start_ignore.*?# sphinx_gallery_end_ignore"
    shown = re.sub(hidden, "", script.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "concise", "-"]
    done = subprocess.run(words, input=shown, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


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
    run = "models|belief|coming_from|prediction|placement|anomaly|metastasis"
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
    assert "WARNING" not in done.stdout
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
    pictures = {
        name: (html / "tutorials" / f"plot_{name}.html").read_text().count("sphx-glr-single-img")
        for name in ("prediction", "placement", "anomaly", "metastasis")
    }
    assert set(pictures.values()) == {1}
