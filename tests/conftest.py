"""All tests have the same surroundings, on a terminal, in the background and on a build server."""

import surroundings

surroundings.settle()
