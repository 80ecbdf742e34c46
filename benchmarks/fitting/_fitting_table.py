"""The table in Markdown of what was measured about fits."""

from benchmarks import _measure as measure


def markdown(result: dict) -> str:
    """Write the rows of a result as a table, with their goals."""
    rows = []
    for row in result["rows"]:
        if "not_measured" in row:
            cells = [row["what"], row["not_measured"], "", "", ""]
        else:
            cells = [
                row["what"],
                _measured(row),
                _accuracy(row),
                _goals(row["reach"]),
                _goals(row["aim"]),
            ]
        rows.append(cells)
    header = [
        "what",
        "measured",
        "voxels within 1e-3 / 1e-6 of the best known fit",
        "goal",
        "further goal",
    ]
    return table_head(result) + "\n\n" + measure.table(header, rows)


def table_head(result: dict) -> str:
    """Say in a sentence what was measured where."""
    facts, found = result["machine"], result["versions"]
    vectors = "AVX-512" if facts["avx512f"] else "AVX2" if facts["avx2"] else "no AVX2"
    return (
        f"Processor time of one thread on {facts['processor']} ({vectors}), best of repeats, "
        "starting points "
        f"included; synthetic data; numpy {found['numpy']}, numba {found['numba']}, scipy "
        f"{found['scipy']}, "
        f"lmfit {found['lmfit']}, dipy {found['dipy']}; {result['date']}, commit "
        f"{result['commit'][:10]}."
    )


def _measured(row: dict) -> str:
    ours = row["ours"]
    if "theirs" in row:
        times = ", ".join(
            f"{_number(ratio)} × faster "
            f"({_time(ours[name]['best_us'])}{'' if name == 'default' else ', ' + name})"
            for name, ratio in row["ratio"].items()
        )
        line = (
            f"; a batched log-linear fit {_time(row['loglinear']['best_us'])}"
            if "loglinear" in row
            else ""
        )
        return f"{_time(row['theirs']['best_us'])}; ours {times}{line}"
    if "best_us" in ours:
        return f"{_time(ours['best_us'])} per voxel"
    if "added" in ours:
        return f"{100 * ours['added']:+.0f} %"
    if "wall_s" in ours:
        return f"{ours['wall_s']:.2f} s"
    if "above_mb" in ours:
        return f"{ours['above_mb']:.0f} MB"
    if "default" in ours:
        return ", ".join(f"{_time(value['best_us'])} ({name})" for name, value in ours.items())
    if "own" in ours:
        return f"{row['ratio']['time']:.2f} × its time"
    if "ratio" in ours:
        return f"{ours['ratio']:.2f}"
    return ", ".join(f"{name} {value['cpu_s']:.1f} s" for name, value in ours.items())


def _accuracy(row: dict) -> str:
    def shares(accuracy: dict) -> str:
        return " / ".join(f"{100 * accuracy[key]:.4g} %" for key in ("within_1e-3", "within_1e-6"))

    parts = [shares(row["accuracy"])] if "accuracy" in row else []
    if "their_accuracy" in row:
        parts.append("theirs " + shares(row["their_accuracy"]))
    return "; ".join(parts)


def _goals(goals: list[dict]) -> str:
    parts = []
    for g in goals:
        limit = (
            f"{100 * g['limit']:.4g} %"
            if g["unit"].startswith(("within", "added"))
            else f"{_number(g['limit'])}"
        )
        unit = g["unit"] if not g["unit"].startswith("added") else "more"
        parts.append(
            f"{'≥' if g['at_least'] else '≤'} {limit} {unit}: {'yes' if g['met'] else '**no**'}"
        )
    return "; ".join(parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time(us: float) -> str:
    return (
        f"{us / 1000:.3g} ms"
        if us >= 100
        else f"{us:.2f} µs"
        if us >= 0.1
        else f"{1000 * us:.0f} ns"
    )
