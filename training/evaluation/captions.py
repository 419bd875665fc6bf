"""
METEOR and CIDEr of captions, the same numbers as salaniz/pycocoevalcap (eval.py) gives.

Tokeniser and METEOR are the Java programs of the package pycocoevalcap, and CIDEr is its Python code. The programs are
started here and not by the package's wrappers: these write into the package's folder, take the machine's text encoding,
lose the place of captions with unusual line breaks, and wait for ever if Java stops.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

TOKENIZER_CLASS = "edu.stanford.nlp.process.PTBTokenizer"
# What METEOR's program puts between the texts of a line.
SEPARATOR = "|||"
# Otherwise Java reads text in the encoding of the machine.
JAVA = ("java", "-Dfile.encoding=UTF-8")


@dataclass(frozen=True)
class CaptionScores:
    """Each over all captions together; CIDEr can be more than 1, and NaN if no reference has a word."""

    meteor: float
    cider: float


def check_captioning() -> None:
    """
    Whether captions can be scored.

    Raises:
        ImportError: if pycocoevalcap is missing.
        FileNotFoundError: if Java is missing.
    """
    if find_spec("pycocoevalcap") is None:
        raise ImportError("captions are scored with pycocoevalcap, which is missing: pip install 'xsam[evaluate]'")
    if shutil.which("java") is None:
        raise FileNotFoundError(
            "captions are scored by Java programs, and there is no `java` on the PATH: install a Java runtime, such as"
            " Debian's default-jre-headless or conda's openjdk"
        )


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """
    Args:
        captions: one for each image; may be empty.
        references: for each image at least one.

    Raises:
        ImportError: if pycocoevalcap is missing.
        FileNotFoundError: if Java is missing.
        RuntimeError: if a Java program fails.
    """
    check_captioning()
    if not captions:
        return CaptionScores(float("nan"), float("nan"))
    tokens = tokenize([*captions, *(reference for each in references for reference in each)])
    hypotheses, rest = tokens[: len(captions)], iter(tokens[len(captions) :])
    targets = [[next(rest) for _ in each] for each in references]
    return CaptionScores(_meteor(hypotheses, targets), _cider(hypotheses, targets))


def tokenize(texts: Sequence[str]) -> list[str]:
    """
    Texts in lower case, their words parted by single blanks, without punctuation.

    Raises:
        RuntimeError: if the tokeniser fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = [*JAVA, "-cp", str(jar), TOKENIZER_CLASS, "-preserveLines", "-lowerCase"]
    lines = "".join(f"{_one_line(text)}\n" for text in texts)
    done = subprocess.run(command, input=lines.encode(), capture_output=True)
    # The tokeniser ends every line with \n; splitlines would also part at other characters.
    tokenized = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(tokenized) != len(texts):
        said = (done.stdout + done.stderr).decode(errors="replace")[-500:]
        raise RuntimeError(
            f"the tokeniser of captions failed: {len(texts)} texts gave {len(tokenized)} lines and exit code"
            f" {done.returncode}: {said}"
        )
    return [" ".join(word for word in line.split() if word not in ptbtokenizer.PUNCTUATIONS) for line in tokenized]


def _one_line(text: str) -> str:
    """Blanks of any kind as single ones, and nothing that METEOR takes for the end of a text."""
    return " ".join(re.sub(r"\|{3,}", " ", text.encode(errors="replace").decode()).split())


def _meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from pycocoevalcap.meteor import meteor

    jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    command = [*JAVA, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, encoding="utf-8") as program:
                statistics = []
                for hypothesis, targets in zip(hypotheses, references, strict=True):
                    _say(program, "SCORE", *targets, hypothesis)
                    statistics.append(_hear(program))
                _say(program, "EVAL", *statistics)
                # A score for each caption comes before that of all.
                return [float(_hear(program)) for _ in range(len(statistics) + 1)][-1]
        except (BrokenPipeError, EOFError, ValueError) as error:
            log.seek(0)
            raise RuntimeError(f"the program of METEOR failed ({error}): {log.read()[-500:]}") from error


def _say(program: subprocess.Popen[str], *texts: str) -> None:
    program.stdin.write(f" {SEPARATOR} ".join(texts) + "\n")
    program.stdin.flush()


def _hear(program: subprocess.Popen[str]) -> str:
    """
    Raises:
        EOFError: if the program has stopped.
    """
    line = program.stdout.readline()
    if not line:
        raise EOFError("it stopped")
    return line.strip()


def _cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from pycocoevalcap.cider.cider import Cider

    if not any(target for targets in references for target in targets):
        return float("nan")
    score, _ = Cider().compute_score(
        dict(enumerate(map(list, references))), {place: [text] for place, text in enumerate(hypotheses)}
    )
    return float(score)
