"""Where state lives: one folder, `$FLEXINFER_HOME`, and fixed names in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flexinfer.errors import InvalidInput
from flexinfer.store_names import build_name


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

    @property
    def up_lock(self) -> Path:
        """Held by the one `flexinfer up` of this home; says who it is and where it answers."""
        return self.run / "up.lock"

    @property
    def up_records(self) -> Path:
        """The process records of what `up` started, one file each."""
        return self.run / "up"

    @property
    def operator_lock(self) -> Path:
        return self.run / "operator.lock"

    @property
    def operator_socket(self) -> Path:
        """Where routers get their fleet and bring their demand."""
        return self.run / "operator.sock"

    @property
    def replica_records(self) -> Path:
        """The process records of engines, one file each."""
        return self.run / "replicas"

    @property
    def run_records(self) -> Path:
        """The process records of flow runs, one file each."""
        return self.run / "runs"

    @property
    def build_records(self) -> Path:
        """Which builds run and how far they are, one process record each."""
        return self.run / "builds"

    @property
    def prefect_lock(self) -> Path:
        """Held by our own Prefect server."""
        return self.run / "prefect.lock"

    @property
    def prefect_record(self) -> Path:
        """The process and the address of our own Prefect server."""
        return self.run / "prefect.json"

    def scratch(self, name: str) -> Path:
        """Return where a file is written before it is renamed to its place in this home."""
        return self.run / f"{name}.partial"

    def build_lock(self, key: str) -> Path:
        """Held by the one build of that key; *key*: as `sha256:…` or bare."""
        return self.run / f"{build_name(key)}.lock"

    def log(self, name: str) -> Path:
        """Return where the process of that name writes: what `flexinfer logs NAME` shows."""
        return self.logs / f"{name}.log"

    def engine_log(self, replica: str) -> Path:
        return self.log(f"engine-{replica}")

    def model_file(self, name: str) -> Path:
        """Return where we write the Model of that name; its user may keep it in another file."""
        return self.models / f"{name}.yaml"

    def model_files(self) -> list[Path]:
        """Return the files in `models/` that are meant as Models, sorted by name: `*.yaml`, `*.yml`, none hidden.

        Raises:
            OSError: it is there and cannot be listed.
        """
        try:
            names = sorted(name for name in os.listdir(self.models) if is_model_file(name))
        except FileNotFoundError:
            return []
        return [self.models / name for name in names]

    def prepare(self) -> Home:
        """Make the folders, let only their owner read them, and return self.

        Raises:
            InvalidInput: code `home_not_writable`; the message names the folder and why. Code `home_not_private`:
                others can read it and it is not ours to close. Code `home_invalid`: its name holds what those who
                work there cannot take.
        """
        self._check_name()
        folders = (
            self.root, self.store, self.models, self.catalogs, self.tools,
            self.logs, self.run, self.work, self.prefect,
        )  # fmt: skip
        try:
            for folder in folders:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _close_to_others(folder)
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

    def _check_name(self) -> None:
        name = str(self.root)
        # `:` separates the paths in PATH, so no environment for Python can be made there; `?` begins the options of a
        # database's address; the rest could not be written into our own files.
        wrong = next((c for c in name if c in ":?" or not (c.isprintable() or c == " ")), "")
        if wrong:
            raise InvalidInput(
                f"FLEXINFER_HOME {name!r}: its path may not hold {wrong!r}; name another folder",
                code="home_invalid",
            )


def _close_to_others(folder: Path) -> None:
    """Take every right from all but the owner.

    Raises:
        InvalidInput: code `home_not_private`: it is not ours alone.
    """
    found = os.stat(folder)
    mode = stat.S_IMODE(found.st_mode)
    if not mode & 0o077:
        return
    # What all use (`/`, `/home`, `/tmp`) would be closed to everybody else.
    is_shared = bool(mode & stat.S_ISVTX) or folder in (Path("/"), *Path.home().parents)
    if found.st_uid != os.geteuid() or is_shared:
        raise InvalidInput(
            f"FLEXINFER_HOME: {folder} is open to others (mode {mode:04o}, owner {found.st_uid}), and not ours alone "
            "to close; name a folder of your own with FLEXINFER_HOME",
            code="home_not_private",
        )
    os.chmod(folder, 0o700)


def is_model_file(name: str) -> bool:
    """Return whether a file of that name in `models/` is meant as a Model: an editor's own files are not."""
    return not name.startswith(".") and name.endswith((".yaml", ".yml"))
