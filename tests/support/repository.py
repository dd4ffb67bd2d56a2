"""The files of this repository, found without git: tests also run where there is none."""

import os
import pathlib
import tomllib

REPO = pathlib.Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
SHOWN = {".github"}
MADE = {"node_modules", "__pycache__", "build", "dist"}


def files() -> list[pathlib.Path]:
    """Every file that may be part of the repository, in order; nothing that was built or fetched."""
    found = []
    for folder, folders, names in os.walk(REPO):
        folders[:] = [name for name in folders if name in SHOWN or not (name.startswith(".") or name in MADE)]
        found += [pathlib.Path(folder, name) for name in names]
    return sorted(file for file in found if file.is_file())
