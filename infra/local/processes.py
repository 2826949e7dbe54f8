"""Server processes that outlive the command that started them.

A later command recognises such a process, and stops it together with all processes that it started.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROUNDS = 5  # how often processes are killed that a server started while it was being stopped


@dataclass(frozen=True)
class Server:
    """A started process. `began`, its start in seconds since 1970, distinguishes it from a later one with its pid."""

    name: str
    pid: int
    began: float

    def alive(self) -> bool:
        """Whether this process (and not a later one with its pid) still runs."""
        return self._find() is not None

    def _find(self) -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if self._is(process) and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def _is(self, process: psutil.Process) -> bool:
        return bool(abs(process.create_time() - self.began) < 1)

    def stop(self, *, kill: bool = False, wait_s: float = 20.0) -> bool:
        """Stop the process and all that it started; returns whether anything ran.

        SIGTERM comes first and SIGKILL after `wait_s` seconds; with `kill` SIGKILL comes at once, as in a crash.
        """
        leader, members = self._find(), self._members()
        if not members:
            return False
        if leader is not None and not kill:
            leader.send_signal(signal.SIGTERM)
            psutil.wait_procs(members, timeout=wait_s)
        for _ in range(ROUNDS):  # processes may start others while they are being stopped
            if not (members := self._members()):
                break
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(members, timeout=10)
        return True

    def _members(self) -> list[psutil.Process]:
        """All processes of the session that it leads, and their children, which may lead sessions of their own."""
        with suppress(psutil.NoSuchProcess):
            if not self._is(psutil.Process(self.pid)):
                return []  # another process has this pid now
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
        return list(found.values())


def spawn(name: str, command: Sequence[str], *, folder: Path, env: Mapping[str, str], without: str = "") -> Server:
    """Start `command` in `folder` and write its output to NAME.log there.

    `env` is added to our own variables, apart from those whose names begin with `without` (if given).
    """
    own = {k: v for k, v in os.environ.items() if not without or not k.startswith(without)}
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env={**own, **env}, stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, start_new_session=True)
    return Server(name, process.pid, psutil.Process(process.pid).create_time())


def last_lines(folder: Path, name: str, count: int = 3) -> str:
    """The last `count` lines of a server's log, joined into one line."""
    path = folder / f"{name}.log"
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return " | ".join(line.strip() for line in lines[-count:])


def free_port() -> int:
    """A port that is free now, below the range from which the system picks client ports."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different ports, each as `free_port` gives one."""
    with ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            sock = held.enter_context(socket.socket())
            with suppress(OSError):
                sock.bind(("127.0.0.1", 10_000 + secrets.randbelow(20_000)))
                found.append(sock.getsockname()[1])
        return found
