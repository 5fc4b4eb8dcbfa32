"""A page in a headless Chromium whose keys are pressed as a keyboard presses them, by the DevTools protocol."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from .browser import FLAGS, chromium

KEYS = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
        "ArrowDown": 40}  # fmt: skip
TYPED = {"Enter": "\r", " ": " "}
"""Keys that write something: without it a button is not pressed."""


class Keyboard:
    """One page of 1280 x 900 that is open as long as the `with` block lasts.

    The browser reads commands from its file 3 and answers into its file 4, each a JSON object before a zero byte.
    """

    def __init__(self, url: str, folder: Path, *, seconds: float = 60.0) -> None:
        self._until = time.monotonic() + seconds
        ends = [end for _ in range(2) for end in os.pipe()]
        far = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]  # apart from the numbers 3 and 4
        for end in ends:
            os.close(end)
        theirs_in, self._out, self._in, theirs_out = far
        command = str(shutil.which(chromium()) or chromium())
        flags = [
            command,
            *FLAGS,
            f"--user-data-dir={folder / 'keys'}",
            "--window-size=1280,900",
            "--remote-debugging-pipe",
        ]
        self._process = os.posix_spawn(command, flags, os.environ, file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0), (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4),
        ])  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._asked, self._read, self._session = 0, b"", ""
        try:
            self._open(url)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _open(self, url: str) -> None:
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.navigate", url=url)
        self._ask("Page.bringToFront")
        while not self.value("document.readyState === 'complete' && document.querySelectorAll('.draw svg').length > 0"):
            self.rest(0.1)

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        how = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        typed = {"text": TYPED[key]} if key in TYPED else {}
        self._ask("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **how, **typed)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **how)

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        found = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def rest(self, seconds: float) -> None:
        """Let the page go on."""
        self.value(f"new Promise((done) => setTimeout(done, {1000 * seconds:.0f}))")

    def _ask(self, method: str, **how: Any) -> dict[str, Any]:
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": how}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._read:
                ready, _, _ = select.select([self._in], [], [], max(0.0, self._until - time.monotonic()))
                assert ready, f"the browser does not answer {method}"
                more = os.read(self._in, 1 << 16)
                assert more, f"the browser ended before it answered {method}"
                self._read += more
            text, _, self._read = self._read.partition(b"\0")
            found = json.loads(text)
            if found.get("id") == self._asked:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result

    def __enter__(self) -> Keyboard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.kill(self._process, signal.SIGTERM)
        os.waitpid(self._process, 0)
        os.close(self._in)
        os.close(self._out)
