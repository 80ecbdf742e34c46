"""
Run the corpus of faulty inputs and say what is wrong.

Words choose cases, --show prints what users would read, --store keeps the counts in benchmarks/results/faults.json.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

from counts import kind_of_complaint, store
from driver import Bench, corpus


def main(arguments: list[str]) -> int:
    """Run the cases whose names hold all words; all of them without any."""
    show = "--show" in arguments
    words = [word for word in arguments if not word.startswith("--")]
    bench = Bench()
    counts: Counter[tuple[str, str]] = Counter()
    kinds: dict[str, Counter[str]] = {}
    wrong = 0
    began = time.process_time()
    try:
        for case in corpus():
            if not all(word in f"{case.table} {case.id}" for word in words):
                continue
            start = time.process_time()
            outcome = bench.run(case)
            complaints = bench.complaints(case, outcome)
            counts[case.table, case.expected] += 1
            row = kinds.setdefault(f"files and options, {case.table}", Counter())
            row["tried"] += 1
            row.update({kind_of_complaint(complaint) for complaint in complaints})
            if show:
                spent = time.process_time() - start
                print(f"{case.id} [{spent:.2f} s]\n    {outcome.message or outcome.err.strip() or 'accepted'}")
            if complaints:
                wrong += 1
                print(f"WRONG {case.id}")
                for complaint in complaints:
                    print(f"    {complaint}")
    finally:
        bench.close()
    for (table, expected), n in sorted(counts.items()):
        print(f"{table}: {n} {expected}")
    print(f"{counts.total()} faulty inputs, {wrong} wrong, {time.process_time() - began:.0f} s of CPU")
    if "--store" in arguments and not words:
        store("corpus", kinds)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
