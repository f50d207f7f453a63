#!/usr/bin/env python3
"""Draws what training runs and conversions leave behind, as PNG. Needs matplotlib 3.7 or newer.

  tools/plot.py losses RUN [RUN ...]        training and validation loss of run folders, side by side
  tools/plot.py sweep SWEEP [SWEEP ...]     loss or accuracy against multiply-adds, and against time
  tools/plot.py budgets SWEEP [SWEEP ...]   no picture, but a table: the same at given shares of the multiply-adds
  tools/plot.py histogram SWEEP             how many experts the tokens of each layer ran
  tools/plot.py text COMPUTE_MAP            a text, each token coloured by what it cost
  tools/plot.py images COMPUTE_MAP          images above the cost of their patches

SWEEP and COMPUTE_MAP are the files sweep.json and compute_map.json of a conversion; train/conversion/sweep.h and
compute_map.h say what is in them. An input may be given a name of its own: `"from scratch=runs/a"`. Commands that draw
take --out FILE and --title TEXT.
"""

import argparse
from itertools import cycle

from measurements import LAYERS, MEASURED_LAYERS, NUMBER, check_shape, fail, named, read_json, read_metrics, read_sweeps

try:
    import matplotlib
except ModuleNotFoundError:
    fail("matplotlib is not installed, expected version 3.7 or newer: pip install matplotlib")
if tuple(map(int, matplotlib.__version__.split(".")[:2])) < (3, 7):
    fail(f"matplotlib {matplotlib.__version__} is too old, expected 3.7 or newer: pip install matplotlib")

matplotlib.use("Agg")  # no screen needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from PIL import Image  # comes with matplotlib

# Okabe and Ito's colours, told apart by colour-blind readers too; markers and dashes tell the rest.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
HEAT = "cividis"
DPI = 100  # 9 inches are 900 pixels

METHODS = {"all": "all experts", "dynk_max": "D2DMoE", "dynk_max_by_layer": "D2DMoE, tau by layer",
           "dynk": "cumulative share", "topk": "static top-k",
           "early_exit": "early exit", "token_dropping": "token dropping"}


def style():
    plt.rcParams.update({
        "font.family": "DejaVu Sans", "font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "axes.grid": True,
        "grid.color": "#e4e4e4", "grid.linewidth": 0.8, "axes.axisbelow": True, "xtick.color": "#444444",
        "ytick.color": "#444444", "lines.linewidth": 2, "lines.markersize": 5, "legend.frameon": False,
        "legend.fontsize": 10, "figure.dpi": DPI, "savefig.dpi": DPI, "figure.constrained_layout.use": True,
    })


def save(figure, arguments):
    """As a PNG of 256 colours: a third of the size, and no difference that an eye would see."""
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    try:
        picture.quantize(256, dither=Image.Dither.NONE).save(arguments.out, optimize=True)
    except (OSError, ValueError) as error:
        fail(f"{arguments.out}: cannot be written: {error}")
    print(f"wrote {arguments.out}")


# --- losses ----------------------------------------------------------------------------------------------------------


def series(lines, key):
    points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), NUMBER)]
    return np.array(points, dtype=float).reshape(-1, 2).T


def plot_losses(arguments):
    runs = [(name, read_metrics(path)) for name, path in map(named, arguments.runs)]
    value = arguments.value or ("bits_per_byte" if all(
        any("bits_per_byte" in line for line in lines) for _, lines in runs) else "loss")
    figure, axes = plt.subplots(figsize=(9, 4.8))
    settled = []  # values after the steep beginning, which would squeeze everything else
    for (name, lines), colour, marker in zip(runs, cycle(COLOURS), cycle(MARKERS)):
        training, validation = series(lines, value), series(lines, f"validation_{value}")
        if training.size + validation.size == 0:
            fail(f'{name}: its metrics have no "{value}"')
        both = np.concatenate([training, validation], axis=1)
        settled.append(both[1][both[0] >= arguments.skip * both[0].max()])
        axes.plot(*training, color=colour, linewidth=1, alpha=0.45)
        end = (validation if validation.size else training)[1][-1]
        axes.plot(*validation, color=colour, marker=marker)
        axes.plot([], [], color=colour, marker=marker, label=f"{name}: {end:.3f}")
    values = np.concatenate(settled)
    margin = 0.05 * (values.max() - values.min() + 1e-9)
    axes.set_ylim(values.min() - margin, values.max() + margin)
    axes.set_xlabel("training step")
    axes.set_ylabel({"bits_per_byte": "bits per byte", "loss": "loss (nats)"}.get(value, value.replace("_", " ")))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_title(arguments.title or "validation (marked) and training (thin); last value in the legend", loc="left")
    axes.legend(loc="upper right")
    save(figure, arguments)


