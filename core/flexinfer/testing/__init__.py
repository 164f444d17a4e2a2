"""Stand-ins that are shipped, so that nobody patches our code: clocks, targets and engines on a script."""
