"""HtmlText: encodings, what is kept of a page, hostile pages, and quality on real ones."""

import codecs

import pyarrow as pa
import pytest

from benchmarks.extraction import ARTICLES, load_articles, score, shingles
from pipelines.extract import HtmlText, decode_page, explodes

HTML = "text/html"
ARTICLE = "The quick brown fox jumps over the lazy dog, and does so every single morning. " * 8
PAGE = f"""<!doctype html><html><head><title>Title</title></head><body>
<nav><ul><li><a href="/">Home</a><li><a href="/about">About us</a></ul></nav>
<main><article><h1>Headline</h1><p>{ARTICLE}</p><ul><li>first<li>second</ul>
<p>See <a href="http://x/">there</a> <img src="x" alt="a fox"></p></article></main>
<footer>Copyright notice</footer></body></html>"""


def batch(rows: list[tuple[str | None, bytes | None, str | None]]) -> pa.RecordBatch:
    text, content, media = zip(*rows, strict=True)
    return pa.RecordBatch.from_pydict(
        {
            "id": pa.array([str(n) for n in range(len(rows))]),
            "text": pa.array(text, pa.string()),
            "content": pa.array(content, pa.binary()),
            "content_type": pa.array(media, pa.string()),
            "url": pa.array(["u"] * len(rows)),
        }
    )


def test_text_is_filled_in_where_there_is_content_only():
    rows = [
        (None, b"<p>page</p>", HTML),
        ("there", b"<p>page</p>", HTML),
        ("there", None, None),
        (None, None, None),
        (None, b"", HTML),
        (None, b"<p>no type</p>", None),
        (None, b"a < b", "Text/Plain; charset=utf-8"),
    ]
    result = HtmlText(main_content=False)(batch(rows))
    assert result.schema.names == ["id", "text", "url"]
    texts = result.column("text").to_pylist()
    assert texts == ["page", "there", "there", None, "", "no type", "a < b"]


def test_main_content_is_kept_and_what_is_around_it_is_not():
    text = HtmlText().extract(PAGE.encode(), HTML)
    assert ARTICLE.strip() in text
    assert "Headline" in text
    assert not any(word in text for word in ("Home", "About us", "Copyright", "http", "a fox"))


@pytest.mark.parametrize(
    ("step", "word"),
    [
        (HtmlText(main_content=False), "Copyright notice"),
        (HtmlText(main_content=False), "\u2022 first\n"),
        (HtmlText(links=True), "http://x/"),
        (HtmlText(alt_texts=True), "a fox"),
    ],
)
def test_parameters_bring_more_in(step, word):
    assert word in step.extract(PAGE.encode(), HTML)
    assert word not in HtmlText().extract(PAGE.encode(), HTML)


def test_parameters_leave_more_out():
    assert "Headline" not in HtmlText(skip_elements=("h1",)).extract(PAGE.encode(), HTML)
    plain = HtmlText(main_content=False, list_bullets=False).extract(PAGE.encode(), HTML)
    assert "first" in plain
    assert "\u2022" not in plain
    assert "\n" not in HtmlText(preserve_formatting=False).extract(PAGE.encode(), HTML)


JAPANESE = "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8"
RUSSIAN = "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440, \u043a\u0430\u043a"


@pytest.mark.parametrize(
    ("content", "media", "text"),
    [
        (JAPANESE.encode(), HTML, JAPANESE),
        (JAPANESE.encode(), "text/html; charset=iso-8859-1", JAPANESE),  # the label is wrong
        (codecs.BOM_UTF8 + b"x", HTML, "x"),
        (codecs.BOM_UTF16_LE + "caf\u00e9".encode("utf-16-le"), HTML, "caf\u00e9"),
        (codecs.BOM_UTF16_BE + "caf\u00e9".encode("utf-16-be"), HTML, "caf\u00e9"),
        (b"caf\xe9 \x93x\x94", "text/html; charset=ISO-8859-1", "caf\u00e9 \u201cx\u201d"),
        (JAPANESE.encode("euc-jp"), 'text/html; charset="EUC-JP"', JAPANESE),
        (JAPANESE.encode("iso-2022-jp"), "text/html;charset=iso-2022-jp", JAPANESE),
        (b"<meta charset=shift_jis>" + JAPANESE.encode("shift_jis"), HTML, JAPANESE),
        (RUSSIAN.encode("cp1251") * 9, HTML, RUSSIAN),
        ("na\u00efve caf\u00e9".encode()[:-1], "text/html; charset=latin1", "na\u00efve caf\ufffd"),
        (b"caf\xe9", "text/html; charset=latin1", "caf\u00e9"),
        (b"", HTML, ""),
    ],
)
def test_page_is_decoded_by_mark_bytes_label_and_letters(content, media, text):
    assert decode_page(content, media).endswith(text)


def test_unknown_label_falls_back_to_the_detector():
    assert decode_page(b"caf\xe9", "text/html; charset=no-such-thing")[:3] == "caf"


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 50_000,
        "<span>" * 50_000 + "<div></div>" * 50_000,
        "".join(f"<font color={n}><p>x" for n in range(5_000)),
        "".join(f"<B id={n}><div>x" for n in range(5_000)),
    ],
    ids=["deep", "deep-inline", "font", "bold"],
)
def test_page_that_would_take_minutes_or_gigabytes_gives_null(page):
    assert HtmlText().extract(page.encode(), HTML) is None


@pytest.mark.parametrize(
    "page",
    [
        "<p>x" * 50_000,
        "<li>x" * 50_000,
        "<div><b>x</b></div>" * 50_000,
        "<tr><td>x" * 20_000,
        "</font>" * 50_000,
        "<div>" * 200 + "<p>x" * 9_000,
    ],
)
def test_long_page_is_no_hostile_one(page):
    assert not explodes(page)


def test_broken_html_never_raises():
    for end in range(0, len(PAGE), 7):
        assert isinstance(HtmlText().extract(PAGE.encode()[:end], HTML), str)
    assert isinstance(HtmlText().extract(bytes(range(256)) * 20, HTML), str)


def test_score_is_that_of_the_benchmark_on_a_page_counted_by_hand():
    assert shingles("a b") == {("a", "b"): 1}
    assert shingles("a b c d a b c d").total() == 5
    # of 3 true and 2 found 4-grams 1 is common; the second page is perfect
    truth = {"1": "a b c d e f", "2": "x y"}
    result = score(truth, {"1": "c d e f g", "2": "x, y!"})
    assert result.precision == pytest.approx((1 / 2 + 1) / 2)
    assert result.recall == pytest.approx((1 / 3 + 1) / 2)
    assert result.f1 == pytest.approx(2 * 0.75 * (2 / 3) / (0.75 + 2 / 3))


@pytest.mark.skipif(not ARTICLES.is_dir(), reason="../shared/data/articles is not on this machine")
def test_f1_on_the_article_benchmark_stays_above_its_floor():
    pages, truth = load_articles(ARTICLES)
    step = HtmlText()
    texts = {name: step.extract(page, HTML) or "" for name, page in pages.items()}
    result = score(truth, texts)
    assert len(pages) == 181
    assert result.f1 >= 0.93
    assert result.recall >= 0.975
