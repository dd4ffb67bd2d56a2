"""Errors that no part of the program can handle."""


class Fatal(Exception):
    """The process cannot do its work and must end."""


def plain(error: BaseException) -> str:
    """Return an error as one line of plain words, without `[Errno 111]` and the name of a file."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def located(error: BaseException) -> str:
    """Return the same, after the name of the file if the error is about one."""
    file = getattr(error, "filename", None)
    return f"{file}: {plain(error)}" if isinstance(file, str) else plain(error)
