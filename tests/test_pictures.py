"""What the page about pictures cannot hold: files cut at every place, all turns, random maps, and published maps."""

import zlib
from io import BytesIO
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from alignment_video.core import Refused
from alignment_video.pictures import (
    colour_map_of,
    is_colour_mapped,
    overlay,
    read_header,
    read_map,
    read_mask,
    read_picture,
    write_map,
    write_mask,
)

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data" / "meaning_maps"
READERS = (read_header, read_picture, read_mask, read_map)


def photo(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    return (cv2.GaussianBlur(noise, (0, 0), 3) * 400 + 128).clip(0, 255).astype(np.uint8)


def smooth(height: int = 120, width: int = 90, spread: float = 12, seed: int = 0) -> np.ndarray:
    values = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width)), (0, 0), spread)
    return ((values - values.min()) / np.ptp(values)).astype(np.float32)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(path: Path, readers: tuple = READERS) -> list[str]:
    """The lines with which the readers refuse a file."""
    lines = []
    for reader in readers:
        with pytest.raises(Refused) as caught:
            reader(path)
        lines.append(str(caught.value))
        assert "\n" not in lines[-1] and str(path) in lines[-1]
    return lines


# files that are not pictures, or not all there


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.01, 0.1, 0.3, 0.5, 0.8, 0.97])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, kind: str, part: float) -> None:
    image = Image.fromarray(photo(200, 150))
    whole = encoded(image.quantize(64) if kind == "GIF" else image, kind)
    path = tmp_path / "cut"
    path.write_bytes(whole)
    assert read_picture(path).shape == (200, 150, 3)
    path.write_bytes(whole[: int(part * len(whole))])
    refused(path, (read_header, read_picture))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_cut_is_seen(tmp_path: Path, kind: str) -> None:
    """Byte by byte, all but the last one."""
    whole = encoded(Image.fromarray(photo(16, 16)), kind)
    path = tmp_path / "cut"
    for end in range(1, len(whole)):
        path.write_bytes(whole[:end])
        refused(path, (read_header, read_picture))


def test_a_thumbnails_end_is_not_the_pictures_end(tmp_path: Path) -> None:
    thumbnail = encoded(Image.fromarray(photo(16, 16)), "JPEG")
    whole = encoded(Image.fromarray(photo(64, 64)), "JPEG")
    note = b"\xff\xe2" + (2 + len(thumbnail)).to_bytes(2) + thumbnail
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[:2] + note + whole[2:])
    assert read_picture(path).shape == (64, 64, 3)
    path.write_bytes(whole[:2] + note)
    refused(path, (read_header, read_picture))
    path.write_bytes((whole[:2] + note + whole[2:])[:-200])
    refused(path, (read_header, read_picture))


def test_what_a_camera_appends_does_no_harm(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG"):
        path = tmp_path / kind
        path.write_bytes(encoded(Image.fromarray(photo()), kind))
        plain = read_picture(path)
        path.write_bytes(path.read_bytes() + b"SEFT some maker's notes" * 9)
        assert np.array_equal(read_picture(path), plain)
        assert read_header(path)[:2] == (60, 40)


@given(st.integers(0, 10**9), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_one_wrong_byte_in_a_png_is_seen(place: int, change: int) -> None:
    import tempfile

    whole = bytearray(encoded(Image.fromarray(photo(12, 12)), "PNG"))
    whole[place % len(whole)] ^= change
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(whole)
        refused(path, (read_picture,))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"Dear diary, today I was renamed.", "text"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "web page or drawing"),
        (b"\0\0\0\x18ftypheic" + bytes(30), "HEIC"),
        (b"\0\0\0\x18ftypisom" + bytes(30), "a video"),
        (bytes(100), "not a picture"),
        (b"\xff\xd8\xff", "cut off"),
        (b"\x89PNG\r\n\x1a\n", "cut off"),
        (b"\xff\xd8\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff", "cut off"),
    ],
)
def test_no_picture(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "scene.png"
    path.write_bytes(content)
    assert all(says in line for line in refused(path))


def test_no_file(tmp_path: Path) -> None:
    assert all("no such file" in line for line in refused(tmp_path / "missing.jpg"))
    assert all("a folder" in line for line in refused(tmp_path))


def test_a_huge_header_costs_nothing(tmp_path: Path) -> None:
    """20,000×20,000 in the header: refused before memory is asked for."""
    import tracemalloc

    png = bytearray(encoded(Image.fromarray(photo()), "PNG"))
    png[16:24] = (20_000).to_bytes(4) * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4)
    jpg = bytearray(encoded(Image.fromarray(photo()), "JPEG"))
    place = jpg.index(b"\xff\xc0")
    jpg[place + 5 : place + 9] = (20_000).to_bytes(2) * 2
    tracemalloc.start()
    for name, content in {"a.png": png, "a.jpg": jpg}.items():
        (tmp_path / name).write_bytes(content)
        assert all("20000×20000" in line for line in refused(tmp_path / name))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_are_refused(tmp_path: Path, kind: str) -> None:
    first, *rest = [Image.fromarray(photo(seed=seed)) for seed in range(3)]
    path = tmp_path / "moving"
    path.write_bytes(encoded(first, kind, save_all=True, append_images=rest))
    assert all("3 pictures in one file" in line for line in refused(path))


