"""A child is started alone, ends with all that it started, and says what it did."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from flexinfer.errors import FlexInferError, InvalidInput, ProcessFailed
from flexinfer.process import Child, ProcessSpec, procfs, run, start
from flexinfer.process.output import PipeOutput

MakeSpec = Callable[..., ProcessSpec]
Until = Callable[[Callable[[], object], str], Awaitable[None]]

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); "
FOREVER = "import time; print('up'); time.sleep(1000)"
# The grandchild tells its pid once it is ready, and lets nothing but SIGKILL end it.
GRANDCHILD = """
import subprocess, sys, time
code = "import os, signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); "
code += "print(os.getpid(), flush=True); time.sleep(1000)"
subprocess.Popen([sys.executable, "-I", "-S", "-c", code], start_new_session={new_session})
"""


def is_running(pid: int) -> bool:
    found = procfs.stat(pid)
    return found is not None and found.is_running


async def said(child: Child, until: Until, lines: int = 1) -> tuple[str, ...]:
    await until(lambda: len(child.tail(lines)) >= lines, f"{lines} lines of {child}")
    return child.tail(lines)


def test_the_exit_status_and_every_line_arrive(make_spec: MakeSpec) -> None:
    lines: list[str] = []

    async def scenario() -> int:
        code = "import sys; print('one'); print('two', file=sys.stderr); print('end', end=''); sys.exit(3)"
        child = await start(make_spec(code, on_line=lines.append))
        return await child.wait()

    assert asyncio.run(scenario()) == 3
    assert lines == ["one", "two", "end"]


def test_a_signal_is_a_negative_status(make_spec: MakeSpec) -> None:
    async def scenario() -> int:
        child = await start(make_spec(FOREVER))
        child.kill()
        return await child.wait()

    assert asyncio.run(scenario()) == -signal.SIGKILL


def test_it_leads_its_own_session_and_reads_nothing(make_spec: MakeSpec) -> None:
    code = (
        "import os, sys; print(os.getsid(0) == os.getpgrp() == os.getpid(), repr(sys.stdin.read()))"
    )

    async def scenario() -> tuple[str, ...]:
        return (await run(make_spec(code), timeout_s=20)).lines

    assert asyncio.run(scenario()) == ("True ''",)


def test_nothing_is_inherited_that_is_not_named(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do not tell")
    code = "import os; print(sorted(os.environ)); print(len(os.listdir('/proc/self/fd')))"
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        # A number that came down from our own parent is no lifeline of the child's.
        environment = {"LC_ALL": "C.UTF-8", "FLEXINFER_LIFELINE": "17"}
        spec = make_spec(code, environment=environment, lifeline=False)
        finished = asyncio.run(run(spec, timeout_s=20))

    # 0, 1, 2 and the descriptor of the listing itself.
    assert finished.lines == ("['FLEXINFER_PROCESS', 'LC_ALL']", "4")


def test_stop_asks_first(make_spec: MakeSpec, until: Until) -> None:
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print('asked'), sys.exit(0)))
print('up')
time.sleep(1000)
"""

    async def scenario() -> tuple[int, tuple[str, ...]]:
        child = await start(make_spec(code))
        await said(child, until)
        return await child.stop(), child.tail()

    assert asyncio.run(scenario()) == (0, ("up", "asked"))


def test_stop_kills_what_ignores_sigterm(make_spec: MakeSpec, until: Until) -> None:
    async def scenario() -> int:
        child = await start(make_spec(STUBBORN + "time.sleep(1000)"))
        await said(child, until)
        return await child.stop(grace_s=0.1)

    assert asyncio.run(scenario()) == -signal.SIGKILL


def test_stop_wakes_what_was_paused(make_spec: MakeSpec, until: Until) -> None:
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print('up')
time.sleep(1000)
"""

    async def scenario() -> int:
        child = await start(make_spec(code))
        await said(child, until)
        os.kill(child.pid, signal.SIGSTOP)
        return await child.stop(grace_s=20)

    assert asyncio.run(scenario()) == 7


def test_two_stops_ask_once(make_spec: MakeSpec, until: Until) -> None:
    code = """
