"""Tool environments: the engines' and quantizers' own packages, away from ours and from one another.

Each is made once from a lock, at `<home>/tools/<name>-<lock hash>-py<version>`, by pip as the user configured it
(index, proxy, CA). It has its last name only when it is whole, so an interrupted start leaves nothing that must be
cleaned by hand; after that no network is needed.
"""

from __future__ import annotations

from flexinfer.toolenv.environment import ToolEnvironment, ToolPython, lock_of

__all__ = ["ToolEnvironment", "ToolPython", "lock_of"]
