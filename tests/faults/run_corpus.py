"""
Run the corpus of faulty inputs and say what is wrong.

Words choose cases, --show prints what users would read, --store keeps the counts in benchmarks/results/faults.json.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from counts import Tally, store
from driver import Bench, corpus


def main(arguments: list[str]) -> int:
    """Run the cases whose names hold all words; all of them without any."""
    words = [word for word in arguments if not word.startswith("--")]
    cases = [case for case in corpus() if all(word in f"{case.table} {case.id}" for word in words)]
    tally, began = Tally(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for case in cases:
            outcome = bench.run(case)
            tally.add(f"files and options, {case.table}", case.id, bench.complaints(case, outcome))
            if "--show" in arguments:
                print(f"{case.id}\n    {outcome.message or outcome.err.strip() or 'accepted'}")
    for kind, row in sorted(tally.rows.items()):
        print(f"{kind}: {dict(row)}")
    print(f"{len(cases)} faulty inputs, {tally.wrong()} wrong, {time.process_time() - began:.0f} s of CPU")
    if "--store" in arguments and not words:
        store("corpus", tally.rows)
    return int(tally.wrong() > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
