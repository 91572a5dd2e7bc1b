"""YAML as profiles use it: a strict reader of plain data, a canonical writer of models."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import ProfileError, one_line
from .schema import Model

MAX_DEPTH = 32

_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}
_INT = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def read_yaml(text: str, source: str | Path) -> Any:
    """One document of plain scalars, lists and mappings with unique text keys.

    Raises ProfileError, naming ``source`` and the line, for anything else: aliases and tags too.
    """
    try:
        events = yaml.parse(text, Loader=_PARSER)
        next(events)  # stream start
        if isinstance(next(events), yaml.StreamEndEvent):
            raise ProfileError(f"{source}: the file is empty, expected a profile")
        data = _node(events, next(events), source, 0)
        next(events)  # document end
        if not isinstance(next(events), yaml.StreamEndEvent):
            raise ProfileError(f"{source}: holds several YAML documents, expected one")
        return data
    except yaml.YAMLError as error:
        mark: Any = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" at line {mark.line + 1}"
        problem = getattr(error, "problem", None) or one_line(error, named=False)
        raise ProfileError(f"{source}: not valid YAML{line} ({problem})") from error


def _node(events: Iterator[Any], event: Any, source: str | Path, depth: int) -> Any:
    where = f"{source}: line {_line(event)}"
    if isinstance(event, yaml.AliasEvent):
        raise ProfileError(f"{where} has the alias *{event.anchor}, expected the value written out")
    if event.tag is not None:
        raise ProfileError(f"{where} has the tag {event.tag}, expected plain YAML without tags")
    if depth > MAX_DEPTH:
        raise ProfileError(f"{where} is nested more than {MAX_DEPTH} deep, expected a profile")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event.value) if event.implicit[0] else event.value
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(inner := next(events), yaml.SequenceEndEvent):
            items.append(_node(events, inner, source, depth + 1))
        return items
    mapping: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent):
            raise ProfileError(f"{where} has a list, mapping or alias as a key, expected text")
        if key.value in mapping:
            raise ProfileError(
                f"{source}: line {_line(key)} has the key {key.value!r} a second time"
            )
        mapping[key.value] = _node(events, next(events), source, depth + 1)
    return mapping


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _scalar(text: str) -> Any:
    """YAML 1.2's core scalars: no dates, no base 60, no octal, ``yes`` and ``on`` are text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


class _FlowMapping(dict[str, Any]):
    pass


class _FlowList(list[Any]):
    pass


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_Dumper.add_representer(
    _FlowMapping, lambda d, v: d.represent_mapping("tag:yaml.org,2002:map", v, flow_style=True)
)
_Dumper.add_representer(
    _FlowList, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", v, flow_style=True)
)
_Dumper.add_representer(  # PyYAML writes NEL as it is, which reads back as a line break
    str,
    lambda d, v: d.represent_scalar("tag:yaml.org,2002:str", v, '"' if "\x85" in v else None),
)
_Dumper.add_representer(dict, lambda d, v: d.represent_mapping("tag:yaml.org,2002:map", v, False))
_Dumper.add_representer(list, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", v, False))
for _tag, _pattern in (("int", _INT), ("float", _FLOAT)):  # quote text that we would read so
    _Dumper.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_pattern.pattern + "$"), list("-+.0123456789")
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Model):
        default = {name: field.default for name, field in type(value).model_fields.items()}
        given = {name: getattr(value, name) for name in default}
        terse = value.layout == "terse"
        kept = {k: v for k, v in given.items() if v is not None and not (terse and v == default[k])}
        kind = dict if value.layout == "block" else _FlowMapping
        return kind({name: _plain(item) for name, item in kept.items()})
    if isinstance(value, Mapping):
        return {name: _plain(value[name]) for name in sorted(value)}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return items if any(isinstance(item, Model) for item in value) else _FlowList(items)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def dump_yaml(value: Model) -> str:
    """Canonical YAML: keys as in the model, free keys sorted, None left out, 6 digits."""
    return yaml.dump(
        _plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize
    )
