"""Bounded readers for model files, and the rules a file must pass before anything else reads it."""
