"""A build that nobody wants any more makes room for the next."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from structlog.testing import capture_logs

from flexinfer.places import Home
from flexinfer_operator.plan.view import ModelView, Snapshot
from flexinfer_operator.testing.world import LocalWorld, write_file


def view_of(picture: Snapshot, name: str) -> ModelView | None:
    return next((view for view in picture.models if view.name == name), None)


def message_of(picture: Snapshot, name: str) -> str:
    view = view_of(picture, name)
    if view is None or view.status is None:
        return ""
    return next((c.message for c in view.status.conditions if c.type == "Cached"), "")


def recorder(home: Home) -> tuple[str, Path]:
    """Return a program that notes the source it builds; it takes for ever over those of `slow`."""
    begun = home.root / "begun"
    lines = (
        "import sys, time",
        f"open({str(begun)!r}, 'a').write(sys.argv[1] + chr(10))",
        "time.sleep(600 if 'slow' in sys.argv[1] else 0)",
    )
    return "\n".join(lines), begun


def test_the_build_of_a_model_that_is_deleted_ends_and_the_next_begins(home: Home) -> None:
    program, begun = recorder(home)
    slow, right, late = (f"file://{home.work}/{name}.gguf" for name in ("slow", "right", "late"))

    def has_begun(source: str) -> bool:
        return begun.exists() and source in begun.read_text().split()

    async def scene() -> None:
        build = lambda source: (sys.executable, "-c", program, source)  # noqa: E731
        async with LocalWorld(home, loop=True, build=build) as world:
            write_file(home, "slow", source=slow)
            await world.until("it is built", lambda _: has_begun(slow))
            for name, source in (("right", right), ("late", late)):
                write_file(home, name, source=source)
                await world.until(
                    f"{name} waits and says for what",
                    lambda p, n=name: f"it is built after {slow}" in message_of(p, n),  # type: ignore[misc]
                )
            (home.models / "late.yaml").unlink()
            await world.until("late is gone", lambda p: view_of(p, "late") is None)
            assert not has_begun(right)
            (home.models / "slow.yaml").unlink()
            await world.until("its turn", lambda _: has_begun(right))
        assert not has_begun(late)

    with capture_logs() as logs:
        asyncio.run(scene())
    dropped = [one["source"] for one in logs if one["event"] == "build_dropped"]
    assert dropped[:2] == [late, slow]


def test_a_source_that_is_wanted_again_is_built_again(home: Home) -> None:
    program, begun = recorder(home)
    source = f"file://{home.work}/slow.gguf"

    def times() -> int:
        return begun.read_text().split().count(source) if begun.exists() else 0

    async def scene() -> None:
        build = lambda source: (sys.executable, "-c", program, source)  # noqa: E731
        async with LocalWorld(home, loop=True, build=build) as world:
            write_file(home, "slow", source=source)
            await world.until("it is built", lambda _: times() == 1)
            (home.models / "slow.yaml").unlink()
            await world.until("it is gone", lambda p: view_of(p, "slow") is None)
            write_file(home, "slow", source=source)
            picture = await world.until("a new build", lambda _: times() == 2)
            view = view_of(picture, "slow")
            assert view is not None
            assert view.builds.failures == ()

    asyncio.run(scene())
