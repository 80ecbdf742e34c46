"""What the README prints is what the project does."""

import ast
import re
import shlex
from collections import Counter

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from dmrifit import Protocol, fit_voxels
from dmrifit.cli import cohort_commands, image_commands, program
from dmrifit.cohort.participants_table import OPTIONAL_COLUMNS, REQUIRED_COLUMNS
from dmrifit.io.scan_manifest import COLUMNS as manifest_columns

PACKAGES = ("dmrifit", "placement", "anomaly", "metastasis")
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^    (?:[.]venv/bin/)?(dmrifit .*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script(readme):
    """Give the lines under the command of the demo."""
    return FENCE.search(readme, readme.index("    make demo\n"))[1]


def statements(text):
    return [ast.unparse(statement) for statement in ast.parse(text).body]


def worked_lines(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    return [*SHELL.findall(readme), *image_commands.EXAMPLES.values(), *cohort_commands.EXAMPLES.values()]


def test_the_script_under_the_demo_has_twelve_lines_and_runs_in_the_example(root, script):
    assert script.count("\n") == 12
    example = statements((root / "examples" / "plot_compare_algorithms.py").read_text(encoding="utf-8"))
    positions = [example.index(statement) for statement in statements(script)]
    assert positions == sorted(positions)


def test_the_script_reads_compares_reports_saves_and_predicts(script):
    called = {node.func.attr for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)}
    assert called == {"read", "learning_curve", "write_report", "arrays", "SignalToSignal", "fit", "save_model",
                      "predict_image"}  # fmt: skip
    assert 'train_on=("same", "other")' in script


def test_the_next_command_is_the_same_on_own_data(readme, script):
    lines = SHELL.findall(readme[readme.index(script) :])
    assert lines[0] == "dmrifit benchmark participants.tsv --out study"


def test_worked_lines_are_understood_by_the_commands_they_name(root):
    lines = worked_lines(root)
    assert len(lines) >= 12
    known = typer.main.get_command(program.app).commands
    for line in lines:
        _, name, *arguments = shlex.split(line)
        known[name].make_context(name, arguments)
        used = [word for word in arguments if word.startswith("--")]
        shown = CliRunner().invoke(program.app, [name, "--help"], env={"COLUMNS": "200"}).output
        assert all(option in shown for option in used), line


def test_the_table_of_columns_is_that_of_the_reader(readme):
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", readme[: readme.index("### What the demo shows")], re.MULTILINE)
    columns = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(columns) == sorted((*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS))


def test_the_fit_in_python_finds_what_it_was_given(readme, capsys):
    code = FENCE.findall(readme)[1]
    assert len([line for line in code.splitlines() if line]) == 10
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [float(words[1]) for words in printed] == names["truth"][0]
    assert [words[0] for words in printed] == ["S0", "f", "Dv", "T2v", "Dt", "K", "T2t"]
    assert printed[4][2] == "µm²/ms"


def test_the_model_of_ones_own_is_that_of_the_example_and_fits(root, readme):
    code = FENCE.findall(readme)[2]
    example = statements((root / "examples" / "plot_own_model.py").read_text(encoding="utf-8"))
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert statements(code)[-1] in example
    model, protocol = names["stretched"], Protocol([0, 100, 300, 600, 1000, 1500])
    truth = [[100.0, 1.2, 0.7]]
    np.testing.assert_allclose(fit_voxels(model.signal(truth, protocol), protocol, model).parameters, truth, rtol=1e-4)


def test_the_comparison_in_python_runs(readme, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(FENCE.findall(readme)[3], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("LR", "RFR", "constant", "shuffled", "perfect"))
    assert "(3, 7, 2)" in printed
    assert (tmp_path / "study" / "report.html").is_file()


def test_algorithms_of_the_readme_are_those_there_are(readme):
    from dmrifit import ALGORITHMS

    table = readme[readme.index("| name | algorithm |") :].partition("\n\n")[0]
    first = "\n".join(line.split("|")[1] for line in table.splitlines())
    assert re.findall(r"`(\w+)`", first) == [*ALGORITHMS, "ViT"]


def test_columns_of_other_tables_are_those_that_are_read(readme):
    section = readme[readme.index("## From the scanner to a table") :]
    manifest = section[section.index("`scan.tsv`") : section.index("The\ntolerance")]
    assert {word for word in re.findall(r"`(\w+)`", manifest)} == set(manifest_columns)
    visits = section[section.index("`visits.tsv` has") : section.index("with two visits")]
    assert set(re.findall(r"`(\w+)`", visits)) == {"maps", "labels", "subject", "visit"}


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_are_listed_from_the_top_floor_down(root, setup_cfg, package):
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index(f"| of `{package}/`") :].partition("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert listed == re.findall(r"\w+", setup_cfg[f"importlinter:contract:{package}"]["layers"])
    assert sorted(listed) == sorted(path.parent.name for path in (root / package).glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_holds_more_than_eighteen_modules(root, package):
    modules = [path for path in (root / package).rglob("*.py") if path.name != "__init__.py"]
    rooms = Counter(path.parent for path in modules)
    assert max(rooms.values()) <= 18


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_tests_of_its_name_in_its_room(root, package):
    untested = []
    for module in sorted((root / package).rglob("*.py")):
        if module.stem.startswith("__"):
            continue
        room = module.relative_to(root).parent
        if not (root / "tests" / room / f"test_{module.stem.lstrip('_')}.py").is_file():
            untested.append(module.relative_to(root).as_posix())
    assert not untested


def test_symbols_and_units_of_the_readme_are_those_of_the_model(readme):
    from dmrifit import MODELS

    rows = dict(re.findall(r"^\| ([\w, ]+) \| [^|]+ \| ([^|]+) \|$", readme, re.MULTILINE))
    units = {name: unit for names, unit in rows.items() for name in names.split(", ")}
    model = MODELS["t2-ivim-kurtosis"]
    in_words = {"S0": "that of the image", "f": "0 to 1", "K": "none"}
    for name, unit in zip(model.names, model.units, strict=True):
        assert units[name] == (unit if unit in ("µm²/ms", "ms") else in_words[name])


def test_extras_of_the_readme_are_those_of_the_metadata(readme, setup_cfg):
    table = readme[readme.index("| extra | for |") :].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(setup_cfg["options.extras_require"])


def test_what_an_extra_installs_is_told_whole(readme, setup_cfg):
    told = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", readme, re.MULTILINE))
    for extra, requirements in setup_cfg["options.extras_require"].items():
        if extra == "all" or told[extra].endswith("and others"):
            continue
        for name in re.findall(r"^[\w-]+", requirements, re.MULTILINE):
            assert name.removesuffix("-cpu").lower() in told[extra].lower()


def test_folders_of_the_layout_exist(root, readme):
    folders = re.findall(r"`([\w/]+/)`", readme[readme.index("## Layout") :])
    assert len(folders) >= 7
    assert all((root / folder).is_dir() for folder in folders)
    rooms = re.findall(r"`(\w+)`", readme[readme.index("Inside the library") :])
    assert len(rooms) >= 6
    assert all((root / "dmrifit" / room).is_dir() for room in rooms)
