"""What programs share: a frame with help, errors in a line, runs that do not mix."""

import subprocess
import sys
import warnings
from importlib import import_module

import pytest

from dmrifit.cli.console import begin_run, check_output, new_program, progress, run_program


def greet(name: str) -> None:
    """Greet somebody."""
    if name == "nobody":
        msg = "nobody cannot be greeted; name a person"
        raise ValueError(msg)
    if name == "doubt":
        warnings.warn("this may be wrong", UserWarning, stacklevel=1)
    if name == "stop":
        raise KeyboardInterrupt
    print(f"hello {name}")


def leave() -> None:
    """Say goodbye."""


@pytest.fixture
def run(monkeypatch, capsys):
    app = new_program("greeter", "Greets.", {greet: "greeter greet Ann", leave: "greeter leave"}, first="greeter leave")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["greeter", *words])
        with pytest.raises(SystemExit) as stopped:
            run_program(app, "greeter")
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out, said.err

    return call


def test_help_shows_a_worked_line_of_the_program_and_of_each_command(run):
    assert "Greets." in run("--help")[1]
    assert "Example:\n    greeter leave" in run("--help")[1]
    assert "Example:\n    greeter greet Ann" in run("greet", "--help")[1]
    assert run("--version")[1].startswith("greeter 0.")


def test_errors_and_warnings_are_a_line_and_ctrl_c_is_told(run):
    assert run("greet", "Ann") == (0, "hello Ann\n", "")
    assert run("greet", "nobody") == (2, "", "greeter: error: nobody cannot be greeted; name a person\n")
    assert run("greet", "doubt") == (0, "hello doubt\n", "greeter: this may be wrong\n")
    code, _, error = run("greet", "stop")
    assert code == 130
    assert "greeter: interrupted" in error


@pytest.mark.parametrize("package", ["dmrifit", "placement", "metastasis", "anomaly"])
def test_exit_codes_mean_the_same_everywhere_and_stand_in_the_help(package, monkeypatch, capsys):
    cli = import_module(f"{package}.cli.program")
    name = "dmrifit" if package == "dmrifit" else f"dmrifit-{package}"
    raised = []

    def fail():
        """Fail as told."""
        raise raised.pop()

    monkeypatch.setattr(cli, "app", new_program(name, "Fails.", {fail: f"{name} fail"}, first=f"{name} fail"))

    def code(*words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0

    assert code("--help") == 0
    lines = [line.split() for line in capsys.readouterr().out.partition("Exit codes:")[2].splitlines() if line.strip()]
    assert [words[0] for words in lines] == ["0", "1", "2", "130"]
    assert code("--version") == 0
    assert code("nothing") == 2
    assert code("fail", "--unknown") == 2
    for error in (ValueError("a"), OSError("b"), FileExistsError(17, "c", "d"), ImportError("e"), MemoryError("f")):
        raised.append(error)
        assert code("fail") == 2
        assert f"{name}: error: " in capsys.readouterr().err
    raised.append(KeyboardInterrupt())
    assert code("fail") == 130
    raised.append(RuntimeError("a fault"))
    monkeypatch.setattr(sys, "argv", [name, "fail"])
    with pytest.raises(RuntimeError, match="a fault"):  # which Python shows, and ends with 1
        cli.main()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("RuntimeError('a fault')", 1, "Traceback"),
        ("ValueError('x')", 2, "toy: error: x"),
        ("KeyboardInterrupt", 130, ""),
    ],
)
def test_the_shell_sees_the_exit_codes(error, code, said):
    program = f"""
from dmrifit.cli.console import new_program, run_program
def one() -> None:
    "Do one thing."
    raise {error}
def other() -> None:
    "Do another."
run_program(new_program("toy", "Toys.", {{one: "toy one", other: "toy other"}}), "toy")
"""
    ended = subprocess.run([sys.executable, "-c", program, "one"], check=False, capture_output=True, text=True)
    assert ended.returncode == code
    assert said in ended.stderr


def test_a_run_goes_on_only_with_its_own_settings(tmp_path):
    begin_run(tmp_path, {"seed": 1, "shape": (2, 3)}, overwrite=False, results=("table.tsv",))
    (tmp_path / "table.tsv").touch()
    begin_run(tmp_path, {"seed": 1, "shape": (2, 3)}, overwrite=False, results=("table.tsv",))
    with pytest.raises(ValueError, match=r"other options \(seed\)"):
        begin_run(tmp_path, {"seed": 2, "shape": (2, 3)}, overwrite=False, results=("table.tsv",))
    begin_run(tmp_path, {"seed": 2, "shape": (2, 3)}, overwrite=True, results=("table.tsv",))
    (tmp_path / "table.tsv").touch()
    (tmp_path / "settings.json").unlink()
    with pytest.raises(FileExistsError, match=r"table.tsv exists already and is of no run"):
        begin_run(tmp_path, {"seed": 2}, overwrite=False, results=("table.tsv",))


def test_what_was_finished_with_other_settings_is_no_part_of_the_run_that_replaces_it(tmp_path):
    def begin(seed, overwrite):
        begin_run(tmp_path, {"seed": seed}, overwrite, results=("table.tsv",), parts=("*/done.json",))

    begin(1, overwrite=False)
    (tmp_path / "a").mkdir()
    files = [tmp_path / "table.tsv", tmp_path / "a" / "done.json", tmp_path / "a" / "map.nii", tmp_path / "other.txt"]
    for file in files:
        file.touch()
    begin(1, overwrite=False)
    begin(1, overwrite=True)
    assert all(file.exists() for file in files)
    begin(2, overwrite=True)
    assert [file.exists() for file in files] == [False, False, True, True]


def test_a_file_that_cannot_be_written_is_told_before_work(tmp_path):
    check_output(tmp_path / "new", overwrite=False)
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_output(tmp_path, overwrite=False)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check_output(tmp_path / "no" / "model", overwrite=True)
    with pytest.raises(IsADirectoryError, match="is a folder; name a file"):
        check_output(tmp_path, overwrite=True)


def test_a_bar_passes_on_what_it_counts():
    assert list(progress([1, 2, 3], 3)) == [1, 2, 3]
