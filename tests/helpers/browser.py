"""A headless Chromium behind chromedriver's HTTP protocol (W3C WebDriver), for tests of pages."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
MISSING = "" if CHROMIUM and DRIVER else "needs Debian's chromium and chromium-driver"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """A session that ends, with all its processes, when the block does.

    Args:
        profile: a folder that does not exist yet.
        seconds: after which every call fails.
    """

    def __init__(self, profile: Path, seconds: float = 35, size: tuple[int, int] = (1400, 1000)):
        self._profile = profile
        self._deadline = time.monotonic() + seconds
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._process = subprocess.Popen(
            [DRIVER, f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._url = f"http://127.0.0.1:{port}"
        try:
            self._start(size)
        except BaseException:
            self._kill()
            raise

    def _start(self, size: tuple[int, int]) -> None:
        self.wait_for(self._is_up)
        flags = [f"--user-data-dir={self._profile}", f"--window-size={size[0]},{size[1]}"]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": [*FLAGS, *flags], "binary": CHROMIUM},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._url += f"/session/{session['sessionId']}"

    def _is_up(self) -> bool:
        with contextlib.suppress(OSError):
            return self.call("GET", "/status")["ready"]
        return False

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.call("DELETE", "")
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Return the ids of the processes that use this session's profile."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self._profile).encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Send a command; return its value."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        remaining = max(1, self._deadline - time.monotonic())
        try:
            with urllib.request.urlopen(request, timeout=remaining) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error

    def wait_for(self, condition: Any) -> None:
        """Wait until a function, or a JavaScript expression, is true."""
        while not (self.js(f"return {condition}") if isinstance(condition, str) else condition()):
            assert time.monotonic() < self._deadline, f"never became true: {condition}"
            time.sleep(0.05)

    def js(self, script: str) -> Any:
        """Run the body of a function; return its value."""
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def open(self, page: Path) -> None:
        """Load a file."""
        self.call("POST", "/url", {"url": page.resolve().as_uri()})

    def cdp(self, command: str, **parameters: object) -> Any:
        """Send a command of Chromium's own protocol."""
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def prefer(self, theme: str) -> None:
        """Let the system prefer ``light`` or ``dark``, and no smooth scrolling."""
        wanted = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.cdp("Emulation.setEmulatedMedia", features=features)

    def find(self, selector: str) -> str:
        """Return the id of the first element of a CSS selector."""
        query = {"using": "css selector", "value": selector}
        return self.call("POST", "/element", query)[ELEMENT]

    def click(self, selector: str) -> None:
        """Click as a mouse does."""
        self.call("POST", f"/element/{self.find(selector)}/click", {})

    def press(self, *keys: str) -> None:
        """Press and release keys where the focus is."""
        strokes = [{"type": t, "value": k} for k in keys for t in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keyboard", "actions": strokes})

    def drag(self, selector: str, start: int, end: int, pointer: str) -> None:
        """Drag horizontally with ``mouse`` or ``touch``, in pixels from an element's centre."""
        origin = {ELEMENT: self.find(selector)}
        move = {"type": "pointerMove", "origin": origin, "y": 0}
        actions = [
            move | {"x": start},
            {"type": "pointerDown", "button": 0},
            move | {"x": (start + end) // 2, "duration": 60},
            move | {"x": end, "duration": 60},
            {"type": "pointerUp", "button": 0},
        ]
        parameters = {"pointerType": pointer}
        self._act({"type": "pointer", "id": pointer, "parameters": parameters, "actions": actions})

    def _act(self, source: dict[str, Any]) -> None:
        self.call("POST", "/actions", {"actions": [source]})
        self.call("DELETE", "/actions")

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

    def log(self) -> list[dict[str, Any]]:
        """Return what the console was told since the last call."""
        return self.call("POST", "/se/log", {"type": "browser"})
