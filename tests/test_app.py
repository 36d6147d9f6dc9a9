"""The page in a browser: what it shows, what it refuses, and that it stays on this computer and leaves nothing."""

import http.client
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from alignment_video import app, backbone, masks
from alignment_video.app import Asked, Models, free_name, make, serving
from alignment_video.core import Refused, file_hash
from alignment_video.video import film, read_clip
from alignment_video.world import Ad, truth_of

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / ".ci"))
PROGRAM = str(Path(sys.executable).with_name("alignment-video"))
AD = Ad(36_460_001, size=(128, 128), seconds=1, scenes=1)
with_gradio = pytest.mark.skipif(
    not importlib.util.find_spec("gradio"), reason='Gradio is not installed: pip install "alignment_video[app]"'
)


# --- without a browser ------------------------------------------------------------------------------------------------


def test_words_become_settings():
    plain, placed = Asked("a.mp4", "mug", "hat").settings(), Asked("a.mp4", "mug", "hat", " a {wet} beach ").settings()
    assert (plain.told("hat"), plain.around) == ("a hat", "")
    assert (placed.told("hat"), placed.around) == ("a hat, a {wet} beach", "a {wet} beach")
    around = Asked("a.mp4", "mug", "city", "beach", background=True).settings()
    assert (around.told("city"), around.around, around.background) == ("city", "", True)
    numbers = Asked("a.mp4", "mug", "hat", steps=8, guidance=5, seed=None).settings()
    assert (numbers.steps, numbers.guidance, numbers.seed) == (8, 5.0, 0)


def test_no_file_is_written_over(tmp_path):
    for expected in ("ad_hat.mp4", "ad_hat_2.mp4", "ad_hat_3.mp4"):
        name = free_name(tmp_path, "ad", "hat")
        name.touch()
        assert name.name == expected
    (tmp_path / "ad_cap_not_found.png").touch()
    assert free_name(tmp_path, "ad", "cap").name == "ad_cap_2.mp4"
    assert free_name(tmp_path, "ad", "../../etc/x").parent == tmp_path
    assert free_name(tmp_path, "ad", "?").name == "ad_new.mp4" and len(free_name(tmp_path, "ad", "x" * 999).name) < 60


def test_models_are_loaded_once_and_not_for_nothing(tmp_path, monkeypatch):
    loaded = []
    for kind in (backbone.Backbone, masks.KeywordMasker):
        monkeypatch.setattr(kind, "from_pretrained", lambda name, device: loaded.append(name) or name)
    monkeypatch.setattr(app, "replace", lambda *given, **_: given)
    film(AD, clip := tmp_path / "ad.mp4")
    models = Models("one", "other")
    for wrong in (Asked(None, "mug", "hat"), Asked(clip, "mug", "MUG"), Asked(__file__, "mug", "hat")):
        with pytest.raises(Refused):
            make(wrong, models, tmp_path / "made")
    assert not loaded and not (tmp_path / "made").exists()
    first, second = (make(Asked(clip, "mug", "hat"), models, tmp_path / "made") for _ in range(2))
    assert loaded == ["one", "other"] and first[4:6] == second[4:6] == ("one", "other")


def test_without_gradio_one_line_says_what_to_do(tmp_path):
    code = "import sys; sys.modules['gradio'] = None; from alignment_video.cli import main; main(['app'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, [*tmp_path.iterdir()]) == (1, "", [])
    assert done.stderr == 'alignment-video: app needs Gradio: pip install "alignment_video[app]"\n'


def test_gradio_is_loaded_when_it_is_needed(tmp_path):
    code = "import sys, alignment_video.cli, alignment_video.app as _; print({'gradio', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "set()\n"


# --- the server -------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def status(port: int, path: str = "/", **headers: str) -> int:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    line.request("GET", path, headers=headers)
    return line.getresponse().status


@with_gradio
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_ended_and_leaves_nothing(tmp_path, how):
    port, proxy = free_port(), f"http://127.0.0.1:{free_port()}"  # where nothing answers
    env = os.environ | {"TMPDIR": str(tmp_path), "HTTP_PROXY": proxy, "http_proxy": proxy, "GRADIO_SHARE": "True"}
    served = subprocess.Popen(
        [PROGRAM, "app", "--port", str(port)], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs inherit none
    )  # fmt: skip
    try:
        line = served.stdout.readline()
        assert line == f"Open http://127.0.0.1:{port}/ in a browser of this computer. Ctrl-C ends it.\n"
        assert status(port) == 200 and [*tmp_path.glob("alignment_video_*")]
        others = [address for address in own_addresses() if not address.startswith("127.")]
        for address in others:
            with pytest.raises(OSError):
                socket.create_connection((address, port), timeout=5)
    finally:
        served.send_signal(how)
        said = served.communicate(timeout=60)
    assert (served.returncode, *said) == (0, "Closed; what it made is removed.\n", "")
    assert not [*tmp_path.glob("alignment_video_*")] and not (tmp_path / "gradio").exists()


