#!/usr/bin/env python3
"""Make `.venv` from the locks, with any Python: the first thing that `make up` and `make test` run.

    install.py run|dev      check this machine (under a second), then install what is missing
    install.py check        check only

Nothing is downloaded before the checks have passed. With everything in place it does nothing and needs no
network. It exits with what `flexinfer up` would: 2 for a bad home or a taken port, 1 for what the machine lacks, 130
for Ctrl-C. Standard library only, and old syntax: it must be able to say which Python it needs.
"""

import errno
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
OLDEST, NEWEST = (3, 11), (3, 14)
GIB = 1024**3
# Measured: environment 0.5 GiB, tool environments 0.3, the starter model's source, variant and
# work folder 0.5; the rest is room for logs and for pip's own temporary files.
DISK_BYTES = {"run": 2 * GIB, "dev": 3 * GIB, "check": 2 * GIB}
# Measured: 0.8 GiB for the processes at rest, 0.6 for the starter model's engine.
MEMORY_BYTES = 2 * GIB
PORTS = (("router", "port", 8080), ("admin listener", "admin_port", 8081))
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
LOCKS = {"run": "all", "dev": "dev"}  # the second holds the first


def main(arguments):
    kind = arguments[0] if arguments else "run"
    if kind not in DISK_BYTES or len(arguments) > 1:
        print(__doc__, file=sys.stderr)
        return BAD_INPUT
    problems = check(kind)
    if problems:
        for _, problem in problems:
            print("error: " + problem, file=sys.stderr)
        return max(code for code, _ in problems)
    if kind == "check":
        print("this machine has what FlexInfer needs")
        return 0
    if is_installed(kind) or (kind == "run" and is_installed("dev")):
        return 0
    try:
        install(kind)
    except subprocess.CalledProcessError as error:
        print("error: %s ended with %d" % (error.cmd[:6], error.returncode), file=sys.stderr)
        return FAILED
    with open(stamp_file(kind), "w") as file:
        file.write(fingerprint(kind))
    return 0


def is_installed(kind):
    return read(stamp_file(kind)) == fingerprint(kind)


def stamp_file(kind):
    return os.path.join(VENV, ".installed-" + kind)


def check(kind):
    """Return an exit code and a sentence for each thing that is missing: what is needed, what was found, what to do."""
    problems = []
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        needed = "3.11 to 3.14 needed; name one with `make PYTHON=/path/to/python3`"
        return [(FAILED, "Python %d.%d found, %s" % (version + (needed,)))]
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        advice = "on Debian and Ubuntu: apt install python3-venv"
        problems.append((FAILED, "Python has no module %r; %s" % (error.name, advice)))
    free = free_bytes(ROOT)
    need = DISK_BYTES[kind] // (4 if os.path.isdir(VENV) else 1)
    if free < need:
        words = "%s has %.1f GiB free, %.1f GiB needed" % (ROOT, free / GIB, need / GIB)
        problems.append((FAILED, words))
    if kind != "dev":
        problems += check_home() + check_memory()
        if not already_up():
            problems += check_ports()
    return problems


def home():
    named = os.environ.get("FLEXINFER_HOME", "").strip()
    if named:
        return os.path.abspath(os.path.expanduser(named))
    data = os.environ.get("XDG_DATA_HOME", "").strip()
    base = data if data.startswith("/") else os.path.expanduser("~/.local/share")
    return os.path.join(base, "flexinfer")


def check_home():
    place = home()
    existing = place
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        words = "is not a folder that you may write to; name another with FLEXINFER_HOME"
        return [(BAD_INPUT, "FLEXINFER_HOME %s: %s %s" % (place, existing, words))]
    free = free_bytes(existing)
    need = GIB if not os.path.isdir(os.path.join(place, "store", "blobs")) else GIB // 8
    if free < need:
        words = "FLEXINFER_HOME %s has %.2f GiB free, %.2f needed" % (place, free / GIB, need / GIB)
        return [(FAILED, words)]
    return []


def check_memory():
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return []  # not Linux: the engine says so itself if it does not fit
    if available < MEMORY_BYTES and not already_up():
        words = "%.1f GiB of memory free, %.1f needed" % (available / GIB, MEMORY_BYTES / GIB)
        return [(FAILED, words)]
    return []


def settings_files():
    """Return `[serve]` of the settings files, the working folder's above the home's; {} for bad ones."""
    import tomllib

    found = {}
    for folder in (home(), os.getcwd()):
        try:
            with open(os.path.join(folder, "flexinfer.toml"), "rb") as file:
                found.update(tomllib.load(file).get("serve", {}))
        except (OSError, ValueError, AttributeError):
            pass  # not there, or `flexinfer up` says what is wrong with it
    return found


