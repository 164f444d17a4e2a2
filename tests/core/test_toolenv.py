"""A tool environment is made once, whole or not at all, from a lock and the user's own pip settings."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flexinfer.errors import Conflict, InvalidInput, NotFound, ProcessFailed, ResourceExhausted
from flexinfer.places import Home
from flexinfer.toolenv import ToolEnvironment, ToolPython, lock_of, making
from flexinfer.up.services import restart_delay_s

ROOT = Path(__file__).resolve().parents[2]
Lock = Callable[..., Path]


def wheel(folder: Path, *, words: str = "hello") -> Path:
    """Make a wheel of a package `sample` with one module and one script."""
    path = folder / "sample-1.0-py3-none-any.whl"
    files = {
        "sample.py": f"def main(): print({words!r})\n",
        "sample-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n",
        "sample-1.0.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        "sample-1.0.dist-info/entry_points.txt": "[console_scripts]\nsample = sample:main\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{name},sha256={digest.decode()},{len(text)}\n"
    files["sample-1.0.dist-info/RECORD"] = record + "sample-1.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that the user's pip is configured for; no network."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {folder}\nuser = true\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    return folder


@pytest.fixture
def lock(tmp_path: Path, index: Path) -> Path:
    digest = hashlib.sha256(wheel(index).read_bytes()).hexdigest()
    path = tmp_path / "sample.txt"
    path.write_text(f"sample==1.0 \\\n    --hash=sha256:{digest}\n")
    return path


def ensure(lock: Path, home: Home) -> tuple[ToolPython, list[str]]:
    lines: list[str] = []
    return ToolEnvironment("sample", lock).ensure(home, on_line=lines.append), lines


def output(*command: Path | str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def names(home: Home) -> list[str]:
    return sorted(path.name for path in home.tools.iterdir() if not path.name.endswith(".lock"))


def test_it_is_made_once_and_then_needs_neither_pip_nor_the_lock_of_its_folder(
    lock: Path, home: Home, index: Path
) -> None:
    python, lines = ensure(lock, home)
    shutil.rmtree(index)
    again, more = ensure(lock, home)

    assert again == python
    assert more == []
    assert any("Installing collected packages: sample" in line for line in lines)
    tag = f"py{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    assert python.lock_hash == digest
    assert names(home) == [f"sample-{digest[:12]}-{tag}"]
    assert output(python.path, "-c", "import sample; sample.main()") == "hello\n"
    # Its scripts were written under another name.
    assert output(python.path.parent / "sample") == "hello\n"
    assert ".making" not in (python.path.parent / "activate").read_text()


def test_one_that_another_program_takes_away_as_it_is_made_is_a_conflict(
    lock: Path, home: Home
) -> None:
    def take_away(line: str) -> None:
        if line.endswith(": ready"):
            shutil.rmtree(home.tools / names(home)[0])

    with pytest.raises(Conflict, match="start again") as caught:
        ToolEnvironment("sample", lock).ensure(home, on_line=take_away)
    assert caught.value.code == "toolenv_changed"
    assert restart_delay_s([0.0], now_s=0.0, code=caught.value.exit_code) is not None
    assert ensure(lock, home)[0].path.exists()


def test_it_is_used_as_it_is_where_nothing_can_be_written(
    lock: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, _ = ensure(lock, home)
    monkeypatch.setattr(os, "open", refuse)  # root writes through modes
    assert ensure(lock, home)[0] == python


def refuse(*_: object, **__: object) -> int:
    raise PermissionError("read-only")


def test_bytes_that_are_not_the_locked_ones_are_refused_with_the_words_of_pip(
    lock: Path, home: Home, index: Path
) -> None:
    wheel(index, words="something else")
    with pytest.raises(ProcessFailed, match=r"(?i)do not match the hashes") as caught:
        ensure(lock, home)
    assert caught.value.code == "toolenv_failed"
    assert "tool environment sample: pip ended with 1" in caught.value.message
    assert names(home) == []


def test_a_package_that_is_nowhere_is_named(lock: Path, home: Home) -> None:
    lock.write_text(lock.read_text().replace("sample==1.0", "nowhere==3"))
    with pytest.raises(ProcessFailed, match="nowhere==3"):
        ensure(lock, home)


def test_what_a_killed_process_left_is_cleared_away(lock: Path, home: Home) -> None:
    folder = ToolEnvironment("sample", lock).folder(home)
    (home.tools / f".making-{folder.name}-0123abcd").mkdir()
    folder.mkdir()
    (folder / "half").write_text("")
    python, _ = ensure(lock, home)
    assert python.path.exists()
    assert names(home) == [folder.name]


def test_it_is_made_anew_when_its_python_is_gone(lock: Path, home: Home) -> None:
    python, _ = ensure(lock, home)
    python.path.unlink()
    python.path.symlink_to("/no/such/python")
    assert ensure(lock, home)[0] == python
    assert output(python.path, "-c", "print(1)") == "1\n"


def test_of_many_at_once_one_makes_it_and_the_others_wait(lock: Path, home: Home) -> None:
    lines: list[str] = []
    environment = ToolEnvironment("sample", lock)

    async def scenario() -> list[ToolPython]:
        three = (environment.ensure_async(home, on_line=lines.append) for _ in range(3))
        return list(await asyncio.gather(*three))

    assert len(set(asyncio.run(scenario()))) == 1
    assert sum("making it with" in line for line in lines) == 1
    assert sum("is making it, waiting" in line for line in lines) == 2


def test_cancelling_leaves_nothing(lock: Path, home: Home) -> None:
    async def scenario() -> None:
        began = asyncio.Event()
        environment = ToolEnvironment("sample", lock)
        task = asyncio.create_task(environment.ensure_async(home, on_line=lambda _: began.set()))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert names(home) == []


def test_pip_ends_when_we_are_killed(lock: Path, home: Home, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from flexinfer.places import Home; from flexinfer.toolenv import ToolEnvironment\n"
        "environment = ToolEnvironment('sample', Path(sys.argv[1]))\n"
        "environment.ensure(Home(Path(sys.argv[2])), on_line=lambda line: print(line, flush=True))\n"
    )
    command = [sys.executable, "-c", code, str(lock), str(home.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and b"making it" in process.stdout.readline()
        deadline = time.monotonic() + 20
        while not (left := makers(home)):
            assert time.monotonic() < deadline, "no program was started"
        process.kill()
    while left & makers(home):
        assert time.monotonic() < deadline + 20, "it goes on without us"
        time.sleep(0.01)
    assert ensure(lock, home)[0].path.exists()
    assert len(names(home)) == 1


def makers(home: Home) -> set[str]:
    """Return the processes that have a folder in the making among their arguments."""
    wanted = os.fsencode(home.tools / ".making-")
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if wanted in arguments:
            found.add(pid)
    return found


def test_without_a_pip_of_ours_the_environment_gets_its_own(
    lock: Path, home: Home, tmp_path: Path
) -> None:
    """As in an environment that uv made: no pip in it."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")],
        check=True, timeout=120,
    )  # fmt: skip
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'core')!r}); from pathlib import Path\n"
        "from flexinfer.places import Home; from flexinfer.toolenv import ToolEnvironment\n"
        "environment = ToolEnvironment('sample', Path(sys.argv[1]))\n"
        "print(environment.ensure(Home(Path(sys.argv[2])), on_line=lambda _: None).path)\n"
    )
    python = output(tmp_path / "bare/bin/python", "-c", code, str(lock), str(home.root)).strip()
    assert output(python, "-c", "import pip, sample; sample.main()") == "hello\n"


