"""
Build the documentation.

    python examples/docs/build.py                   # everything; the pages are in build/docs/html
    python examples/docs/build.py --run own_model   # of the scripts only those run whose names match

The sources are put together in build/docs/source first: the pages of this folder with numbers from
benchmarks/results filled in, the scripts of examples/ and of the folder guides/, lists of public names, a page for each
program with the help of its commands. Nothing is fetched from a network. Warnings are errors.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

def put_together(source: Path) -> None:
    """Write all sources; what has not changed is left alone, so that it is not built again."""
    wanted = dict(_files())
    for name, text in wanted.items():
        path = source / name
        new = text if isinstance(text, bytes) else text.encode()
        if not path.exists() or path.read_bytes() != new:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(new)
    for folder in ("", "programs", "scripts/examples", "scripts/guides"):
        for path in (source / folder).glob("*.*"):
            if path.is_file() and str(path.relative_to(source)) not in wanted:
                path.unlink()


def _files() -> Iterator[tuple[str, str | bytes]]:
    import pages

    yield "conf.py", (HERE / "conf.py").read_bytes()
    yield "static/pages.css", (HERE / "pages.css").read_bytes()
    for name in ("people_fits.png", "meningiomas.png", "metastasis_people.png"):
        yield name, (ROOT / "benchmarks" / "results" / name).read_bytes()
    yield "own_scan.png", (HERE / "own_scan.png").read_bytes()
    for path in sorted([*HERE.glob("*.rst"), *HERE.glob("*.md")]):
        yield path.name, pages.fill(path)
    for path in sorted((HERE / "templates").rglob("*.rst")):
        yield f"templates/{path.relative_to(HERE / 'templates')}", path.read_bytes()
    yield "api.rst", pages.api()
    for program in pages.PROGRAMS:
        yield f"programs/{program}.rst", pages.program_page(program)
    for gallery, names in pages.GALLERIES.items():
        folder = ROOT / "examples" if gallery == "examples" else HERE / gallery
        yield f"scripts/{gallery}/GALLERY_HEADER.rst", (HERE / f"{gallery}.txt").read_bytes()
        for name in names:
            path = folder / f"plot_{name}.py"
            if path.exists():
                yield f"scripts/{gallery}/{path.name}", _titled(path.read_text(encoding="utf-8"))


def _titled(script: str) -> str:
    """Make the first line of a script's docstring, its question, the title of its page."""
    return re.sub(r'\A("""\n)(.+)\n', lambda found: f"{found[1]}{found[2]}\n{'=' * len(found[2])}\n", script)


def remove_hidden_code(downloads: Path) -> None:
    """Leave out of downloaded scripts the code that pages hide, which reads files of the repository."""
    from sphinx_gallery.py_source_parser import remove_ignore_blocks

    for script in downloads.rglob("plot_*.py"):
        script.write_text(remove_ignore_blocks(script.read_text(encoding="utf-8")), encoding="utf-8")
    for archive in downloads.rglob("plot_*.zip"):
        with ZipFile(archive) as file:
            contents = {name: file.read(name).decode() for name in file.namelist()}
        with ZipFile(archive, "w", ZIP_DEFLATED) as file:
            for name, text in contents.items():
                file.writestr(name, remove_ignore_blocks(text) if name.endswith(".py") else text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the documentation into build/docs/html.")
    parser.add_argument("--run", default="", help="run only scripts whose file names match (a regular expression)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="folder of the result")
    chosen = parser.parse_args(arguments)
    # The sentences above boards are written by the benchmarks.
    sys.path[:0] = [str(HERE), str(ROOT)]
    from sphinx.cmd.build import main as sphinx

    # Workers that grew are replaced; nothing is lost.
    warnings.filterwarnings("ignore", "A worker stopped", UserWarning)

    out = chosen.out.resolve()
    put_together(out / "source")
    os.environ["MPLBACKEND"] = "agg"
    pattern = rf"plot_.*({chosen.run})" if chosen.run else "plot_"
    code = sphinx([
        "-W", "--keep-going", "-q", "-b", "html", "-d", str(out / "doctrees"),
        "-D", f"sphinx_gallery_conf.filename_pattern={pattern}",
        str(out / "source"), str(out / "html"),
    ])  # fmt: skip
    remove_hidden_code(out / "html" / "_downloads")
    return code


if __name__ == "__main__":
    sys.exit(main())
