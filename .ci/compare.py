"""Are two outputs of a cell the same? Words exactly, numbers within the precision printed, pictures by tolerance.

- A printed number with decimals may differ by 2 units of its last printed digit; a whole number may not differ.
- Runs of blanks count as one, because a longer number moves the columns of a table.
- A picture may differ by 2 % of full scale on average and, on a grid of 16 × 16 fields, by 15 % in one field; its size
  may differ by 2 %. Other embedded media (a video) must be of the same kind, and of about the same length.
"""

import base64
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from PIL import Image

Output = dict[str, Any]
number = re.compile(r"(?<![\w.])[-+]?\d++(?:,\d{3})*+(?:\.\d*+)?+(?:[eE][-+]?\d++)?+(?!\.\d)")
embedded = re.compile(r"data:([\w/.+-]+);base64,([A-Za-z0-9+/=\s]+)")
mean_tolerance, field_tolerance, size_tolerance = 0.02, 0.15, 0.02


def text(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def last_digit(printed: str) -> Decimal | None:
    """The value of one unit in the last printed digit; None for a whole number."""
    digits, _, exponent = printed.lower().partition("e")
    if "." not in digits and not exponent:
        return None
    return Decimal(1).scaleb(int(exponent or 0) - len(digits.partition(".")[2]))


def same_number(old: str, new: str) -> bool:
    old, new = old.replace(",", ""), new.replace(",", "")
    units = [unit for unit in map(last_digit, (old, new)) if unit is not None]
    return abs(Decimal(old) - Decimal(new)) <= (2 * min(units) if units else 0)


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
    if any(abs(a - b) > max(3, size_tolerance * a) for a, b in zip(before.size, after.size, strict=True)):
        return f"size {before.size} became {after.size}"
    if after.size != before.size:
        after = after.resize(before.size, Image.Resampling.BILINEAR)
    difference = np.abs(np.asarray(before, np.float32) - np.asarray(after, np.float32)).mean(2) / 255
    fields = np.asarray(Image.fromarray(difference).resize((16, 16), Image.Resampling.BOX))
    if difference.mean() > mean_tolerance or fields.max() > field_tolerance:
        return f"mean difference {difference.mean():.1%}, largest field {fields.max():.1%}"
    return ""


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
