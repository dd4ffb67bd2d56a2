"""What errors say to people."""

import pytest

from ipvsproxy.base.errors import located, plain


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (PermissionError(13, "Permission denied", "/proc/x"), "Permission denied"),
        (TimeoutError("timed out"), "timed out"),
        (ValueError("two\nlines"), "two lines"),
        (EOFError(), "EOFError"),
    ],
)
def test_an_error_is_one_line_of_words_without_its_number(error, text):
    assert plain(error) == text


def test_the_file_that_an_error_is_about_comes_first():
    assert located(PermissionError(13, "Permission denied", "/proc/x")) == "/proc/x: Permission denied"
    assert located(OSError(1, "Operation not permitted")) == "Operation not permitted"