def test_a_place_that_cannot_be_written_is_named(lock: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="file/tools") as caught:
        ensure(lock, Home(tmp_path / "file"))
    assert caught.value.code == "home_not_writable"


def test_a_full_disk_is_told_as_such(lock: Path, home: Home) -> None:
    code = "print('OSError: [Errno 28] No space left on device'); raise SystemExit(2)"
    made = making.make(
        home.tools / "sample-0",
        name="sample",
        lock=lock,
        stamp=("stamp", b""),
        on_line=lambda _: None,
        pip_command=lambda partial, lock, is_our_pip: (sys.executable, "-c", code),
    )
    with pytest.raises(ResourceExhausted, match=r"tools is full \(.* free\)") as caught:
        asyncio.run(made)
    assert caught.value.code == "disk_full"
    assert names(home) == []


@pytest.mark.parametrize("name", ["llamacpp", "gguf"])
def test_the_locks_that_we_ship_name_no_place_and_pin_by_hash(name: str) -> None:
    text = lock_of(name).read_text()
    assert "://" not in text and "/" not in text
    pinned = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert pinned and all("==" in line and line.endswith("\\") for line in pinned)
    assert text.count("--hash=sha256:") >= len(pinned)


@pytest.mark.parametrize("name", ["lamacpp", "../gguf", "", "gguf.in"])
def test_an_unknown_environment_is_not_found_and_the_known_are_named(name: str) -> None:
    with pytest.raises(NotFound, match="known: gguf, llamacpp") as caught:
        ToolEnvironment.named(name)
    assert caught.value.code == "toolenv_unknown"


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(NotFound, match="did you mean 'llamacpp'"):
        lock_of("lamacpp")
