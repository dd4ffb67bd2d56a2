"""A kernel without any of netfilter's netlink."""

import errno


class NoProtocol:
    """A netlink socket that such a kernel refuses."""

    def __init__(self, _name):
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")
