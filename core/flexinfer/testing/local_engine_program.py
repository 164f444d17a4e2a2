"""A small engine in a process of its own, run by path with nothing but the standard library.

It loads for as long as it is told, or crashes, or stands still; then it answers `/health`, and everything else to
who has the key. See `local_engine.LocalEngine` for the knobs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_STEP_S = 0.01


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--port", "--key-file", "--knobs"):
        parser.add_argument(name, required=True)
    options = parser.parse_args(arguments)
    knobs: dict[str, Any] = json.loads(bytes.fromhex(options.knobs))
    key = Path(options.key_file).read_text("ascii").strip()
    if knobs.get("ignoreTerm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if knobs.get("forks"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    _say("initializing")
    size = os.stat(options.model).st_size
    _say(f"loading weights of {size} bytes")
    _load(knobs)
    if _is_there(knobs, "crashWhile"):
        _say("out of memory: the script says so")
        return 3
    server = ThreadingHTTPServer(("127.0.0.1", int(options.port)), _handler(key, knobs))
    _say("serving")
    server.serve_forever()
    return 0


def _load(knobs: dict[str, Any]) -> None:
    until = time.monotonic() + float(knobs.get("loadSeconds", 0))
    while time.monotonic() < until:
        time.sleep(_STEP_S)
    while _is_there(knobs, "holdWhile"):
        time.sleep(_STEP_S)
    if knobs.get("stall"):
        threading.Event().wait()


def _is_there(knobs: dict[str, Any], knob: str) -> bool:
    return bool(knobs.get(knob)) and os.path.exists(knobs[knob])


def _say(words: str) -> None:
    print(f"flexinfer: {words}", flush=True)


def _handler(key: str, knobs: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200 if self.path == "/health" else self._status())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", "0")))
            if self.path == "/crash" and self._status() == 200:
                os._exit(9)
            self._answer(self._status())

        def _status(self) -> int:
            return 200 if self.headers.get("authorization") == f"Bearer {key}" else 401

        def _answer(self, status: int) -> None:
            while _is_there(knobs, "busyWhile"):
                pass
            body = json.dumps({"pid": os.getpid()}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
