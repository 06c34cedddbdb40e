"""The loop of docs/resume.md: told to end, killed and started again, it has the weights of one left alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from saltus.training import Checkpoints

PAGE = Path(__file__).resolve().parents[2] / "docs" / "resume.md"
CALL = "        run.after(step)"
TOLD, KILLED = 70, 130
END = """\
        if step.index + 1 == {step}:
            import os, signal
            run.checkpoints.wait()
            os.kill(os.getpid(), signal.{signal})
"""


def program() -> str:
    """The block of the page that trains."""
    found = [
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if CALL in block
    ]
    assert len(found) == 1 and found[0].count(CALL) == 1
    return str(found[0])


def ending(step: int, signal: str) -> str:
    """The program, which gets a signal in that step."""
    return program().replace(CALL, END.format(step=step, signal=signal) + CALL)


def ran(code: str, place: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=300, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_the_loop_of_the_page_survives(tmp_path: Path) -> None:
    alone, ended = tmp_path / "alone", tmp_path / "ended"
    alone.mkdir()
    ended.mkdir()
    assert ran(program(), alone) == (0, "0 steps are done\n")
    checkpoints = Checkpoints(ended / "runs" / "own" / "checkpoints")
    assert ran(ending(TOLD, "SIGTERM"), ended) == (143, "0 steps are done\n")
    assert checkpoints.steps()[-1] == TOLD
    assert ran(ending(KILLED, "SIGKILL"), ended)[0] == -9
    assert checkpoints.steps()[-1] == 100
    assert not (ended / "runs" / "own" / "weights.safetensors").exists()
    assert ran(program(), ended) == (0, "100 steps are done\n")
    weights = [place / "runs" / "own" / "weights.safetensors" for place in (alone, ended)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
