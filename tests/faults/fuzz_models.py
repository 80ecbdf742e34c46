"""
Spoil every array in model files of every kind, and see whether it is refused.

    .venv/bin/python tests/faults/fuzz_models.py [--step N] [KIND ...]

Each array is shortened, emptied, or gets one number that is none: negative, huge, NaN or infinite.
The digests are right, as those of somebody who knows the format. Files are read in a child
process, which a crash ends. A spoiled file has to be refused, or to predict the same bits; where
one learned number was replaced by another one that is possible, it is another model, which nobody
can tell, and has to predict finite numbers. `--step 10` tries every tenth.
"""

import io
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from counts import store

sys.path.append(str(Path(__file__).parents[1] / "contracts"))
from model_archives import packed, parts_of, sealed

NUMBERS = (-1, 0, 10**8, 2**31, np.nan, np.inf)
PLACES = (0, 1, -1)
MARK = "fuzzed:"
FINE = ("refused", "same", "another model")
#: All files of a kind together take minutes.
LONGEST_S = 3600
#: What the rows of a kind are, by name: algorithms, and regressors that were passed.
KINDS = (
    *("LR", "LR median", "RFR", "ETR", "GBR", "slNN", "mlNN", "constant"),
    *("Ridge", "boosting", "components", "robust", "lasso", "many targets"),
)


def estimator_of(kind, X, Y):
    """Fit what the file of a kind holds."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
    from sklearn.linear_model import Lasso, Ridge
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler

    from dmrifit import MapsToMaps, SignalToSignal, make_regressor

    if kind == "LR median":
        return MapsToMaps("LR", loss="median", random_state=0).fit(X, Y)
    given = {
        "RFR": make_regressor("RFR", n_estimators=2),
        "ETR": make_regressor("ETR", n_estimators=2),
        "GBR": make_regressor("GBR", n_estimators=3),
        "Ridge": Ridge(),
        "boosting": HistGradientBoostingRegressor(max_iter=2),
        "components": make_pipeline(
            MinMaxScaler(), PCA(n_components=2, whiten=True), RandomForestRegressor(n_estimators=2)
        ),
        "robust": make_pipeline(RobustScaler(), MaxAbsScaler(), Ridge()),
        "lasso": Lasso(alpha=0.01),
        "many targets": MultiOutputRegressor(Lasso(alpha=0.01)),
    }
    return SignalToSignal(given.get(kind, kind), random_state=0).fit(X, Y)


def spoiled_arrays(values):
    """Give spoiled copies of an array, how, and whether each might have been learned."""
    for end in {0, 1, len(values) - 1} - {len(values)}:
        yield values[:end].copy(), f"first {end}", False
    yield values[None].copy(), "axis added", False
    flat = values.reshape(-1)
    for field in values.dtype.names or (None,):
        dtype = (flat[field] if field else flat).dtype
        for place in {range(flat.size)[place] for place in PLACES if abs(place) < flat.size}:
            for number in NUMBERS:
                changed = flat.copy()
                column = changed[field] if field else changed
                column[place] = number if dtype.kind == "f" else whole_number(number, dtype)
                words = f"{field or ''}[{place}] = {column[place]}"
                # The first feature or node may be meant wherever there is an index.
                possible = np.isfinite(number) if dtype.kind == "f" else number == 0
                yield changed.reshape(values.shape), words, possible


def whole_number(number, dtype):
    """Give the whole number of a type that comes nearest."""
    if not np.isfinite(number):
        number = -(2**40)
    return np.int64(number).astype(dtype)


def spoiled_files(content):
    """Give spoiled model files, what was spoiled, and whether it might have been learned."""
    parts = parts_of(content)
    for name, part in parts.items():
        if name.endswith(".skops"):
            for inside, change, possible in spoiled_members(parts_of(part)):
                yield f"{name} {inside}", packed(sealed(parts | {name: packed(change)})), possible
        elif name.startswith("leaf"):
            for inside, change, possible in spoiled_trees(part.decode()):
                yield f"{name} {inside}", packed(sealed(parts | {name: change})), possible


def spoiled_members(members):
    """Spoil the arrays and the whole numbers that skops has stored."""
    for name, member in members.items():
        if name.endswith(".npy"):
            values = np.load(io.BytesIO(member))
            if values.ndim:
                for change, words, possible in spoiled_arrays(values):
                    buffer = io.BytesIO()
                    np.save(buffer, change)
                    changed = members | {name: buffer.getvalue()}
                    yield f"array {values.shape} {words}", changed, possible
    schema = json.loads(members["schema.json"])
    for node, key, path in list(entries(schema)):
        before = node[key]
        if key == "content" and isinstance(before, str) and before.lstrip("-").isdigit():
            for number in (-1, 0, 1, 10**8, 2**31):
                node[key] = str(number)
                changed = members | {"schema.json": json.dumps(schema).encode()}
                yield f"{'.'.join(path[-4:-1])} = {number}", changed, False
            node[key] = before


def entries(node, path=()):
    """Give all entries of a document: what holds each, its key, and the path to it."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key, (*path, str(key))
        if isinstance(value, dict | list):
            yield from entries(value, (*path, str(key)))


