"""No number in prose is typed, nor what a comparison of times comes to.

Glue, citations and settings carry the numbers.

The linter reads text, captions and alternative texts of the chapters, the pages of the
book and the README, without code, mathematics, links and roles. A number with a unit
must be a figure of a work that the same sentence cites, or a setting of
`data/claims.yml`, which is compared with the constant in the code.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from citations import NUMBERED, PAGES, citations, cited_numbers, texts, uncited

ROOT = Path(__file__).parents[2]
CONTENT = yaml.safe_load((ROOT / "data" / "claims.yml").read_text())
CLAIMS, SETTINGS = CONTENT["claims"], CONTENT["settings"]
# What a work says, in the words in which a sentence that cites it may repeat it.
FIGURES = {
    "thesis": ["36 %", "36%", "120 GB", "8 GB", "12.5 ms", "2.5 ms"],
}
CODE = {"bibliography", "code-block", "include"}  # directives that hold no prose

# --- What a number with a unit looks like ------------------------------------

WORDS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "twelve": 12, "sixteen": 16, "twenty": 20,
    "thirty": 30, "fifty": 50, "hundred": 100,
}  # fmt: skip
SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "萬": 1e4, "億": 1e8}
NUMBER = r"(?<![\w.,])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
NUMBER += rf"(?:[\s-]?(?:{'|'.join(SCALES)}))?"
WORD = rf"\b(?:{'|'.join(WORDS)})"
SEVERAL = r"(?:\s*(?:,|–|to|and|or|至|與)\s*%s)*"
# A letter alone needs a space before it: 70B is a model, 1980s are years.
SYMBOL = r"\s?(?:%|％|×|[nmµu]s|min|[kKMGT]i?B|[kMGT]?FLOP|[kMGT]W|USD|EUR)|\s[sBWh]"
SYMBOL = rf"(?:{SYMBOL})(?:/s)?(?![\w-])"
AMOUNT = (
    r"per ?cent|(?:nano|micro|milli)?seconds?|minutes?|hours?|days?|dollars?|watts?|"
    r"(?:kilo|mega|giga|tera|kibi|mebi|gibi|tebi)?bytes?|bits?|cores?|warehouses?"
)
COUNT = (
    r"times|tokens?|transactions?|parameters?|layers?|rows?|positions?|sequences?|"
    r"weights?|workers?|seeds?|samples?|buffers?|points?|lines"
)
CHINESE = r"(?:毫|微)?秒|分鐘|層|倍|個?位元組?|個?參數|個?詞元|個?核心|筆交易|美元|成"
TYPED = re.compile(
    rf"{NUMBER}{SEVERAL % NUMBER}"
    rf"(?:{SYMBOL}|[\s-]?(?:{AMOUNT}|{COUNT})\b|\s[a-z-]+\s(?:{COUNT})\b"
    rf"|\s?(?:{CHINESE}))"
    rf"|{WORD}{SEVERAL % WORD}[\s-](?:{AMOUNT})\b"
    rf"|\b(?:loads?|batch(?:es)?|batch size)(?: (?:of|at|from|size))? {NUMBER}"
    rf"|[=≈] ?{NUMBER}",
    re.IGNORECASE,
)

# --- From a page to its sentences --------------------------------------------


def passages(markdown: str) -> Iterator[str]:
    """Paragraphs, list items, table rows and captions; code blocks are left out."""
    text = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->|\$\$.*?\$\$", " ", text, flags=re.DOTALL)
    lines: list[str] = []
    open_fences: list[bool] = []  # whether each holds prose
    for line in text.splitlines():
        if fence := re.match(r"\s*(?:```|:::)+(?:\{([\w:-]+)\})?(.*)", line):
            directive, argument = fence.groups()
            if directive:  # it holds prose, and its argument is a caption
                open_fences.append(directive not in CODE)
                lines += ["", argument, ""]
            elif argument.strip() or not open_fences:
                open_fences.append(False)
            else:
                open_fences.pop()
                lines.append("")
        elif all(open_fences) and not re.match(r"\s*:[\w-]+:", line):
            starts = re.match(r"\||#|\* -|[-*+] |\s*\d+\. ", line)
            lines += ["", line] if starts else [line]
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        if block.strip():
            yield " ".join(block.split())


def sentences(passage: str) -> list[str]:
    """The sentences of a passage; a row of a table counts as one."""
    if passage.startswith(("|", "* -")):
        return [passage]
    return re.split(r"(?<=[.!?])\s+|(?<=。)", passage)


def bare(sentence: str) -> str:
    """A sentence without roles, code, mathematics, targets and emphasis."""
    text = re.sub(r"\{[\w:]+\}`[^`]*`|`[^`]*`|\$[^$]*\$", "∎", sentence)
    text = re.sub(r"\]\([^)]*\)|https?://\S+", " ", text)
    text = re.sub(r"[*\[\]]", "", text)
    return " ".join(text.split())


def without(text: str, phrases: Iterable[str]) -> str:
    """`text` with each of the phrases taken out, wherever it stands alone."""
    for phrase in sorted(phrases, key=len, reverse=True):
        words = r"\s+".join(map(re.escape, phrase.split()))
        text = re.sub(
            rf"(?<![\w.,]){words}(?![A-Za-z0-9_%])", "∎", text, flags=re.IGNORECASE
        )
    return text


def typed_numbers(markdown: str, settings: Iterable[str] = ()) -> list[str]:
    """Numbers with a unit that nothing carries, each with its sentence."""
    found = []
    for passage in passages(markdown):
        for sentence in sentences(passage):
            cited = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", sentence)
            keys = {key.strip() for group in cited for key in group.split(",")}
            text = without(bare(sentence), settings)
            for key in keys & FIGURES.keys():
                text = without(text, FIGURES[key])
            found += [f"{hit[0]!r} in: {sentence}" for hit in TYPED.finditer(text)]
    return found


# --- What the linter finds, and what it lets pass ------------------------------


@pytest.mark.parametrize(
    "planted",
    [
        "Ours has 41.7 % fewer violations.",
        "Ours has 41.7% fewer violations.",
        "It has 41.7 percent fewer {cite}`efron1993`.",
        "The thesis has 41.7 % fewer {cite}`thesis`.",
        "Published are 36 % {cite}`thesis`. We have 36 % as well.",
        "A step takes 3.2 ms, or −0.5 µs less.",
        "A step takes 12.5ms.",
        "The model has 65 billion parameters in 120 GB.",
        "the 70-billion-parameter geometry",
        "between 16 and 24 GiB of memory",
        "at 2 GB/s and {glue:text}`x:.1f` s",
        "49,152 rows, 30 thin layers, 512 positions",
        "a pass of 64 tokens",
        "sixteen milliseconds of work",
        "ten warehouses and eight cores",
        "with $\\sigma$ = 0.2",
        "loads from 0.9 to 1.5",
        "batches of 10",
        "it is 3 times slower",
        "| a | 41.7 % |\n| {cite}`thesis` | – |",
        "```{table} Intervals are 90 %.\n:name: t\n\n| a |\n```",
        "```{list-table} Caption\n* - a\n  - 41.7 %\n* - {cite}`thesis`\n```",
        "規模為 650 億參數，費時 3 秒。",
        "減少 41.7 %。原論文 {cite}`thesis`。",
    ],
)
def test_a_typed_number_is_found(planted):
    assert typed_numbers(planted, settings=["95 % interval"])


@pytest.mark.parametrize(
    "good",
    [
        "Ours has {glue:text}`reduction_ours:.1f` % fewer violations.",
        "The thesis has 36 % fewer violations {cite}`thesis`.",
        "| Hybrid | 36 % {cite}`thesis` | {glue:text}`a.ipynb::x:.1f` % |",
        "a 95 % interval and `41.7 %` in code, $41.7\\%$ in mathematics",
        "```sh\nthesis run 4 -p seeds=20  # 41.7 %\n```",
        "<!-- 41.7 % -->",
        "Llama 2 70B and Mistral 7B of 2023, in section 3.4.1 and two parts",
        "see [the 4 steps](page_41%.md)",
        "原論文減少 36 % {cite}`thesis`。",
    ],
)
def test_what_carries_a_number_lets_it_pass(good):
    assert not typed_numbers(good, settings=["95 % interval"])


def test_captions_and_alternative_texts_are_read_and_code_is_not(tmp_path):
    figure = {"figure": {"caption": "1 ms", "name": "f"}, "image": {"alt": "2 ms"}}
    cells = [
        nbformat.v4.new_markdown_cell("3 ms"),
        nbformat.v4.new_code_cell("# 4 ms", metadata={"mystnb": figure}),
    ]
    page = tmp_path / "01_page.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), page)
    assert sorted(texts(page)) == ["1 ms", "2 ms", "3 ms"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_number_in_prose_is_typed(page):
    allowed = [setting["text"] for setting in SETTINGS]
    found = [hit for text in texts(page) for hit in typed_numbers(text, allowed)]
    assert not found, "\n".join(
        ["publish and glue it, cite its source, or make it a setting:", *found]
    )


# --- No more numbers than a reader can hold ------------------------------------

GLUED = r"\{glue:text\}`[^`]*`"
NUMERAL = re.compile(r"\{glue:text\}`[^`]*:[,.\d]*[dfg]`")  # what is glued as a number
ENDS = rf"(?:95 ?% ?(?:interval|信賴區間) )?{GLUED} (?:to|至) {GLUED}"
INTERVAL = re.compile(rf"\({ENDS}[^)]*\)|（{ENDS}[^）]*）")
AT_ONCE = 3


def crowded(markdown: str) -> list[str]:
    """Sentences with more numbers than three, an interval being part of its number."""
    return [
        sentence
        for passage in passages(markdown)
        if not passage.startswith(("|", "* -"))  # a row of a table
        for sentence in sentences(passage)
        if len(NUMERAL.findall(INTERVAL.sub("", sentence))) > AT_ONCE
    ]


def test_a_crowded_sentence_is_found_and_an_interval_is_part_of_its_number():
    number, word = "{glue:text}`x:.1f` %", "{glue:text}`fewer:s`"
    interval = "(95 % interval {glue:text}`low:.1f` to {glue:text}`high:.1f`)"
    three = f"It has {number} {word} than {number} {interval} and {number}."
    assert not crowded(f"{three} Another has {number}.")
    assert not crowded(f"| {number} | {number} | {number} | {number} |")
    assert crowded(three.replace(" and", f", {number} and"))
    assert crowded(f"- {number}, {number},\n  {number} and {number}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_sentence_of_the_text_has_more_than_three_numbers(page):
    found = [hit for text in texts(page, captions=False) for hit in crowded(text)]
    assert not found, "\n".join(["say it in two sentences, or in a table:", *found])


OLD = "[Ww]ho(ever|m)|[Nn]obody|refus\\w+|[Tt]old|said|[Bb]eside|haste|rivals?|[Pp]eers"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_has_short_sentences_and_the_terms_of_the_field(page):
    read = [bare(s) for t in texts(page) for p in passages(t) for s in sentences(p)]
    assert not [s for s in read if re.search(rf"(?<![\w-])({OLD})\b", s)]
    words = [len(s.split()) for s in read if s[:1] != "|"]
    print(f"{page.name:<44} {sum(words) / len(words):4.1f} words a sentence")
    assert sum(words) <= 18 * len(words)


def lines(page):
    return [line for text in texts(page) for line in text.split("\n")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_directive_is_undone_by_a_role_in_its_argument(page):
    undone = [line for line in lines(page) if re.match(r"\s*```+\{[\w:-]+\}.*`", line)]
    assert not undone, f"no fence of backticks has one in its first line: {undone}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_of_prose_disappears_as_a_comment(page):
    lost = [line for line in lines(page) if line.startswith("%")]
    assert not lost, f"to MyST a line that begins with % is a comment: {lost}"


# --- Which of two times is longer is decided by a cell --------------------------

COMPARED = re.compile(
    r"\b(?:(?:slow|fast|long|short|quick|soon|high|low|larg|small|great|cheap)e?er|"
    r"more|less|fewer|better|worse|most|least|exceed\w*|overtak\w+|outweigh\w*|hardly|"
    r"almost|nearly|barely|because|as (?:long|fast|slow|much|many) as|close to)\b|"
    r"慢|快|較|更|不到|超過",
    re.IGNORECASE,
)


def pattern(node: ast.expr | None) -> str:
    """The names that a literal stands for, as a regular expression; '' for none."""
    if isinstance(node, ast.Constant):
        return re.escape(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(pattern(part) or r"\w+" for part in node.values)
    return ""


def published(chapter: Path, *functions: str) -> set[str]:
    """The names that a chapter publishes by these functions of `records`, as patterns.

    Those of results that know their names are not in the text of a cell.
    """

    def names(call: ast.Call, function: str) -> Iterator[str]:
        yield from (key.arg for key in call.keywords if key.arg)
        if function == "publish_table":
            cells = ast.literal_eval(call.args[2]) if call.args[2:] else ".*"
            yield f"{pattern(call.args[0])}_?(?:{cells})"
            return
        for node in (node for each in call.args for node in ast.walk(each)):
            match node:
                case ast.Dict():
                    yield from map(pattern, node.keys)
                case ast.DictComp():
                    yield pattern(node.key)
                case ast.Call(func=ast.Attribute(attr="numbers")):  # of an interval
                    yield pattern(node.args[0])

    functions = functions or ("publish", "publish_timed", "publish_table")
    cells = nbformat.read(chapter, as_version=4).cells
    found = {
        name
        for cell in cells
        if cell.cell_type == "code"
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        and node.func.attr in functions
        for name in names(node, node.func.attr)
    }  # fmt: skip
    return found - {"", "precision"}  # that one is of the record itself


def among(cited: set[tuple[str, int | None]], named: set) -> bool:
    """Whether a name that is cited is one of those that a chapter publishes."""
    return any(
        chapter == home and re.fullmatch(known, name)
        for name, home in cited
        for known, chapter in named
    )


TIMED = {
    (name, n)
    for n, page in NUMBERED.items()
    for name in published(page, "publish_timed")
}
PUBLISHED = {
    (int(record.name[:2]), name): value
    for profile in ("smoke", "default")
    for record in (ROOT / "data" / "reference" / profile).glob("*.json")
    for name, value in json.loads(record.read_text())["numbers"].items()
}
OF_INTERVALS = ("_interval", "_origin", "_machine", "_mode")
DECIDED = {  # words of the reference run, which its cells decide by its numbers
    (name, chapter)
    for (chapter, name), value in PUBLISHED.items()
    if isinstance(value, str) and not name.endswith(OF_INTERVALS)
}


def typed_comparisons(
    text: str, home: int | None, timed: set = TIMED, words: set = DECIDED
) -> list[str]:
    """Sentences that cite a time of the run and compare it in words of their own."""
    return [
        sentence
        for passage in passages(text)
        for sentence in sentences(passage)
        if among(cited := citations(sentence, home), timed)
        and not among(cited, words)
        and COMPARED.search(bare(sentence))
    ]


@pytest.mark.parametrize(
    "planted",
    [
        "It takes {glue:text}`step_s:.2f` s, because weights arrive slowly.",
        "Reading takes {glue:text}`step_s:.2f` s and computing longer.",
        "| a | {glue:text}`step_s:.2f` s | slower |",
        "每個詞元費時 {glue:text}`../notebooks/06_x.ipynb::step_s:.3f` 秒，較慢。",
    ],
)
def test_a_typed_comparison_of_times_is_found(planted):
    timed, words = {("step_s", 6)}, {("bound", 6)}
    assert typed_comparisons(planted, 6, timed, words)
    carried = planted.replace("{glue", "{glue:text}`bound:s` {glue", 1)
    assert not typed_comparisons(carried, 6, timed, words)
    assert not typed_comparisons(planted, 6, {("other_s", 6)}, words)


def test_published_names_are_read_from_the_calls(tmp_path):
    source = (
        "records.publish_timed({'step_s': 1}, rate_per_s=2)\n"
        "records.publish_timed({f'{kind}_ms': 1 for kind in kinds})\n"
        "records.publish_timed(median.numbers('pass_s'))\n"
        "records.publish(bytes=share(of=3))\n"
        "records.publish_table('peers', peers, 'a_.*|b')"
    )
    cells = [nbformat.v4.new_code_cell(source)]
    page = tmp_path / "06_x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), page)
    timed = {(name, 6) for name in published(page, "publish_timed")}
    for name in ("step_s", "rate_per_s", "nf4_ms", "pass_s"):
        assert among({(name, 6)}, timed), name
    assert not among({("bytes", 6), ("step_s", 5)}, timed)
    named = {(name, 6) for name in published(page)}
    for name in ("peers_a_s", "bytes"):
        assert among({(name, 6)}, named), name
    assert not among({("peers_c", 6), ("of", 6)}, named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_comparison_of_times_is_typed(page):
    home = int(page.name[:2]) if page.suffix == ".ipynb" else None
    found = [hit for text in texts(page) for hit in typed_comparisons(text, home)]
    assert not found, "\n".join(
        ["publish a word that a cell decides, or say it without comparing:", *found]
    )


def test_every_claim_of_a_time_is_published_as_one():
    times = {(key, c["chapter"]) for key, c in CLAIMS.items() if c["kind"] == "time"}
    untimed = [time for time in times if not among({time}, TIMED)]
    assert not untimed, "publish them with records.publish_timed"


# --- A share says how long its runs are; a goal that was missed is told ---------


def of_no_length(cells: list) -> list[str]:
    """Return captions with a number of seeds but no number of transactions."""

    def cites(text: str, ending: str) -> bool:
        return any(name.endswith(ending) for name, _ in citations(text))

    found = []
    for aside in (False, True):
        page = [c for c in cells if ("details" in c.metadata.get("tags", [])) == aside]
        for at, cell in enumerate(page):
            shown = cell.metadata.get("mystnb", {}).get("figure", {})
            shown = cell.metadata.get("table", shown)
            tables = re.findall(r"^[:`]{3,}\{table\} (.*)", cell.source, re.MULTILINE)
            prose = [
                next((c.source for c in near if c.cell_type == "markdown"), "")
                for near in (page[at::-1], page[at:])
            ]
            found += [
                caption
                for caption in [shown.get("caption", ""), *tables]
                if cites(caption, "_seeds")
                and not cites(f"{caption} {' '.join(prose)}", "_transactions")
            ]
    return found


def test_a_caption_of_seeds_without_a_length_is_found():
    seeds, length = "over {glue:text}`a_seeds:d`", "of {glue:text}`a_transactions:d`"

    def cells(before, caption, behind, tags=()):
        code = nbformat.v4.new_code_cell("", metadata={"table": {"caption": caption}})
        texts = [
            nbformat.v4.new_markdown_cell(text, metadata={"tags": [*tags]})
            for text in (before, behind)
        ]
        return [texts[0], code, texts[1]]

    assert of_no_length(cells("", seeds, "")) == [seeds]
    assert of_no_length(cells("", "of a record", "")) == []
    for long in [("", seeds + length, ""), (length, seeds, ""), ("", seeds, length)]:
        assert of_no_length(cells(*long)) == []
    assert of_no_length(cells(length, seeds, length, ["details"])) == [seeds]
    table = nbformat.v4.new_markdown_cell(f":::{{table}} {seeds}\n\n| a |\n:::")
    assert of_no_length([table]) == [seeds]


SIMULATED = [page for n, page in NUMBERED.items() if n in (2, 3, 4)]


@pytest.mark.parametrize("page", SIMULATED, ids=lambda page: page.name)
def test_text_about_seeds_states_the_length_of_a_run(page):
    assert of_no_length(nbformat.read(page, as_version=4).cells) == []


WHOLE = {"reached": "cells", "kept": "regrets", "met": "cells", "within": "settings"}


def missed_goals(numbers: Mapping[str, Any]) -> set[str]:
    """Names of goals that were missed: a word says so, or a count is not the whole."""
    wholes = {
        name: numbers.get(f"{stem}_{WHOLE.get(what)}")
        for name in numbers
        for stem, _, what in [name.rpartition("_")]
    } | {name: numbers.get("judged_cells") for name in ["judged_boosted"]}
    return {
        name
        for name, value in numbers.items()
        if value == "missed" or (wholes[name] is not None and value < wholes[name])
    }


def test_a_missed_goal_is_found():
    numbers = {"a_met": "missed", "b_met": "met", "c_reached": 3, "c_cells": 4}
    numbers |= {"d_within": 4, "d_settings": 4, "e_kept": 1}
    assert missed_goals(numbers) == {"a_met", "c_reached"}


@pytest.mark.parametrize("page", SIMULATED, ids=lambda page: page.name)
def test_every_goal_that_was_missed_stands_where_readers_look_for_it(page):
    """In the published book, on the page of what could not be reproduced."""
    record = ROOT / "data" / "reference" / "default" / page.with_suffix(".json").name
    missed = missed_goals(json.loads(record.read_text())["numbers"])
    told = citations((ROOT / "book" / "not_reproduced.md").read_text())
    assert {(name, int(page.name[:2])) for name in missed} <= told


# --- Claims are cited, settings are true ---------------------------------------


def test_every_claim_is_cited_from_its_chapter():
    cited = {(name.removesuffix("_by"), home) for name, home in cited_numbers()}
    cited |= cited_numbers()
    assert [k for k, c in CLAIMS.items() if (k, c["chapter"]) not in cited] == []


@pytest.mark.parametrize("page", NUMBERED.values(), ids=lambda page: page.name)
def test_every_published_number_is_cited(page):
    """By a page, a caption or a claim, it or an end of its interval."""
    assert uncited(published(page), int(page.name[:2])) == []


def test_an_uncited_number_is_found():
    assert uncited({"headline_load", "reduction_hybrid"}, 4) == []
    assert uncited({r"far_[A-C]_1_5_\w+"}, 4) == []
    assert uncited({"nowhere", r"nowhere_\w+"}, 4) == ["nowhere", r"nowhere_\w+"]
    assert uncited({"headline_load"}, 5) == ["headline_load"]


def value_of(attribute: str) -> Any:
    """What `module:path` names: attributes, keys and positions, joined by dots."""
    module, path = attribute.split(":")
    found: Any = import_module(module)
    for name in path.split("."):
        if isinstance(found, Mapping):
            found = found[name]
        elif isinstance(found, tuple | list):
            found = found[int(name)]
        else:
            found = getattr(found, name)
    return found


def agrees(text: str, value: float) -> bool:
    """Whether the first number of `text` is `value`, to the digits that it shows."""
    hit = re.search(rf"([\d,]*\.?\d+)(?:[\s-]?({'|'.join(SCALES)}))?", text)
    if hit is None:
        word = next(w for w in re.split(r"[\s-]", text.lower()) if w in WORDS)
        return value == WORDS[word]
    shown = hit[1].replace(",", "")
    digits = len(shown.partition(".")[2])
    return float(shown) == round(value / SCALES.get(hit[2], 1), digits)


def test_agreement_looks_at_the_digits_that_are_shown():
    assert agrees("65 billion parameters", 65.29e9)
    assert agrees("650 億參數", 65.0e9)
    assert agrees("ten milliseconds", 10)
    assert not agrees("12.5 ms", 12.4)
    assert not agrees("95 %", 90)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting["text"])
def test_a_setting_is_what_the_code_has(setting):
    value = value_of(setting["attribute"]) * setting.get("factor", 1)
    assert agrees(setting["text"], value), f"{setting['attribute']} gives {value}"


def test_no_setting_and_no_figure_is_left_over():
    prose = "\n".join(
        bare(passage)
        for page in PAGES
        for text in texts(page)
        for passage in passages(text)
    )
    phrases = [setting["text"] for setting in SETTINGS]
    phrases += [figure for figures in FIGURES.values() for figure in figures]
    assert [p for p in phrases if without(prose, [p]) == prose] == []
