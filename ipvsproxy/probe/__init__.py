"""Ask and see what comes back: the running proxy by HTTP, a name server, a Service. Only commands do so."""
