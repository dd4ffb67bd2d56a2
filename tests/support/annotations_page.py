"""docs/annotations.md, made from the table of annotations: `python -m` of this writes it, a test compares."""

from collections.abc import Iterator

from ipvsproxy.config.annotations import FOREIGN, PREFIX, TABLE, Annotation
from tests.support.repository import REPO

PATH = REPO / "docs" / "annotations.md"
BEGINNING = f"""# Annotations

What a Service or an EndpointSlice may ask for itself. All names begin with `{PREFIX}`; values are text, so
numbers and `true` stand in quotes in YAML. This page is made from the table in `ipvsproxy/config/annotations.py`
(`python -m tests.support.annotations_page`).

    kubectl annotate service web {PREFIX}scheduler=mh

A change takes effect at once, concerns no other Service, and loses no open connection unless its row states that.
A value that cannot be used is left out: one log line and one Event of the Service name the object, the annotation
and what is allowed. So do they where a name begins with `{PREFIX}` and is not on this page, with the nearest one
that is.

What a Service does not say itself, a node may say for all: `serviceDefaults` in the file `--extra-config`, by the
names without `{PREFIX}`, or `--service-defaults` with semicolons between them. They come before
`--ipvs-scheduler` and `--drain-timeout`. A name or a value that cannot be used is a mistake in the settings: the
proxy does not start with it, and one that runs keeps the settings that it has. A default that means nothing for a
Service (a flag of another scheduler than its own, a netmask where it has no session affinity) is passed over.
`forwarding`, `share-with` and `tenant-dns` are about one Service and have no default.

    apiVersion: ipvsproxy.io/v1alpha1
    kind: IPVSProxyConfiguration
    serviceDefaults:
      scheduler: mh
      max-connections: 1000/800

| annotation | of | what may stand in it | what it does |
|---|---|---|---|
"""


def page() -> str:
    """Return the whole page."""
    table, examples = "".join(map(_row, TABLE)), "\n".join(_examples())
    return f"{BEGINNING}{table}{_foreign()}\n## Examples\n\n{examples}\n"


def _row(row: Annotation) -> str:
    others = "".join(f" Also read as `{alias}`." for alias in row.aliases)
    return f"| `{row.key}` | {', '.join(row.objects)} | {row.allowed} | {row.help}{others} |\n"


def _foreign() -> str:
    rows = "".join(f"| `{row.key}` | {row.note} |\n" for row in FOREIGN.values())
    return f"""
## Annotations of kube-router

Some are other names of those above. These stand for something else here, and an Event of the Service reports it:

| annotation | what becomes of it |
|---|---|
{rows}"""


def _examples() -> Iterator[str]:
    yield "    metadata:"
    yield "      annotations:"
    for row in TABLE:
        yield f"        {row.key}: {row.example}"


if __name__ == "__main__":
    PATH.write_text(page())
