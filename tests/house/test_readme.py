"""The README is short, and what it prints is what the project does; pages of the documentation keep to the code."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from importlib import import_module
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest
import typer
from typer.testing import CliRunner
from worked_pages import PROGRAMS, blocks, commands

from dmrifit import Protocol, fit_voxels
from dmrifit.cli import program
from dmrifit.cohort.participants_table import OPTIONAL_COLUMNS, REQUIRED_COLUMNS
from dmrifit.io.scan_manifest import COLUMNS as manifest_columns

PACKAGES = ("dmrifit", "placement", "anomaly", "metastasis")


@pytest.fixture(scope="module")
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(root):
    """Give the text of a page of the documentation by its name."""
    return lambda name: (root / "examples" / "docs" / f"{name}.rst").read_text(encoding="utf-8")


def statements(text):
    return [ast.unparse(statement) for statement in ast.parse(text).body]


def python_of(text):
    return [code for language, code in blocks(text) if language == "python"]


def first_column(table):
    """Give the names in the first cells of a list-table's rows, but its head."""
    rows = re.findall(r"^   \* - (.+)$", table, re.MULTILINE)[1:]
    return re.findall(r"``(\w+)``", " ".join(rows))


def table_after(text, head):
    """Give the list-table whose first cell is this."""
    return text[text.index(f"   * - {head}\n") :].partition("\n\n")[0]


def test_the_first_screen_shows_a_picture_and_leads_to_maps(root, readme):
    lines = readme.splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[:30]) + "\n"
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+[.]png)\)", first)
    assert (root / picture).stat().st_size < 200_000
    assert "BSD-3-Clause" in first
    shown = [line for _, code in blocks(first) for line in commands(code)]
    assert shown[-2:] == ['pip install ".[report,preprocess]"', "dmrifit fit own.nii.gz --out maps"]


def test_every_command_that_the_readme_names_is_there(readme):
    named = set(re.findall(r"`(dmrifit(?:-\w+)?) ([a-z-]+)[^`]*`", readme))
    assert {name for name, _ in named} == set(PROGRAMS)
    for name, command in named:
        assert command in typer.main.get_command(import_module(PROGRAMS[name]).app).commands


