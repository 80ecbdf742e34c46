"""
Write every table of the page of measurements from the stored results.

    .venv/bin/python benchmarks/tables.py            # into the page
    .venv/bin/python benchmarks/tables.py --check    # says which are not those of the results, and ends with 1

A table stands between two comments that hold its name. Tables of networks need the extra `deep` to
be written.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import _measure as measure

PAGE = "benchmarks/README.md"


@dataclass(frozen=True)
class Block:
    """A table: where it stands, which result it shows, and which function of which script writes it."""

    page: str
    name: str
    result: str
    script: str
    function: str = "markdown"

    def text(self) -> str:
        """Write the table."""
        result = measure.stored(measure.ROOT / "benchmarks" / "results" / f"{self.result}.json")
        write: Callable[[dict[str, Any]], str] = getattr(import_module(self.script), self.function)
        return write(result)


BLOCKS = (
    Block(PAGE, "demo", "demo", "bench_demo"),
    Block(PAGE, "fitting benchmark", "fitting", "_fitting_table"),
    Block(PAGE, "branches benchmark", "branches", "bench_branches"),
    Block(PAGE, "starts benchmark", "starts", "bench_starts"),
    Block(PAGE, "ivim methods", "ivim_methods", "bench_ivim_methods"),
    Block(PAGE, "import benchmark", "import", "bench_import"),
    Block(PAGE, "predict image benchmark", "predict_image", "bench_predict_image"),
    Block(PAGE, "algorithms", "algorithms", "tune_algorithms"),
    Block(PAGE, "prediction benchmark", "prediction", "bench_prediction"),
    Block(PAGE, "people benchmark", "people", "bench_people"),
    Block(PAGE, "people fits", "people_fits", "bench_people_fits"),
    Block(PAGE, "lesion order", "lesion_order", "bench_lesion_order"),
    Block(PAGE, "uncertainty benchmark", "uncertainty", "bench_uncertainty"),
    Block(PAGE, "scale benchmark", "scale", "bench_scale"),
    Block(PAGE, "claims board", "claims", "bench_claims"),
    Block(PAGE, "verdicts benchmark", "verdicts", "bench_verdicts"),
    Block(PAGE, "truths benchmark", "truths", "bench_truths"),
    Block(PAGE, "placement benchmark", "placement", "bench_placement"),
    Block(PAGE, "placers benchmark", "placers", "bench_placers"),
    Block(PAGE, "placement claims", "placement_claims", "bench_placement_claims"),
    Block(PAGE, "repeat benchmark", "repeat", "bench_repeat"),
    Block(PAGE, "metastasis benchmark", "metastasis", "bench_metastasis"),
    Block(PAGE, "metastasis budget", "metastasis_budget", "bench_metastasis_budget"),
    Block(PAGE, "metastasis people", "metastasis_people", "bench_metastasis_people"),
    Block(PAGE, "metastasis prior", "metastasis_prior", "bench_metastasis_prior"),
    Block(PAGE, "real lesions", "real_lesions", "bench_real_lesions"),
    Block(PAGE, "anomaly benchmark", "anomaly", "bench_anomaly"),
    Block(PAGE, "anomaly generators", "anomaly_generators", "bench_anomaly_generators"),
    Block(PAGE, "anomaly people", "anomaly_people", "bench_anomaly_people"),
    Block(PAGE, "scan changes", "scan_changes", "bench_scan_changes"),
)


def pages(root: Path) -> dict[Path, str]:
    """Give the pages below a folder with all tables as the results have them."""
    texts: dict[Path, str] = {}
    for block in BLOCKS:
        path = root / block.page
        text = texts[path] if path in texts else path.read_text(encoding="utf-8")
        texts[path] = measure.replace_block(text, block.name, block.text())
    return texts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Write the tables of the page of measurements from the stored results."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; end with 1 where a table is another"
    )
    parser.add_argument("--root", type=Path, default=measure.ROOT, help="folder of the pages")
    chosen = parser.parse_args(arguments)
    from dmrifit.io.atomic_files import write_text

    changed = {
        path: text
        for path, text in pages(chosen.root).items()
        if path.read_text(encoding="utf-8") != text
    }
    for path, text in changed.items():
        print(f"{path} is not what the results say" if chosen.check else f"wrote {path}")
        if not chosen.check:
            write_text(path, text)
    if changed and chosen.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