import os, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: (asked.append(1), print('asked')))
print('up')
while not os.path.exists('go'): time.sleep(0.01)
sys.exit(len(asked))
"""

    async def scenario() -> list[int]:
        child = await start(make_spec(code))
        await said(child, until)
        stops = [asyncio.create_task(child.stop()), asyncio.create_task(child.wait())]
        await said(child, until, 2)  # a second signal now is not merged with the first
        stops.append(asyncio.create_task(child.stop()))
        await asyncio.sleep(0)
        (child.spec.cwd / "go").touch()
        return list(await asyncio.gather(*stops))

    assert asyncio.run(scenario()) == [1, 1, 1]


@pytest.mark.parametrize("new_session", [False, True])
def test_stop_ends_grandchildren_also_those_that_left_the_group(
    make_spec: MakeSpec, until: Until, new_session: bool
) -> None:
    code = GRANDCHILD.format(new_session=new_session) + STUBBORN + "time.sleep(1000)"

    async def scenario() -> int:
        child = await start(make_spec(code))
        grandchild = next(int(line) for line in await said(child, until, 2) if line.isdigit())
        await child.stop(grace_s=0.1)
        return grandchild

    assert not is_running(asyncio.run(scenario()))


@pytest.mark.parametrize("new_session", [False, True])
def test_what_a_crashed_leader_left_behind_is_ended(
    make_spec: MakeSpec, until: Until, new_session: bool
) -> None:
    code = GRANDCHILD.format(new_session=new_session) + "time.sleep(1000)"

    async def scenario() -> tuple[int, int]:
        child = await start(make_spec(code))
        grandchild = int((await said(child, until))[0])
        os.kill(child.pid, signal.SIGKILL)
        return grandchild, await child.wait()

    grandchild, status = asyncio.run(scenario())
    assert not is_running(grandchild)
    assert status == -signal.SIGKILL


def test_without_process_descriptors_it_is_the_same(
    make_spec: MakeSpec, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an old kernel, or in a sandbox that forbids the call."""
    monkeypatch.delattr(os, "pidfd_open")
    code = GRANDCHILD.format(new_session=True) + STUBBORN + "time.sleep(1000)"

    async def scenario() -> tuple[int, int]:
        child = await start(make_spec(code))
        grandchild = next(int(line) for line in await said(child, until, 2) if line.isdigit())
        status, _ = await asyncio.gather(child.wait(), child.stop(grace_s=0.1))
        return grandchild, status

    grandchild, status = asyncio.run(scenario())
    assert not is_running(grandchild)
    assert status == -signal.SIGKILL


def test_a_look_at_the_status_also_ends_the_group(make_spec: MakeSpec, until: Until) -> None:
    code = GRANDCHILD.format(new_session=False) + "time.sleep(1000)"

    async def scenario() -> None:
        child = await start(make_spec(code))
        grandchild = int((await said(child, until))[0])
        assert child.returncode is None
        os.kill(child.pid, signal.SIGTERM)
        await until(lambda: child.returncode == -signal.SIGTERM, "the status")
        await until(lambda: not is_running(grandchild), "the end of the grandchild")

    asyncio.run(scenario())


def test_after_a_look_at_the_status_what_left_the_group_is_ended_all_the_same(
    make_spec: MakeSpec, until: Until
) -> None:
    code = GRANDCHILD.format(new_session=True) + "time.sleep(1000)"

    async def scenario() -> None:
        child = await start(make_spec(code))
        grandchild = int((await said(child, until))[0])
        os.kill(child.pid, signal.SIGTERM)
        await until(lambda: child.returncode == -signal.SIGTERM, "the status")
        assert await child.stop() == -signal.SIGTERM
        assert not is_running(grandchild)

    asyncio.run(scenario())


def test_a_cancelled_stop_kills(make_spec: MakeSpec, until: Until) -> None:
    async def scenario() -> int:
        child = await start(make_spec(STUBBORN + "time.sleep(1000)"))
        await said(child, until)
        stopping = asyncio.create_task(child.stop(grace_s=1000))
        await asyncio.sleep(0)
        stopping.cancel()
        return await child.wait()

    assert asyncio.run(scenario()) == -signal.SIGKILL


def test_a_stopped_child_is_not_signalled_again(make_spec: MakeSpec) -> None:
    async def scenario() -> tuple[int, int]:
        child = await start(make_spec("pass"))
        await child.wait()
        child.kill()  # its number may be another's by now
        return await child.stop(), await child.wait()

    assert asyncio.run(scenario()) == (0, 0)


