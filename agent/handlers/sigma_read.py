"""Reads Sigma rules through pySigma and translates them into handlers of ours. Imported only where a configuration is judged.

A rule either keeps its meaning or is refused; the meaning is that of the specification: values are compared without regard to case
(but for `cased` and `re`), `*` and `?` are wildcards, a value of null or `exists: false` holds where the field is not there, keywords are
looked for in the message and in the original line. A field that is not there matches nothing, so that `not` holds of it.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from sigma.collection import SigmaCollection
from sigma.conditions import (
    ConditionAND,
    ConditionFieldEqualsValueExpression,
    ConditionNOT,
    ConditionOR,
    ConditionValueExpression,
)
from sigma.correlations import (
    SigmaCorrelationCondition,
    SigmaCorrelationConditionOperator,
    SigmaCorrelationRule,
    SigmaCorrelationType,
)
from sigma.exceptions import SigmaError, SigmaRuleLocation
from sigma.rule import SigmaRule
from sigma.types import (
    CompareOperators,
    SigmaBool,
    SigmaCasedString,
    SigmaCIDRExpression,
    SigmaCompareExpression,
    SigmaExists,
    SigmaExpansion,
    SigmaFieldReference,
    SigmaNull,
    SigmaNumber,
    SigmaRegularExpression,
    SigmaString,
    SigmaTimestampPart,
    SpecialChars,
)
from yaml import YAMLError

from agent.handlers import where
from agent.handlers.builtin import config_of
from agent.handlers.sigma import Compiled, ConfigSigma, Refusal
from agent.handlers.sigma_words import FIELDS, LOGSOURCES
from agent.wire.taxonomy import TAXONOMY

FILES_MAX = 5_000
FILE_BYTES_MAX = 1_048_576
_ENDINGS = (".yml", ".yaml")
_OPERATORS = {
    CompareOperators.LT: "<",
    CompareOperators.LTE: "<=",
    CompareOperators.GT: ">",
    CompareOperators.GTE: ">=",
    CompareOperators.NEQ: "!=",
}
_TECHNIQUE = re.compile(r"t\d{4}(\.\d{3})?")


class Unsupported(Exception):
    """What cannot be said in our language, and what to do about it."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.text = text
        self.remedy = remedy


def read(config: ConfigSigma) -> tuple[list[Compiled], list[Refusal], list[Refusal]]:
    """The rules, what cannot be read, and what cannot be expressed."""
    collection, refused = _load(config.paths)
    compiled: dict[str, Compiled] = {}
    unsupported: list[Refusal] = []
    told = {id(rule) for rule in collection.get_output_rules()}
    for rule in collection.rules:
        place = f"{rule.source.path if rule.source else 'a rule'}: {rule.title!r}"
        if rule.errors:
            refused.append(("paths", f"{place}: {rule.errors[0]}", "Correct the rule, or take it out of the folder."))
            continue
        if id(rule) not in told:
            continue
        try:
            one = _Translation(config, rule).handler()
        except Unsupported as error:
            unsupported.append(("paths", f"{place}: {error.text}", error.remedy))
            continue
        if one.name in compiled:
            refused.append(("paths", f"{place}: another rule has the same id or title", "Take one of the two out."))
        compiled[one.name] = one
    return list(compiled.values()), refused, unsupported


def _load(paths: Iterable[str]) -> tuple[SigmaCollection, list[Refusal]]:
    collections: list[SigmaCollection] = []
    refused: list[Refusal] = []
    for path in _files(paths, refused):
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                refused.append(("paths", f"{path} is longer than {FILE_BYTES_MAX} bytes", "This is no rule."))
                continue
            text = path.read_text("utf-8")
            collections.append(
                SigmaCollection.from_yaml(
                    text,
                    collect_errors=True,
                    source=SigmaRuleLocation(path),
                    collect_filters=True,
                    resolve_references=False,
                )
            )
        except (
            OSError,
            UnicodeDecodeError,
            YAMLError,
            SigmaError,
            RecursionError,
            AttributeError,
            TypeError,
            ValueError,
        ) as error:
            # The parser lets YAML of another shape through to its own code, which ends in the last three.
            said = str(error).partition("\n")[0] or type(error).__name__
            refused.append(("paths", f"{path} is no Sigma rule: {said}", "Correct it, or take it out of the folder."))
    try:
        merged = SigmaCollection.merge(collections, resolve_references=False)
        merged.resolve_rule_references()
    except SigmaError as error:
        refused.append(
            ("paths", f"a correlation names a rule that is not there: {error}", "Add that rule, or its name.")
        )
        merged = SigmaCollection([])
    return merged, refused


