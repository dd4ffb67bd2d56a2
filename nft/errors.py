"""The one error of this library."""

import errno
import os
import re

_CODES = {os.strerror(code): code for code in errno.errorcode}


class NftError(Exception):
    """A transaction that changed nothing; `errno` is the kernel's reason, EINVAL for text nft cannot read."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.errno = code
        self.text = text

    @classmethod
    def from_output(cls, output: str) -> "NftError":
        """Read libnftables' error text: the errno is the one whose description ends its first line."""
        first = output.strip().partition("\n")[0]
        description = re.sub(r"^.*: ", "", first)
        return cls(_CODES.get(description, errno.EINVAL), output.strip())
