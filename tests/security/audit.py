"""List what the project depends on: pinned and newer versions, licenses, and known advisories by pip-audit."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;#]+)")


def pins():
    """Read the exact versions that tests run with, by the name of the distribution."""
    found = (_PIN.match(line) for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines())
    return {pin[1]: pin[2] for pin in found if pin}


def license_of(found: Distribution) -> str:
    """Tell the license of a distribution: an expression, classifiers, the first line of a text, or "?"."""
    meta = found.metadata
    named = [one.split(" :: ")[-1] for one in meta.get_all("Classifier") or [] if one.startswith("License ::")]
    text = (meta.get("License") or "").strip().splitlines()
    return meta.get("License-Expression") or "; ".join(named) or (text[0][:60] if text else "?")


def newer() -> dict[str, str]:
    """Ask the package index for the latest versions of what is installed; none if there is no index to ask."""
    words = [sys.executable, "-m", "pip", "list", "--outdated", "--format=json", "--disable-pip-version-check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        return {one["name"].lower(): one["latest_version"] for one in json.loads(done.stdout)}
    except (ValueError, KeyError):
        return {}


def main() -> int:
    """Print the table, and run pip-audit where it is installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-index", action="store_true", help="do not ask the package index for newer versions")
    latest = {} if parser.parse_args().no_index else newer()
    print(f"{'package':<28}{'pinned':<18}{'newer':<12}license")
    wrong = []
    for name, version in pins().items():
        try:
            found = distribution(name)
        except PackageNotFoundError:
            print(f"{name:<28}{version:<18}{'':<12}(not installed)")
            continue
        if found.version.split("+")[0] != version.split("+")[0]:
            wrong.append(f"{name} {found.version}")
        print(f"{name:<28}{version:<18}{latest.get(name.lower(), ''):<12}{license_of(found)}")
    if wrong:
        print(f"installed in another version than pinned: {', '.join(wrong)}")
    if shutil.which("pip-audit"):
        return subprocess.run(["pip-audit", "--no-deps", "-r", str(CONSTRAINTS)], check=False).returncode
    print("pip-audit is not installed: with a network, pipx run pip-audit --no-deps -r constraints.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
