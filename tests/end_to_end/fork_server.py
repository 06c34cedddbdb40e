"""Runs ``saltus`` commands, each in a process of its own, forked from this one, which has imported PyTorch.

A line of JSON on standard input asks for a command; the answer is its process id, and later its status:

    {"args": [...], "folder": path, "out": path, "err": path, "env": {...}, "limits": {...}, "uid": n,
     "faults": [[name, ...], ...], "terminal": path}

``limits`` are those of ``resource.setrlimit``; AS counts from what is held already. ``faults`` names
functions of ``broken.py``: what is broken in that process before the command begins.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import broken

from saltus import cli
from saltus.recipes import execute, resolve, run  # noqa: F401 - what a command imports, before the fork


def _child(asked: dict[str, Any]) -> None:
    """Become the command."""
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.update(asked["env"])
    if asked.get("terminal"):
        broken.take_terminal(asked["terminal"])
    for stream, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
        if path is not None:
            handle = os.open(path, (os.O_WRONLY if stream else os.O_RDONLY) | os.O_APPEND)
            os.dup2(handle, stream)
            os.close(handle)
    for name, most in asked["limits"].items():
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most += held if name == "AS" else 0
        resource.setrlimit(vars(resource)[f"RLIMIT_{name}"], (most, most))
    if asked["uid"] is not None:
        os.setgroups([])
        os.setgid(asked["uid"])
        os.setuid(asked["uid"])
    for name, *given in asked["faults"]:
        vars(broken)[name](*given)
    sys.argv = ["saltus", *asked["args"]]
    sys.exit(cli.main())


def serve() -> None:
    """Answer requests until standard input ends; a child leaves by SystemExit."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for whoever started this
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
            continue
        child = os.fork()
        if child == 0:
            answers.close()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, and all that it starts
            _child(asked)
        answers.write(f"{child}\n")


if __name__ == "__main__":
    serve()
