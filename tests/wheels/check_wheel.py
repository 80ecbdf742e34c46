"""
Build sdist and wheel, look into the wheel, install it into clean environments and use it there.

    python tests/wheels/check_wheel.py [--python python3.12]… [--extra report]… [--pip-args "…"]

Everything is made in build/wheels. For each Python there is an environment with the wheel alone, and for each extra one
that sees the first and has the extra besides. The versions are those of constraints.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dmrifit", "placement", "anomaly", "metastasis")
PARTS = Path(__file__).with_name("parts.py")
_EPOCH = "946684800"  # the time that files in archives bear, so that building twice gives the same bytes


def sources(root: Path) -> list[str]:
    """List the files of the project: what git knows or would take; all but folders of builds without git."""
    if (root / ".git").exists() and shutil.which("git"):
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(words, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
        return sorted(name for name in listed if name and (root / name).is_file())
    ignored = {"build", "dist", ".venv", "__pycache__"}
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not ignored & set(path.parts))


def copy_sources(root: Path, folder: Path) -> Path:
    """Copy the project, so that nothing of earlier builds gets into a wheel, nor anything of this one into it."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in sources(root):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target)
    return folder


def build(source: Path, out: Path, python: str = sys.executable) -> tuple[Path, Path]:
    """Build an sdist, and a wheel of it, by the setuptools that is installed; give both."""
    shutil.rmtree(out, ignore_errors=True)
    words = [python, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(
        words, env=os.environ | {"SOURCE_DATE_EPOCH": _EPOCH}, check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}{done.stderr[-3000:]}\nthe wheel was not built")
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def complaints(wheel: Path, source: Path) -> list[str]:
    """Tell what is missing in a wheel, and what does not belong there."""
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        texts = {name: archive.read(name).decode() for name in held if ".dist-info/" in name and name[-1] != "/"}
    info = next(name.partition("/")[0] for name in texts)
    wanted = {name for name in sources(source) if name.split("/")[0] in PACKAGES and "__pycache__" not in name}
    modules = {name for name in held if not name.startswith(f"{info}/")}
    found = [f"{name} is not in the wheel" for name in sorted(wanted - modules)]
    found += [f"{name} does not belong into the wheel" for name in sorted(modules - wanted)]
    found += [f"{package}/py.typed is missing" for package in PACKAGES if f"{package}/py.typed" not in held]
    if texts.get(f"{info}/licenses/LICENSE") != (source / "LICENSE").read_text(encoding="utf-8"):
        found.append("the license is not in the wheel")
    config = ConfigParser()
    config.read(source / "setup.cfg", encoding="utf-8")
    metadata = texts[f"{info}/METADATA"]
    declared = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))
    if declared != (extras := set(config["options.extras_require"])):
        found.append(f"extras of the wheel: {sorted(declared)}, of setup.cfg: {sorted(extras)}")
    for line in config["options"]["install_requires"].split():
        if f"Requires-Dist: {line}\n" not in metadata:
            found.append(f"the wheel does not require {line}")
    for line in config["options.entry_points"]["console_scripts"].strip().splitlines():
        if line not in texts[f"{info}/entry_points.txt"]:
            found.append(f"the wheel has no command {line}")
    return found


def extras_of(source: Path) -> list[str]:
    """List the extras that bring a part of the library, each once."""
    config = ConfigParser()
    config.read(source / "setup.cfg", encoding="utf-8")
    return [name for name in config["options.extras_require"] if name not in ("all", "test")]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def environment(folder: Path, python: str, packages: list[str], pip_args: list[str], below: Path | None = None) -> str:
    """Make an environment, which sees that of the folder `below`; give its Python."""
    subprocess.run([python, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    own = str(folder / "bin" / "python")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    if below is not None:
        seen, here = (
            subprocess.run([str(one / "bin" / "python"), "-c", ask], check=True, capture_output=True, text=True).stdout
            for one in (below, folder)
        )
        (Path(here.strip()) / "below.pth").write_text(seen, encoding="utf-8")
    words = [sys.executable, "-m", "pip", "--python", own, "install", "--quiet", "--disable-pip-version-check"]
    words += ["--no-compile", *pip_args]
    subprocess.run([*words, "-c", str(ROOT / "constraints.txt"), *packages], check=True)
    return own


def use(python: str, names: list[str], cwd: Path) -> bool:
    """Run parts in a Python that sees nothing of this folder; tell whether all went well."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([python, "-I", str(PARTS), *names], cwd=cwd, env=clean, check=False)
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    """Do all of it; give how many things are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="Python to install into, repeatable; this one by default")
    parser.add_argument("--extra", action="append", help="extra to try, repeatable; all by default, or the word none")
    parser.add_argument("--pip-args", default="", help="more arguments for pip install")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "wheels", help="folder for all that is made")
    options = parser.parse_args(arguments)
    source = copy_sources(ROOT, options.out / "source")
    sdist, wheel = build(source, options.out / "first")
    again = build(source, options.out / "second")
    wrong = complaints(wheel, source)
    if digest(wheel) != digest(again[1]):
        wrong.append("the wheel that is built a second time is another")
    with tarfile.open(sdist) as archive:
        print(f"{sdist.name}: {len(archive.getnames())} entries, {sdist.stat().st_size / 1e6:.2f} MB")
    with zipfile.ZipFile(wheel) as archive:
        size = wheel.stat().st_size / 1e6
        print(f"{wheel.name}: {len(archive.namelist())} files, {size:.2f} MB, sha256 {digest(wheel)[:16]}")
    known = extras_of(source)
    extras = [name for name in options.extra or known if name != "none"]
    if unknown := sorted(set(extras) - set(known)):
        parser.error(f"no extra {', '.join(unknown)}; setup.cfg has {', '.join(known)}")
    for number, python in enumerate(options.python or [sys.executable]):
        version = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.strip()
        home = options.out / f"python-{number}"
        pip_args = shlex.split(options.pip_args)
        print(f"{version}, the wheel alone", flush=True)
        alone = environment(home / "alone", python, [str(wheel)], pip_args)
        if not use(alone, ["base", "missing"], home):
            wrong.append(f"{version}: the wheel alone does not work")
            continue
        for extra in extras:
            print(f"{version}, with {extra}", flush=True)
            own = environment(home / "extra", python, [f"{wheel}[{extra}]"], pip_args, below=home / "alone")
            if not use(own, [extra, "missing"], home):
                wrong.append(f"{version}: the extra {extra} does not work")
    for line in wrong:
        print(f"WRONG {line}")
    print(f"{len(wrong)} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
