"""Decisions: what shall be done about the Models, from what was seen of them. Pure; `lifecycle.plan` is the way in."""
