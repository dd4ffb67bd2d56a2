"""A guest kernel for one command, with this machine's files as its root, or those of another release of Debian.

The guest talks to us through a shared folder only: `command` goes in; `output`, which is streamed, `code`, and
files that are to be kept come out. The console is of use only when the guest dies without a code. What boots it
is a list of words: see microvm.py and usermode.py.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pty
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Self

Boot = Callable[[pathlib.Path], list[str]]
"""Given the folder that guest and host share, the words of the program that boots the guest."""

REPO = pathlib.Path(__file__).resolve().parents[2]
CACHE = REPO / ".cache/vm"
GUEST_INIT = pathlib.Path(__file__).with_name("guest-init")
VENV_BIN = REPO / ".venv/bin"
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 10
CONSOLE_SECONDS = 10
PASSED_ON = (
    "IPVSPROXY_",
    "KUBE_APISERVER",
    "ETCD",
    "PYTEST_",
    "PYTHON",
    "HYPOTHESIS_",
    "HISTORIES",
    "STEPS",
    "SOAK_",
    "TERM",
    "COLUMNS",
    "LANG",
    "NO_COLOR",
)


def wanted_kernel() -> str | None:
    """What IPVSPROXY_KERNEL names.

    A suite of Debian with its newest kernel (`trixie`, `trixie-backports`), `backports` for that of this release,
    or, with a slash, the path of a kernel.
    """
    return os.environ.get("IPVSPROXY_KERNEL") or None


def userland() -> str | None:
    """The suite of Debian that IPVSPROXY_USERLAND names: a guest then has its files in place of this machine's."""
    return os.environ.get("IPVSPROXY_USERLAND") or None


def prepare_userland() -> None:
    """Make the files of the release that is asked for; some minutes, once."""
    if suite := userland():
        subprocess.run([REPO / "tools/userland", suite], check=True)


class Guest:
    """One booted guest; leaving the context kills it, whatever state it is in.

    What boots it gets a pseudo-terminal of its own: virtme-ng prints nothing and hangs without one, and losing it
    ends the guest if we are killed.
    """

    def __init__(self, command: list[str], boot: Boot) -> None:
        CACHE.mkdir(parents=True, exist_ok=True)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
        self.console = self.folder / "console"
        self.kept = self.folder / "kept"
        self.kept.mkdir()
        self._write_command(command)
        self._argv = boot(self.folder)
        self._offset = 0
        self._next_line = PROGRESS_SECONDS

    def _write_command(self, command: list[str]) -> None:
        env = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        env["PATH"] = f"{VENV_BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        env["HOME"] = "/root"
        env["IPVSPROXY_KEPT"] = str(self.kept)
        exports = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
        lines = [*exports, f"cd {shlex.quote(os.getcwd())}", f"exec {shlex.join(command)}"]  # noqa: PTH109
        (self.folder / "command").write_text("\n".join(lines) + "\n")
        if suite := userland():
            (self.folder / "userland").write_text(f"{REPO}/.cache/userland-{suite}/root\n{REPO}\n")
        # struct rand_pool_info of RNDADDENTROPY (linux/random.h): bits, bytes, and these.
        (self.folder / "seed").write_bytes(struct.pack("=ii", 512, 64) + os.urandom(64))

    def __enter__(self) -> Self:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.environ["PATH"] = f"{VENV_BIN}:{os.environ['PATH']}:/usr/sbin:/sbin"
            os.execvp(self._argv[0], self._argv)  # noqa: S606
        self._recorder = threading.Thread(target=self._record_console, daemon=True)
        self._recorder.start()
        return self

    def _record_console(self) -> None:
        """Record until no process of the guest is left.

        Nobody else closes the terminal: its number would soon be another file's, which this would then read.
        """
        with (
            os.fdopen(self._terminal, "rb", buffering=0) as terminal,
            contextlib.suppress(OSError),
            self.console.open("wb") as log,
        ):
            while chunk := terminal.read(65536):
                log.write(chunk)
                log.flush()

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._recorder.join(CONSOLE_SECONDS)  # its file is in the folder
        shutil.rmtree(self.folder, ignore_errors=True)

    def stream(self) -> None:
        """Copy what the command has written since the last call to our standard output."""
        with contextlib.suppress(FileNotFoundError), (self.folder / "output").open("rb") as output:
            output.seek(self._offset)
            news = output.read()
            self._offset += len(news)
            sys.stdout.buffer.write(news)
            sys.stdout.flush()

    def exit_code(self) -> int | None:
        """The command's exit code once the guest has written it."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.folder / "code").read_text())
        return None

    def is_running(self) -> bool:
        try:
            return os.waitpid(self._pid, os.WNOHANG) == (0, 0)
        except ChildProcessError:
            return False

    def wait(self, timeout: float) -> int | None:
        """Stream until there is an exit code; None when the guest died or took too long."""
        started = time.monotonic()
        code = None
        while code is None and (elapsed := time.monotonic() - started) < timeout and self.is_running():
            time.sleep(POLL_SECONDS)
            self.stream()
            self._say_that_it_boots(elapsed)
            code = self.exit_code()
        code = self.exit_code()  # the guest may have ended between two looks
        self.stream()
        return code

    def _say_that_it_boots(self, elapsed: float) -> None:
        """One line every ten seconds until the command begins."""
        if elapsed >= self._next_line and not (self.folder / "output").exists():
            print(f"the guest is booting: {elapsed:.0f} s", file=sys.stderr, flush=True)
            self._next_line += PROGRESS_SECONDS

    def hand_over(self) -> None:
        """Put what the command has left below IPVSPROXY_KEPT where it would be, had it run here."""
        shutil.copytree(self.kept, ".", dirs_exist_ok=True)

    def last_output(self) -> str:
        """The end of what the guest said before the command began, and of its console.

        Of a guest that has ended it is all that the guest wrote: the thread that records the console may be late.
        """
        if not self.is_running():
            self._recorder.join(CONSOLE_SECONDS)
        texts = [
            path.read_text(errors="replace") for path in (self.console, self.folder / "boot") if path.exists()
        ]
        return "\n".join(text[-4000:] for text in texts)


def compile_sources() -> None:
    """Compile on the host what the guest would otherwise compile, and forget, on every run."""
    folders = [str(REPO / name) for name in ("ipvsproxy", "nft", "tests")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *folders], stdout=subprocess.DEVNULL, check=False)


def run(command: list[str], boot: Boot, timeout: float) -> int:
    """Boot, run the command, and return its exit code; 124 on a timeout, 125 when the guest died."""
    compile_sources()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    with Guest(command, boot) as guest:
        code = guest.wait(timeout)
        guest.hand_over()
        if code is not None:
            return code
        if time.monotonic() - started >= timeout:
            print(f"killed after {timeout:.0f} s", file=sys.stderr)
            return 124
        print(f"the guest died. Its last output:\n{guest.last_output()}", file=sys.stderr)
    return 125
