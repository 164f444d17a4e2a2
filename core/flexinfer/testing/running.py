"""A whole `flexinfer up` as a child, for tests that look at it from outside as its user does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

STARTER = "smollm2-135m-instruct"
QUESTION = "What is the capital of France? Answer briefly."


def wait_until(holds: Callable[[], bool], what: str, *, limit_s: float = 60.0) -> None:
    """Return when *holds*; fail after *limit_s*."""
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RunningUp:
    """One `flexinfer up` with a home and ports of its own."""

    home: Path
    environ: dict[str, str]
    port: int
    prefect_port: int
    process: subprocess.Popen[bytes] | None = None
    terminal: Path = field(default=Path())

    @classmethod
    def at(cls, home: Path, *, prefect: bool) -> RunningUp:
        ports = [free_port() for _ in range(3)]
        environ = {
            k: v for k, v in os.environ.items() if not k.startswith(("FLEXINFER_", "PREFECT_"))
        }
        environ |= {
            "FLEXINFER_HOME": str(home),
            "FLEXINFER_SERVE__PORT": str(ports[0]),
            "FLEXINFER_SERVE__ADMIN_PORT": str(ports[1]),
            "FLEXINFER_PREFECT__PORT": str(ports[2]),
            "FLEXINFER_PREFECT__ENABLED": str(prefect).lower(),
        }
        return cls(home, environ, ports[0], ports[2])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        self.terminal = self.home.parent / f"up-{time.monotonic_ns()}.log"
        with self.terminal.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flexinfer", "up"],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.home.parent,
            )

    def wait_ready(self, limit_s: float = 240.0) -> None:
        def is_ready() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"up ended with {self.process.returncode}:\n{self.said()}")
            return f"\nready {self.url}\n" in self.said()

        wait_until(is_ready, f"up says ready; it said:\n{self.said()}", limit_s=limit_s)

    def said(self) -> str:
        return self.terminal.read_text("utf-8", "replace")

    def command(self, *arguments: str, limit_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run `flexinfer …` with this home."""
        return subprocess.run(
            [sys.executable, "-m", "flexinfer", *arguments],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            cwd=self.home.parent,
            check=False,
        )

    def ask(self, model: str = STARTER, **fields: object) -> httpx.Response:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 16,
            "temperature": 0,
        }
        with httpx.Client(trust_env=False, timeout=300.0) as client:
            return client.post(f"{self.url}/chat/completions", json=body | fields)

    def engines(self) -> list[int]:
        """Return the processes of engines that serve from this home."""
        return [
            pid
            for pid, line in processes()
            if "programs/llamacpp.py" in line and str(self.home) in line
        ]

    def events(self, name: str, log: str = "operator") -> list[dict[str, object]]:
        """Return the events of one name in a log."""
        found = []
        for file in (self.home / "logs" / f"{log}.log.1", self.home / "logs" / f"{log}.log"):
            if not file.exists():
                continue
            for line in file.read_text("utf-8", "replace").splitlines():
                if f'"event": "{name}"' in line:
                    found.append(json.loads(line))
        return found

    def everything(self) -> list[str]:
        """Return the command lines of all processes that name this home or are marked by it."""
        return [line for pid, line in processes() if str(self.home) in line or self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        mine = f"FLEXINFER_HOME={self.home}".encode()
        return mine in environ.split(b"\0") and pid != os.getpid()

    def stop(self, number: signal.Signals = signal.SIGTERM, limit_s: float = 30.0) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(limit_s)

    def edit(self, old: str, new: str, name: str = STARTER) -> None:
        """Replace text in a Model file as an editor does."""
        path = self.home / "models" / f"{name}.yaml"
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new), "utf-8")


def processes() -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            state = (folder / "stat").read_text("ascii", "replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if line and state not in "ZX":
            found.append((int(folder.name), line))
    return found