def test_a_flood_in_the_log_stays_bounded_and_the_tail_is_the_end(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    code = """
import os
line = b"x" * 1000 + b"\\n"
for _ in range(64):
    os.write(1, line * 500)
print("the end")
"""
    log = tmp_path / "logs" / "sample.log"
    limit = 1024 * 1024

    async def scenario() -> tuple[str, ...]:
        child = await start(make_spec(code, log_path=log, max_log_bytes=limit))
        await child.wait()
        assert child.tail(1) == ("the end",)
        # What is too large when the next one starts is cut then.
        child = await start(make_spec("print('again')", log_path=log, max_log_bytes=limit))
        await child.wait()
        return child.tail(2)

    assert asyncio.run(scenario()) == ("again",)
    assert log.stat().st_size < limit
    assert log.with_name("sample.log.1").stat().st_size <= limit // 4


def test_a_running_log_is_cut(make_spec: MakeSpec, until: Until, tmp_path: Path) -> None:
    code = """
import os, time
for _ in range(100):
    os.write(1, b"y" * 999 + b"\\n")
time.sleep(1000)
"""
    log = tmp_path / "sample.log"

    async def scenario() -> None:
        child = await start(make_spec(code, log_path=log, max_log_bytes=64 * 1024))
        await until(log.with_name("sample.log.1").exists, "the log is cut")
        await child.stop()

    asyncio.run(scenario())
    assert log.stat().st_size < 64 * 1024


def test_a_flood_in_the_pipe_blocks_nobody(make_spec: MakeSpec, until: Until) -> None:
    async def scenario() -> int:
        child = await start(make_spec("while True: print('z' * 100000)"))
        await until(lambda: child.tail(1), "a line")
        status = await child.stop()
        assert all(len(line) <= 64 * 1024 for line in child.tail())
        return status

    assert asyncio.run(scenario()) == -signal.SIGTERM


def test_what_is_still_in_the_pipe_at_the_end_is_told() -> None:
    lines: list[str] = []

    async def scenario() -> None:
        reading, writing = os.pipe()
        output = PipeOutput(reading, asyncio.get_running_loop(), lines.append)
        os.write(writing, b"one\ntwo")
        output.close()  # while another process holds the writing end
        output.close()
        os.close(writing)

    asyncio.run(scenario())
    assert lines == ["one", "two"]


def test_a_listener_that_raises_does_not_block_the_child(make_spec: MakeSpec) -> None:
    told: list[object] = []

    def on_line(line: str) -> None:
        raise ValueError(line)

    async def scenario() -> int:
        handler = asyncio.get_running_loop().set_exception_handler
        handler(lambda _, context: told.append(str(context["exception"])))
        child = await start(make_spec("print('a'); print('b')", on_line=on_line))
        return await child.wait()

    assert asyncio.run(scenario()) == 0
    assert told == ["a", "b"]


def test_usage_counts_the_group(make_spec: MakeSpec, until: Until) -> None:
    work = "held = bytearray(b'1') * (40 << 20); print('up'); time.sleep(1000)"
    code = GRANDCHILD.format(new_session=False) + work

    async def scenario() -> None:
        child = await start(make_spec(code))
        await said(child, until, 2)
        usage = child.usage()
        assert usage is not None
        assert usage.processes == 2
        assert usage.rss_bytes > usage.peak_rss_bytes >= 40 << 20
        assert usage.read_call_bytes > 0
        await until(lambda: (now := child.usage()) is not None and now.cpu_s > 0, "CPU time")
        await child.stop(grace_s=0)
        assert child.usage() is None

    asyncio.run(scenario())


def test_nice_is_relative_to_ours(make_spec: MakeSpec) -> None:
    async def scenario() -> int:
        child = await start(make_spec(FOREVER, nice=5))
        found = os.getpriority(os.PRIO_PROCESS, child.pid)
        await child.stop(grace_s=0)
        return found

    assert asyncio.run(scenario()) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)


def test_a_run_that_takes_too_long_is_stopped(make_spec: MakeSpec) -> None:
    with pytest.raises(ProcessFailed, match=r"sample: still running after 0\.2 s") as caught:
        asyncio.run(run(make_spec(FOREVER), timeout_s=0.2))
    assert caught.value.code == "process_timeout"


def test_a_detached_child_lives_on_without_a_warning(make_spec: MakeSpec) -> None:
    async def scenario() -> int:
        child = await start(make_spec(FOREVER, lifeline=False))
        child.detach()
        return child.pid

    pid = asyncio.run(scenario())
    assert is_running(pid)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"argv": ("/no/such/program",)}, "program_not_found", "/no/such/program"),
        ({"cwd": Path("/no/such/folder")}, "program_not_found", "/no/such/folder is not there"),
        ({"argv": ("/dev/null",)}, "program_not_found", "cannot start /dev/null"),
        ({"log_path": Path("/dev/null/x.log")}, "process_log", "/dev/null/x.log"),
        ({"argv": ("true", "x" * (1 << 22))}, "process_spec", "too long"),
    ],
)
def test_what_cannot_start_is_named(
    make_spec: MakeSpec, fields: dict[str, object], code: str, words: str
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(FlexInferError, match=words) as caught:
        asyncio.run(start_only(make_spec("", **fields)))
    assert caught.value.code == code
    assert set(os.listdir("/proc/self/fd")) == before


async def start_only(spec: ProcessSpec) -> None:
    await start(spec)


@pytest.mark.parametrize(
    "fields",
    [
        {"argv": ()}, {"argv": ("a\0b",)}, {"environment": {"A=B": "c"}}, {"nice": -1},
        {"grace_s": -1.0}, {"max_log_bytes": 1},
        {"log_path": Path("/tmp/x"), "on_line": print},
    ],
)  # fmt: skip
def test_a_spec_that_makes_no_sense_is_refused(
    make_spec: MakeSpec, fields: dict[str, object]
) -> None:
    with pytest.raises(InvalidInput, match="process 'sample'"):
        make_spec("", **fields)


def test_a_hundred_children_leave_no_descriptor(make_spec: MakeSpec) -> None:
    async def scenario() -> tuple[int, int]:
        argv = {"argv": ("true",)}
        await run(make_spec("", **argv), timeout_s=20)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            await asyncio.gather(*(run(make_spec("", **argv), timeout_s=20) for _ in range(10)))
        return before, len(os.listdir("/proc/self/fd"))

    before, after = asyncio.run(scenario())
    assert after == before
