"""Code of a page, in Markdown or reStructuredText, run as it is written, in order, in one folder."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

#: A block of code: fenced, indented after an empty line, or after a directive.
BLOCK = re.compile(
    r"^```python\n(?P<fenced>[\s\S]*?)^```$"
    r"|^[.][.] code-block:: (?P<language>\w+)\n\n(?P<directed>(?:   .*\n|\n)+)"
    r"|(?<=\n\n)(?P<indented>(?:    .*\n)+)",
    re.MULTILINE,
)
PROGRAMS = {"dmrifit": "dmrifit.cli.program", "dmrifit-placement": "placement.cli.program",
            "dmrifit-anomaly": "anomaly.cli.program", "dmrifit-metastasis": "metastasis.cli.program"}  # fmt: skip


def blocks(text):
    """Give language ("sh", "python", "text") and code of all blocks of a page."""
    found = []
    for match in BLOCK.finditer(text):
        if match["fenced"]:
            found.append(("python", match["fenced"]))
        elif match["indented"]:
            found.append(("sh", textwrap.dedent(match["indented"])))
        else:
            found.append((match["language"], textwrap.dedent(match["directed"]).strip("\n") + "\n"))
    return found


def commands(code):
    """Give the command lines of a block, those that go on in the next line as one."""
    return re.sub(r" *\\\n\s*", " ", code).splitlines()


def put_on_path(folder):
    """Make the programs of this project commands, also where it is not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in PROGRAMS.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from {module} import main; main()" "$@"\n')
        program.chmod(0o755)
    root = Path(__file__).parents[2]
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(root)}


def run_blocks(found, folder, programs):
    """Run shell and Python in a folder; give what each block printed, and stop at the first that fails."""
    environment = put_on_path(programs)
    printed = []
    for language, code in found:
        words = ["bash", "-e", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        printed.append(done.stdout + done.stderr)
    return printed
