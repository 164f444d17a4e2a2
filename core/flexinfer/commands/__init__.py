"""The commands that need no component beside the core."""
