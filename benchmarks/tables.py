"""
Write every table of the page of measurements from the stored results.

    .venv/bin/python -m benchmarks.tables            # into the page
    .venv/bin/python -m benchmarks.tables --check    # says which are not those of the results, and ends with 1

A table stands between two comments that hold its name. Tables of networks need the extra `deep` to
be written.
"""

import argparse
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmarks import _measure as measure
from benchmarks import _runs as runs

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
        """Write the table, by the template of its name alone where the module has no function for it."""
        result = measure.stored(measure.RESULTS / f"{self.result}.json")
        write = getattr(import_module(f"benchmarks.{self.script}"), self.function, None)
        return str(write(result) if write else runs.page(self.result, result))


BLOCKS = (
    Block(PAGE, "demo", "demo", "costs.bench_demo"),
    Block(PAGE, "fitting benchmark", "fitting", "fitting.bench_fitting"),
    Block(PAGE, "ivim methods", "ivim_methods", "fitting.bench_ivim_methods"),
    Block(PAGE, "import benchmark", "import", "costs.bench_import"),
    Block(PAGE, "predict image benchmark", "predict_image", "prediction.bench_predict_image"),
    Block(PAGE, "prediction benchmark", "prediction", "prediction.bench_prediction"),
    Block(PAGE, "people benchmark", "people", "prediction.bench_people"),
    Block(PAGE, "meningiomas", "meningiomas", "prediction.bench_meningiomas"),
    Block(PAGE, "people fits", "people_fits", "fitting.bench_people_fits"),
    Block(PAGE, "lesion order", "lesion_order", "prediction.bench_lesion_order"),
    Block(PAGE, "uncertainty benchmark", "uncertainty", "prediction.bench_uncertainty"),
    Block(PAGE, "scale benchmark", "scale", "costs.bench_scale"),
    Block(PAGE, "claims board", "claims", "prediction.bench_claims"),
    Block(PAGE, "truths benchmark", "truths", "prediction.bench_truths"),
    Block(PAGE, "placement benchmark", "placement", "placement.bench_placement"),
    Block(PAGE, "placers benchmark", "placers", "placement.bench_placers"),
    Block(PAGE, "placement claims", "placement_claims", "placement.bench_placement_claims"),
    Block(PAGE, "repeat benchmark", "repeat", "placement.bench_repeat"),
    Block(PAGE, "metastasis benchmark", "metastasis", "metastasis.bench_metastasis"),
    Block(PAGE, "metastasis people", "metastasis_people", "metastasis.bench_metastasis_people"),
    Block(PAGE, "metastasis prior", "metastasis_prior", "metastasis.bench_metastasis_prior"),
    Block(PAGE, "real lesions", "real_lesions", "metastasis.bench_real_lesions"),
    Block(PAGE, "anomaly benchmark", "anomaly", "anomaly.bench_anomaly"),
    Block(PAGE, "anomaly generators", "anomaly_generators", "anomaly.bench_anomaly_generators"),
    Block(PAGE, "anomaly people", "anomaly_people", "anomaly.bench_anomaly_people"),
    Block(PAGE, "scan changes", "scan_changes", "anomaly.bench_scan_changes"),
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