def _files(paths: Iterable[str], refused: list[Refusal]) -> Iterator[Path]:
    count = 0
    for text in paths:
        path = Path(text)
        if not path.exists():
            refused.append(("paths", f"there is no {path}", "Name a folder or file with Sigma rules."))
            continue
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in _ENDINGS and p.is_file())
        for one in found:
            count += 1
            if count > FILES_MAX:
                refused.append(("paths", f"more than {FILES_MAX} files", "Keep the rules that concern this station."))
                return
            yield one


class _Translation:
    """One rule."""

    def __init__(self, config: ConfigSigma, rule: SigmaRule | SigmaCorrelationRule) -> None:
        self._config = config
        self._rule = rule

    def handler(self) -> Compiled:
        """The rule as a handler. Raises Unsupported."""
        rule = self._rule
        kind, settings = self._correlation(rule) if isinstance(rule, SigmaCorrelationRule) else self._plain(rule)
        slug = re.sub(r"[^a-z0-9]+", "_", rule.title.lower()).strip("_")[:60] or "rule"
        settings |= {
            "raises": self._raises(slug, kind, settings),
            "max_keys": self._config.max_keys,
            "cool_down_s": self._config.cool_down_s,
            "why": (rule.description or "")[:500],
        }
        try:
            config_of(kind, settings)
        except ValueError as error:
            text = str(error).partition("\n")[0]
            raise Unsupported(f"cannot be run here: {text}", "Make the rule smaller, or take it out.") from None
        name = str(rule.id) if rule.id else slug
        return Compiled(name=name, kind=kind, settings=msgspec.json.encode(settings).decode())

    def _raises(self, slug: str, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
        rule = self._rule
        level = rule.level.name.lower() if rule.level else "medium"
        techniques = [
            tag.name.upper() for tag in rule.tags if tag.namespace == "attack" and _TECHNIQUE.fullmatch(tag.name)
        ]
        details = {
            "rule_id": str(rule.id) if rule.id else None,
            "rule": rule.title,
            "tags": " ".join(map(str, rule.tags)) or None,
        }
        many = kind == "count" and settings["at_least"] > 1
        return {
            "type": f"alert.sigma.{slug}",
            "severity": level,
            "technique": techniques[0] if techniques else None,
            # Braces would be taken for a field of the alert.
            "message": f"{rule.title.replace('{', '(').replace('}', ')')}, at {{source}}"
            + (": {count} within {window} (limit {limit})" if many else ""),
            "details": {key: text for key, text in details.items() if text is not None},
        }

    # ── plain rules ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _plain(self, rule: SigmaRule) -> tuple[str, dict[str, Any]]:
        return "count", {"where": self.where(rule), "by": list(self._config.by), "at_least": 1, "within_s": 60}

    def where(self, rule: SigmaRule) -> str:
        """The events that a plain rule matches, in the language of `where`."""
        conditions = _joined("or", [self._node(each.parsed) for each in rule.detection.parsed_condition])
        text = _joined("and", [self._logsource(rule), conditions])
        try:
            where.parse(text)
        except where.WhereError as error:
            raise Unsupported(f"{error.text}", "Write the rule without it, or take it out.") from None
        return text

    def _logsource(self, rule: SigmaRule) -> str:
        source = rule.logsource
        parts = (source.product, source.category, source.service)
        name = "/".join(part or "-" for part in parts)
        ours = self._config.logsources.get(name) or LOGSOURCES.get(name)
        if ours is not None:
            return f"({ours})" if ours else ""
        if source.product == "linewarden":
            return self._own_logsource(source.category, source.service)
        raise Unsupported(
            f"there is no log source {name}",
            f'Say which events it means: logsources = {{ "{name}" = "category == …" }}.',
        )

    @staticmethod
    def _own_logsource(category: str | None, service: str | None) -> str:
        if category is not None and not any(row.category == category for row in TAXONOMY.values()):
            raise Unsupported(
                f"there is no category {category!r} of events", "Write one of ours, as authentication or equipment."
            )
        found = [f"category == {quoted(category)}"] if category else []
        return _joined("and", found + ([f"source == {quoted(service)}"] if service else []))

    def _node(self, node: Any) -> str:
        if isinstance(node, ConditionAND | ConditionOR):
            return _joined(
                "and" if isinstance(node, ConditionAND) else "or", [self._node(each) for each in _flat(node)]
            )
        if isinstance(node, ConditionNOT):
            return f"not ({self._node(node.args[0])})"
        if isinstance(node, ConditionFieldEqualsValueExpression):
            return self._test(self.field(node.field), node.value)
        if isinstance(node, ConditionValueExpression):
            return _joined("or", [self._test(name, _anywhere(node.value)) for name in ("message", "raw")])
        raise Unsupported(f"a condition of the kind {type(node).__name__}", "Write the condition without it.")

    def field(self, name: str) -> str:
        """What a field of Sigma is called here."""
        ours = self._config.fields.get(name) or FIELDS.get(name.lower().replace("-", "_"))
        if ours is None:
            try:
                where.field(name)
            except ValueError:
                remedy = f'Say what it is called here: fields = {{ {name} = "data.…" }}, or write data.… in the rule.'
                raise Unsupported(f"there is no field {name!r}", remedy) from None
            ours = name
        return ours

    def _test(self, name: str, value: Any) -> str:  # noqa: C901, PLR0911  (one line for each type of value)
        if isinstance(value, SigmaExpansion):
            return _joined("or", [self._test(name, each) for each in value.values])
        if isinstance(value, SigmaString):
            return _text_test(name, value)
        if isinstance(value, SigmaTimestampPart):
            raise Unsupported("parts of a timestamp are not compared", "Use a schedule handler.")
        if isinstance(value, SigmaNumber):
            return f"{name} in [{value.number!r}, {quoted(str(value.number))}]"
        if isinstance(value, SigmaBool):
            return f"{name} == {'true' if value.boolean else 'false'}"
        if isinstance(value, SigmaNull):
            return f"{name} == null"
        if isinstance(value, SigmaExists):
            return f"{name} {'!=' if value.exists else '=='} null"
        if isinstance(value, SigmaCompareExpression):
            return f"{name} {_OPERATORS[value.op]} {value.number.number!r}"
        if isinstance(value, SigmaCIDRExpression):
            return f"{name} in cidr({quoted(str(value.network))})"
        if isinstance(value, SigmaRegularExpression):
            flags = "".join(sorted(SigmaRegularExpression.sigma_to_re_flag[flag] for flag in value.flags))
            return f"{name} matches {quoted((f'(?{flags})' if flags else '') + str(value.regexp))}"
        if isinstance(value, SigmaFieldReference):
            return self._reference(name, value)
        raise Unsupported(f"a value of the kind {type(value).__name__}", "Write the value out.")

    def _reference(self, name: str, value: SigmaFieldReference) -> str:
        other = self.field(value.field)
        if value.starts_with or value.ends_with:
            return f"lower({name}) {'startswith' if value.starts_with else 'endswith'} lower({other})"
        return (
            f"(({name} == {other} and {name} != null) or (lower({name}) == lower({other}) and lower({name}) != null))"
        )

    # ── correlations ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _correlation(self, rule: SigmaCorrelationRule) -> tuple[str, dict[str, Any]]:
        rules = [reference.rule for reference in rule.rules or ()]
        plain = [each for each in rules if isinstance(each, SigmaRule)]
        if len(plain) != len(rules) or not rules:
            raise Unsupported("correlates correlations, or nothing", "Let it name plain rules.")
        if not isinstance(rule.condition, SigmaCorrelationCondition):
            raise Unsupported("an extended condition of a correlation", "Use one correlation for each combination.")
        for each in plain:
            if each.errors:
                raise Unsupported(f"the rule {each.title!r} that it names is wrong", "Correct that rule.")
        keys = [
            [self._group(rule, reference.reference, each) for each in rule.group_by or ()]
            for reference in rule.rules or ()
        ]
        within: dict[str, Any] = {"within_s": rule.timespan.seconds}
        if rule.type in (SigmaCorrelationType.EVENT_COUNT, SigmaCorrelationType.VALUE_COUNT):
            return "count", within | self._counted(rule, rule.condition, plain, keys)
        if rule.type not in (SigmaCorrelationType.TEMPORAL, SigmaCorrelationType.TEMPORAL_ORDERED):
            raise Unsupported(
                f"correlations of the type {rule.type.name.lower()}", "Use a rate, limit or ratio handler."
            )
        if _at_least(rule.condition) != len(plain):
            raise Unsupported(
                "a count below or above the number of its rules", f"Write gte: {len(plain)}, or leave it out."
            )
        steps = [{"where": self.where(each), "by": key} for each, key in zip(plain, keys, strict=True)]
        kind = "sequence" if rule.type is SigmaCorrelationType.TEMPORAL_ORDERED else "together"
        return kind, within | {"by": keys[0], "steps": steps}

    def _counted(
        self,
        rule: SigmaCorrelationRule,
        condition: SigmaCorrelationCondition,
        plain: list[SigmaRule],
        keys: list[list[str]],
    ) -> dict[str, Any]:
        if any(key != keys[0] for key in keys):
            remedy = "Count each of the rules by itself, or map both fields to one with fields."
            raise Unsupported("counts by fields that differ from rule to rule", remedy)
        found = {
            "where": _joined("or", [self.where(each) for each in plain]),
            "by": keys[0],
            "at_least": _at_least(condition),
        }
        if rule.type is SigmaCorrelationType.VALUE_COUNT:
            if not isinstance(condition.fieldref, str):
                raise Unsupported("counts the values of several fields together", "Count those of one field.")
            found["distinct"] = self.field(condition.fieldref)
        return found

    def _group(self, rule: SigmaCorrelationRule, reference: str, name: str) -> str:
        alias = rule.aliases.aliases.get(name)
        if alias is None:
            return self.field(name)
        named = next((to for one, to in alias.mapping.items() if one.reference == reference), None)
        if named is None:
            raise Unsupported(f"the alias {name!r} names no field of the rule {reference!r}", "Add it to the alias.")
        return self.field(named)


def _at_least(condition: SigmaCorrelationCondition) -> int:
    operator, count = condition.op, condition.count
    if operator is SigmaCorrelationConditionOperator.GTE and isinstance(count, int) and count >= 1:
        return count
    if operator is SigmaCorrelationConditionOperator.GT and isinstance(count, int) and count >= 0:
        return count + 1
    raise Unsupported(
        f"the condition {operator.name.lower()}: {count}, which is known only when the window is over",
        "Write gte or gt with a whole number from 1 on; for what is missing use an absence handler.",
    )


def _flat(node: Any) -> Iterator[Any]:
    """The parts of a conjunction or disjunction, those of its own kind inside it taken out, so that long lists do not nest."""
    for each in node.args:
        if type(each) is type(node):
            yield from _flat(each)
        else:
            yield each


def _joined(word: str, texts: list[str]) -> str:
    parts = [text for text in texts if text]
    return parts[0] if len(parts) == 1 else f" {word} ".join(f"({part})" for part in parts)


def quoted(text: str) -> str:
    """A text as the language of `where` writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _anywhere(value: Any) -> Any:
    """A keyword may stand anywhere in the line."""
    if isinstance(value, SigmaNumber) and not isinstance(value, SigmaTimestampPart):
        value = SigmaString(str(value.number))
    if not isinstance(value, SigmaString):
        return value
    return SpecialChars.WILDCARD_MULTI + value + SpecialChars.WILDCARD_MULTI


def _text_test(name: str, value: SigmaString) -> str:
    parts: list[Any] = []
    for part in value.s:
        if part is SpecialChars.WILDCARD_MULTI and parts and parts[-1] is part:
            continue
        if not isinstance(part, str | SpecialChars):
            raise Unsupported(f"the placeholder %{part.name}%", "Write the values into the rule.")
        parts.append(part)
    cased = isinstance(value, SigmaCasedString)
    subject = name if cased else f"lower({name})"
    many = SpecialChars.WILDCARD_MULTI
    texts = [part for part in parts if isinstance(part, str)]
    text = "".join(texts) if cased else "".join(texts).lower()
    if parts == [many]:
        return f"{name} != null"
    if len(texts) == len(parts):
        return (
            f"{name} in [{quoted(text)}, {text}]"
            if re.fullmatch(r"0|[1-9]\d{0,14}", text)
            else f"{subject} == {quoted(text)}"
        )
    if len(texts) == 1 and all(part is many for part in parts if not isinstance(part, str)):
        word = "contains" if len(parts) == 3 else "endswith" if parts[0] is many else "startswith"  # noqa: PLR2004
        return f"{subject} {word} {quoted(text)}"
    pattern = "".join(
        ".*" if part is many else "." if isinstance(part, SpecialChars) else re.escape(part) for part in parts
    )
    flags = "s" if cased else "is"
    return f"{name} matches {quoted(f'(?{flags})^{pattern}$')}"