def checked_out(root, folder):
    """Copy what is tracked, as a clone has it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, folder / name)


@pytest.mark.slow
def test_the_readme_runs_as_it_is_written(root, readme, tmp_path):
    # In a fresh copy, line by line in one shell, with the packages that are here: nothing is fetched.
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("only a git checkout knows which files are tracked")
    folder = tmp_path / "clone"
    checked_out(root, folder)
    for ending in ("nii.gz", "bval"):
        shutil.copy(files("dipy") / "data" / "files" / f"small_101D.{ending}", folder / f"own.{ending}")
    lines = ["set -e", f"mkdir bin; ln -s {shlex.quote(sys.executable)} bin/python3"]
    for number, (language, code) in enumerate(blocks(readme)):
        if language == "python":
            (folder / f"block{number}.py").write_text(code, encoding="utf-8")
            lines.append(f"echo; echo '# python'; python block{number}.py")
            continue
        for line in commands(code):
            # Tests that run all tests would not end.
            line += " --dry-run" if line.startswith("make test") else ""
            lines += [f"echo {shlex.quote('# ' + line)}", line]
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "MAKEFLAGS")}
    environment |= {
        "PYTHONPATH": sysconfig.get_path("purelib"), "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "MPLBACKEND": "agg",
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "DMRIFIT_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=folder, env=environment, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    said = dict(re.findall(r"^# ([^\n]+)\n(.*?)(?=^# |\Z)", done.stdout, re.MULTILINE | re.DOTALL))
    fitted = said["dmrifit fit own.nii.gz --out maps"]
    assert "using model kurtosis" in fitted
    (quicklook,) = (folder / "maps").glob("own_model-*_quicklook.html")
    assert quicklook.stat().st_size > 50_000
    for made in (folder / "maps", folder / "maps_from_python"):
        (found,) = made.glob("*_param-D_dwimap.nii.gz")
        tissue = nib.load(found).get_fdata()
        assert np.nanmedian(tissue[tissue > 0]) == pytest.approx(0.78, abs=0.08)
        assert len(list(made.glob("*_param-doubt_dwimap.nii.gz"))) == 1
    assert "kurtosis because" in said["python"]
    assert "['S0', 'D', 'K'" in said["python"]
    assert "pytest" in said["make test --dry-run"]
    check_demo_result(folder)


def check_demo_result(folder):
    """Compare what the demo left with what its stored result says."""
    from demo_files import check_demo

    from benchmarks.costs.bench_demo import COLUMNS, rows_of
    from dmrifit import Evaluation

    assert list((folder / "build" / "demo" / "fit").glob("*_quicklook.html"))
    check_demo(folder)
    stored = json.loads((folder / "benchmarks" / "results" / "demo.json").read_text())["rows"]
    for row, expected in zip(rows_of(Evaluation.read(folder / "build" / "demo" / "study")), stored, strict=True):
        for column in COLUMNS:
            texts = [re.match(r"−?[\d.]+|–", cell[column])[0] for cell in (row, expected)]
            numbers = [float(text.replace("–", "nan").replace("−", "-")) for text in texts]
            # Other processors change the last digit, and a forest's trees.
            np.testing.assert_allclose(*numbers, atol=2 if "%" in column else 0.02, err_msg=f"{expected}: {column}")


def worked_lines(root, page):
    lines = [command.epilog.rpartition("\n")[2].strip() for command in program.app.registered_commands]
    texts = [page(name) for name in ("fits", "prediction", "recipes", "index", "people")]
    texts.append((root / "README.md").read_text(encoding="utf-8"))
    for text in texts:
        shell = [line for language, code in blocks(text) if language == "sh" for line in commands(code)]
        lines += [line for line in shell if line.startswith("dmrifit ")]
    return lines


def test_worked_lines_are_understood_by_the_commands_they_name(root, page):
    lines = worked_lines(root, page)
    assert len(lines) >= 30
    known = typer.main.get_command(program.app).commands
    for line in lines:
        _, name, *arguments = shlex.split(line.partition(" > ")[0])
        known[name].make_context(name, arguments)
        used = [word for word in arguments if word.startswith("--")]
        shown = CliRunner().invoke(program.app, [name, "--help"], env={"COLUMNS": "200"}).output
        assert all(option in shown for option in used), line


def test_the_table_of_columns_is_that_of_the_reader(page):
    table = table_after(page("prediction"), "column")
    assert sorted(first_column(table)) == sorted((*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS))


def test_the_fit_in_python_finds_what_it_was_given(page, capsys):
    names = {}
    exec(compile(python_of(page("fits"))[0], "fits.rst", "exec"), names)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [float(words[1]) for words in printed] == names["truth"][0]
    assert [words[0] for words in printed] == ["S0", "f", "Dv", "T2v", "Dt", "K", "T2t"]
    assert printed[4][2] == "µm²/ms"


def test_the_model_of_ones_own_is_that_of_the_example_and_fits(root, page):
    code = next(code for code in python_of(page("fits")) if "from_expression" in code)
    example = statements((root / "examples" / "plot_own_model.py").read_text(encoding="utf-8"))
    names = {}
    exec(compile(code, "fits.rst", "exec"), names)
    assert statements(code)[-1] in example
    model, protocol = names["stretched"], Protocol([0, 100, 300, 600, 1000, 1500])
    truth = [[100.0, 1.2, 0.7]]
    np.testing.assert_allclose(fit_voxels(model.signal(truth, protocol), protocol, model).parameters, truth, rtol=1e-4)


def test_the_comparison_in_python_runs(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of(page("prediction"))[0], "prediction.rst", "exec"), {})
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("LR", "RFR", "constant", "shuffled", "perfect"))
    assert "(3, 7, 2)" in printed
    assert (tmp_path / "study" / "report.html").is_file()


def test_columns_of_other_tables_are_those_that_are_read(page):
    text = page("fits")
    manifest = text[text.index("``scan.tsv`` has") : text.index("Merging of b-values")]
    assert set(re.findall(r"``([a-z]+)``", manifest)) == set(manifest_columns)
    visits = text[text.index("``visits.tsv`` has") : text.index("with two visits")]
    assert set(re.findall(r"``([a-z]+)``", visits)) == {"maps", "labels", "subject", "visit"}


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_are_listed_from_the_top_floor_down_and_every_module_has_tests_of_its_name(root, setup_cfg, package):
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index(f"| of `{package}/`") :].partition("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert listed == re.findall(r"\w+", setup_cfg[f"importlinter:contract:{package}"]["layers"])
    assert sorted(listed) == sorted(path.parent.name for path in (root / package).glob("*/__init__.py"))
    untested = []
    for module in sorted((root / package).rglob("*.py")):
        if module.stem.startswith("__"):
            continue
        room = module.relative_to(root).parent
        if not (root / "tests" / room / f"test_{module.stem.lstrip('_')}.py").is_file():
            untested.append(module.relative_to(root).as_posix())
    assert not untested


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_holds_more_than_eighteen_modules(root, package):
    modules = [path for path in (root / package).rglob("*.py") if path.name != "__init__.py"]
    rooms = Counter(path.parent for path in modules)
    assert max(rooms.values()) <= 18


def test_symbols_and_units_of_the_page_are_those_of_the_model(page):
    from dmrifit import MODELS

    rows = re.findall(r"^   \* - ([\w, ]+)\n     - .+\n     - (.+)$", table_after(page("fits"), "symbol"), re.MULTILINE)
    units = {name: unit for names, unit in rows for name in names.split(", ")}
    model = MODELS["t2-ivim-kurtosis"]
    in_words = {"S0": "that of the image", "f": "0 to 1", "K": "none"}
    for name, unit in zip(model.names, model.units, strict=True):
        assert units[name] == (unit if unit in ("µm²/ms", "ms") else in_words[name])


def test_extras_of_the_page_are_those_of_the_metadata(page, setup_cfg):
    assert first_column(table_after(page("install"), "extra")) == list(setup_cfg["options.extras_require"])
