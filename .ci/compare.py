"""Are two outputs of a cell the same? Words exactly, numbers within the precision printed, pictures by tolerance.

- A printed number with decimals may differ by 1 unit of its last printed digit, and must have as many decimals; so must
  the mantissa of one with an exponent. A whole number, or a whole mantissa, may not differ. So signs change only at 0.
- Runs of blanks count as one, because a longer number moves the columns of a table.
- A picture's pixel differs by how far it lies outside the range of the other's 3 × 3 pixels there, in its worst colour:
  lines and letters may stand 1 pixel aside or be smoothed otherwise. Then no field of 7 × 7 pixels may differ by more
  than 5 % of full scale, nor more than 0.05 % of the pixels by more than 12 %; the size may differ by 2 pixels.
  Measured: another processor, unsmoothed lines, values ± 2: 2 % and 0; half a pixel aside: 4 % and 0.013 %; unhinted
  letters: 3 % and 0.025 %; one point of a figure moved: 44 % and 0.026 %; a pale thin line gone: 3 % and 0.3 %.
- Other embedded media (a video) must be of the same kind, and of about the same length.
"""

import base64
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

Output = dict[str, Any]
number = re.compile(r"(?<![\w.])[-+]?\d++(?:,\d{3})*+(?:\.\d*+)?+(?:[eE][-+]?\d++)?+(?!\.\d)")
embedded = re.compile(r"data:([\w/.+-]+);base64,([A-Za-z0-9+/=\s]+)")
field_tolerance, pixel_tolerance, share_tolerance, size_tolerance = 0.05, 0.12, 0.0005, 2


def text(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def parts(printed: str) -> tuple[Decimal, int, int | None]:
    """A printed number's value, its decimals, and its exponent, if it has one."""
    digits, mark, exponent = printed.replace(",", "").lower().partition("e")
    return Decimal(digits + mark + exponent), len(digits.partition(".")[2]), int(exponent) if mark else None


def same_number(old: str, new: str) -> bool:
    (before, decimals, power), (after, new_decimals, new_power) = parts(old), parts(new)
    if decimals != new_decimals or (power is None) != (new_power is None):
        return False
    unit = Decimal(1).scaleb(min(power or 0, new_power or 0) - decimals)  # the powers differ in 9.99e-01, 1.00e+00
    return abs(before - after) <= (unit if decimals else 0)


def same_text(old: str, new: str) -> bool:
    if old == new:
        return True
    media = [embedded.findall(side) for side in (old, new)]
    if len(media[0]) != len(media[1]) or not all(same_media(*pair) for pair in zip(*media, strict=True)):
        return False
    old, new = (re.sub(r"[ \t]+", " ", embedded.sub("data:", side)) for side in (old, new))
    if number.split(old) != number.split(new):
        return False
    return all(same_number(*pair) for pair in zip(number.findall(old), number.findall(new), strict=True))


def same_media(old: tuple[str, str], new: tuple[str, str]) -> bool:
    (old_kind, old_data), (new_kind, new_data) = old, new
    if old_kind != new_kind:
        return False
    if re.match(r"image/(png|jpe?g|webp)", old_kind):
        return not picture_difference(old_data, new_data)
    return abs(len(old_data) - len(new_data)) <= 0.1 * len(old_data)


def decode(data: str) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def picture_difference(old: str, new: str) -> str:
    """How two base64 pictures differ beyond the tolerance; empty if they do not."""
    if old == new:
        return ""
    before, after = decode(old), decode(new)
    if any(abs(a - b) > size_tolerance for a, b in zip(before.size, after.size, strict=True)):
        return f"size {before.size} became {after.size}"
    common = (0, 0, min(before.width, after.width), min(before.height, after.height))
    before, after = before.crop(common), after.crop(common)
    pixels = np.maximum(outside(before, after), outside(after, before))
    field = np.asarray(Image.fromarray(pixels).filter(ImageFilter.BoxBlur(3))).max() / 255
    share = (pixels > 255 * pixel_tolerance).mean()
    if field > field_tolerance or share > share_tolerance:
        return f"largest field {field:.1%}, {share:.3%} of the pixels differ"
    return ""


def outside(picture: Image.Image, other: Image.Image) -> np.ndarray:
    """How far each pixel lies outside the range of the other picture's 3 × 3 pixels there, in its worst colour."""
    low, high = (np.asarray(other.filter(f(3)), np.int16) for f in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    values = np.asarray(picture, np.int16)
    return np.maximum(low - values, values - high).clip(0).max(2).astype(np.uint8)


def normal(outputs: Sequence[Output]) -> list[Output]:
    """Outputs with neighbouring prints joined, however the kernel cut them up."""
    joined: list[Output] = []
    for output in outputs:
        before = joined[-1] if joined else {}
        if output["output_type"] == "stream" and before.get("name") == output["name"]:
            before["text"] = text(before["text"]) + text(output["text"])
        else:
            joined.append({**output, "text": text(output["text"])} if "text" in output else dict(output))
    return joined


def differences(old: Sequence[Output], new: Sequence[Output]) -> Iterator[str]:
    """What differs between a cell's stored and fresh outputs, each as a short text."""
    old, new = normal(old), normal(new)
    kinds = [[(o["output_type"], o.get("name"), sorted(o.get("data", ()))) for o in side] for side in (old, new)]
    if kinds[0] != kinds[1]:
        yield f"outputs were {describe(old)}, now {describe(new)}"
        return
    for before, after in zip(old, new, strict=True):
        if before["output_type"] == "stream" and not same_text(before["text"], after["text"]):
            yield short_diff(before["text"], after["text"])
        for kind in before.get("data", {}):
            a, b = before["data"][kind], after["data"][kind]
            if kind in ("image/png", "image/jpeg"):
                if why := picture_difference(text(a), text(b)):
                    yield f"{kind}: {why}"
            elif isinstance(a, dict):
                if a != b:
                    yield f"{kind} differs"
            elif not same_text(text(a), text(b)):
                yield short_diff(text(a), text(b))


def describe(outputs: Sequence[Output]) -> str:
    return (
        ", ".join(o.get("name") or "/".join(sorted(o.get("data", ()))) or o["output_type"] for o in outputs) or "none"
    )


def short_diff(old: str, new: str, most: int = 12) -> str:
    """The lines that differ, a dozen at most, each cut to a readable length."""
    sides = [side.splitlines() for side in (old, new)]
    if len(sides[0]) == len(sides[1]):  # leave out lines that are the same within tolerance
        pairs = [(a, b) for a, b in zip(*sides, strict=True) if not same_text(a, b)]
        lines = [line for a, b in pairs for line in ("-" + a, "+" + b)]
    else:
        lines = [line for line in difflib.unified_diff(*sides, lineterm="", n=0) if line[:2] not in ("--", "++", "@@")]
    more = [f"… {len(lines) - most} more lines"] if len(lines) > most else []
    return "\n".join([line[:160] for line in lines[:most]] + more)
