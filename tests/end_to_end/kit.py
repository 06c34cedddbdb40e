"""What a bad situation needs: a folder, commands that run in it, and looks at what they left."""

from __future__ import annotations

import hashlib
import json
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from os import kill
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")
PATIENCE = 300.0

RUN = (
    *("run", "mixture-lsd", "--size", "tiny", "--batch", "64", "--steps", "60", "--save-every", "20"),
    *("--keep-last", "9", "--grid-every", "0", "--skip-evaluation", "--quiet", "--out", "run"),
)
"""The run that most situations befall; it takes a second."""

Fault = tuple[str | int | float, ...]


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    args: tuple[str, ...]
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it said on standard error."""
        return [line for line in self.err.splitlines() if line.strip()]

    def said(self, status: int, *patterns: str) -> Ran:
        """The same; an AssertionError unless it ended so and said one line for each pattern."""
        told = (
            f"{' '.join(self.args)}\nstatus {self.status}, expected {status}\n{self.err}\n{self.out[-2000:]}"
        )
        assert self.status == status, told
        assert "Traceback" not in self.err + self.out, told
        assert len(self.lines) == len(patterns), told
        for line, pattern in zip(self.lines, patterns, strict=True):
            assert re.search(pattern, line), f"expected {pattern!r}\n{told}"
            assert len(line) < 1000, told
        return self


@dataclass(eq=False)
class Started:
    """A command under way."""

    kit: Kit
    pid: int
    args: tuple[str, ...]
    out: Path
    err: Path

    def wait(self) -> Ran:
        """Its end."""
        status = self.kit.ask({"wait": self.pid}, self.pid)
        texts = (p.read_text(errors="replace") if p.exists() else "" for p in (self.out, self.err))
        return Ran(self.args, status, *texts)


@dataclass(eq=False)
class Kit:
    """A folder of its own for each situation, and the server that starts commands."""

    root: Path
    at: Path = field(init=False)
    _count: int = 0
    _server: subprocess.Popen[str] | None = None
    _made: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o777)
        self.fresh()

    def fresh(self) -> Path:
        """A new folder, in which commands run from now on."""
        self._count += 1
        self.at = self.root / f"{self._count:03}"
        self.at.mkdir()
        self.at.chmod(0o777)
        return self.at

    def ask(self, asked: Mapping[str, object], pid: int | None = None) -> int:
        """A word with the server."""
        if self._server is None:
            command = [sys.executable, str(SERVER)]
            self._server = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        server = self._server
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(asked) + "\n")
        if not select.select([server.stdout], [], [], PATIENCE)[0]:
            if pid is not None:
                kill(pid, signal.SIGKILL)
            raise AssertionError(f"no end within {PATIENCE:.0f} s: {asked}")
        return int(server.stdout.readline())

    def close(self) -> None:
        """Let the server go."""
        if self._server is not None:
            assert self._server.stdin is not None and self._server.stdout is not None
            self._server.stdin.close()
            self._server.stdout.close()
            self._server.wait(PATIENCE)

    def start(
        self,
        *args: str,
        faults: Sequence[Fault] = (),
        limits: Mapping[str, int] | None = None,
        uid: int | None = None,
        env: Mapping[str, str] | None = None,
        terminal: str | None = None,
        out: str | None = None,
    ) -> Started:
        """Begin a command in the present folder."""
        self._count += 1
        said = self.root / f"{self._count:03}.out", self.root / f"{self._count:03}.err"
        for path in said:
            path.touch()
            path.chmod(0o666)
        asked = {
            "args": args,
            "folder": str(self.at),
            "out": None if terminal else out or str(said[0]),
            "err": None if terminal else str(said[1]),
            "env": {"COLUMNS": "140", "CUDA_VISIBLE_DEVICES": "", **(env or {})},
            "limits": limits or {},
            "uid": uid,
            "faults": faults,
            "terminal": terminal,
        }
        return Started(self, self.ask(asked), args, *said)

    def saltus(self, *args: str, **options: object) -> Ran:
        """Run a command to its end."""
        return self.start(*args, **options).wait()  # type: ignore[arg-type]

    def made(self, name: str, make: Callable[[], None]) -> None:
        """Put what ``make`` leaves in the present folder there; it is made once."""
        if name not in self._made:
            here, self.at = self.at, self.root / name
            self.at.mkdir()
            self.at.chmod(0o777)
            make()
            self._made[name], self.at = self.at, here
        shutil.copytree(self._made[name], self.at, dirs_exist_ok=True, symlinks=True)

    def half(self) -> None:
        """A run that was ended after 40 of its 60 steps, with checkpoints after 20 and 40."""
        self.made(
            "half",
            lambda: (
                self.saltus(*RUN, faults=[("signal_at", 40, "SIGTERM")]).said(143, "stopped after step 40")
                and None
            ),
        )

    def whole(self) -> None:
        """A finished run."""
        self.made("whole", lambda: self.saltus(*RUN).said(0) and None)

    def hashes(self, folder: str = "run") -> dict[str, str]:
        """The content of every file."""
        return {
            str(path.relative_to(self.at)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((self.at / folder).rglob("*"))
            if path.is_file()
        }

    def undisturbed(self) -> None:
        """An AssertionError unless the run ended with the weights of one that nothing disturbed."""
        mine = (self.at / "run" / "model.safetensors").read_bytes()
        here = self.fresh()
        self.whole()
        assert mine == (here / "run" / "model.safetensors").read_bytes(), "other weights"

    def resumed(self, *more: str, **options: object) -> str:
        """Go on with the run; an AssertionError unless it ends with the weights of the undisturbed one."""
        ran = self.saltus(*RUN, *more, **options)
        assert ran.status == 0, ran.err
        self.undisturbed()
        return (
            "nothing: the same command went on and ended with the weights of an undisturbed run, bit for bit"
        )


def tolerant_remove(path: Path) -> None:
    """Remove a folder with whatever was done to it."""
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["chattr", "-R", "-i", str(path)], capture_output=True, check=False)
    shutil.rmtree(path, ignore_errors=True)
