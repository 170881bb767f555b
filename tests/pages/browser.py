"""A headless Chromium, asked over a pipe what it makes of a page."""

import base64
import contextlib
import json
import os
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find():
    """The path of a browser, None if none is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page in a browser; what it logs is in `logged`."""

    def __init__(self, commands, answers):
        self._commands, self._answers = commands, answers
        self._session, self._count, self.logged = None, 0, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        """The result of a method of the DevTools protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while (answer := self._next()).get("id") != self._count:
            pass
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, url, width, height, media="screen"):
        """Shows a page, on a screen of so many pixels or as printed."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.ask("Emulation.setEmulatedMedia", media=media)
        self.ask("Page.navigate", url=url)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression):
        """The value of an expression of JavaScript."""
        found = self.ask(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"]["value"]

    def screenshot(self):
        """The whole page as a PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def _next(self):
        message = b""
        while not message.endswith(b"\0"):
            byte = self._answers.read(1)
            assert byte, "the browser has closed"
            message += byte
        answer = json.loads(message[:-1])
        if answer.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled"):
            self.logged.append(answer["params"])
        if answer.get("method") == "Runtime.exceptionThrown":
            self.logged.append(answer["params"])
        return answer


@contextlib.contextmanager
def tab(path, folder):
    """A `Tab` of the browser at `path`, whose profile is in `folder`; ended after."""
    # Chromium reads commands from descriptor 3 and answers on 4.
    reads, commands = os.pipe()
    answers, writes = os.pipe()
    arguments = [path, *FLAGS, f"--user-data-dir={folder / 'profile'}"]
    script = f'exec "$@" 3<&{reads} 4>&{writes}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *arguments],
        pass_fds=(reads, writes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(reads)
    os.close(writes)
    with os.fdopen(commands, "wb") as to, os.fdopen(answers, "rb") as of:
        try:
            yield Tab(to, of)
        finally:
            process.terminate()
            process.wait(timeout=30)
