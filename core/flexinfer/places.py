"""Where state lives: one folder, `$FLEXINFER_HOME`, and fixed names in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flexinfer.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Home:
    """The state folder and the places in it. Nothing is made until `prepare`."""

    root: Path

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> Home:
        """Return `$FLEXINFER_HOME`, else `$XDG_DATA_HOME/flexinfer`, else `~/.local/share/flexinfer`."""
        named = environ.get("FLEXINFER_HOME", "").strip()
        if named:
            return cls(Path(os.path.abspath(os.path.expanduser(named))))
        data = environ.get("XDG_DATA_HOME", "").strip()
        base = Path(data) if data.startswith("/") else Path(os.path.expanduser("~/.local/share"))
        return cls(base / "flexinfer")

    @property
    def store(self) -> Path:
        """The content-addressed store: an OCI image layout."""
        return self.root / "store"

    @property
    def models(self) -> Path:
        """The local Models, one YAML file each."""
        return self.root / "models"

    @property
    def catalogs(self) -> Path:
        """The user's own catalog entries."""
        return self.root / "catalogs"

    @property
    def tools(self) -> Path:
        """The tool environments of engines and quantizers."""
        return self.root / "tools"

    @property
    def state_db(self) -> Path:
        """What was observed: statuses, cold starts."""
        return self.root / "state.db"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Sockets, locks, process records and keys: meaningless after a restart of the machine."""
        return self.root / "run"

    @property
    def work(self) -> Path:
        """Builds in progress, one folder per build key."""
        return self.root / "work"

    @property
    def prefect(self) -> Path:
        """Prefect's own database and settings."""
        return self.root / "prefect"

    def prepare(self) -> Home:
        """Make the folders, readable by their owner only, and return self.

        Raises:
            InvalidInput: code `home_not_writable`; the message names the folder and why.
        """
        folders = (
            self.root, self.store, self.models, self.catalogs, self.tools,
            self.logs, self.run, self.work, self.prefect,
        )  # fmt: skip
        try:
            for folder in folders:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.run / f".writable-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise InvalidInput(
                f"FLEXINFER_HOME {self.root}: cannot write there ({error.strerror}: "
                f"{error.filename}); name a folder that you own with FLEXINFER_HOME",
                code="home_not_writable",
            ) from error
        return self