def test_floats_are_refused(tmp_path: Path) -> None:
    Image.fromarray(smooth(20, 20, 3)).save(tmp_path / "a.tif")
    assert all("'F'" in line for line in refused(tmp_path / "a.tif"))


# pictures of every kind, read right


def test_kinds_of_pixels(tmp_path: Path) -> None:
    rgb = photo()
    image = Image.fromarray(rgb)
    grey = image.convert("L")
    alpha = image.copy()
    alpha.putalpha(128)
    soft = Image.merge("LA", [grey, Image.new("L", grey.size, 128)])
    white = np.rint(rgb * (128 / 255) + 255 * (127 / 255)).astype(np.uint8)
    three = lambda plane: np.stack([np.asarray(plane)] * 3, 2)  # noqa: E731
    deep = np.asarray(grey).astype(np.uint16) * 257
    palette, four = image.quantize(16), grey.quantize(4)
    gray_white = np.rint(three(grey) * (128 / 255) + 255 * (127 / 255)).astype(np.uint8)
    cases = {
        "rgb.png": (image, rgb, {}),
        "grey.png": (grey, three(grey), {}),
        "bit.png": (image.convert("1"), three(image.convert("1")) * np.uint8(255), {}),
        "palette.png": (palette, np.asarray(palette.convert("RGB")), {}),
        "two_bits.png": (four, np.asarray(four.convert("RGB")), {"bits": 2}),
        "deep.png": (Image.fromarray(deep), three(grey), {}),
        "alpha.png": (alpha, white, {}),
        "grey_alpha.png": (soft, gray_white, {}),
        "a.bmp": (image, rgb, {}),
        "a.tif": (image, rgb, {}),
        "a.webp": (image, rgb, {"lossless": True}),
        "a.gif": (palette, np.asarray(palette.convert("RGB")), {}),
    }
    for name, (saved, wanted, options) in cases.items():
        saved.save(tmp_path / name, **options)
        assert read_header(tmp_path / name)[:2] == (60, 40), name
        assert np.abs(read_picture(tmp_path / name).astype(int) - wanted).max() <= 1, name
    colour = rgb.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep_rgb.png"), colour[..., ::-1])
    assert np.array_equal(read_picture(tmp_path / "deep_rgb.png"), rgb)
    palette.save(tmp_path / "keyed.png", transparency=0)  # one colour of the palette is transparent
    wanted = np.asarray(palette.convert("RGB")).copy()
    wanted[np.asarray(palette) == 0] = 255
    assert np.array_equal(read_picture(tmp_path / "keyed.png"), wanted)


