"""The ``saltus`` command: names of commands, and what a mistake or an interruption looks like.

Every command is a typed function elsewhere whose signature is its command line; this file knows only
where they are, so that ``saltus --help`` answers without importing PyTorch.

Exit status: 0 done; 1 a check failed; 2 a mistake in the command line, the data or a file, or a fault
that nobody expected, told in one line; 130 interrupted, 143 terminated, 129 the terminal was closed.

>>> main(["mehtods"])
2
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

HELP, VERSION, DEBUG = ("-h", "--help", "help"), ("-V", "--version"), "--debug"

__all__ = ["COMMANDS", "Command", "main"]


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: as typed.
        summary: what it does, in a line.
        module: where its function is.
        function: its name there.
        nested: its first word chooses the signature of the rest, so it parses on its own.
    """

    name: str
    summary: str
    module: str
    function: str
    nested: bool = False

    def load(self) -> Callable[..., Any]:
        """The function itself; importing it may import PyTorch."""
        return vars(importlib.import_module(self.module))[self.function]  # type: ignore[no-any-return]


COMMANDS = (
    Command("demo", "learn one-step digits from real data, here and now", "saltus.recipes.demo", "demo"),
    Command("run", "train: saltus run RECIPE [--options]", "saltus.recipes.run", "run", True),
    Command("distill", "train a student: saltus distill TEACHER", "saltus.recipes.distill", "distill", True),
    Command("encode", "a data set of pictures to latents, once", "saltus.recipes.encode", "encode"),
    Command("estimate", "memory and time of a run", "saltus.recipes.estimate", "estimate", True),
    Command("sample", "draw samples from a run", "saltus.recipes.finished", "sample"),
    Command("app", "look at samples of a run in the browser", "saltus.recipes.app", "app"),
    Command("evaluate", "measure a finished run against the truth", "saltus.recipes.finished", "evaluate"),
    Command("ema", "form an average of the weights of any length", "saltus.recipes.exported", "ema"),
    Command("export", "a trained map for diffusers, torch.export, ONNX", "saltus.recipes.exported", "export"),
    Command("compare", "one table and one plot for several runs", "saltus.recipes.compare", "compare"),
    Command("report", "draw a run as one page", "saltus.recipes.report", "report"),
    Command("recipes", "list what can be trained", "saltus.recipes.lists", "recipes"),
    Command("methods", "list every method with its card", "saltus.recipes.lists", "methods"),
    Command("bench", "hold methods against exact maps, and digits", "saltus.recipes.bench", "bench", True),
    Command("doctor", "check this machine and the exact identities", "saltus.recipes.doctor", "doctor"),
)

PAGE = """\
usage: saltus COMMAND [--options]

Flow maps: networks that jump along the trajectories of a flow model, so that
one to a few evaluations replace dozens.

commands:
{commands}

examples:
  saltus demo                     a one-step model of digits learns, 4 minutes
  saltus run checkerboard-lsd     self-distillation on the checkerboard
  saltus run mixture --method mean_flow --steps 500
  saltus sample runs/digits-lsd --steps 1 4 --n 64 --label 3
  saltus distill runs/digits-flow_matching --method freeflow
  saltus compare runs/mixture-lsd runs/mixture-mean_flow

saltus COMMAND --help shows a command's options.
SALTUS_DEBUG=1, or --debug, shows tracebacks.
"""


def overview() -> str:
    """The page that ``saltus --help`` prints."""
    return PAGE.format(commands="\n".join(f"  {c.name:<10} {c.summary}" for c in COMMANDS))


def _find(name: str) -> Command:
    for command in COMMANDS:
        if command.name == name:
            return command
    if name in ("resume", "continue"):
        again = "a run goes on when its saltus run command is given again"
        raise ValueError(f"unknown command {name!r}; {again}")
    names = [c.name for c in COMMANDS]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names
    raise ValueError(f"unknown command {name!r}; near matches: {', '.join(near)}")


def _dispatch(args: Sequence[str]) -> int:
    if not args or args[0] in HELP:
        sys.stdout.write(overview())
        return 0
    if args[0] in VERSION:
        from saltus import __version__

        sys.stdout.write(f"saltus {__version__}\n")
        return 0
    command = _find(args[0])
    function = command.load()
    rest = list(args[1:])
    if command.nested:
        return int(function(rest) or 0)
    from saltus.recipes.options import parse

    return int(parse(function, f"saltus {command.name}", rest) or 0)


def one_line(error: BaseException, most: int = 2000) -> str:
    """An error's message with its line breaks folded away, cut after ``most`` characters."""
    text = " ".join(str(error).split())
    return text[:most] or type(error).__name__


def _ended(number: int, frame: object) -> NoReturn:
    with suppress(OSError):  # the terminal may be what has ended
        sys.stderr.write("\nsaltus: terminated\n")
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module's docstring for the exit status."""
    if argv is None:  # the process is ours: a request to end it cleans up like an interruption
        signal.signal(signal.SIGTERM, _ended)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, _ended)
    args = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG in args or bool(os.environ.get("SALTUS_DEBUG"))
    args = [a for a in args if a != DEBUG]
    # PyTorch's threads spin while they wait for each other, unless told otherwise before it is loaded. With
    # another process on a core, that made training on two cores several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _dispatch(args)
    except SystemExit as stop:  # the parser has already said what was wrong
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        sys.stderr.write("\nsaltus: interrupted\n")
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:  # ImportError: an extra is not installed
        if debug:
            raise
        sys.stderr.write(f"saltus: error: {one_line(error)}\n")
        return 2
    except Exception as error:
        if debug:
            raise
        what = f"unexpected {type(error).__name__}: {one_line(error, 200)}; --debug shows where"
        sys.stderr.write(f"saltus: error: {what}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
