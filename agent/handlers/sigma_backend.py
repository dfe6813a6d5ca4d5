"""A pySigma backend whose query language is `where`, and the pipeline that maps Sigma's fields and log sources to ours.

The meaning is that of the specification: values are compared without regard to case (but for `cased` and `re`), `*` and `?` are
wildcards, a value of null or `exists: false` holds where the field is missing, keywords are searched in the original line (in the message
of an event that has no line). A missing field matches nothing, so `not` holds for it.

Imported only where a configuration is judged: pySigma stays out of the daemon.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sigma.conditions import (
    ConditionAND,
    ConditionFieldEqualsValueExpression,
    ConditionNOT,
    ConditionOR,
    ConditionValueExpression,
)
from sigma.conversion.base import TextQueryBackend
from sigma.conversion.state import ConversionState
from sigma.correlations import SigmaCorrelationRule
from sigma.exceptions import SigmaTransformationError
from sigma.processing.conditions import LogsourceCondition
from sigma.processing.pipeline import ProcessingItem, ProcessingPipeline
from sigma.processing.transformations import FieldFunctionTransformation, FieldMappingTransformation
from sigma.processing.transformations.base import PreprocessingTransformation
from sigma.rule import SigmaRule
from sigma.types import (
    CompareOperators,
    SigmaCasedString,
    SigmaCIDRExpression,
    SigmaCompareExpression,
    SigmaFieldReference,
    SigmaNumber,
    SigmaRegularExpression,
    SigmaString,
    SpecialChars,
)

from agent.handlers import where
from agent.handlers.sigma_words import AUDIT_FIELDS, FIELDS, LISTS, LOGSOURCES
from agent.wire.taxonomy import TAXONOMY

_LOGSOURCE = "logsource"
_MANY = SpecialChars.WILDCARD_MULTI
_OPERATORS = {
    CompareOperators.LT: "<",
    CompareOperators.LTE: "<=",
    CompareOperators.GT: ">",
    CompareOperators.GTE: ">=",
    CompareOperators.NEQ: "!=",
}


class Unsupported(SigmaTransformationError):
    """A part of a rule that `where` cannot express, and what to do about it."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.text = text
        self.remedy = remedy


# ── the pipeline: names ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class LogsourceTransformation(PreprocessingTransformation):
    """Set the state `logsource` of a rule to the `where` of its log source."""

    logsources: Mapping[str, str]

    def apply(self, rule: SigmaRule | SigmaCorrelationRule) -> None:
        """See pySigma. Raises Unsupported for a log source that is not known."""
        super().apply(rule)
        if isinstance(rule, SigmaRule) and self._pipeline is not None:
            self._pipeline.state[_LOGSOURCE] = self._events(rule)

    def _events(self, rule: SigmaRule) -> str:
        source = rule.logsource
        name = "/".join(part or "-" for part in (source.product, source.category, source.service))
        ours = self.logsources.get(name)
        if ours is not None:
            return ours
        if source.product == "linewarden":
            return _own_logsource(source.category, source.service)
        raise Unsupported(
            f"there is no log source {name}",
            f'Say which events it means: logsources = {{ "{name}" = "category == …" }}.',
        )


def _own_logsource(category: str | None, service: str | None) -> str:
    if category is not None and not any(row.category == category for row in TAXONOMY.values()):
        raise Unsupported(
            f"there is no category {category!r} of events", "Write one of ours, as authentication or equipment."
        )
    found = [f"category == {quoted(category)}"] if category else []
    return joined("and", found + ([f"source == {quoted(service)}"] if service else []))


def field_name(name: str, own: Mapping[str, str]) -> str:
    """Return our name of a Sigma field; `own` are the names that the configuration adds. Raises Unsupported."""
    ours = own.get(name) or FIELDS.get(name.lower().replace("-", "_"))
    if ours is None:
        try:
            where.field(name)
        except ValueError:
            remedy = f'Say what it is called here: fields = {{ {name} = "data.…" }}, or write data.… in the rule.'
            raise Unsupported(f"there is no field {name!r}", remedy) from None
        ours = name
    return ours


def pipeline(fields: Mapping[str, str], logsources: Mapping[str, str]) -> ProcessingPipeline:
    """Return the pipeline; `fields` and `logsources` are what the configuration adds to the tables."""
    audit: dict[str | None, str | list[str]] = {}
    audit.update(AUDIT_FIELDS)
    audit.update(fields)
    return ProcessingPipeline(
        name="linewarden",
        items=[
            ProcessingItem(LogsourceTransformation({**LOGSOURCES, **logsources})),
            ProcessingItem(
                FieldMappingTransformation(audit),
                rule_conditions=[LogsourceCondition(product="linux", service="auditd")],
            ),
            ProcessingItem(FieldFunctionTransformation({}, lambda name: field_name(name or "", fields))),
        ],
    )


