"""A headless Chromium, where one is installed: what a page logs, asks for and draws."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_LOGGED = re.compile(r":CONSOLE[:(]\d+[^\"]*\"(.*)\", source:")


@dataclass(frozen=True, slots=True)
class Visit:
    """What a page did: its document at the end, its console, and the addresses it asked for."""

    html: str
    console: tuple[str, ...]
    requests: tuple[str, ...]

    def text(self, identifier: str) -> str:
        """The text within an element."""
        reader = _Texts(identifier)
        reader.feed(self.html)
        return " ".join("".join(reader.parts).split())


class _Texts(HTMLParser):
    _EMPTY = ("img", "input", "meta", "link", "br", "hr")

    def __init__(self, identifier: str) -> None:
        super().__init__()
        self.identifier, self.depth, self.parts = identifier, 0, list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self._EMPTY and (self.depth or ("id", self.identifier) in attrs):
            self.depth += 1
        if self.depth:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self.depth and tag not in self._EMPTY:
            self.depth -= 1

    def handle_data(self, data: str) -> None:
        if self.depth:
            self.parts.append(data)


def visit(
    file: Path, profile: Path, *flags: str, script: str = "", size: tuple[int, int] = (1200, 900)
) -> Visit:
    """Open a page, run a script in it once it is drawn, and give what it did."""
    assert CHROMIUM is not None
    opened = file
    if script:
        opened = profile.with_suffix(".html")
        page = file.read_text(encoding="utf-8")
        opened.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    net = profile.with_suffix(".net.json")
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-default-apps", f"--user-data-dir={profile}",
         "--host-resolver-rules=MAP * ~NOTFOUND",
         "--enable-logging=stderr", f"--log-net-log={net}", f"--window-size={size[0]},{size[1]}",
         "--virtual-time-budget=4000", *flags, "--dump-dom", opened.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "HOME": str(profile.parent)},
    )  # fmt: skip
    return Visit(done.stdout, tuple(_LOGGED.findall(done.stderr)), _asked_for(net))


def _asked_for(net: Path) -> tuple[str, ...]:
    """The addresses of a network log that are neither files nor data, nor the browser's own."""
    text = net.read_text(encoding="utf-8").rstrip().rstrip(",")
    try:
        log = json.loads(text)
    except ValueError:  # the browser was ended while it wrote
        log = json.loads(text + "]}")
    urls = {
        str(event.get("params", {}).get("url", "")) for event in log["events"]
        if isinstance(event.get("params"), dict)
    }  # fmt: skip
    own = ("file:", "data:", "chrome:", "chrome-", "devtools:", "about:", "blob:")
    browsers = re.compile(r"https?://[\w.-]*(google|gvt1|googleapis|chromium)\.\w+[/:]")
    return tuple(sorted(
        url for url in urls if url and not url.startswith(own) and not browsers.match(url)
    ))  # fmt: skip
