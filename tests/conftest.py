"""All tests have the same surroundings, on a terminal, in the background and on a build server."""

from tests.support import surroundings

surroundings.settle()
