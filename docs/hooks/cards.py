"""A description of every page, and the picture that a link to it shows.

The description is the page's first paragraph, unless its front matter has one. The picture, a
social card, is drawn with Pillow and the fonts that Matplotlib carries, so that nothing comes from
a network; Material's own plugin downloads fonts. A link preview needs absolute addresses, so that
cards are made only where `site_url` is set, as it is where the site is published.
"""

import functools
import html
import io
import pathlib
import random
import re
import textwrap

import matplotlib
from mkdocs.structure.files import File
from PIL import Image, ImageDraw, ImageFont


_FONTS = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
_SIZE, _MARGIN = (1200, 630), 80
_INDIGO, _AMBER, _WHITE, _PALE = "#303f9f", "#ffb300", "#ffffff", "#d5daf5"

_PARAGRAPH = re.compile(r"<p>(.*?)</p>", re.DOTALL)
_LONGEST = 160


def describe(content: str) -> str | None:
    """The beginning of a page as plain text: of the first paragraph of words without formulas."""
    for match in _PARAGRAPH.finditer(content):
        if "arithmatex" in match[1] or "<math" in match[1]:
            continue
        text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", match[1])).split())
        if len(text) > 30:
            return textwrap.shorten(text.rstrip(":"), _LONGEST, placeholder=" …")
    return None


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONTS / f"{name}.ttf", size)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines that are no wider than the card."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font) <= _SIZE[0] - 2 * _MARGIN:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@functools.cache
def _disc(side: int) -> tuple[Image.Image, Image.Image]:
    """A disc that dissolves into noise, and its outline: the same in every build."""
    size = (side, side)
    noise = Image.frombytes("L", size, random.Random(0).randbytes(side * side)).convert("RGB")
    fade = Image.linear_gradient("L").resize(size).rotate(90)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    return Image.composite(Image.new("RGB", size, _AMBER), noise, fade), mask


def card(title: str, description: str, site: str) -> Image.Image:
    """A card of 1200 by 630 pixels, the size that link previews expect."""
    image = Image.new("RGB", _SIZE, _INDIGO)
    draw = ImageDraw.Draw(image)
    disc, mask = _disc(170)
    image.paste(disc, (_SIZE[0] - _MARGIN - 170, _SIZE[1] - _MARGIN - 170), mask)
    y = _MARGIN
    heading = _font("DejaVuSans-Bold", 68)
    for line in _fit(draw, title, heading)[:3]:
        draw.text((_MARGIN, y), line, _WHITE, heading)
        y += 84
    body, y = _font("DejaVuSans", 34), y + 24
    for line in _fit(draw, description, body)[:4]:
        draw.text((_MARGIN, y), line, _PALE, body)
        y += 48
    draw.text((_MARGIN, _SIZE[1] - _MARGIN), site, _AMBER, _font("DejaVuSans-Bold", 40), "ls")
    return image


def _address(page) -> str:
    return f"assets/cards/{page.url.strip('/').replace('/', '-') or 'index'}.png"


def on_page_content(content, page, config, files):
    """A MkDocs event: a page has been rendered."""
    description = page.meta.get("description") or describe(content) or config.site_description
    # The theme writes it into an attribute as it is.
    page.meta["description"] = html.escape(description)
    if config.site_url:
        title = re.sub(r"<[^>]+>", "", html.unescape(page.title))
        buffer = io.BytesIO()
        card(title, description, config.site_name).quantize(64).save(buffer, "PNG")
        files.append(File.generated(config, _address(page), content=buffer.getvalue()))
    return content


def on_post_page(output, page, config):
    """A MkDocs event: a page's HTML is complete."""
    if not config.site_url:
        return output
    site = config.site_url.rstrip("/")
    tags = {
        "og:type": "website",
        "og:site_name": config.site_name,
        "og:title": page.title,
        "og:description": page.meta["description"],
        "og:url": page.canonical_url,
        "og:image": f"{site}/{_address(page)}",
        "og:image:width": _SIZE[0],
        "og:image:height": _SIZE[1],
        "twitter:card": "summary_large_image",
    }
    lines = [
        f'<meta {"name" if name.startswith("twitter") else "property"}="{name}" '
        f'content="{html.escape(html.unescape(str(value)))}">'
        for name, value in tags.items()
    ]
    return output.replace("</head>", "\n".join(lines) + "\n</head>", 1)