def test_printing_inks(tmp_path: Path) -> None:
    """CMYK, as Pillow stores it (inverted, with Adobe's mark) and without the mark (not inverted)."""
    image = Image.fromarray(photo(64, 64))
    image.convert("CMYK").save(tmp_path / "adobe.jpg", quality=98, subsampling=0)
    content = (tmp_path / "adobe.jpg").read_bytes()
    place = content.index(b"\xff\xee\x00\x0eAdobe")
    inverted = Image.fromarray(255 - np.asarray(image.convert("CMYK")), mode="CMYK")
    plain = encoded(inverted, "JPEG", quality=98, subsampling=0)
    (tmp_path / "plain.jpg").write_bytes(plain[:place] + plain[place + 16 :])
    for name in ("adobe.jpg", "plain.jpg"):
        assert read_header(tmp_path / name).mode == "CMYK"
        assert np.abs(read_picture(tmp_path / name).astype(int) - np.asarray(image)).mean() < 4, name


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_all_turns(tmp_path: Path, turn: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "a"
    path.write_bytes(encoded(Image.fromarray(photo()), kind, exif=exif, **options))
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    got = read_picture(path)
    assert got.shape == wanted.shape and np.abs(got.astype(int) - wanted).max() <= 2
    assert read_header(path)[:2] == got.shape[1::-1]


def test_odd_turns_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    Image.fromarray(photo()).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").shape == (40, 60, 3)


def test_sizes(tmp_path: Path) -> None:
    Image.fromarray(photo(1, 1)).save(tmp_path / "one.png")
    assert read_picture(tmp_path / "one.png").shape == (1, 1, 3)
    assert read_header(tmp_path / "one.png")[:2] == (1, 1)
    large = photo(480, 640)
    Image.fromarray(large).save(tmp_path / "a.jpg", quality=95)
    for size in [(480, 640), (240, 320), (100, 120), (60, 80), (31, 17), (500, 700), (7, 900)]:
        got = read_picture(tmp_path / "a.jpg", size=size)
        assert got.shape == (*size, 3)
        if size[0] <= 480 and size[1] <= 640:
            wanted = cv2.resize(large, size[::-1], interpolation=cv2.INTER_AREA)
            assert np.abs(got.astype(int) - wanted).mean() < 5, size


# masks


def test_masks(tmp_path: Path) -> None:
    mask = smooth() > 0.5
    grey = np.where(mask, 255, 0).astype(np.uint8)
    for name, image in {
        "grey": grey,
        "ones": mask.astype(np.uint8),
        "deep": grey.astype(np.uint16) * 257,
        "half": np.where(mask, 128, 127).astype(np.uint8),
        "red": np.dstack([grey // 2 + (grey > 0), grey * 0, grey * 0]),
    }.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        assert np.array_equal(read_mask(tmp_path / f"{name}.png"), mask.astype(np.float32)), name
    write_mask(tmp_path / "ours.png", mask)
    assert np.array_equal(read_mask(tmp_path / "ours.png"), mask)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "ours.png")), grey)
    small = read_mask(tmp_path / "ours.png", size=(60, 45))
    assert small.shape == (60, 45) and set(np.unique(small)) == {0, 1}
    assert abs(small.mean() - mask.mean()) < 0.02
    write_mask(tmp_path / "none.png", np.zeros((5, 5)))
    assert not read_mask(tmp_path / "none.png").any()
    write_mask(tmp_path / "all.png", np.ones((5, 5), bool))
    assert read_mask(tmp_path / "all.png").all()


def test_no_masks(tmp_path: Path) -> None:
    Image.fromarray(photo(200, 200)).save(tmp_path / "photo.jpg")
    with pytest.raises(Refused, match="a colour picture, not a mask"):
        read_mask(tmp_path / "photo.jpg")
    with pytest.raises(Refused, match=r"0\.5 too; apply the threshold"):
        write_mask(tmp_path / "a.png", np.full((3, 3), 0.5))
    assert not (tmp_path / "a.png").exists()


# maps


