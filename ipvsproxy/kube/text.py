"""The bytes of a file as UTF-8, and places in them.

PowerShell writes UTF-16 (`>` of version 5) and byte order marks, also in the middle where files were joined.
"""

import codecs

PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip, or tar -xzf"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"\xfd7zXZ\x00": ("xz", "unxz, or tar -xJf"),
    b"BZh": ("bzip2", "bunzip2, or tar -xjf"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
"""First bytes of compressed files; they are not unpacked here, since few bytes can hold any number of them."""
TAR_MAGIC, TAR_AT = b"ustar", 257
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Unreadable(ValueError):
    """A file, or a document in it, that cannot be taken apart; `line` and `column` count from 1, 0 is unknown."""

    def __init__(self, reason: str, line: int = 0, column: int = 0) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.reason = reason
        self.line = line
        self.column = column


def utf8(data: bytes) -> bytes:
    """Return the text as UTF-8 without byte order marks. Raises Unreadable for an archive, or broken UTF-16."""
    for magic, (name, program) in PACKED.items():
        if data.startswith(magic):
            raise Unreadable(f"compressed with {name}: unpack it first ({program})")
    if data[TAR_AT : TAR_AT + len(TAR_MAGIC)] == TAR_MAGIC:
        raise Unreadable("a tar archive: unpack it first (tar -xf)")
    encoding = _wide(data)
    if encoding:
        try:
            data = data.decode(encoding).encode()
        except UnicodeDecodeError as error:
            wrong = f"byte {error.start} does not fit it ({error.reason})"
            raise Unreadable(f"not text: begins like {encoding.upper()}, but {wrong}") from None
    return data.replace(codecs.BOM_UTF8, b"") if codecs.BOM_UTF8 in data else data


def _wide(data: bytes) -> str:
    """Return the encoding of a text with more than a byte for each ASCII character, empty if it is none."""
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return encoding
    first, second = data[:1], data[1:2]
    if first == b"\0" and second not in (b"\0", b""):
        return "utf-16-be"
    return "utf-16-le" if second == b"\0" and first != b"\0" else ""


def unreadable_at(data: bytes, at: int, reason: str) -> Unreadable:
    """Return the error for a place in a text."""
    return Unreadable(reason, data.count(b"\n", 0, at) + 1, at - data.rfind(b"\n", 0, at))
