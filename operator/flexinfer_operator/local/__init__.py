"""One machine as a cluster: Models are files, replicas are processes, routers come over a unix socket."""
