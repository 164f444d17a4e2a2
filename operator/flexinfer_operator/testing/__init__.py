"""Stand-ins shipped with the operator: a cluster in memory."""
