import math
import shutil

import pytest

from xsam_training.evaluation import captions
from xsam_training.evaluation.captions import check_captioning, score_captions, tokenize

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="captions are scored by Java programs: no java")

ANSWERS = ["A dog runs over the green grass.", "", 'Two "cups", a table -- and a café.', "A man riding a bicycle"]
REFERENCES = [
    ["A dog is running on the grass", "The dog plays outside."],
    ["Some houses near a lake."],
    ["There are two cups on a table in a café."],
    ["a man rides his bike down the street", "A man on a bicycle."],
]


@needs_java
def test_scores_are_those_of_pycocoevalcap():
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    published = PTBTokenizer()
    answers = published.tokenize({place: [{"caption": text}] for place, text in enumerate(ANSWERS)})
    references = published.tokenize(
        {place: [{"caption": text} for text in texts] for place, texts in enumerate(REFERENCES)}
    )
    scores = score_captions(ANSWERS, REFERENCES)
    assert scores.cider == Cider().compute_score(references, answers)[0] > 0.5
    assert scores.meteor == Meteor().compute_score(references, answers)[0] > 0.2


@needs_java
def test_every_text_keeps_its_place_when_tokenised():
    texts = [
        "A Dog, runs.",
        "",
        " \r\n\u2028 ",
        "a\nb\rc\u2028d\x0be\x85f",
        "a ||| b |||| c",
        "...",
        "naïve 中文",
        "broken \ud800 text",
        "",
    ]
    assert tokenize(texts) == ["a dog runs", "", "", "a b c d e f", "a b c", "", "naïve 中文", "broken text", ""]
    assert tokenize([]) == []


@needs_java
def test_texts_without_words_are_scored(monkeypatch):
    monkeypatch.setattr(captions, "_meteor", lambda hypotheses, references: 0.25)
    scores = score_captions(["", "a cup"], [["a dog"], ["...", "a cup"]])
    # The first is 0; the second agrees with one of its two references, and has neither three nor four words in a row.
    assert (scores.meteor, scores.cider) == (0.25, pytest.approx((0 + 10 * 2 / 4 / 2) / 2))
    assert math.isnan(score_captions(["a", "b"], [["..."], [""]]).cider)
    nothing = score_captions([], [])
    assert math.isnan(nothing.meteor) and math.isnan(nothing.cider)


@needs_java
def test_a_program_that_fails_says_so(monkeypatch):
    monkeypatch.setattr(captions, "JAVA", ("java", "-XX:NoSuchOption"))
    with pytest.raises(RuntimeError, match=r"tokeniser of captions failed: 1 texts .*NoSuchOption"):
        tokenize(["a"])
    with pytest.raises(RuntimeError, match=r"program of METEOR failed"):
        captions._meteor(["a"] * 9000, [["b"]] * 9000)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="no `java` on the PATH: install a Java runtime"):
        check_captioning()
    monkeypatch.setattr(captions, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'xsam\[evaluate\]'"):
        check_captioning()
