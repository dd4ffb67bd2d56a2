"""One mapping of a kubeconfig, field by field: null and absent are empty, a wrong type is `KubeconfigError`.

Sentences name file, context and field. They never quote a value: it may be a secret.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipvsproxy.base.errors import plain

CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class KubeconfigError(Exception):
    """A configuration that can never work, as a sentence for the operator.

    One line without control characters, whatever a path or a name in the file holds.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(CONTROL.sub("?", sentence))


class Section:
    """A mapping of a kubeconfig. `where` is what a sentence begins with, paths are relative to `folder`."""

    def __init__(self, where: str, fields: object, folder: Path, joint: str = ".") -> None:
        """Take a mapping, or nothing; `joint` stands before a field's name. Raises KubeconfigError otherwise."""
        if not isinstance(fields, Mapping | None):
            raise KubeconfigError(f"{where}: must be a mapping")
        self.where = where
        self._fields: Mapping[Any, Any] = fields or {}
        self._folder = folder
        self._joint = joint

    def __contains__(self, field: str) -> bool:
        return self._fields.get(field) is not None

    def wrong(self, field: str, reason: str) -> KubeconfigError:
        """Return the error that a field is wrong for a reason."""
        return KubeconfigError(f"{self.where}{self._joint}{field}: {reason}")

    def text(self, field: str) -> str:
        """Return a text, empty where there is none."""
        return self._text(field, self._fields.get(field))

    def word(self, field: str) -> str:
        """Return a text that goes into a header of HTTP: without control characters, as bytes of UTF-8."""
        text = self.text(field).strip()
        if CONTROL.search(text):
            raise self.wrong(field, "has a control character")
        return text.encode().decode("latin-1")

    def flag(self, field: str) -> bool:
        """Return a boolean, false where there is none."""
        value = self._fields.get(field)
        if not isinstance(value, bool | None):
            raise self.wrong(field, "must be true or false, without quotes")
        return bool(value)

    def texts(self, field: str) -> list[str]:
        """Return a list of texts."""
        return [self._text(field, item) for item in self.entries(field)]

    def entries(self, field: str) -> list[Any]:
        """Return a list of anything."""
        value = self._fields.get(field)
        if not isinstance(value, list | None):
            raise self.wrong(field, "must be a list")
        return value or []

    def section(self, field: str) -> "Section":
        """Return a mapping inside of this one."""
        return Section(f"{self.where}{self._joint}{field}", self._fields.get(field), self._folder)

    def sections(self, field: str) -> list["Section"]:
        """Return a list of mappings."""
        found = enumerate(self.entries(field))
        return [
            Section(f"{self.where}{self._joint}{field}[{number}]", item, self._folder) for number, item in found
        ]

    def items(self) -> list[tuple[str, list[str]]]:
        """Return all fields, each a list of texts."""
        return [(self._text(str(name), name), self.texts(name)) for name in self._fields]

    def raw(self, field: str) -> Any:
        """Return a value as it stands there."""
        return self._fields.get(field)

    def path(self, field: str) -> Path | None:
        """Return the absolute path of a file."""
        text = self.text(field)
        if "\0" in text:
            raise self.wrong(field, "has a control character")
        return self._folder.absolute() / text if text else None

    def content(self, field: str) -> Path | bytes | None:
        """Return what `FIELD-data` holds in base64, or else the path of the file that FIELD names."""
        data = "".join(self.text(f"{field}-data").split())
        if not data:
            file = self.path(field)
            if file:
                self._check_readable(field, file)
            return file
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise self.wrong(f"{field}-data", "not base64") from None

    def _check_readable(self, field: str, file: Path) -> None:
        try:
            with file.open("rb"):
                pass
        except (OSError, ValueError) as error:
            raise self.wrong(field, f"{file}: {plain(error)}") from None

    def _text(self, field: str, value: object) -> str:
        if not isinstance(value, str | None):
            raise self.wrong(field, "must be a text; put quotes around it")
        if value and any("\ud800" <= character <= "\udfff" for character in value):
            raise self.wrong(field, "is not Unicode")
        return value or ""
