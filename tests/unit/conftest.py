from tests.support import surroundings

surroundings.without_proxies()
