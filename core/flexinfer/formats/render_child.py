"""The program that renders one chat template, in a process that can be killed. Run by path.

It gets a job on standard input and answers on standard output, both JSON; its arguments are the
folders to import Jinja from (it runs without site packages, so imports are inside functions).
Before it looks at the template it gives up files, new memory and time:

1. no file can be opened or written, no core is dumped;
2. the address space may grow by `memory_bytes`;
3. after `cpu_s` of processor time the kernel ends the process. Time is counted in processor time
   so that a loaded machine refuses the same templates as an idle one.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment


def environment() -> ImmutableSandboxedEnvironment:
    """Return the environment that chat templates are written for, as the common loaders set it."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}` marks assistant tokens for training."""

        tags = {"generation"}  # noqa: RUF012  the base class declares it so

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    for name in ("lipsum", "cycler", "joiner"):
        del made.globals[name]
    made.filters["tojson"] = _to_json
    made.filters["from_json"] = json.loads
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which a prompt must not have.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(moment: float) -> Any:
    import time

    return lambda layout: time.strftime(layout, time.gmtime(moment))


def _limit(*, memory_bytes: int, cpu_s: float) -> None:
    import resource
    import signal

    with open("/proc/self/statm", encoding="ascii") as statm:
        address_space = int(statm.read().split()[0]) * resource.getpagesize()
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_AS, address_space + memory_bytes),
    ):
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def _render(job: dict[str, Any]) -> dict[str, Any]:
    """Return `{"text"}`, `{"refused"}` (the template raised) or `{"error"}` for one job."""
    from jinja2.exceptions import TemplateError

    class Refused(Exception):
        pass

    def raise_exception(message: object = "") -> None:
        raise Refused(str(message))

    made = environment()
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = _strftime_now(job["moment"])
    size = 0
    parts = []
    try:
        for part in made.from_string(job["source"]).generate(job["variables"]):
            size += len(part)
            if size > job["output_limit"]:
                return {"error": f"writes more than {job['output_limit']} characters"}
            parts.append(part)
        return {"text": "".join(parts)}
    except Refused as refused:
        return {"refused": str(refused)[:500]}
    except MemoryError:
        parts.clear()
        return {"error": f"needs more than {job['memory_bytes']} bytes of memory"}
    except RecursionError:
        return {"error": "recurses too deeply"}
    except TemplateError as error:
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    except Exception as error:  # the template's own fault: a bad index, a missing key, a bad type
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}


def _prepare() -> dict[str, Any]:
    """Read the job, import what a render needs, then give up what it must not have."""
    import jinja2.debug  # noqa: F401  Jinja imports it when a render fails: too late by then

    job: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    environment().from_string("{{ [1.5, 'a'] | tojson }}").render()
    _strftime_now(0.0)("%Y")
    _limit(memory_bytes=job["memory_bytes"], cpu_s=job["cpu_s"])
    return job


def main() -> int:
    sys.path[:0] = sys.argv[1:]
    try:
        job = _prepare()
    except Exception as error:  # told apart from what the template does: the caller reports it
        answer = {"sandbox": f"{type(error).__name__}: {error}"}
    else:
        answer = _render(job)
    sys.stdout.buffer.write(json.dumps(answer).encode("ascii"))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
