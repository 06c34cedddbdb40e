"""A headless Chromium that a test drives through a pair of pipes, by its own protocol and nothing else."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Chromium", "found"]

SECONDS = 20.0


def found() -> str | None:
    """Where the browser is, if it is."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
    return next((path for name in names if (path := shutil.which(name))), None)


class Chromium:
    """One browser with one page.

    ``complaints`` gathers what the page's scripts threw, and what the console calls an error; ``requests``
    the addresses that it asked for.
    """

    def __init__(self, path: str) -> None:
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        said, self._write = os.pipe()
        self._read, answer = os.pipe()

        def ends() -> None:  # the browser listens on descriptor 3 and answers on 4
            a, b = os.dup(said), os.dup(answer)
            os.dup2(a, 3)
            os.dup2(b, 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        flags += ["--disable-extensions", "--disable-background-networking", "--disable-dev-shm-usage"]
        self._process = subprocess.Popen(
            [path, *flags, "--remote-debugging-pipe", f"--user-data-dir={self._home.name}", "about:blank"],
            preexec_fn=ends,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(said)
        os.close(answer)
        self._count, self._buffer, self._session = 0, b"", ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = next(
            t for t in self("Target.getTargets", browser=True)["targetInfos"] if t["type"] == "page"
        )
        opened = self("Target.attachToTarget", browser=True, targetId=target["targetId"], flatten=True)
        self._session = opened["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._read)
        os.close(self._write)
        self._home.cleanup()

    def __call__(self, method: str, browser: bool = False, **params: object) -> dict[str, Any]:
        """Ask, and wait for the answer; what else arrives is looked through for complaints."""
        self._count += 1
        asked: dict[str, object] = {"id": self._count, "method": method, "params": params}
        if not browser:
            asked["sessionId"] = self._session
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"chromium: expected an answer within {SECONDS:g} s, got none")
            self._buffer += os.read(self._read, 1 << 20)
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        event, params = message.get("method"), message.get("params", {})
        if event == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        if event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(str(params["entry"]))
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message

    def open(self, page: Path | str, width: int, dark: bool = False, height: int = 900) -> None:
        """Show a file, or an address, in a window of this width, and wait until it is there."""
        phone = width < 600
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        end = time.monotonic() + SECONDS
        while self.tell("document.readyState") != "complete" or "about:" in str(self.tell("location.href")):
            if time.monotonic() > end:
                raise TimeoutError(f"chromium: {page} did not load")
            time.sleep(0.02)

    def tell(self, expression: str) -> Any:  # noqa: ANN401 - what JavaScript says
        """The value of an expression."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """Save the whole page as a PNG."""
        shot = self("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def point(self, x: float, y: float) -> None:
        """Move the pointer there, in pixels of the window."""
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
