"""Make the book's fonts: subsets with no more characters than its pages need.

`make fonts` runs it when the Chinese abstract or a formula shows a character that the
fonts lack, which `tests/browser/test_fonts.py` finds. It needs npm and Debian's
`fonts-noto-cjk`; the fonts themselves are committed, so that readers need neither.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont

ROOT = Path(__file__).resolve().parents[1]
FONTS = ROOT / "book" / "_static" / "fonts"
NOTO = Path("/usr/share/fonts/opentype/noto")
FAMILY_NAMES = [1, 3, 4, 6]
TAIWAN = 3  # the place of Noto Sans CJK TC in Debian's collections
PACKAGES = ["source-sans@3.52.0", "@fontsource/stix-two-math@5.3.0"]
# Letters of European names, Greek, and the signs of text: dashes, arrows, marks.
TEXT = [
    *range(0x20, 0x7F), *range(0xA0, 0x180), *range(0x391, 0x3CA),
    *range(0x2010, 0x2040), *range(0x2070, 0x208F), 0x20AC, *range(0x2190, 0x2196),
    *map(ord, "−∞≈≠≤≥√∑■□▲△○●▸▾◆✓✗⌘"),
]  # fmt: skip
# Upright, bold, italic, script and blackboard letters, and the signs between them.
MATHS = [
    *range(0x20, 0x7F), 0xA0, 0xAF, 0xB1, 0xB7, 0xD7, 0xF7, *range(0x2C6, 0x2DD),
    *range(0x391, 0x3F6), *range(0x2010, 0x2017), *range(0x2026, 0x2027),
    *range(0x2032, 0x2038), *range(0x2061, 0x2065), *range(0x210A, 0x2140),
    *range(0x2190, 0x2196), 0x21A6, 0x21D2, 0x21D4, *range(0x2200, 0x2270),
    *range(0x227A, 0x228C), 0x2299, 0x22A4, 0x22A5, *range(0x22C5, 0x22F2),
    *range(0x2308, 0x230C), 0x23DE, 0x23DF, 0x25D0, 0x27E8, 0x27E9,
    0x27F5, 0x27F6, 0x27FC, *range(0x1D400, 0x1D468), *range(0x1D538, 0x1D56C),
    *range(0x1D6A4, 0x1D6E2), *range(0x1D6E2, 0x1D71C),
]  # fmt: skip


def _unpacked(package: str, folder: Path) -> Path:
    """Fetch a package of npm and unpack it; its folder."""
    command = ["npm", "pack", "--silent", package]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True)
    archive = folder / done.stdout.decode().split()[-1]
    place = folder / archive.stem
    place.mkdir()
    unpack = ["tar", "xzf", archive, "--strip-components=1", "-C", place]
    subprocess.run(unpack, check=True)
    return place


def _write(font: TTFont, characters: list[int], family: str, style: str) -> None:
    """Keep what `characters` need of a font and write it as WOFF2, under a new name.

    The licence reserves the names of the originals for the originals.
    """
    options = Options()
    options.layout_features = ["*"] if "MATH" in font else ["kern", "liga", "mark"]
    options.layout_features += ["vert"] * ("vhea" in font)
    options.drop_tables += ["vhea", "vmtx", "VORG"]
    options.hinting, options.name_IDs = False, [0, *FAMILY_NAMES, 2, 5, 13, 14]
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=characters)
    subsetter.subset(font)
    if "fvar" in font:
        font = instantiateVariableFont(font, {"wght": (400, 700)})
    for record in font["name"].names:
        if record.nameID in FAMILY_NAMES:
            record.string = family.replace(" ", "" if record.nameID == 6 else " ")
    font.flavor = "woff2"
    target = FONTS / f"{family.lower().replace(' ', '-')}-{style}.woff2"
    font.save(target)
    print(f"{target.name} {target.stat().st_size:,} bytes")


def _chinese() -> tuple[list[int], list[int]]:
    """The Chinese characters of the book, and those that its English pages show.

    These are of the titles of Chinese pages, which the list of chapters names, and what
    English pages hold themselves.
    """
    pages = [*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    texts = [page.read_text() for page in pages]
    own = [path.read_text() for path in ROOT.glob("book/_ext/*.py")]
    own += [path.read_text() for path in ROOT.glob("src/thesis_book/**/*.py")]
    for name in ("index_entries.yml", "_ext/interface_zh.json"):
        own.append((ROOT / "book" / name).read_text())
    abroad = [
        "".join(re.findall("^# .*", text, re.MULTILINE)) if "lang: zh" in text else text
        for text in texts
    ]

    def found(texts: list[str]) -> list[int]:
        chinese = "[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]"
        return sorted({*map(ord, re.findall(chinese, "".join(texts)))})

    return found(texts + own), found(abroad)


def _noto(weight: str) -> TTFont:
    path = NOTO / f"NotoSansCJK-{weight}.ttc"
    return TTFont(path, fontNumber=TAIWAN, recalcTimestamp=False)


def main() -> None:
    FONTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        sans, stix = (_unpacked(package, Path(scratch)) for package in PACKAGES)
        for style in ("Upright", "Italic"):
            path = sans / f"VF/SourceSans3VF-{style}.ttf"
            font = TTFont(path, recalcTimestamp=False)
            _write(font, TEXT, "Book Sans", style.lower())
        path = stix / "files/stix-two-math-latin-400-normal.woff2"
        maths = TTFont(path, recalcTimestamp=False)
        _write(maths, MATHS, "Book Maths", "regular")
    everywhere, abroad = _chinese()
    for weight in ("Regular", "Bold"):
        _write(_noto(weight), everywhere, "Book Chinese", weight.lower())
    _write(_noto("Regular"), abroad, "Book Titles", "regular")


if __name__ == "__main__":
    main()
