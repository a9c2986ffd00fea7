"""Search that finds words of two Chinese characters, and both spellings of English.

Sphinx takes a Chinese sentence for one word, and shows what holds a word only where
that has three letters. Here every two neighbouring characters are a word, in the index
and in what a reader looks for; and "quantisation" is what "quantization" is.
"""

import re
from itertools import pairwise

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

CHINESE = r"[\u4e00-\u9fff]"
IZE = r"is(?=(e[drs]?|ers|ing|ations?|able)$)"
OUR = r"(?<=[a-z]{3})our(?=(s|ed|ing|al|able|ful)?$)"

SCRIPT = f"""
function splitQuery(query) {{
  return query.split(/[^\\p{{L}}\\p{{N}}_]+/u).flatMap((word) =>
    /{CHINESE}/.test(word)
      ? word.match(/{CHINESE}+|[^\\u4e00-\\u9fff]+/g).flatMap((run) =>
          run.length < 3 || !/{CHINESE}/.test(run)
            ? [run]
            : [...run].slice(1).map((second, i) => run[i] + second))
      : [word]).filter((word) => word);
}}
"""
STEMMER = f"""
Stemmer = ((English) => function () {{
  const english = new English();
  this.stemWord = (word) =>
    english.stemWord(word.replace(/{IZE}/, "iz").replace(/{OUR}/, "or"));
}})(Stemmer);
"""


class SearchBoth(SearchEnglish):
    """English with one spelling, and Chinese by two characters."""

    js_splitter_code = SCRIPT
    js_stemmer_code = SearchEnglish.js_stemmer_code + STEMMER

    def split(self, input: str) -> list[str]:
        """The words of a text; of Chinese the characters, alone and by two."""
        words = []
        for run in re.findall(f"{CHINESE}+|(?:(?!{CHINESE})\\w)+", input):
            chinese = re.match(CHINESE, run)
            words += [*run, *map("".join, pairwise(run))] if chinese else [run]
        return words

    def stem(self, word: str) -> str:
        """The stem of a word, in American spelling."""
        return super().stem(re.sub(OUR, "or", re.sub(IZE, "iz", word.lower())))


def setup(app: Sphinx) -> dict:
    app.add_search_language(SearchBoth)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