# ── the backend: expressions ─────────────────────────────────────────────────────────────────────────────────────────────────────


class WhereBackend(TextQueryBackend):
    """Conditions of plain rules → `where`. Correlations become handlers of other kinds: sigma_read."""

    name: ClassVar[str] = "Linewarden where"
    formats: ClassVar[dict[str, str]] = {"default": "expressions of where"}
    requires_pipeline: ClassVar[bool] = True

    precedence: ClassVar[tuple[Any, ...]] = (ConditionNOT, ConditionAND, ConditionOR)
    group_expression: ClassVar[str] = "({expr})"
    token_separator: str = " "
    or_token: ClassVar[str] = "or"
    and_token: ClassVar[str] = "and"
    not_token: ClassVar[str] = "not"
    eq_token: ClassVar[str] = " == "
    bool_values: ClassVar[dict[bool, str | None]] = {True: "true", False: "false"}
    field_null_expression: ClassVar[str] = "{field} == null"
    field_exists_expression: ClassVar[str] = "{field} != null"
    field_not_exists_expression: ClassVar[str] = "{field} == null"
    field_equals_field_expression: ClassVar[str] = (
        "(({field1} == {field2} and {field1} != null) or (lower({field1}) == lower({field2}) and lower({field1}) != null))"
    )
    field_equals_field_startswith_expression: ClassVar[str] = "lower({field1}) startswith lower({field2})"
    field_equals_field_endswith_expression: ClassVar[str] = "lower({field1}) endswith lower({field2})"
    field_equals_field_contains_expression: ClassVar[str] = "lower({field1}) contains lower({field2})"

    def finish_query(self, rule: SigmaRule | SigmaCorrelationRule, query: Any, state: ConversionState) -> Any:
        """See pySigma: the condition within the rule's log source, checked as `where` checks it. Raises Unsupported."""
        del rule
        text = joined("and", [str(state.processing_state.get(_LOGSOURCE, "")), str(query)])
        try:
            where.parse(text)
        except where.WhereError as error:
            raise Unsupported(error.text, "Write the rule without it, or take it out.") from None
        return text

    def escape_and_quote_field(self, field_name: str) -> str:
        """See pySigma; a name with other characters is written as a key of data."""
        if re.fullmatch(r"\w+(\.\w+)*", field_name):
            return field_name
        return f"data[{quoted(field_name.removeprefix('data.'))}]"

    def convert_condition_field_eq_val_str(
        self, cond: ConditionFieldEqualsValueExpression, state: ConversionState
    ) -> str:
        """See pySigma."""
        del state
        return text_test(self.escape_and_quote_field(cond.field), _string(cond.value))

    def convert_condition_field_eq_val_str_case_sensitive(
        self, cond: ConditionFieldEqualsValueExpression, state: ConversionState
    ) -> str:
        """See pySigma."""
        return self.convert_condition_field_eq_val_str(cond, state)

    def convert_condition_field_eq_val_num(
        self, cond: ConditionFieldEqualsValueExpression, state: ConversionState
    ) -> str:
        """See pySigma; a number may have been stored as text."""
        del state
        number = cond.value.number if isinstance(cond.value, SigmaNumber) else cond.value
        return f"{self.escape_and_quote_field(cond.field)} in [{number!r}, {quoted(str(number))}]"

    def convert_condition_field_eq_val_timestamp_part(
        self, cond: ConditionFieldEqualsValueExpression, state: ConversionState
    ) -> str:
        """See pySigma. Raises Unsupported."""
        del cond, state
        raise Unsupported("parts of a timestamp are not compared", "Use a schedule handler.")

    def convert_condition_field_eq_val_re(
        self, cond: ConditionFieldEqualsValueExpression, state: ConversionState
    ) -> str:
        """See pySigma."""
        del state
        return f"{self.escape_and_quote_field(cond.field)} matches {_pattern(cond.value)}"

    def convert_condition_field_eq_val_cidr(
        self, cond: ConditionFieldEqualsValueExpression, state: ConversionState
    ) -> str:
        """See pySigma."""
        del state
        network = cond.value.network if isinstance(cond.value, SigmaCIDRExpression) else cond.value
        return f"{self.escape_and_quote_field(cond.field)} in cidr({quoted(str(network))})"

    def convert_condition_field_compare_op_val(
        self, cond: ConditionFieldEqualsValueExpression, state: ConversionState
    ) -> str:
        """See pySigma."""
        del state
        value = cond.value
        if not isinstance(value, SigmaCompareExpression) or not isinstance(value.number, SigmaNumber):
            raise Unsupported("a comparison with something that is no number", "Write a number.")
        return f"{self.escape_and_quote_field(cond.field)} {_OPERATORS[value.op]} {value.number.number!r}"

    def convert_condition_field_eq_field(
        self, cond: ConditionFieldEqualsValueExpression, state: ConversionState
    ) -> Any:
        """See pySigma: the reference was mapped by the pipeline."""
        if isinstance(cond.value, SigmaFieldReference):
            return super().convert_condition_field_eq_field(cond, state)
        raise Unsupported("a reference that names no field", "Name a field.")

    def convert_condition_val_str(self, cond: ConditionValueExpression, state: ConversionState) -> str:
        """See pySigma: a keyword may stand anywhere in the line."""
        del state
        return text_test("line", _MANY + _string(cond.value) + _MANY)

    def convert_condition_val_num(self, cond: ConditionValueExpression, state: ConversionState) -> str:
        """See pySigma."""
        del state
        number = cond.value.number if isinstance(cond.value, SigmaNumber) else cond.value
        return text_test("line", _MANY + SigmaString(str(number)) + _MANY)

    def convert_condition_val_re(self, cond: ConditionValueExpression, state: ConversionState) -> str:
        """See pySigma."""
        del state
        return f"line matches {_pattern(cond.value)}"