def own_addresses() -> list[str]:
    """The addresses by which other computers know this one."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)})
    except OSError:
        return []


@with_gradio
def test_a_port_or_a_folder_that_is_taken(tmp_path):
    (tmp_path / "file").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port}: something else uses it"), serving(Models(), port):
            pass
    with pytest.raises(Refused, match="a file; name a folder"), serving(Models(), out=tmp_path / "file"):
        pass


@with_gradio
def test_nothing_is_left_of_one_page_after_another():
    folders = []
    for _ in range(2):
        with serving(Models(), free_port()):
            folders.append(Path(os.environ["GRADIO_TEMP_DIR"]).parent)
            assert folders[-1].is_dir()
    assert len({*folders}) == 2 and not any(folder.exists() for folder in folders)


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    film(AD, path := tmp_path_factory.mktemp("clip") / "perfume.mp4")
    return path


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page, and the folder in which it keeps what it makes."""
    before, out, port = dict(os.environ), tmp_path_factory.mktemp("kept") / "films", free_port()
    with serving(Models(device="cpu"), port, out) as address:
        place = SimpleNamespace(address=address, port=port, out=out, uploaded=Path(os.environ["GRADIO_TEMP_DIR"]))
        yield place
    assert not place.uploaded.parent.exists() and dict(os.environ) == before


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    from site_check import chromium

    with sync_playwright() as player:
        opened = player.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def tab(served, browser):
    """The open page; in the end it has complained of nothing, and asked nobody else."""
    from site_check import watch

    context = browser.new_context(viewport={"width": 1440, "height": 1100})
    tab = context.new_page()
    said = watch(tab, served.address)
    tab.on("dialog", lambda box: (said.append(f"a box: {box.message}"), box.dismiss()))
    tab.set_default_timeout(60_000)
    tab.goto(served.address)
    tab.wait_for_selector("#go")
    yield tab
    own = f"failed: {served.address}gradio_api/queue/data"  # Gradio hangs up when an answer is whole
    assert not [line for line in said if not line.startswith(own)]
    context.close()


def fill(tab, one: str, other: str, around: str = "") -> None:
    for name, words in (("one", one), ("other", other), ("around", around)):
        tab.fill(f"#{name} :is(textarea, input)", words)


def shown(tab) -> list[np.ndarray]:
    """The two pictures that the line lies over."""
    addresses = tab.evaluate("[...document.querySelectorAll('#pair img')].map(image => image.src)")
    return [np.asarray(Image.open(io.BytesIO(tab.request.get(address).body()))).astype(int) for address in addresses]


def narrow(tab) -> None:
    """Nothing sticks out at either width; with SCREENSHOTS=FOLDER also pictures, one of which is nbs/images/app.png."""
    for width, height in ((390, 844), (1440, 1100)):
        tab.set_viewport_size({"width": width, "height": height})
        tab.wait_for_timeout(300)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, f"wider than {width} px"
        for scheme in ("light", "dark") if "SCREENSHOTS" in os.environ else ():
            tab.emulate_media(color_scheme=scheme)
            tab.wait_for_timeout(500)
            tab.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"app-{width}-{scheme}.png", full_page=True)
        tab.emulate_media(color_scheme="light")