@given(st.integers(0, 10**6), st.floats(-6, 3), st.floats(0.2, 6), st.tuples(st.integers(8, 60), st.integers(8, 60)))
@settings(max_examples=60, deadline=None)
def test_maps_come_back(seed: int, power: float, gamma: float, size: tuple[int, int]) -> None:
    import tempfile

    values = (10**power * smooth(*size, 3, seed) ** gamma).astype(np.float32)
    mask = smooth(*size, 4, seed + 1) > 0.5
    with tempfile.TemporaryDirectory() as folder:
        got = read_map(write_map(Path(folder) / "a.png", values))
    assert got.dtype == np.float32 and got.shape == values.shape
    assert np.abs(got - values).max() <= values.max() * 0.6 / 65535 * 2
    share = lambda a: float((a.astype(float) * mask).sum() / a.astype(float).sum())  # noqa: E731
    assert abs(share(got) - share(values)) < 1e-4


def test_other_programs_read_our_maps(tmp_path: Path) -> None:
    values = smooth()
    write_map(tmp_path / "a.png", values)
    by_pillow = np.asarray(Image.open(tmp_path / "a.png")) / 65535
    by_opencv = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED) / 65535
    assert np.abs(by_pillow - values).max() < 1e-4 and np.abs(by_opencv - values).max() < 1e-4
    Image.open(tmp_path / "a.png").save(tmp_path / "again.png", optimize=True)  # filtered and packed, note lost
    assert np.abs(read_map(tmp_path / "again.png") - values).max() < 1e-4


def test_maps_of_eight_bits_and_sizes(tmp_path: Path) -> None:
    values = smooth(100, 80)
    eight = np.rint(values * 255).astype(np.uint8)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(eight).save(tmp_path / name, quality=95)
        assert np.abs(read_map(tmp_path / name) - values).max() < 0.03
        assert read_map(tmp_path / name, size=(50, 40)).shape == (50, 40)
    Image.fromarray(np.dstack([eight] * 3)).save(tmp_path / "rgb.jpg", quality=90)  # grey in three channels
    assert np.abs(read_map(tmp_path / "rgb.jpg") - values).max() < 0.03
    clear = Image.fromarray(np.dstack([eight] * 3 + [np.full_like(eight, 255)]))
    clear.save(tmp_path / "opaque.png")
    assert np.abs(read_map(tmp_path / "opaque.png") - values).max() < 0.01


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([[0.1, -0.1]]), "least value is -0.1"),
        (np.array([[0.1, np.nan]]), "NaN or infinite"),
        (np.array([[0.1, np.inf]]), "NaN or infinite"),
        (np.zeros((2, 2, 3)), "not a map"),
        (np.zeros((0, 2)), "not a map"),
        (np.array([["a"]]), "not a map"),
    ],
)
def test_no_maps(tmp_path: Path, values: np.ndarray, says: str) -> None:
    with pytest.raises(Refused, match=says):
        write_map(tmp_path / "a.png", values)
    assert not list(tmp_path.iterdir())


def test_a_broken_scale_is_refused(tmp_path: Path) -> None:
    write_map(tmp_path / "a.png", 3 * smooth())
    whole = (tmp_path / "a.png").read_bytes()
    start = whole.index(b"tEXt")
    length = int.from_bytes(whole[start - 4 : start])
    for text in (b"no number", b"-1", b"nan", b"inf", b"0"):
        body = b"alignment_video:scale\0" + text
        chunk = len(body).to_bytes(4) + b"tEXt" + body + zlib.crc32(b"tEXt" + body).to_bytes(4)
        (tmp_path / "b.png").write_bytes(whole[: start - 4] + chunk + whole[start + 8 + length :])
        with pytest.raises(Refused, match="no number above 0"):
            read_map(tmp_path / "b.png")


MAPS = ("hot", "viridis", "inferno", "magma", "plasma", "cividis", "turbo", "jet")


def drawn(name: str, values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matplotlib.colormaps[name](values, bytes=True)[..., :3])


@pytest.mark.parametrize("name", MAPS)
def test_colour_maps_are_turned_back(tmp_path: Path, name: str) -> None:
    for seed, (low, high) in enumerate([(0, 1), (0, 0.4), (0, 1)]):
        values = low + (high - low) * smooth(256, 200, 14, seed) ** (3 if seed == 2 else 1)
        for file, options in {"a.png": {}, "a.jpg": {"quality": 95}, "b.jpg": {"quality": 75}}.items():
            Image.fromarray(drawn(name, values)).save(tmp_path / file, **options)
            assert colour_map_of(read_picture(tmp_path / file)) == name
            off = np.abs(read_map(tmp_path / file) - values)
            assert off.mean() < 0.008 and np.quantile(off, 0.99) < 0.03, (file, off.mean(), off.max())


