from hypothesis import settings

from tests.support import surroundings

surroundings.without_proxies()
# A busy machine is no bug.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
