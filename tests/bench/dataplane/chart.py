"""A picture of what each proxy costs as a multiple of the floor, path by path."""

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

from tests.bench.dataplane.rows import IPVS, NO_SERVICE, PATHS, PriceRow, floor_of
from tests.bench.dataplane.table import KIND_NAMES

KINDS = ("connection", "tcp")
STYLES = {
    "ipvsproxy": ("o", "#1b6ca8"),
    "ipvsproxy auto": ("*", "#1b6ca8"),
    "kube-proxy ipvs": ("s", "#c8553d"),
    "kube-proxy nftables": ("^", "#588157"),
    "kube-proxy iptables": ("D", "#8d6a9f"),
}
# Text stays text, and the same counts give the same file.
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "dataplane", "font.size": 9}


def draw(results, target):
    """Draw the results of the smallest size into an SVG file."""
    services = min(row.services for row in results.counts)
    with mpl.rc_context(SETTINGS):
        figure, axes = plt.subplots(1, len(KINDS), figsize=(10, 5), sharey=True, layout="constrained")
        for axis, kind in zip(axes, KINDS, strict=True):
            _panel(axis, results, services, kind)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(STYLES), frameon=False)
        figure.savefig(target, metadata={"Date": None})
        plt.close(figure)


def _panel(axis, results, services, kind):
    names = [path.name for path in PATHS if kind in path.kinds][::-1]
    for peer, (marker, colour) in STYLES.items():
        places = {}
        for place, name in enumerate(names):
            row = PriceRow(services, name, kind, peer)
            if row in results.counts and floor_of(row) in results.counts:
                places[place] = results.counts[row] / results.counts[floor_of(row)]
        if places:
            axis.plot(list(places.values()), list(places), marker, color=colour, label=peer, alpha=0.9)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.set(title=KIND_NAMES[kind], xlabel=f"instructions, as a multiple of {NO_SERVICE} or {IPVS}")
    axis.grid(axis="x", alpha=0.3)