@pytest.mark.parametrize("name", MAPS)
def test_a_small_peak_is_not_outvoted(name: str) -> None:
    y, x = np.mgrid[:400, :400]
    peak = np.exp(-((x - 300) ** 2 + (y - 90) ** 2) / (2 * 6**2))
    assert colour_map_of(drawn(name, peak)) == name


@pytest.mark.parametrize("name", ["coolwarm", "seismic", "bwr", "RdBu", "hsv", "twilight", "Spectral"])
def test_maps_without_one_direction_are_refused_by_name(tmp_path: Path, name: str) -> None:
    Image.fromarray(drawn(name, 0.2 + 0.6 * smooth(200, 200))).save(tmp_path / "a.png")
    with pytest.raises(Refused, match=f"{name}|none of the colour maps"):
        read_map(tmp_path / "a.png")


def test_what_is_no_colour_map_is_refused(tmp_path: Path) -> None:
    values = smooth(200, 200)
    blended = (0.5 * photo(200, 200) + 0.5 * drawn("jet", values)).astype(np.uint8)
    framed = np.full((260, 260, 3), 255, np.uint8)
    framed[30:230, 30:230] = drawn("viridis", values)
    see_through = np.dstack([drawn("hot", values), np.rint(255 * values).astype(np.uint8)])
    for name, image in {"photo": photo(200, 200), "blended": blended, "framed": framed, "clear": see_through}.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        with pytest.raises(Refused, match=r"in colour, but in none|transparent in places"):
            read_map(tmp_path / f"{name}.png")
    assert not is_colour_mapped(photo(200, 200))


def test_overlays() -> None:
    picture, mask = photo(90, 120), smooth(90, 120) > 0.6
    for values in (mask, mask.astype(float), smooth(90, 120), np.zeros((90, 120)), 5 * smooth(90, 120)):
        image = overlay(picture, values)
        assert image.shape == picture.shape and image.dtype == np.uint8
    assert overlay(picture, mask)[mask].mean(0)[0] > picture[mask].mean(0)[0]  # more red where the product is
    with pytest.raises(Refused, match="overlay"):
        overlay(picture, mask[:9])


# published maps, made elsewhere


GREY = {  # scene: correlation with people's attention, by the grey of the colours, as its authors computed it
    "048": (0.495, 0.510, -0.235),
    "054": (0.498, 0.532, -0.196),
    "059": (0.645, 0.732, 0.085),
    "061": (0.249, 0.262, -0.071),
    "064": (0.651, 0.655, -0.115),
    "067": (0.354, 0.337, 0.041),
    "068": (0.534, 0.563, 0.184),
}
KINDS = ("human_meaning_maps", "llava_finetune_maps", "llava_raw_maps")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published maps are not on this machine")
def test_published_maps() -> None:
    """The attention maps are in viridis, the others in grey; true values correlate otherwise than colours' grey."""
    changes = []
    for scene, wanted in GREY.items():
        path = PUBLISHED / "attention_maps" / f"scene_{scene}.png"
        colours = read_picture(path)
        assert colour_map_of(colours) == "viridis"
        grey, values = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY).ravel(), read_map(path).ravel()
        for kind, r in zip(KINDS, wanted, strict=True):
            other_path = PUBLISHED / kind / f"scene_{scene}.png"
            assert colour_map_of(read_picture(other_path)) == "grey"
            other = read_map(other_path).ravel()
            by_grey = np.corrcoef(grey, other)[0, 1]
            assert abs(by_grey - r) < 1.5e-3, (scene, kind, by_grey)
            changes.append(np.corrcoef(values, other)[0, 1] - by_grey)
    human = np.array(changes).reshape(-1, 3)[:, 0]
    assert (human < -0.015).all() and human.mean() > -0.05  # grey had flattered them by about .03