# --- sweep -----------------------------------------------------------------------------------------------------------


def method_name(curve):
    return METHODS.get(curve["method"], curve["method"])


def setting_text(curve, value):
    return method_name(curve) if curve["method"] == "all" else f"{method_name(curve)}, {curve['setting']} = {value:g}"


def plot_sweep(arguments):
    sweeps, metric = read_sweeps(arguments.files)
    dense = sweeps[0][1]["dense"]
    columns = [("share_of_dense", "share of dense multiply-adds")]
    columns += [(key, text) for key, text in (("seconds_per_token", "µs per token, batch"),
                                              ("seconds_per_decoded_token", "µs per token, decoding"))
                if all(point.get(key) for _, sweep in sweeps for curve in sweep["curves"] for point in curve["points"])]
    figure, panels = plt.subplots(1, len(columns), figsize=(9, 4.6), sharey=True, squeeze=False)
    for axes, (key, text) in zip(panels[0], columns):
        curves = [(name, curve) for name, sweep in sweeps for curve in sweep["curves"]]
        for (name, curve), colour, marker in zip(curves, cycle(COLOURS), cycle(MARKERS)):
            points = [(point[key], point[metric]) for point in curve["points"]]
            label = f"{name}, {method_name(curve)}" if len(sweeps) > 1 else method_name(curve)
            axes.plot(*zip(*points), color=colour, marker=marker, label=label)
        axes.axhline(dense[metric], color="#555555", linewidth=1.2, linestyle="--", zorder=1)
        if key in dense:
            axes.plot([dense[key]], [dense[metric]], marker="*", markersize=13, color="#555555", linestyle="none")
        axes.set_xlabel(text)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if key == "share_of_dense":
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        else:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x * 1e6:,g}"))
    limit_values(panels[0][0], sweeps, metric, arguments.worst)
    panels[0][0].set_ylabel({"accuracy": "accuracy", "loss": "validation loss (nats)"}[metric])
    if metric == "accuracy":
        panels[0][0].yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    handles, labels = panels[0][0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="#555555", linestyle="--", linewidth=1.2, marker="*", markersize=11))
    columns = 3 if max(map(len, labels)) <= 30 else 2  # of the legend, which is as wide as the figure at most
    figure.legend(handles, labels + ["dense"], loc="outside lower center", ncols=min(columns, len(handles)))
    figure.suptitle(arguments.title or f"{metric.capitalize()} against cost", x=0.01, ha="left", fontsize=12)
    save(figure, arguments)


def limit_values(axes, sweeps, metric, worst):
    """The smallest budgets may be far off: what is much worse than the dense model leaves the picture."""
    dense = sweeps[0][1]["dense"][metric]
    values = [point[metric] for _, sweep in sweeps for curve in sweep["curves"] for point in curve["points"]] + [dense]
    low, high = min(values), max(values)
    if metric == "loss":
        high = min(high, dense * (1 + worst))
    else:
        low = max(low, dense * (1 - worst))
    margin = 0.06 * (high - low + 1e-9)
    axes.set_ylim(low - margin, high + margin)


# --- budgets ---------------------------------------------------------------------------------------------------------


def at_budget(curve, key, share):
    """A curve's value at a share of the dense multiply-adds, straight between the points beside it; none outside."""
    points = sorted((point["share_of_dense"], point[key]) for point in curve["points"] if key in point)
    shares, values = zip(*points) if points else ((0,), (0,))
    return float(np.interp(share, shares, values)) if shares[0] <= share <= shares[-1] else None


def print_budgets(arguments):
    sweeps, metric = read_sweeps(arguments.files)
    print("| | " + " | ".join(f"{share:.0%}" for share in arguments.shares) + " | dense |")
    print("|---" * (len(arguments.shares) + 2) + "|")
    for name, sweep in sweeps:
        dense = sweep["dense"][metric]
        for curve in sweep["curves"]:
            cells = [f"{name}, {method_name(curve)}"]
            for share in arguments.shares:
                value = at_budget(curve, metric, share)
                change = "" if value is None else (
                    f" ({value / dense - 1:+.1%})" if metric == "loss" else f" ({100 * (value - dense):+.1f})")
                cells.append("" if value is None else f"{value:.4f}{change}")
            print("| " + " | ".join(cells + [f"{dense:.4f}"]) + " |")


# --- histogram -------------------------------------------------------------------------------------------------------


