"""Starter scripts, each run by path by the interpreter of its engine's tool environment; never imported by us."""
