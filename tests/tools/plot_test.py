#!/usr/bin/env python3
"""Runs every command of tools/plot.py on small inputs and looks at the pictures. Exits with 77, which ctest counts as
skipped, where matplotlib is missing or too old."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

PLOT = pathlib.Path(__file__).parents[2] / "tools" / "plot.py"
complaint = subprocess.run([sys.executable, PLOT, "--help"], capture_output=True, text=True).stderr
if complaint.startswith("plot: matplotlib"):
    print("skipped: " + complaint)
    sys.exit(77)

from PIL import Image  # comes with matplotlib


def layer(mean):
    return {"mean_experts": mean, "macs_per_token": 10 * mean, "histogram": [0, 5, 3, 1, 1]}


def point(value, share, loss):
    return {"value": value, "loss": loss, "macs_per_token": 100 * share, "share_of_dense": share,
            "seconds_per_token": 1e-6 * share, "layers": [layer(4 * share), layer(2 * share)]}


SWEEP = {
    "kind": "sweep",
    "dense": {"loss": 2.0, "macs_per_token": 100, "share_of_dense": 1, "seconds_per_token": 1e-6},
    "layers": [{"name": f"layers.{i}.feed_forward", "experts": 4} for i in range(2)],
    "curves": [{"method": "dynk_max", "setting": "tau", "points": [point(0.5, 0.3, 2.3), point(1, 1.1, 2.0)]},
               {"method": "topk", "setting": "k", "points": [point(1, 0.3, 2.6), point(4, 1.1, 2.0)]}],
}
GATE = {"method": "dynk_max", "setting": "tau", "value": 0.5, "dense_macs": 100}
TEXT = {"kind": "text", **GATE, "tokens": [{"text": text, "experts": 3, "macs": 20 + 7 * i} for i, text in
                                           enumerate(["$a", " long", "er", "\n", "text_", "$", " "])]}
IMAGES = {"kind": "images", **GATE,
          "images": [{"label": "7", "pixels": [[[0, 1], [1, i]]], "macs": [[20, 40], [60, 10 * i]]} for i in range(3)]}


class Plot(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def file(self, name, content):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    def plot(self, *arguments):
        return subprocess.run([sys.executable, PLOT, *arguments], cwd=self.folder, capture_output=True, text=True)

    def expect_picture(self, command, *arguments):
        run = self.plot(command, *arguments)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertEqual(run.stdout, f"wrote {command}.png\n")
        with Image.open(self.folder / f"{command}.png") as image:
            self.assertEqual(image.width, 900)
            self.assertGreater(len(image.convert("RGB").getcolors(256)), 10)

    def expect_error(self, message, *arguments):
        run = self.plot(*arguments)
        self.assertEqual((run.returncode, run.stderr), (1, message + "\n"))

    def test_losses(self):
        lines = [{"step": 100 * i, "loss": 3 / (i + 1), "bits_per_byte": 4 / (i + 1)} for i in range(5)]
        lines += [{"step": 400, "validation_loss": 1, "validation_bits_per_byte": 1.4}]
        self.file("run/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        self.expect_picture("losses", "run", "again=run/metrics.jsonl")
        self.expect_error('plot: run: its metrics have no "speed"', "losses", "run", "--value", "speed")

    def test_sweep(self):
        self.file("a.json", SWEEP)
        self.expect_picture("sweep", "a.json")
        self.expect_picture("sweep", "a.json", "larger experts=a.json")
        accurate = json.loads(json.dumps(SWEEP).replace('"loss"', '"accuracy"'))
        self.expect_picture("sweep", self.file("b.json", accurate))

    def test_budgets(self):
        self.file("a.json", SWEEP)
        run = self.plot("budgets", "a=a.json", "--shares", "0.2", "0.7")
        self.assertEqual(run.stdout.splitlines()[2:], ["| a, D2DMoE |  | 2.1500 (+7.5%) | 2.0000 |",
                                                       "| a, static top-k |  | 2.3000 (+15.0%) | 2.0000 |"])

    def test_histogram(self):
        self.file("a.json", SWEEP)
        self.expect_picture("histogram", "a.json")
        self.expect_picture("histogram", "a.json", "--method", "topk", "--value", "4")
        self.expect_error("plot: no curve of method dynk, there are: dynk_max, topk",
                          "histogram", "a.json", "--method", "dynk")

    def test_compute_maps(self):
        self.expect_picture("text", self.file("text.json", TEXT), "--columns", "8")
        self.expect_picture("images", self.file("images.json", IMAGES), "--count", "2")

    def test_wrong_files(self):
        self.expect_error("plot: nowhere.json: there is no such file or folder", "sweep", "nowhere.json")
        self.file("text.json", TEXT)
        self.expect_error('plot: text.json: expected an object with "kind": "images"', "images", "text.json")
        self.file("a.json", {**SWEEP, "curves": []})
        self.expect_error("plot: a.json: curves: expected a list that is not empty", "sweep", "a.json")
        self.file("a.json", {**SWEEP, "dense": {"loss": "low"}})
        self.expect_error('plot: a.json: dense: loss: is "low", expected a number', "budgets", "a.json")
        self.file("a.json", {**SWEEP, "layers": 3})
        self.expect_error("plot: a.json: layers: expected a list that is not empty", "histogram", "a.json")
        self.file("text.json", {**TEXT, "tokens": [{"text": "a"}]})
        self.expect_error("plot: text.json: tokens[0]: macs: is null, expected a number", "text", "text.json")
        self.file("metrics.jsonl", '{"loss": 1}\n')
        self.expect_error("plot: metrics.jsonl[0]: step: is null, expected a number", "losses", "metrics.jsonl")

    def test_a_picture_that_cannot_be_written(self):
        self.file("text.json", TEXT)
        for out in ("nowhere/a.png", "a.unknown"):
            run = self.plot("text", "text.json", "--out", out)
            self.assertEqual(run.returncode, 1)
            self.assertRegex(run.stderr, rf"^plot: {out}: cannot be written: .*\n$")


if __name__ == "__main__":
    unittest.main()