def _string(value: Any) -> SigmaString:
    if not isinstance(value, SigmaString):
        raise Unsupported(f"a value of the kind {type(value).__name__}", "Write the value out.")
    return value


def _pattern(value: Any) -> str:
    if not isinstance(value, SigmaRegularExpression):
        raise Unsupported(f"a value of the kind {type(value).__name__}", "Write the value out.")
    flags = "".join(sorted(SigmaRegularExpression.sigma_to_re_flag[flag] for flag in value.flags))
    return quoted((f"(?{flags})" if flags else "") + str(value.regexp))


def joined(word: str, texts: list[str]) -> str:
    """Join expressions by `and` or `or`, each in brackets; empty ones are left out."""
    parts = [text for text in texts if text]
    return parts[0] if len(parts) == 1 else f" {word} ".join(f"({part})" for part in parts)


def quoted(text: str) -> str:
    """Return a text as `where` writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def text_test(name: str, value: SigmaString) -> str:
    """Return the test of a field against a text with wildcards. Raises Unsupported."""
    parts: list[Any] = []
    for part in value.s:
        if part is _MANY and parts and parts[-1] is part:
            continue
        if not isinstance(part, str | SpecialChars):
            raise Unsupported(f"the placeholder %{part.name}%", "Write the values into the rule.")
        parts.append(part)
    texts = [part for part in parts if isinstance(part, str)]
    if name in LISTS:
        return _among(name, parts, texts)
    cased = isinstance(value, SigmaCasedString)
    subject = name if cased else f"lower({name})"
    text = "".join(texts) if cased else "".join(texts).lower()
    if parts == [_MANY]:
        return f"{name} != null"
    if len(texts) == len(parts):
        return (
            f"{name} in [{quoted(text)}, {text}]"
            if re.fullmatch(r"0|[1-9]\d{0,14}", text)
            else f"{subject} == {quoted(text)}"
        )
    if len(texts) == 1 and all(part is _MANY for part in parts if not isinstance(part, str)):
        word = "contains" if len(parts) == 3 else "endswith" if parts[0] is _MANY else "startswith"  # noqa: PLR2004
        return f"{subject} {word} {quoted(text)}"
    pattern = "".join(
        ".*" if part is _MANY else "." if isinstance(part, SpecialChars) else re.escape(part) for part in parts
    )
    flags = "s" if cased else "is"
    return f"{name} matches {quoted(f'(?{flags})^{pattern}$')}"


def _among(name: str, parts: list[Any], texts: list[str]) -> str:
    if len(texts) != len(parts):
        raise Unsupported(f"a wildcard in {name}, which is a list", "Write the values out.")
    return f"{name} contains {quoted(LISTS[name](''.join(texts)))}"
