"""What an answer is worth, from 0 to 1, by its row's reference. A scorer's fields are what the evaluation file says of it."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from loraserve.contract.document import Document
from loraserve.evaluation.words import normalised, words


class Scorer(Document):
    by_words: ClassVar[bool] = False
    """It counts words, which some scripts do not separate."""
    graded: ClassVar[bool] = False
    """Between right and wrong there is more."""

    @property
    def needs_reference(self) -> bool:
        """Whether it says nothing of an answer alone."""
        return True

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Of the reference that it is nearest to."""
        return max((self._score(answer, reference) for reference in references), default=0.0)

    def _score(self, answer: str, reference: str) -> float:
        raise NotImplementedError


class NormalisedMatch(Scorer):
    """Equal but for case, punctuation, English articles and spaces."""

    kind: Literal["normalised-match"]

    def _score(self, answer: str, reference: str) -> float:
        return float(normalised(answer) == normalised(reference))


class TokenF1(Scorer):
    """SQuAD's: precision and recall of the words, in whatever order."""

    kind: Literal["token-f1"]
    by_words: ClassVar[bool] = True
    graded: ClassVar[bool] = True

    def _score(self, answer: str, reference: str) -> float:
        given, wanted = normalised(answer).split(), normalised(reference).split()
        return _f1((Counter(given) & Counter(wanted)).total(), len(given), len(wanted))


class RougeL(Scorer):
    """F1 of the longest common subsequence of words (Lin 2004), without stemming."""

    kind: Literal["rouge-l"]
    by_words: ClassVar[bool] = True
    graded: ClassVar[bool] = True

    def _score(self, answer: str, reference: str) -> float:
        given, wanted = words(answer), words(reference)
        return _f1(_longest_common_subsequence(given, wanted), len(given), len(wanted))


def _pattern(text: str) -> str:
    try:
        re.compile(text.replace(REFERENCE, "x"))
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return text


REFERENCE = "{reference}"


class Regex(Scorer):
    """The pattern is found in the answer; `{reference}` in it stands for the row's reference."""

    kind: Literal["regex"]
    pattern: Annotated[str, AfterValidator(_pattern)]

    @property
    def needs_reference(self) -> bool:
        return REFERENCE in self.pattern

    def _score(self, answer: str, reference: str) -> float:
        return float(re.search(self.pattern.replace(REFERENCE, re.escape(reference)), answer) is not None)


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    try:
        from jsonschema import SchemaError, validators
    except ImportError:
        raise ValueError("needs one package more: pip install 'loraserve[evaluate]'") from None

    try:
        validators.validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"is no JSON schema: {error.message}") from None
    return schema


class JsonSchema(Scorer):
    """The answer is JSON, in a code fence or not, that the schema allows."""

    kind: Literal["json-schema"]
    schema_: Annotated[dict[str, Any], AfterValidator(_schema), Field(alias="schema")]

    @property
    def needs_reference(self) -> bool:
        return False

    def _score(self, answer: str, reference: str) -> float:
        from jsonschema import validators

        fenced = re.fullmatch(r"\s*```(?:json)?\n(.*?)\n?```\s*", answer, re.DOTALL)
        try:
            value = json.loads(fenced[1] if fenced else answer)
        except (ValueError, RecursionError):
            return 0.0
        return float(validators.validator_for(self.schema_)(self.schema_).is_valid(value))


AnyScorer = Annotated[NormalisedMatch | TokenF1 | RougeL | Regex | JsonSchema, Field(discriminator="kind")]


def _f1(common: int, given: int, wanted: int) -> float:
    if not given or not wanted:
        return float(given == wanted)
    return 2 * common / (given + wanted)


def _longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, candidate in enumerate(other, 1):
            before, lengths[place] = (
                lengths[place],
                (before + 1 if word == candidate else max(lengths[place], lengths[place - 1])),
            )
    return lengths[-1]