def choose_point(sweep, method, value):
    """The point of that value, or the one that runs nearest to half of the dense multiply-adds."""
    curves = [curve for curve in sweep["curves"] if method in (None, curve["method"])]
    if not curves:
        fail(f"no curve of method {method}, there are: {', '.join(curve['method'] for curve in sweep['curves'])}")
    points = [(curve, point) for curve in curves for point in curve["points"] if "layers" in point]
    if not points:
        fail("no point says what its layers ran, expected a sweep of a method with experts")
    if value is None:
        points = [(curve, point) for curve, point in points if curve is points[0][0]]
        return min(points, key=lambda item: abs(item[1]["share_of_dense"] - 0.5))
    return min(points, key=lambda item: abs(item[1]["value"] - value))


def bars(histogram, most=60):
    """Tokens that ran 0, 1, ..., E experts as at most `most` bars over the shares 0..1, the highest of height 1."""
    experts = len(histogram) - 1
    starts = np.arange(0, experts + 1, -(-(experts + 1) // most))
    ends = np.append(starts[1:], experts + 1)
    heights = np.add.reduceat(histogram, starts) / (ends - starts)
    return (np.append(starts, experts + 1) - 0.5) / experts, heights / heights.max()


def plot_histogram(arguments):
    sweep = read_json(arguments.file, "sweep")
    curve, point = choose_point(sweep, arguments.method, arguments.value)
    check_shape(arguments.file, {**sweep, "points": point["layers"]}, {"layers": LAYERS, "points": MEASURED_LAYERS})
    layers = list(zip(sweep["layers"], point["layers"]))
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.34 * len(layers)))
    colours = matplotlib.colormaps[HEAT](np.linspace(0.1, 0.85, len(layers)))
    for row, (layer, measured) in enumerate(layers):
        edges, heights = bars(np.array(measured["histogram"]))
        axes.stairs(0.85 * heights - row, edges, baseline=-row, fill=True, color=colours[row])
        mean = measured["mean_experts"] / layer["experts"]
        axes.plot([mean, mean], [-row, -row + 0.85], color="#D55E00", linewidth=2)
    names = [layer["name"] for layer, _ in layers]
    axes.set_yticks([-row for row in range(len(layers))], names, va="bottom", fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(layers) + 0.95, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("experts run, share of the layer's (bars: tokens; orange: mean)")
    setting = setting_text(curve, point["value"])
    share = f"{point['share_of_dense']:.0%} of the dense multiply-adds"
    axes.set_title(arguments.title or f"{setting}: {share}", loc="left")
    save(figure, arguments)


# --- compute maps ----------------------------------------------------------------------------------------------------


def lay_out(tokens, columns):
    """Row, column, character and token number of every character; lines break at spaces where they can."""
    characters = [(character, number) for number, token in enumerate(tokens) for character in token["text"]]
    text = "".join(character for character, _ in characters)
    row = column = 0
    for place, (character, number) in enumerate(characters):
        starts_word = place > 0 and text[place - 1].isspace() and not character.isspace()
        word = len(text[place:place + columns].split(maxsplit=1)[0]) if starts_word else 1
        if column > 0 and column + word > columns:
            row, column = row + 1, 0
        yield row, column, character, number
        row, column = (row + 1, 0) if character == "\n" else (row, column + 1)


def plot_text(arguments):
    compute_map = read_json(arguments.file, "text")
    costs = np.array([token["macs"] for token in compute_map["tokens"]]) / compute_map["dense_macs"]
    scale = matplotlib.colors.Normalize(*np.quantile(costs, [0.01, 0.99]))
    # From white to an orange on which black letters are still easy to read.
    colours = matplotlib.colors.ListedColormap(matplotlib.colormaps["YlOrBr"](np.linspace(0, 0.6, 256)))
    cells = list(lay_out(compute_map["tokens"], arguments.columns))
    rows = cells[-1][0] + 1
    line = 9 / arguments.columns * 1.8  # height of a line of text in inches
    figure, (axes, bar) = plt.subplots(2, 1, figsize=(9, 1.1 + rows * line), height_ratios=[rows * line, 0.15])
    image = np.ones((rows, arguments.columns, 4))
    for row, column, _, number in cells:
        image[row, column] = colours(scale(costs[number]))
    axes.imshow(image, aspect="auto", interpolation="nearest")
    for row, column, character, _ in cells:
        if character != " ":
            axes.text(column, row, "↵" if character == "\n" else character, ha="center", va="center_baseline",
                      family="DejaVu Sans Mono", fontsize=970 / arguments.columns, parse_math=False)
    axes.axis("off")
    figure.colorbar(matplotlib.cm.ScalarMappable(scale, colours), cax=bar, orientation="horizontal")
    bar.xaxis.set_major_formatter(PercentFormatter(1))
    bar.set_xlabel("multiply-adds of a token, share of the dense layers'")
    setting = setting_text(compute_map, compute_map["value"])
    axes.set_title(arguments.title or f"{setting}: {costs.mean():.0%} of the dense multiply-adds", loc="left")
    save(figure, arguments)


def plot_images(arguments):
    compute_map = read_json(arguments.file, "images")
    shown = compute_map["images"][:arguments.count]
    costs = [np.array(image["macs"]) / compute_map["dense_macs"] for image in shown]
    scale = matplotlib.colors.Normalize(min(map(np.min, costs)), max(map(np.max, costs)))
    figure, panels = plt.subplots(2, len(shown), figsize=(9, 18 / len(shown) + 1.0), squeeze=False)
    for column, (image, cost) in enumerate(zip(shown, costs)):
        pixels = np.moveaxis(np.array(image["pixels"]), 0, -1)  # [H, W, C]
        pixels = (pixels - pixels.min()) / max(np.ptp(pixels), 1e-9)
        drawn = pixels if pixels.shape[2] == 3 else pixels.mean(axis=2)
        extent = (0, drawn.shape[1], drawn.shape[0], 0)
        panels[0][column].imshow(drawn, cmap="gray", extent=extent)
        heat = panels[1][column].imshow(cost, cmap=HEAT, norm=scale, extent=extent, interpolation="nearest")
        panels[1][column].contour(drawn.mean(axis=2) if drawn.ndim == 3 else drawn, levels=[0.5], colors="white",
                                  linewidths=0.8, extent=extent, origin="upper")
        panels[0][column].set_title(f"{image['label']}: {cost.mean():.0%}", fontsize=10)
    for axes in panels.flat:
        axes.axis("off")
    bar = figure.colorbar(heat, ax=panels, location="bottom", aspect=60, pad=0.03)
    bar.ax.xaxis.set_major_formatter(PercentFormatter(1))
    bar.set_label("multiply-adds of the patch, share of the dense layers' (numbers: label and mean)")
    figure.suptitle(arguments.title or setting_text(compute_map, compute_map["value"]), x=0.01, ha="left", fontsize=12)
    save(figure, arguments)


def parse_share(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range, expected 0 to 1")
    return value


def parse_count(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range, expected 1 or more")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, run, help):
        added = commands.add_parser(name, help=help)
        added.add_argument("--out", default=f"{name}.png", help=f"the picture to write (default {name}.png)")
        added.add_argument("--title")
        added.set_defaults(run=run)
        return added

    losses = command("losses", plot_losses, "loss curves of runs")
    losses.add_argument("runs", nargs="+", help="run folders or metrics.jsonl files, each with an optional NAME=")
    losses.add_argument("--value", help="key of the metrics (default bits_per_byte where all runs have it, else loss)")
    losses.add_argument("--skip", type=parse_share, default=0.1, metavar="SHARE",
                        help="share of the steps, from the first, that may leave the picture at the top")
    sweep = command("sweep", plot_sweep, "quality against cost and time")
    sweep.add_argument("files", nargs="+", help="sweep.json files, each with an optional NAME=; the first one's dense "
                                                "model is the reference")
    sweep.add_argument("--worst", type=float, default=0.15, metavar="SHARE",
                       help="how much worse than dense, relatively, is still shown")
    budgets = commands.add_parser("budgets", help="a table of quality at given costs")
    budgets.add_argument("files", nargs="+", help="sweep.json files, each with an optional NAME=")
    budgets.add_argument("--shares", type=float, nargs="+", default=[0.4, 0.6, 0.8, 1.0], metavar="SHARE",
                         help="of the dense multiply-adds; between two settings the straight line counts")
    budgets.set_defaults(run=print_budgets)
    histogram = command("histogram", plot_histogram, "experts run in each layer")
    histogram.add_argument("file")
    histogram.add_argument("--method", help="of the curve (default: the first)")
    histogram.add_argument("--value", type=float, help="of the point (default: nearest to half of the dense cost)")
    text = command("text", plot_text, "cost of a text's tokens")
    text.add_argument("file")
    text.add_argument("--columns", type=parse_count, default=90, help="characters per line")
    images = command("images", plot_images, "cost of images' patches")
    images.add_argument("file")
    images.add_argument("--count", type=parse_count, default=8, help="at most so many images")

    style()
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
