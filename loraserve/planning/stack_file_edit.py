"""A stack file with another version in it, as a person would edit it: only what changes is written anew.

The parser says where each value stands in the text, and the rest, comments and order included, stays byte by byte. What
comes out is read again as settings before it is used.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loraserve.contract.addresses import PROJECT
from loraserve.contract.base_model import Mirror
from loraserve.contract.desired_state import Adapter
from loraserve.contract.document import Document
from loraserve.errors import LoraserveError
from loraserve.planning import stack_file

_ADAPTERS = f"{PROJECT}:adapters"
_CANARY = "canaryPercent"


class CannotEdit(LoraserveError):
    """The stack file has a form that is left to a person; the message says what to write there."""


@dataclass(frozen=True)
class Edit:
    """A stack file before and after; nothing is written yet."""

    path: Path
    before: str
    after: str

    @property
    def diff(self) -> str:
        """Unified, '' where nothing changes."""
        lines = (text.splitlines(keepends=True) for text in (self.before, self.after))
        return "".join(difflib.unified_diff(*lines, fromfile=self.path.name, tofile=self.path.name))

    def write(self) -> None:
        """Raises CannotEdit where somebody else has changed the file meanwhile."""
        if self.path.read_text(encoding="utf-8") != self.before:
            raise CannotEdit(f"{self.path} was changed meanwhile; run it again")
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(self.after, encoding="utf-8")
        partial.chmod(self.path.stat().st_mode)
        partial.replace(self.path)


def with_adapter(path: Path, entry: Adapter) -> Edit:
    """Its stable version becomes this one, or its canary where the entry has a share; a new name is added at the end.

    A canary of the same version goes: it has become the stable one. Raises CannotEdit, InvalidSettings.
    """

    def change(text: _Text) -> None:
        stable, canary = text.entries(entry.name)
        if entry.canary_percent is not None and stable is None:
            raise CannotEdit(f"{path} names no {entry.name}: a canary needs a stable version beside it")
        place = canary if entry.canary_percent is not None else stable
        if place is not None:
            text.set(place, entry)
        else:
            text.add(entry, after=stable)
        if entry.canary_percent is None and canary is not None and _value(canary, "version") == entry.version:
            text.remove(canary)

    edit = _edit(path, change)
    placed = stack_file.read(path, edit.after).adapters
    if (entry.version_pin(), entry.canary_percent) not in [
        (each.version_pin(), each.canary_percent) for each in placed
    ]:
        raise CannotEdit(
            f"{path} has a form in which {entry.name} cannot be placed; paste what `loraserve show` prints"
        )
    return edit


def without_canary(path: Path, name: str) -> Edit:
    """Only the stable version stays. Raises CannotEdit, InvalidSettings."""

    def change(text: _Text) -> None:
        _, canary = text.entries(name)
        if canary is None:
            raise CannotEdit(f"{path} names no canary of {name}")
        text.remove(canary)

    return _edit(path, change)


def with_mirror(path: Path, model: str, mirror: Mirror) -> Edit:
    """The base model is this one, from the bucket. Raises CannotEdit, InvalidSettings."""

    def change(text: _Text) -> None:
        text.set_setting("baseModelMirror", mirror)
        if text.setting("baseModel") != model:
            text.set_setting("baseModel", model)

    return _edit(path, change)


def with_setting(path: Path, key: str, value: str | int) -> Edit:
    """A scalar setting has this value. Raises CannotEdit, InvalidSettings."""
    return _edit(path, lambda text: text.set_setting(key, value))


def entry_lines(document: Document) -> list[str]:
    """`key: value` of a stack config; JSON values, so that a version such as 1.0 stays text."""
    content = document.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return [f"{key}: {json.dumps(value)}" for key, value in content.items()]


def _edit(path: Path, change: Callable[[_Text], None]) -> Edit:
    before = stack_file.text_of(path)
    text = _Text(path, before)
    change(text)
    after = text.changed()
    stack_file.read(path, after)
    return Edit(path, before, after)


class _Text:
    """The text of a stack file, and what is to be put in the place of parts of it."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._changes: list[tuple[int, int, str]] = []
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        config = _child(document, "config")
        if not isinstance(config, yaml.MappingNode) or config.flow_style:
            raise CannotEdit(f"{path} has no block of settings below `config:`; write them one per line")
        self._config = config

    def changed(self) -> str:
        text = self._text
        for start, end, replacement in sorted(self._changes, reverse=True):
            text = text[:start] + replacement + text[end:]
        return text

    def setting(self, key: str) -> Any:
        """A scalar one, None where it is not set."""
        return _value(self._config, f"{PROJECT}:{key}")

    def entries(self, name: str) -> tuple[yaml.MappingNode | None, yaml.MappingNode | None]:
        """The stable version's entry and the canary's."""
        found: list[yaml.MappingNode | None] = [None, None]
        adapters = self._adapters()
        for item in adapters.value if adapters else ():
            if _value(item, "name") == name:
                found[_child(item, _CANARY) is not None] = item
        return found[0], found[1]

    def _adapters(self) -> yaml.SequenceNode | None:
        node = _child(self._config, _ADAPTERS)
        if node is None or (isinstance(node, yaml.SequenceNode) and not node.value):
            return None
        if not isinstance(node, yaml.SequenceNode) or node.flow_style:
            raise CannotEdit(
                f"{self._path}: {_ADAPTERS} is one text; write it as a list below its key, one `key: value` a line"
            )
        return node

    def set(self, node: yaml.MappingNode, document: Document) -> None:
        """Each value that differs, in the place of the one that stands there; what else an entry says stays."""
        for key, value in document.model_dump(mode="json", by_alias=True, exclude_defaults=True).items():
            self._set_value(node, key, value)

    def set_setting(self, key: str, value: Document | str | int) -> None:
        full = f"{PROJECT}:{key}"
        node = _child(self._config, full)
        if isinstance(node, yaml.MappingNode) and isinstance(value, Document) and not node.flow_style:
            self.set(node, value)
        elif isinstance(node, yaml.ScalarNode) and not isinstance(value, Document):
            self._set_value(self._config, full, value)
        elif node is not None:
            raise CannotEdit(f"{self._path}: {full} is one text; write it below its key, one `key: value` a line")
        else:
            lines = [f"{full}:", *_inner(value)] if isinstance(value, Document) else [f"{full}: {json.dumps(value)}"]
            self._insert(self._config, self._config.start_mark.column, lines)

    def add(self, entry: Adapter, after: yaml.MappingNode | None) -> None:
        """Behind an entry, or as the last one."""
        adapters, lines = self._adapters(), entry_lines(entry)
        if adapters is not None:
            column = adapters.start_mark.column
            gap = adapters.value[0].start_mark.column - column
            self._insert(
                after or adapters, column, [f"-{' ' * (gap - 1)}{lines[0]}", *(" " * gap + x for x in lines[1:])]
            )
            return
        block = [f"  - {lines[0]}", *(f"    {line}" for line in lines[1:])]
        if (empty := _child(self._config, _ADAPTERS)) is not None:
            indented = "".join(f"\n{' ' * self._config.start_mark.column}{line}" for line in block)
            start = empty.start_mark.index
            self._changes.append((len(self._text[:start].rstrip(" ")), empty.end_mark.index, indented))
        else:
            self._insert(self._config, self._config.start_mark.column, [f"{_ADAPTERS}:", *block])

    def remove(self, item: yaml.MappingNode) -> None:
        start = self._text.rfind("\n", 0, item.start_mark.index) + 1
        self._changes.append((start, self._line_end(item), ""))

    def _insert(self, behind: yaml.Node, column: int, lines: Sequence[str]) -> None:
        at = self._line_end(behind)
        text = "".join(f"{' ' * column}{line}\n" for line in lines)
        self._changes.append((at, at, text if self._text[:at].endswith("\n") else f"\n{text}"))

    def _line_end(self, node: yaml.Node) -> int:
        """Behind the last line of what a node says: its own end mark lies behind the comments that follow."""
        newline = self._text.find("\n", _last_scalar(node).end_mark.index)
        return len(self._text) if newline < 0 else newline + 1

    def _set_value(self, mapping: yaml.MappingNode, key: str, value: Any) -> None:
        node = _child(mapping, key)
        if node is None and mapping.flow_style:
            raise CannotEdit(f"{self._path}: write {{{key}: …}} one `key: value` a line, so that {key} can be added")
        if node is None:
            self._insert(mapping, mapping.start_mark.column, [f"{key}: {json.dumps(value)}"])
        elif _constructed(node) != value:
            self._changes.append((node.start_mark.index, _last_scalar(node).end_mark.index, _written(value, node)))


def _inner(document: Document) -> list[str]:
    return [f"  {line}" for line in entry_lines(document)]


def _written(value: Any, instead_of: yaml.Node) -> str:
    """In the style of what stood there, where the value can be written so."""
    if isinstance(instead_of, yaml.SequenceNode):
        items = [_written(item, instead_of.value[0]) if instead_of.value else json.dumps(item) for item in value]
        if instead_of.flow_style:
            return f"[{', '.join(items)}]"
        return f"\n{' ' * instead_of.start_mark.column}".join(f"- {item}" for item in items)
    if isinstance(value, str) and getattr(instead_of, "style", None) == "'" and "'" not in value:
        return f"'{value}'"
    if isinstance(value, str) and getattr(instead_of, "style", None) is None and yaml.safe_load(value) == value:
        return value
    return json.dumps(value)


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                return value
    return None


def _value(node: yaml.Node, key: str) -> Any:
    child = _child(node, key)
    return None if child is None else _constructed(child)


def _constructed(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _last_scalar(node: yaml.Node) -> yaml.Node:
    """Whose end is the end of what `node` says."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return node
    last: Any = node.value[-1]
    return _last_scalar(last[1] if isinstance(node, yaml.MappingNode) else last)
