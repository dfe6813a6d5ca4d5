"""Read Sigma rules through pySigma and translate them into handlers. Imported only where a configuration is judged.

A rule keeps its meaning or is refused by name; sigma_backend holds the meaning of conditions, and sigma_witness proves that an event of
ours can make each of them fire.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from sigma.collection import SigmaCollection
from sigma.correlations import (
    SigmaCorrelationCondition,
    SigmaCorrelationConditionOperator,
    SigmaCorrelationRule,
    SigmaCorrelationType,
)
from sigma.exceptions import SigmaConversionError, SigmaError, SigmaRuleLocation
from sigma.rule import SigmaRule
from yaml import YAMLError

from agent.handlers.builtin import config_of
from agent.handlers.sigma import Compiled, ConfigSigma, Refusal
from agent.handlers.sigma_backend import Unsupported, WhereBackend, field_name, joined, pipeline
from agent.handlers.sigma_witness import witness

FILES_MAX = 5_000
FILE_BYTES_MAX = 1_048_576
_ENDINGS = (".yml", ".yaml")
_TECHNIQUE = re.compile(r"t\d{4}(\.\d{3})?")


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
        self._backend = WhereBackend(pipeline(config.fields, config.logsources))

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
        return "count", {"where": self._proven(rule), "by": list(self._config.by), "at_least": 1, "within_s": 60}

    def where(self, rule: SigmaRule) -> str:
        """Return the events that a plain rule matches, in the language of `where`. Raises Unsupported."""
        try:
            found = rule.get_conversion_result()
        except SigmaConversionError:  # not yet: a pipeline renames fields in the rule itself, and must see it once
            try:
                self._backend.convert_rule(rule)
            except NotImplementedError as error:
                raise Unsupported(str(error), "Write the rule without it, or take it out.") from None
            found = rule.get_conversion_result()
        return joined("or", found)

    def _proven(self, rule: SigmaRule) -> str:
        """Return `where` of a rule that an event of an agent can match. Raises Unsupported."""
        text = self.where(rule)
        if witness(text) is None:
            remedy = "Compare the values with what linewarden-agent parse prints for such a line, or take the rule out."
            raise Unsupported("no event of an agent can match it", remedy)
        return text

    def field(self, name: str) -> str:
        """Return our name of a Sigma field. Raises Unsupported."""
        return field_name(name, self._config.fields)

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
        steps = [{"where": self._proven(each), "by": key} for each, key in zip(plain, keys, strict=True)]
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
            "where": joined("or", [self._proven(each) for each in plain]),
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
