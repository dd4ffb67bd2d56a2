import surroundings

surroundings.without_proxies()