@with_gradio
def test_a_thing_is_replaced_and_compared(tab, served, clip):
    narrow(tab)
    tab.set_input_files("#video input[type=file]", clip)
    tab.wait_for_selector("#said >> text=perfume.mp4: 24 frames of 128 × 128, 1.0 s, with sound.")
    fill(tab, "perfume", "hat", "beach")
    tab.click("text=More")
    tab.fill("#steps input[type=number]", "10")
    tab.fill("#seed input", "1")
    tab.click("#go")
    tab.wait_for_selector("#said [role=progressbar]")
    tab.wait_for_selector("#said >> text=painting scene 1", timeout=300_000)
    tab.wait_for_selector("#made", timeout=300_000)
    assert tab.inner_text("#said").strip() == "perfume_hat.mp4: perfume by hat in 1 of 1 scenes, 4 keyframes painted"
    facts = json.loads((served.out / "perfume_hat.json").read_text(encoding="utf-8"))
    asked = {name: facts["settings"][name] for name in ("prompt", "around", "steps", "seed", "background")}
    assert asked == {"prompt": "a {}, beach", "around": "beach", "steps": 10, "seed": 1, "background": False}

    frames, films = read_clip(clip), read_clip(served.out / "perfume_hat.mp4")
    t = int(tab.input_value("#frame input[type=number]"))
    before, after = shown(tab)
    assert np.array_equal(before, frames[t]) and np.array_equal(after, films[t])
    thing = truth_of(AD).mask(t)
    rows, columns = np.where(thing)
    near, half = np.zeros_like(thing), max(np.ptp(rows), np.ptp(columns)) * 0.8
    top, left = (max(0, round((side.min() + side.max()) / 2 - half)) for side in (rows, columns))
    near[top : top + round(2 * half), left : left + round(2 * half)] = True
    apart = np.abs(before - after).mean(-1)
    print(f"apart by {apart[thing].mean():.1f} inside, {apart[~near].mean():.2f} outside ({near.mean():.0%} is near)")
    assert apart[thing].mean() > 25 and near.mean() < 0.5
    assert apart[~near].mean() < 3 and np.quantile(apart[~near], 0.99) < 20  # what encoding once more does

    old = tab.get_attribute("#pair img >> nth=0", "src")
    tab.fill("#frame input[type=number]", "3")
    tab.press("#frame input[type=number]", "Enter")
    tab.wait_for_function("old => document.querySelector('#pair img').src !== old", arg=old)
    assert np.array_equal(shown(tab)[0], frames[3]) and np.array_equal(shown(tab)[1], films[3])
    cut = tab.get_attribute("#pair img >> nth=1", "style")
    box = tab.locator("#pair .inner").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 80, y, steps=4)
    tab.mouse.up()
    assert "clip-path" in cut and tab.get_attribute("#pair img >> nth=1", "style") != cut

    with tab.expect_download() as download:
        tab.click("#files a >> nth=0")
    assert file_hash(download.value.path()) == facts["film"]["sha256"]
    assert tab.locator("#files a").count() == 3
    if tab.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.640028\"')"):
        tab.wait_for_function("document.querySelector('#film video').videoWidth > 128")
    narrow(tab)


@with_gradio
def test_what_is_refused_is_one_line(tab, served, clip):
    said = "#said [role=alert]"
    tab.click("#go")
    assert tab.inner_text(said) == "no video yet: choose one first"
    tab.set_input_files("#video input[type=file]", clip)
    tab.wait_for_selector("#said >> text=24 frames")
    script = "<img src=x onerror=alert(1)> ${alert(1)} {{x}}"
    fill(tab, script, script.upper())
    tab.click("#go")
    tab.wait_for_selector(f"{said} >> text=both are the same")
    assert script in tab.inner_text(said)
    fill(tab, "sunglasses", "hat")
    tab.click("#go")
    tab.wait_for_selector(f"{said} >> text='sunglasses' is in no scene", timeout=300_000)
    assert "/" not in tab.inner_text(said) and "Traceback" not in tab.inner_text("body")
    tab.wait_for_function("document.querySelector('#likely img')?.naturalWidth > 0")
    tab.click("text=what is around it")
    tab.wait_for_selector("text=What should be around it")
    assert not tab.is_visible("#around") and not tab.is_visible("#made")


@with_gradio
def test_what_is_no_video(tab, served, tmp_path):
    (tmp_path / "letter.mp4").write_text("Dear Sir or Madam, " * 99)
    (tmp_path / "letter.txt").write_text("Dear Sir or Madam, ")
    tab.set_input_files("#video input[type=file]", tmp_path / "letter.txt")
    tab.wait_for_selector("text=Invalid file type")
    tab.set_input_files("#video input[type=file]", tmp_path / "letter.mp4")
    tab.wait_for_selector("#said [role=alert] >> text=letter.mp4: not a video")
    fill(tab, "perfume", "hat")
    tab.click("#go")
    tab.wait_for_function("document.querySelector('#said .pending, #said .wrap:not(.hide)') === null")
    assert tab.inner_text("#said [role=alert]").startswith("letter.mp4: not a video")
    assert not [*served.out.glob("letter*")]


@with_gradio
def test_an_example_is_at_hand(tab):
    tab.click("#example")
    tab.wait_for_selector("#said >> text=perfume.mp4: 36 frames")
    assert [tab.input_value(f"#{name} :is(textarea, input)") for name in ("one", "other", "around")] == [
        "perfume", "hat", "beach",
    ]  # fmt: skip


@with_gradio
def test_other_pages_and_names_get_nothing(served):
    here = f"127.0.0.1:{served.port}"
    assert status(served.port, Host=here, Origin=f"http://{here}") == 200
    for headers in ({"Host": f"elsewhere.example:{served.port}"}, {"Origin": "https://elsewhere.example"},
                    {"Origin": "null"}, {"Origin": f"http://127.0.0.1:{served.port + 1}"}):  # fmt: skip
        assert status(served.port, **headers) == 403, headers
    for path in (__file__, "/etc/hosts", f"{served.out}/../x"):
        assert status(served.port, f"/gradio_api/file={path}") in (403, 404), path
    with urllib.request.urlopen(served.address) as answer:
        assert answer.headers["content-security-policy"].startswith("default-src 'self' ")
