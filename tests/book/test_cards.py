"""What is beside a link: taken from the page that it leads to, and nothing twice."""

from bs4 import BeautifulSoup
from thesis_cards import link_cards, link_claims

TARGETS = """<article>
<section id="ratio"><span id="sec-ratio"></span><h2>3.1. Ratio<a class="headerlink"
href="#ratio">#</a></h2><p>More.</p></section>
<div class="math" id="equation-eq"><div class="formula"><math><mi>x</mi></math></div>
<span class="eqno">(1)</span></div>
<figure id="fig-it"><div class="figure-box"><img src="a.svg"></div><figcaption><p>Fig. 1
<span class="claim claim-it">It</span></p></figcaption></figure>
<p class="table-caption" id="tab-them">Table 1 Them</p>
<div><table aria-labelledby="tab-them"><tr><td><p>1</p></td>
</tr></table></div>
<dl class="glossary"><dt id="term-load">load</dt><dd><p>See <a class="internal"
href="#x"><em id="y">work</em></a>.</p></dd></dl>
<div class="citation" id="id3"><span class="label">[A]</span><p>Anna. <a
href="https://doi.org/1">doi:1</a>.</p></div></article>"""
EXPECTED = {
    "sec-ratio": "3.1. Ratio",
    "equation-eq": "<math><mi>x</mi></math>",
    "fig-it": "Fig. 1\nIt",
    "tab-them": "Table 1 Them",
    "term-load": "See <em>work</em>.",
    "id3": "Anna. doi:1.",
}


def page(body):
    return BeautifulSoup(f"<article>{body}</article>", "html.parser")


def link(address, text="it"):
    return f'<a class="reference internal" href="{address}">{text}</a>'


def test_a_link_has_what_it_leads_to_from_wherever_it_leads():
    targets = BeautifulSoup(TARGETS, "html.parser")
    links = page("".join(link(f"../notebooks/t.html#{name}") for name in EXPECTED))
    pages = {"notebooks/t.html": targets, "book/a.html": links}
    expected = {f"notebooks/t.html#{name}": card for name, card in EXPECTED.items()}
    assert link_cards(pages) == expected
    targets.article.append(page(link("#fig-it")).article.extract())
    assert link_cards({"notebooks/t.html": targets}) == {
        "notebooks/t.html#fig-it": EXPECTED["fig-it"]
    }


def test_a_link_that_says_it_already_and_one_to_no_place_have_no_card():
    targets = BeautifulSoup(TARGETS, "html.parser")
    links = page(link("t.html#sec-ratio", "3.1. Ratio") + link("t.html#none"))
    assert link_cards({"t.html": targets, "a.html": links}) == {}


def test_a_claim_is_a_link_where_a_page_says_it_first():
    number = '<span class="claim claim-{0}">1</span>'
    one, two = number.format("one"), number.format("two")
    soup = page(f'{link("t.html", two)}{one}{two}{one}<span class="claim-x">2</span>')
    link_claims(soup, "../")
    first, second = soup.select("a.claim")
    assert first["href"] == "../book/audit.html#claim-one"
    assert second["href"] == "../book/audit.html#claim-two"
    assert soup.article.find_all(recursive=False)[1:3] == [first, second]
    assert len(soup.select("span.claim")) == 2
    assert not soup.select("a a")


def test_citation_is_reported_once():
    soup = page('<span class="bibtex-citation"><a title="Anna." href="#i">A</a></span>')
    link_claims(soup, "")
    assert "title" not in soup.a.attrs
