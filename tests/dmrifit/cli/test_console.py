"""The frame of the programs: help, one-line errors, exit codes, output files."""

import os
import re
import subprocess
import sys
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

from dmrifit._utils.progress import progress
from dmrifit.cli.console import check_output, make_program
from dmrifit.io.atomic_files import FileSet


def greet(name: str, /) -> None:
    """
    Greet somebody.

    Options:
    name WHO: A person.

    Example: greeter greet Ann
    """
    if name == "nobody":
        msg = "nobody cannot be greeted; name a person"
        raise ValueError(msg)
    if name == "doubt":
        warnings.warn("this may be wrong", UserWarning, stacklevel=1)
    if name == "overflow":
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # outside of tests it would be shown
            warnings.warn("overflow encountered in cast", RuntimeWarning, stacklevel=1)
    if name == "stop":
        raise KeyboardInterrupt
    print(f"hello {name}")


def leave() -> None:
    """
    Say goodbye.

    Example: greeter leave
    """


def test_the_owner_can_use_what_a_program_makes_under_any_umask(tmp_path, run_main):
    def make(folder: Path, /) -> None:
        """
        Make a folder with a file.

        Options:
        folder: The folder.
        """
        with FileSet(folder / "new", ["a"]) as files:
            files.path("a").write_text("")

    _, main = make_program("maker", "Makes.", [make, leave], first="maker --help")
    for umask, modes in ((0o777, (0o700, 0o600)), (0o022, (0o755, 0o644)), (0o477, (0o700, 0o600))):
        folder = tmp_path / oct(umask)
        before = os.umask(umask)
        try:
            assert run_main(main, "maker", "make", folder)[0] == 0
        finally:
            os.umask(before)
        written = (folder, folder / "new", folder / "new" / "a")
        assert [path.stat().st_mode & 0o777 for path in written] == [modes[0], *modes]


def test_errors_and_warnings_are_a_line_and_ctrl_c_is_told(run_main):
    _, main = make_program("greeter", "Greets.", [greet, leave], first="greeter leave")
    run = partial(run_main, main, "greeter")
    assert run("greet", "Ann") == (0, "hello Ann\n", "")
    assert run("greet", "nobody") == (2, "", "greeter: error: nobody cannot be greeted; name a person\n")
    assert run("greet", "doubt") == (0, "hello doubt\n", "greeter: this may be wrong\n")
    assert run("greet", "overflow") == (0, "hello overflow\n", "")
    code, _, error = run("greet", "stop")
    assert code == 130
    assert "greeter: interrupted" in error


@pytest.mark.parametrize("package", ["dmrifit", "placement", "metastasis", "anomaly"])
def test_all_programs_list_their_exit_codes(package, monkeypatch, capsys):
    main = import_module(f"{package}.cli.program").main
    name = "dmrifit" if package == "dmrifit" else f"dmrifit-{package}"

    def code(*words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0

    assert code("--help") == 0
    exit_codes = capsys.readouterr().out.partition("Exit codes:")[2]
    lines = [line.split() for line in exit_codes.splitlines() if line.strip()]
    # Flagged cases have a code of their own.
    flagged = [] if name == "dmrifit" else ["3"]
    assert [words[0] for words in lines] == ["0", "1", "2", *flagged, "130"]
    assert code("--version") == 0
    assert capsys.readouterr().out.startswith(f"{name} ")
    assert code("nothing") == 2


@pytest.mark.parametrize("package", ["dmrifit", "placement", "metastasis", "anomaly"])
def test_help_is_whole_sentences_at_80_columns_and_each_command_has_a_worked_line(package, monkeypatch, capsys):
    program = import_module(f"{package}.cli.program")
    monkeypatch.setenv("COLUMNS", "80")

    def help_of(*words):
        monkeypatch.setattr(sys, "argv", [package, *words, "--help"])
        with pytest.raises(SystemExit):
            program.main()
        text = capsys.readouterr().out
        # Dots after a bracket stand for more arguments.
        assert not re.search(r"[\w,:] ?\.\.\.", text)
        return " ".join(text.split())

    name = "dmrifit" if package == "dmrifit" else f"dmrifit-{package}"
    overview = help_of()
    for command in program.app.registered_commands:
        sentence = " ".join(command.callback.__doc__.split()).partition(". ")[0]
        assert f"{command.name} {sentence.rstrip('.')}." in overview
        example = " ".join(command.epilog.removeprefix("\b").split())
        assert example.startswith(f"Example: {name} {command.name} ")
        assert example in help_of(command.name)


def test_exit_codes_follow_the_error(run_main):
    errors = []

    def fail():
        """Raise the last error."""
        raise errors.pop()

    _, main = make_program("toy", "Fails.", [fail, leave], first="toy --help")
    assert run_main(main, "toy", "fail", "--unknown")[0] == 2
    python = FileExistsError("pass overwrite=True to replace it")
    for error in (ValueError("a"), OSError("b"), FileExistsError(17, "c", "d"), ImportError("e"), MemoryError("f"), python):
        errors.append(error)
        code, _, said = run_main(main, "toy", "fail")
        assert code == 2
        assert ("toy: error: add --overwrite to replace it" if error is python else "toy: error: ") in said


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("RuntimeError('a fault')", 1, "Traceback"), ("ValueError('x')", 2, "toy: error: x"),
        ("KeyboardInterrupt", 130, ""),
    ],
)
def test_the_shell_sees_the_exit_codes(error, code, said):
    program = f"""
from dmrifit.cli.console import make_program
def one() -> None:
    "Do one thing."
    raise {error}
def other() -> None:
    "Do another."
make_program("toy", "Toys.", [one, other], first="toy --help")[1]()
"""
    ended = subprocess.run([sys.executable, "-c", program, "one"], check=False, capture_output=True, text=True)
    assert ended.returncode == code
    assert said in ended.stderr


def test_a_file_that_cannot_be_written_is_told_before_work(tmp_path):
    check_output(tmp_path / "new", overwrite=False)
    old, kept = tmp_path / "old", tmp_path / "kept"
    for path in (old, kept):
        path.touch()
    check_output(old, overwrite=True, keep=[None, tmp_path / "new", kept])
    with pytest.raises(ValueError, match="is an input and would be overwritten"):
        check_output(kept, overwrite=True, keep=[old, kept])
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_output(tmp_path, overwrite=False)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check_output(tmp_path / "no" / "model", overwrite=True)
    with pytest.raises(IsADirectoryError, match="is a folder; name a file"):
        check_output(tmp_path, overwrite=True)


def test_a_bar_passes_on_what_it_counts():
    assert list(progress([1, 2, 3], 3)) == [1, 2, 3]


def test_a_file_whose_name_has_control_characters_is_refused_and_shown_escaped(tmp_path, monkeypatch, capsys):
    read = []

    def show(image: Path, /, text: str = "") -> None:
        """
        Show an image.

        Options:
        image IMAGE: Image.
        text: Text beside it.
        """
        read.append((image, text))

    def other() -> None:
        """Do another."""

    _, main = make_program("toy", "Toys.", [show, other], first="toy --help")
    monkeypatch.setattr(sys, "argv", ["toy", "show", "a\nfine: \x1b[31mb.nii"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "the name 'a\\nfine: \\x1b[31mb.nii' contains a control character" in capsys.readouterr().err
    # A text is no name of a file.
    monkeypatch.setattr(sys, "argv", ["toy", "show", "b.nii", "--text", "two\nlines"])
    with pytest.raises(SystemExit):
        main()
    assert read == [(Path("b.nii"), "two\nlines")]
