"""Check 7: the site has no dead link, no missing anchor or alt text, asks no other host, and looks right in a browser.

A film, encoded as stimuli are, plays in that browser.
`--build` builds it first. Screenshots at 1440 and 390 px go to _site/screenshots.
"""

import base64
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import site_build
from common import Tally, notebooks, root

html = root / "_site" / "html"
screenshots = root / "_site" / "screenshots"
made = {"search.html", "genindex.html"}  # Sphinx's own, without content of ours
leaks = (
    r"#\|",
    r"^:::|\{\.[a-z-]+\}",
    r'target="_blank" style',
    r"Traceback \(most recent",
    r"\$\$",
    r"\bat 0x[0-9a-f]{6,}",
)
widths = {1440: 900, 390: 844}
sticking_out = """(() => {
    if (document.documentElement.scrollWidth <= innerWidth) return ''
    const all = [...document.querySelectorAll('article *')]
    const wide = all.filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    return wide.slice(0, 3).map(e => e.tagName + '.' + e.className).join(' ') || 'something'
})()"""


class Page(HTMLParser):
    """What the checks need to know of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.pictures: list[tuple[str, str]] = []
        self.headings, self.words, self.quiet = 0, [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attributes}
        self.ids.update([values["id"]] if "id" in values else [])
        self.headings += tag == "h1"
        self.quiet += tag in ("script", "style", "pre", "code")
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "img":
            self.pictures.append((values.get("src", ""), values.get("alt", "")))
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.loads.append(values.get("src", ""))
        if tag == "link" and values.get("rel") != "canonical":
            self.loads.append(values.get("href", ""))

    def handle_endtag(self, tag: str) -> None:
        self.quiet -= tag in ("script", "style", "pre", "code")

    def handle_data(self, data: str) -> None:
        if not self.quiet:
            self.words.append(data)


def check_pages(tally: Tally) -> dict[str, Page]:
    """Everything that can be read from the files alone."""
    pages = {path.relative_to(html).as_posix(): Page(path) for path in sorted(html.rglob("*.html"))}
    placeholder = site_build.get_config().doc_host
    links = 0
    for name, page in pages.items():
        if name in made:
            continue
        text = "".join(page.words)
        for pattern in leaks:
            found = re.search(pattern, text, re.M)
            tally.expect(not found, f"{name} shows {found and text[found.start() : found.end() + 40]!r}")
        tally.expect(page.headings == 1, f"{name} has {page.headings} first-level headings")
        twice = [i for i, count in page.ids.items() if count > 1]
        tally.expect(not twice, f"{name} has the same id twice: {twice[:3]}")
        outside = [address for address in page.loads if re.match(r"https?:|//", address)]
        tally.expect(not outside, f"{name} loads from another host: {outside[:3]}")
        for address, alt in page.pictures:
            good = alt and alt != address and not re.match(r"(\.\./)*_images/", alt)
            tally.expect(good, f"{name}: the picture {address} has no alt text")
        for address in page.links:
            if re.match(r"(https?|mailto):", address):
                tally.expect(not address.startswith(placeholder), f"{name} links to the placeholder {address}")
                continue
            links += 1
            file, _, anchor = unquote(address).partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(name), file)) if file else name
            known = target in pages or (html / target).is_file()
            good = known and (not anchor or target not in pages or anchor in pages[target].ids)
            tally.expect(good, f"{name}: dead link {address}")
    for address, symbol in site_build.symbols().items():
        file, _, anchor = address.partition("#")
        tally.expect(file in pages and anchor in pages[file].ids, f"{symbol} has no place in the site ({address})")
    print(f"  {len(pages)} pages, {links} internal links")
    return pages


def check_figures(tally: Tally) -> None:
    """Every picture that a page shows has a label, a caption and an alt text."""
    for path in notebooks():
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            options = set(re.findall(r"^#\|\s*([\w-]+)", source, re.M))
            if "hide" not in options and any("image/png" in o.get("data", {}) for o in cell.get("outputs", [])):
                missing = {"label", "fig-cap", "fig-alt"} - options
                tally.expect(
                    not missing, f"{path.name} cell {cell['id']}: a figure without {', '.join(sorted(missing))}"
                )


def chromium() -> str | None:
    """The path of a Chromium: the system's, or one installed now; None where Playwright has its own."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found or any(Path.home().glob(".cache/ms-playwright/chromium*")):
        return found
    print("  no Chromium here: installing one", flush=True)
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt = [*as_root, "apt-get"]
    if shutil.which("apt-get") and (not as_root or shutil.which("sudo")):
        for words in (["-q", "update"], ["-q", "install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run([*apt, *words], capture_output=True)
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True, capture_output=True)
    return found


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def watch(tab: Any, base: str) -> list[str]:
    """A list that fills with whatever a page complains of, fails to load, or asks from elsewhere."""
    said: list[str] = []
    tab.on("console", lambda message: message.type == "error" and said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
    tab.on("response", lambda answer: answer.status >= 400 and said.append(f"{answer.status}: {answer.url}"))
    tab.on("request", lambda r: r.url.startswith((base, "data:", "blob:")) or said.append(f"asks {r.url}"))
    return said


def look(tally: Tally, tab: Any, said: list[str], where: str) -> None:
    """An open page with everything unfolded: nothing sticks out, pictures are there, no complaint."""
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    tab.evaluate("for (const image of document.images) image.loading = 'eager'")
    tab.wait_for_function("[...document.images].every(image => image.complete)", timeout=10000)
    wide = tab.evaluate(sticking_out)
    tally.expect(not wide, f"{where}: sticks out to the right: {wide}")
    empty = tab.evaluate("[...document.images].filter(image => !image.naturalWidth).map(image => image.src)")
    tally.expect(not empty, f"{where}: pictures not shown: {empty}")
    tally.expect(not said, f"{where}: {said[:3]}")
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")


PLAY = """async film => {
    const video = document.createElement('video')
    if (!video.canPlayType('video/mp4; codecs="avc1.640028, mp4a.40.2"')) return null
    video.muted = true
    video.src = URL.createObjectURL(await (await fetch('data:video/mp4;base64,' + film)).blob())
    const error = await video.play().then(() => '', String)
    await new Promise(done => setTimeout(done, 1000))
    return {size: [video.videoWidth, video.videoHeight], at: video.currentTime, seconds: video.duration,
            sound: video.webkitAudioDecodedByteCount, error: error}
}"""


def check_film(tally: Tally, tab: Any) -> None:
    """A film encoded as stimuli are plays: pictures of its size, sound, and time goes on."""
    from alignment_video.stimuli import FILM
    from alignment_video.video import film
    from alignment_video.world import Ad

    with tempfile.TemporaryDirectory() as folder:
        film(Ad(5, size=(160, 96), seconds=3, scenes=3), path := Path(folder) / "film.mp4", FILM)
        told = tab.evaluate(PLAY, base64.b64encode(path.read_bytes()).decode())
    if told is None:
        print("  this browser knows no H.264; whether films play was not looked at")
        return
    plays = told["size"] == [96, 160] and told["at"] > 0.2 and abs(told["seconds"] - 3) < 0.1
    tally.expect(plays and told["sound"] > 0 and not told["error"], f"a film does not play: {told}")


def check_report(tally: Tally, browser: Any) -> None:
    """An experiment's report, opened from its file at both widths; an ad's name that is a script is shown, not run."""
    from alignment_video.analysis import analyse
    from alignment_video.outcomes import Effects, achieved_alignment, bulk_scenes, simulate_summary
    from alignment_video.report import write_report
    from alignment_video.results import results_of

    name = "<script>alert(1)</script>"
    table = simulate_summary(achieved_alignment(bulk_scenes(12, seed=36_100_400)), Effects())
    table["video_id"] = table["video_id"].mask(table["video_id"] == table["video_id"].iloc[0], name)
    with tempfile.TemporaryDirectory() as folder:
        path = write_report(analyse(results_of(table)), folder)[0]
        for width, height in widths.items():
            tab = browser.new_context(viewport={"width": width, "height": height}).new_page()
            said = watch(tab, "file://")
            tab.on("dialog", lambda box, said=said: (said.append(f"a box: {box.message}"), box.dismiss()))
            tab.goto(path.as_uri(), wait_until="load")
            look(tally, tab, said, f"a report at {width} px")
            shown = tab.text_content("table >> text=alert(1)") or ""
            tally.expect(name in shown, f"a report at {width} px: the ad {name} is not shown as text")
            tab.screenshot(path=screenshots / f"report-{width}.png", full_page=True)


def check_browser(tally: Tally, names: list[str]) -> None:
    """Every page at both widths, and pictures of what a reader sees."""
    from playwright.sync_api import sync_playwright

    screenshots.mkdir(parents=True, exist_ok=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/"
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        for width, height in widths.items():
            tab = browser.new_context(viewport={"width": width, "height": height}).new_page()
            said = watch(tab, base)
            for name in names:
                said.clear()
                tab.goto(base + name, wait_until="load")
                look(tally, tab, said, f"{name} at {width} px")
                stem = name.removesuffix(".html").replace("/", "-")
                tab.screenshot(path=screenshots / f"{stem}-{width}.png")
                if name in names[:3]:
                    tab.screenshot(path=screenshots / f"{stem}-{width}-full.png", full_page=True)
        tab = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="dark").new_page()
        tab.goto(base + names[min(1, len(names) - 1)])
        tab.screenshot(path=screenshots / "dark.png")
        check_film(tally, tab)
        check_report(tally, browser)
        browser.close()
    server.shutdown()
    print(f"  {len(names)} pages at {' and '.join(map(str, widths))} px; see {screenshots.relative_to(root)}")


def main() -> None:
    """Build, read the files, open the browser."""
    tally = Tally()
    if "--build" in sys.argv[1:]:
        code, said = site_build.build()
        tally.expect(code == 0, f"the build\n{said}")
    if not (html / "index.html").exists():
        tally.fail("there is no _site/html/index.html; run make site")
        tally.end()
    pages = check_pages(tally)
    check_figures(tally)
    order = ["index.html"]
    order += [site_build.page_name(p.relative_to(root / "nbs").as_posix()) + ".html" for p in notebooks()]
    check_browser(tally, sorted(pages.keys() - made, key=lambda name: (*order, name).index(name)))
    tally.end()


if __name__ == "__main__":
    main()