def spoiled_trees(text):
    """Spoil the lists of numbers of boosted trees."""
    document = json.loads(text)
    for node, key, path in list(entries(document)):
        value = node[key]
        if isinstance(value, list) and value and not isinstance(value[0], dict | str | list):
            for change, words, possible in spoiled_arrays(np.array(value)):
                node[key] = change.tolist()
                yield f"{'.'.join(path[-4:])} {words}", json.dumps(document).encode(), possible
            node[key] = value


def outcome_of(path, X, expected, *, possible):
    """Load a spoiled file and predict."""
    from dmrifit import load_model

    try:
        model = load_model(path)
    except ValueError as error:
        return "refused" if "refused as a model file" in str(error) else f"nameless: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    try:
        answers = [np.asarray(model.predict(X)) for _ in range(2)]
    except Exception as error:
        return f"refused late: {type(error).__name__}: {error}"
    if answers[0].tobytes() == expected.tobytes():
        return "same"
    is_steady = answers[0].tobytes() == answers[1].tobytes()
    if possible and is_steady and np.isfinite(answers[0]).all():
        return "another model"
    return "silent"


def child(kind, first, step):
    """Try the files of a kind from one on, and say which is tried before it is."""
    warnings.simplefilter("ignore")
    from dmrifit import save_model

    X = np.random.default_rng(0).normal(size=(80, 4))
    Y = X[:, :2] ** 2 + X[:, 2:]
    Y = Y[:, 0] if kind in ("boosting", "constant") else Y
    estimator = estimator_of(kind, X, Y)
    expected = np.asarray(estimator.predict(X))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.dmrifit"
        save_model(estimator, path)
        for number, (name, content, possible) in enumerate(spoiled_files(path.read_bytes())):
            if number < first or number % step:
                continue
            print(MARK, json.dumps([number, name]), flush=True)
            spoiled = Path(folder) / "spoiled.dmrifit"
            spoiled.write_bytes(content)
            found = outcome_of(spoiled, X, expected, possible=possible)
            print(MARK, json.dumps(found), flush=True)


def tried(kind, *, step=1, longest_s=LONGEST_S):
    """Give (what was spoiled, outcome) of every `step`-th file; a crash or a hang is an outcome."""
    found, first = [], 0
    while True:
        command = [sys.executable, __file__, "--child", kind, str(first), str(step)]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=longest_s)
            returncode = done.returncode
        except subprocess.TimeoutExpired as expired:
            done, returncode = expired, None
        output, errors = ((stream or b"").decode() for stream in (done.stdout, done.stderr))
        # Regressors print what they please.
        words = [line.partition(MARK) for line in output.splitlines()]
        lines = [json.loads(text) for _, mark, text in words if mark]
        found += [(begun[1], end) for begun, end in zip(lines[::2], lines[1::2], strict=False)]
        if returncode == 0:
            return found
        if len(lines) % 2 == 0:
            raise RuntimeError(errors)
        number, name = lines[-1]
        found.append((name, "hang" if returncode is None else f"crash {returncode}"))
        first = number + 1


def main(kinds, *, step=1):
    counts, columns = Counter(), Counter()
    for kind in kinds or KINDS:
        for name, found in tried(kind, step=step):
            counts[found if found in FINE else "bad"] += 1
            columns["tried"] += 1
            if found not in FINE:
                column = {"nameless": "misleading", "silent": "silent"}.get(found.partition(":")[0], "traceback")
                columns[column] += 1
                print(f"{kind}: {name}: {found}")
        print(f"{kind}, in all {sum(counts.values())} spoiled files: {dict(counts)}", flush=True)
    if not kinds and step == 1:
        store("model files", {"arrays of model files": columns})
    return min(counts["bad"], 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        words = sys.argv[1:]
        every = int(words[1]) if words[:1] == ["--step"] else 1
        sys.exit(main(words[2:] if words[:1] == ["--step"] else words, step=every))
