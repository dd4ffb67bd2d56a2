"""Errors that no part of the program can handle."""


class Fatal(Exception):
    """The process cannot do its work and must end."""
