"""Cost against the number of Services, drawn from results that `run.py --json` has kept."""

import collections
import json

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

PANELS = (
    ("Cold sync: seconds", ("cold_sync",), "log"),
    ("One endpoint: milliseconds", ("endpoint_change", "local_endpoint_change"), "linear"),
)


def draw(source, target):
    """Draw all results in the file `source` (JSON lines) into the picture `target`; the last of equals counts."""
    results = collections.defaultdict(dict)
    for line in source.read_text().splitlines():
        result = json.loads(line)
        results[result["name"]][result["services"]] = result
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, 4), layout="constrained")
    for axis, (title, names, scale) in zip(axes, PANELS, strict=True):
        factor = 1000 if "milliseconds" in title else 1
        for name in names:
            _lines(axis, name, results[name], factor)
        axis.set(title=title, xlabel="Services", xscale="log", yscale=scale)
        if scale == "linear":
            axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.3)
        axis.legend()
    figure.savefig(target, dpi=110)


def _lines(axis, name, results, factor):
    sizes = sorted(results)
    for field, style in (("seconds", "o-"), ("floor_seconds", ".:")):
        label = name.replace("_", " ") + (", floor" if field == "floor_seconds" else "")
        axis.plot(sizes, [results[size][field] * factor for size in sizes], style, label=label)