def check_ports():
    problems = []
    written = settings_files()
    for name, key, default in PORTS:
        variable = "FLEXINFER_SERVE__" + key.upper()
        text = os.environ.get(variable, str(written.get(key, default)))
        if not text.isdigit() or int(text) == 0:
            continue  # `flexinfer up` reads the settings and says what is wrong with them
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", int(text)))
            except OSError as error:
                state = "cannot be used: %s" % error.strerror
                if error.errno == errno.EADDRINUSE:
                    state = "is taken by %s" % (holder_of(int(text)) or "another process")
                words = "port %s for the %s %s; choose another with %s"
                problems.append((BAD_INPUT, words % (text, name, state, variable)))
    return problems


def holder_of(port):
    """Return who listens on a port, as `flexinfer up` says it: `python (pid 123)`; empty: not to be seen.

    From /proc, so on Linux only; into other users' processes nobody but root can look.
    """
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in read("/proc/net/" + table).splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A":  # it listens
                sockets.add("socket:[%s]" % fields[9])
    for pid in filter(str.isdigit, os.listdir("/proc") if sockets else ()):
        folder = "/proc/%s/fd" % pid
        try:
            found = {os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)}
        except OSError:
            continue  # gone meanwhile, or another user's
        if found & sockets:
            return "%s (pid %s)" % (read("/proc/%s/comm" % pid).strip() or "a process", pid)
    return ""


def already_up():
    """Tell whether a `flexinfer up` holds this home: it names itself when it is started again."""
    import fcntl

    try:
        with open(os.path.join(home(), "run", "up.lock")) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
    except OSError:
        pass
    return False


def free_bytes(path):
    usage = os.statvfs(path)
    return usage.f_bavail * usage.f_frsize


def fingerprint(kind):
    digest = hashlib.sha256(sys.version.encode())
    for name in lock_files(kind) + ["pyproject.toml"]:
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    digest.update(ROOT.encode())
    return digest.hexdigest()


def lock_files(kind):
    return ["requirements/build.txt", "requirements/%s.txt" % LOCKS[kind]]


def install(kind):
    began = time.time()
    python = os.path.join(VENV, "bin", "python")
    if not works(python):
        shutil.rmtree(VENV, ignore_errors=True)
        print("making .venv with Python %s" % sys.version.split()[0], flush=True)
        show([sys.executable, "-m", "venv", VENV])
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    locks = []
    for name in lock_files(kind):
        locks += ["-r", os.path.join(ROOT, name)]
    total = sum(count_packages(os.path.join(ROOT, name)) for name in lock_files(kind))
    # A lock names everything, so nothing is left to resolve.
    show(
        pip + ["install", "--require-hashes", "--no-deps", "--only-binary", ":all:"] + locks, total
    )
    # The build backend is in the lock: no isolated environment, so no network and no unpinned build.
    show(pip + ["install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT])
    print("installed in %.0f s" % (time.time() - began), flush=True)


def works(python):
    """Tell whether .venv is whole and of this very Python."""
    code = "import sys, pip; print(sys.version)"
    try:
        found = subprocess.run(
            [python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return False
    return found.returncode == 0 and found.stdout.decode().strip() == sys.version.strip()


def count_packages(lock):
    with open(lock) as file:
        return sum(1 for line in file if line[:1].isalnum())


def show(command, total=0):
    """Run a program; of pip show one line that counts. Keep the rest for when it fails."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    ) as process:
        try:
            lines = shown(process.stdout, total)
        except BaseException:
            process.kill()  # Ctrl-C reached it too, and what it says of that is not kept
            raise
    if process.returncode != 0:
        print("\n".join(lines[-40:]), file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command)


def shown(output, total):
    """Show what there is to show of a program's output, until its end; return its last lines."""
    terminal = sys.stdout.isatty()
    lines, seen = [], 0
    for raw in output:
        line = raw.decode("utf-8", "replace").rstrip()
        lines = lines[-200:] + [line]
        seen += package_of(line) != ""
        text = progress_of(line, seen, total)
        if text and terminal:
            print(
                "\r\033[K" + clipped(text, shutil.get_terminal_size().columns), end="", flush=True
            )
        # In a log ten lines are enough: at the first package, and at each tenth of them.
        elif text and (
            not package_of(line) or seen % max(1, total // 10) == 1 % max(1, total // 10)
        ):
            print(text, flush=True)
    if terminal:
        print("\r\033[K", end="", flush=True)
    return lines


def package_of(line):
    """Return the requirement that a line of pip begins with: `httpx==0.28.1`; empty for other lines."""
    for start in ("Collecting ", "Requirement already satisfied: "):
        if line.startswith(start):
            return (line[len(start) :].split() or [""])[0]
    return ""


def progress_of(line, seen, total):
    """Return what to show for a line of pip; empty: nothing."""
    if package_of(line):
        return "installing: %d of up to %d, %s" % (seen, total, package_of(line))
    if line.startswith("Installing collected packages: "):
        return "unpacking %d packages; this takes a minute" % (line.count(",") + 1)
    return ""


def clipped(text, columns):
    """Return *text* so short that the terminal does not go on in a second line, which could not be wiped."""
    room = max(columns - 1, 10)
    return text if len(text) <= room else text[: room - 3] + "..."


def read(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        # Behind the line that counts, and the terminal's ^C.
        print("\n" * sys.stdout.isatty() + "interrupted; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
