"""Reads what training runs and conversions leave behind: metrics.jsonl, sweep.json and compute_map.json. What is wrong
with a file, or not as train/conversion/sweep.h and compute_map.h describe it, ends the program in one line."""

import json
import pathlib
import sys

NUMBER = (int, float)
GATE = {"method": str, "setting": str}
MAP = {**GATE, "value": NUMBER, "dense_macs": NUMBER}
# What files of each kind are to hold, as far as it is drawn: numbers, texts, lists of entries that are alike, and
# objects with these keys.
SHAPES = {
    "sweep": {"dense": {}, "curves": [{**GATE, "points": [{"value": NUMBER, "share_of_dense": NUMBER}]}]},
    "text": {**MAP, "tokens": [{"text": str, "macs": NUMBER}]},
    "images": {**MAP, "images": [{"label": str, "pixels": [[[NUMBER]]], "macs": [[NUMBER]]}]},
}
LAYERS = [{"name": str, "experts": NUMBER}]  # of a sweep of methods with experts,
MEASURED_LAYERS = [{"mean_experts": NUMBER, "histogram": [NUMBER]}]  # and of each of its points


def fail(message):
    sys.exit(f"plot: {message}")


def check_shape(place, value, shape):
    """Ends the program unless `value`, found at `place`, is of a shape such as those in SHAPES."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            fail(f"{place}: expected an object")
        for key, part in shape.items():
            check_shape(f"{place}: {key}", value.get(key), part)
    elif isinstance(shape, list):
        if not isinstance(value, list) or not value:
            fail(f"{place}: expected a list that is not empty")
        for i, entry in enumerate(value):
            check_shape(f"{place}[{i}]", entry, shape[0])
    elif not isinstance(value, shape):
        fail(f"{place}: is {json.dumps(value)[:40]}, expected a {'text' if shape is str else 'number'}")


def named(argument):
    """Name and path of "name=path", or of a path alone, which names itself."""
    name, _, path = argument.rpartition("=")
    path = pathlib.Path(path)
    if not path.exists():
        fail(f"{path}: there is no such file or folder")
    if not name:
        usual = path.name in ("sweep.json", "metrics.jsonl")  # then the folder says more
        name = path.resolve().parent.name if usual else path.resolve().stem
    return name, path


def read_json(path, kind):
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{path}: cannot be read as JSON: {error}")
    if not isinstance(content, dict) or content.get("kind") != kind:
        fail(f'{path}: expected an object with "kind": "{kind}"')
    check_shape(path, content, SHAPES[kind])
    return content


def read_sweeps(arguments):
    """Name and content of each sweep, and what all of them can be compared by: accuracy, or else loss."""
    files = [named(argument) for argument in arguments]
    sweeps = [(name, read_json(path, "sweep")) for name, path in files]
    metric = "accuracy" if all("accuracy" in sweep["dense"] for _, sweep in sweeps) else "loss"
    for (_, path), (_, sweep) in zip(files, sweeps):
        check_shape(path, sweep, {"dense": {metric: NUMBER}, "curves": [{"points": [{metric: NUMBER}]}]})
    return sweeps, metric


def read_metrics(path):
    path = path / "metrics.jsonl" if path.is_dir() else path
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        fail(f"{path}: cannot be read as lines of JSON: {error}")
    check_shape(path, lines, [{"step": NUMBER}])
    return lines
