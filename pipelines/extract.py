"""Text of web pages: decode the bytes, parse the HTML, keep the main content.

With resiliparse: an F1 of 0.934 on the 181 news pages of the article extraction benchmark, at 79 MB
of HTML per CPU second (benchmarks/extraction.py). trafilatura 2.0 has 0.958 there and is 14 to 35
times slower. A third of the difference is headlines, which that benchmark does not count as body.
"""

import codecs
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

from pipelines.document import CONTENT, CONTENT_TYPE
from pipelines.step import Step

CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s;\"',]+)", re.IGNORECASE)
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
FORMATTING = frozenset(
    ("b", "big", "code", "em", "font", "i", "s", "small", "strike", "strong", "tt", "u")
)
"""What HTML opens again in every paragraph until it is closed."""
# fmt: off
UNNESTED = frozenset((
    "a", "area", "base", "body", "br", "col", "colgroup", "dd", "dt", "embed", "head", "hr", "html",
    "img", "input", "li", "link", "meta", "nobr", "optgroup", "option", "p", "param", "rp", "rt",
    "source", "tbody", "td", "tfoot", "th", "thead", "tr", "track", "wbr",
))
# fmt: on
"""What has no end tag, or ends where the next begins."""
SAFE_TAGS = 2_000
"""Tags that no nesting makes costly: 1,000 font and 1,000 p tags take 200 MB and 0.9 s."""
MAX_COPIES = 2_000_000
MAX_STEPS = 20_000_000
"""Tags times depth: 3,000 nested div elements take 0.13 s, 10,000 would take 1.8 s."""


@dataclass(frozen=True)
class HtmlText(Step):
    """Makes text of the content of pages, where there is none yet.

    A null content gives a null text. So does a page whose tags are nested so deep that parsing it
    would take minutes or gigabytes: 4,000 unclosed font tags, 67 KB, take 3 GB.

    Args:
        main_content: leave out navigation, sidebars, footers and the like.
        preserve_formatting: keep paragraphs and lists as lines; else all is one line.
        list_bullets: begin list items with a bullet.
        alt_texts: keep the alternative texts of images.
        links: write the target behind each link.
        comments: keep readers' comments.
        post_meta: keep authors, dates and the like.
        skip_elements: CSS selectors of what else to leave out.

    Source: resiliparse, Bevendorff et al. 2018 (ECIR), github.com/chatnoir-eu/chatnoir-resiliparse;
    the main content rules are in its documentation.
    """

    main_content: bool = True
    preserve_formatting: bool = True
    list_bullets: bool = True
    alt_texts: bool = False
    links: bool = False
    comments: bool = False
    post_meta: bool = False
    skip_elements: tuple[str, ...] = ()
    reads = ("text", CONTENT, CONTENT_TYPE)
    adds = pa.schema([("text", pa.string())])
    consumes = (CONTENT, CONTENT_TYPE)
    libraries = ("resiliparse",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with text filled in and content gone."""
        text, content = batch.column("text"), batch.column(CONTENT)
        media = batch.column(CONTENT_TYPE)
        wanted = pc.and_(text.is_null(), content.is_valid()).to_pylist()
        made = [
            self.extract(content[row].as_py(), media[row].as_py() or "") if wanted[row] else None
            for row in range(batch.num_rows)
        ]
        text = pc.coalesce(text, pa.array(made, pa.string()))
        place = batch.schema.get_field_index("text")
        return batch.set_column(place, "text", text).drop_columns(list(self.consumes))

    def extract(self, content: bytes, content_type: str) -> str | None:
        """Returns the text of a page; plain text is decoded only."""
        page = decode_page(content, content_type)
        if content_type.partition(";")[0].strip().lower() == "text/plain":
            return page
        if explodes(page):
            return None
        return extract_plain_text(
            page,
            preserve_formatting=self.preserve_formatting,
            main_content=self.main_content,
            list_bullets=self.list_bullets,
            alt_texts=self.alt_texts,
            links=self.links,
            comments=self.comments,
            post_meta=self.post_meta,
            skip_elements=self.skip_elements,
        )


def decode_page(content: bytes, content_type: str) -> str:
    """Decodes a page by, in this order, its byte order mark, its bytes, its labels, its letters.

    Bytes that are valid UTF-8 are UTF-8, whatever the label says: other encodings hardly ever look
    like it, and labels are often wrong. Then count the charset of the content type and that of the
    page (meta), then the guess of a detector. What cannot be decoded becomes U+FFFD.
    """
    for mark, name in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(name, "replace")
    if b"\x1b" not in content and b"\0" not in content:  # neither ISO-2022 nor UTF-16
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            cut_off = error.reason == "unexpected end of data"  # by crawlers, within a character
            if cut_off and not content[: error.start].isascii():
                return content.decode("utf-8", "replace")
    label = CHARSET.search(content_type)
    name = map_encoding_to_html5(label[1], fallback_utf8=False) if label else None
    name = name or detect_encoding(content, from_html_meta=True) or "utf-8"
    return content.decode(name, "replace")


def explodes(page: str) -> bool:
    """Says whether parsing a page would take far more time or memory than its size lets expect.

    Every start tag looks through all open elements, and every paragraph copies the open formatting
    elements, so the cost is tags times depth.
    """
    tags = page.count("<")
    if tags < SAFE_TAGS:
        return False
    depth: dict[str, int] = {}
    deepest = formatting = deepest_formatting = total = 0
    for slash, name in TAG.findall(page):
        name = name.lower()
        if name in UNNESTED:
            continue
        if not slash:
            depth[name] = depth.get(name, 0) + 1
            change = 1
        elif depth.get(name, 0):
            depth[name] -= 1
            change = -1
        else:
            continue
        total += change
        deepest = max(deepest, total)
        if name in FORMATTING:
            formatting += change
            deepest_formatting = max(deepest_formatting, formatting)
    return deepest * tags > MAX_STEPS or deepest_formatting * tags > MAX_COPIES
