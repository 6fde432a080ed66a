"""Changes of a YAML text that leave everything else in it as it is: comments, order, anchors, spacing.

::

    patched(text, wanted, file)        the text that says ``wanted``, by the fewest changes

A change is made where PyYAML says that a value stands, then the text is read again; so what an alias or a merge would carry elsewhere is
seen as a difference like any other and mended where it appears, by a key of its own. A text that can't be patched is refused, never harmed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import yaml

from posttrain.board.yaml_nodes import Alias, Loader, Place, Splice, aliases, is_block, is_merge, own_nodes, start_of
from posttrain.board.yaml_values import (
    INDENT,
    MISSING,
    Change,
    block_lines,
    first_difference,
    inline,
    literal_block,
    means,
    same,
    value_at,
    with_value,
)
from posttrain.config import ConfigPath, composed, dotted, parse_yaml
from posttrain.errors import ConfigError

MAX_CHANGES = 500
"""Of one call: a stage that takes the place of another is some tens."""
INLINE_WIDTH = 60
"""A new mapping is written in one line where it is no longer than this, unless its neighbours are blocks."""

Absent = Callable[[ConfigPath], Any]
"""Path of a key that is not written -> the value it has then, or `MISSING`."""


def patched(
    text: str,
    wanted: Any,
    file: str,
    *,
    spelled: Mapping[ConfigPath, str] | None = None,
    absent: Absent = lambda path: MISSING,
    says: Any = MISSING,
) -> str:
    """The text changed so that it says ``wanted``; ``says``: what it says now, where it was read already.

    spelled: how values should be written at their paths, where that means the same. absent: what a key means that is not written; a key
    that a merge brings and that should not be there is written with this value, where there is one.

    Raises:
        ConfigError: the text is no YAML, or can't be changed without harm to the rest of it.

    """
    value = parse_yaml(text, file).value if says is MISSING else says
    for _ in range(MAX_CHANGES):
        change = first_difference(value, wanted)
        if change is None:
            return text
        edit = _Edit(text, value, composed(text, file, Loader), wanted, spelled or {})
        if change.kind == "remove" and edit.is_merged(change.path) and (default := absent(change.path)) is not MISSING:
            wanted = with_value(wanted, change.path, default)
            continue
        try:
            changed = edit.changed(change)
            value = parse_yaml(changed, file).value
        except ConfigError as error:
            raise _refusal(file, change.path) from error
        if changed == text:
            raise _refusal(file, change.path)
        text = changed
    raise _refusal(file, ())


def _refusal(file: str, path: ConfigPath) -> ConfigError:
    return ConfigError(
        f"{dotted(path)}: this can't be changed here without harm to the rest of the text",
        where=file,
        fix="change it in the YAML itself",
    )


# ---- one change ----------------------------------------------------------------------------------------------------


class _Edit(NamedTuple):
    """A text, what it says and what it should say."""

    text: str
    value: Any
    root: yaml.Node | None
    wanted: Any
    spelled: Mapping[ConfigPath, str]

    def changed(self, change: Change) -> str:
        """The text after one change: at its path, or at the alias or merge on the way to it."""
        splices = self._splices(change)
        splices += self._moved_anchors(splices)
        text = self.text
        for start, end, new in sorted(splices, reverse=True):
            text = text[:start] + new + text[end:]
        return text

    def is_merged(self, path: ConfigPath) -> bool:
        """Whether a key of a mapping that is written here is there by a merge only."""
        place = self._place(path)
        return len(place.path) == len(path) - 1 and not isinstance(place.node, Alias)

    def _splices(self, change: Change) -> list[Splice]:
        place = self._place(change.path[:-1] if change.kind == "insert" else change.path)
        rest = change.path[len(place.path) :]
        if isinstance(place.node, Alias) and (rest or change.kind == "set"):
            return self._replaced(place, self._own(place.node, place.path))
        if not rest:
            if change.kind == "set":
                return self._replaced(place, self._written(place))
            return self._removed(self._place(place.path[:-1]), place.path[-1])
        name, inner = rest[0], place.path + rest[:1]
        if isinstance(place.node, yaml.MappingNode):
            if change.kind == "remove" and len(rest) == 1:
                return self._removed(place, "<<")  # what else it brought is missing then, and is written next
            return self._inserted_key(place, str(name), value_at(self.wanted, inner))
        assert isinstance(place.node, yaml.SequenceNode)
        return self._inserted_entry(place, int(name), value_at(self.wanted, inner))

    def _place(self, path: ConfigPath) -> Place:
        assert self.root is not None
        place = Place((), self.root, (), None)
        for part in path:
            node, key = place.node, None
            if isinstance(node, yaml.MappingNode):
                own = [(k, v) for k, v in node.value if not is_merge(k) and k.value == part]
                if not own:
                    break
                key, inner = own[0]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                inner = node.value[part]
            else:
                break
            place = Place((*place.path, part), inner, (*place.above, node), key)
        return place

    # -- values as text

    def _written(self, place: Place) -> str:
        """The wanted value at a place, as text without line breaks or as a literal block."""
        value = value_at(self.wanted, place.path)
        spelling = self.spelled.get(place.path)
        if spelling is not None and means(spelling, value):
            return spelling
        end = self._end(place.node)
        alone = not place.in_flow and not self.text[end : self._line_end(end)].strip()  # no comment behind it
        block = literal_block(value, self._column(place) + INDENT) if alone and isinstance(value, str) else None
        return block or inline(value)

    def _column(self, place: Place) -> int:
        """The column that what belongs to a place is indented from."""
        return int((place.key or place.node).start_mark.column)

    def _own(self, alias: Alias, path: ConfigPath) -> str:
        """In place of an alias: the alias merged, with the keys of its own that are wanted here; or the value alone."""
        was, wanted = value_at(self.value, path), value_at(self.wanted, path)
        if not (isinstance(was, dict) and isinstance(wanted, dict) and was.keys() <= wanted.keys()):
            return inline(wanted)
        own = {key: value for key, value in wanted.items() if key not in was or not same(value, was[key])}
        return f"{{<<: *{alias.tag}, {inline(own)[1:]}"

    # -- places in the text

    def _end(self, node: yaml.Node) -> int:
        """The index behind the last character of a value."""
        if isinstance(node, yaml.CollectionNode) and not node.flow_style:
            last = node.value[-1]
            return self._end(last[1] if isinstance(node, yaml.MappingNode) else last)
        end = int(node.end_mark.index)
        if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
            header = self.text[start_of(node) :].partition("\n")[0]
            return end - 1 if "+" in header else len(self.text[:end].rstrip())
        return end

    def _line_start(self, index: int) -> int:
        return self.text.rfind("\n", 0, index) + 1

    def _line_end(self, index: int) -> int:
        """Behind the line break of the line that an index is in, or the end of the text."""
        found = self.text.find("\n", index)
        return len(self.text) if found < 0 else found + 1

    def _begins_line(self, index: int) -> bool:
        return not self.text[self._line_start(index) : index].strip(" ")

    def _token_before(self, kind: type[yaml.Token], index: int) -> int:
        """Where the last token of a kind before an index begins: the ``-`` of an entry, the ``:`` of a value."""
        return max(
            int(t.start_mark.index) for t in yaml.scan(self.text) if isinstance(t, kind) and t.start_mark.index < index
        )

    @property
    def _break(self) -> str:
        return "\r\n" if "\r\n" in self.text else "\n"

    def _as_lines(self, at: int, column: int, lines: Sequence[str]) -> Splice:
        """New lines at an index that is the begin of a line, or the end of the text."""
        before = "" if at == 0 or self.text[at - 1] == "\n" else self._break
        return Splice(at, at, before + "".join(" " * column + line + self._break for line in lines))

    # -- changes as splices

    def _replaced(self, place: Place, new: str) -> list[Splice]:
        node, new = place.node, new.replace("\n", self._break)
        start, end = start_of(node), self._end(node)
        if not is_block(node) or self._line_start(start) == self._line_start(self._before(place)):
            glued = start > 0 and self.text[start - 1] not in " \n"
            return [Splice(start, end, f" {new}" if glued and start == end else new)]
        # a block below its key: the new value stands beside the key, comments between them stay
        behind = self._before(place) + 1
        return [Splice(behind, behind, f" {new}"), Splice(self._line_start(start), self._line_end(end), "")]

    def _before(self, place: Place) -> int:
        """Where the ``:`` or ``-`` stands that a value belongs to; the value's own begin for the whole text."""
        if not place.above:
            return start_of(place.node)
        kind = yaml.ValueToken if place.key is not None else yaml.BlockEntryToken
        return self._token_before(kind, start_of(place.node))

    def _inserted_key(self, place: Place, name: str, value: Any) -> list[Splice]:
        node = cast(yaml.MappingNode, place.node)
        path = (*place.path, name)
        key = inline(name)
        if node.flow_style or place.in_flow:
            return [self._into_brackets(node, f"{key}: {self._inline_at(path, value)}", len(node.value))]
        column, at = int(node.value[0][0].start_mark.column), self._line_end(self._end(node))
        blocks = any(isinstance(other, yaml.MappingNode) and is_block(other) for _, other in node.value)
        text = self._inline_at(path, value)
        if isinstance(value, dict) and value and (blocks or len(text) > INLINE_WIDTH):
            return [self._as_lines(at, column, [f"{key}:", *block_lines(value, INDENT)])]
        if isinstance(value, str) and (literal := literal_block(value, column + INDENT)):
            text = literal.replace("\n", self._break)
        return [self._as_lines(at, column, [f"{key}: {text}"])]

    def _inserted_entry(self, place: Place, number: int, value: Any) -> list[Splice]:
        node = cast(yaml.SequenceNode, place.node)
        text = self._inline_at((*place.path, number), value)
        if node.flow_style or place.in_flow:
            return [self._into_brackets(node, text, number)]
        lines = [f"- {text}"]
        if isinstance(value, dict) and value and any(is_block(other) for other in node.value):
            first, *more = block_lines(value, 0)
            lines = [f"- {first}", *(" " * INDENT + line for line in more)]
        dash = self._token_before(yaml.BlockEntryToken, start_of(node.value[min(number, len(node.value) - 1)]))
        column = dash - self._line_start(dash)
        if number == len(node.value):
            return [self._as_lines(self._line_end(self._end(node)), column, lines)]
        joined = (self._break + " " * column).join(lines)
        return [Splice(dash, dash, joined + self._break + " " * column)]

    def _inline_at(self, path: ConfigPath, value: Any) -> str:
        spelling = self.spelled.get(path)
        return spelling if spelling is not None and means(spelling, value) else inline(value)

    def _into_brackets(self, node: yaml.CollectionNode, text: str, number: int) -> Splice:
        """A new entry among those of ``[...]`` or ``{...}``."""
        starts = [start_of(one[0] if isinstance(one, tuple) else one) for one in node.value]
        if number < len(starts):
            return Splice(starts[number], starts[number], f"{text}, ")
        if not starts:
            inside = self.text.index("{" if isinstance(node, yaml.MappingNode) else "[", start_of(node)) + 1
            return Splice(inside, inside, text)
        end = self._end(node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1])
        return Splice(end, end, f", {text}")

    def _removed(self, place: Place, name: str | int) -> list[Splice]:
        """Without a key of a mapping or an entry of a list; ``<<`` is its first merge."""
        node = cast(yaml.CollectionNode, place.node)
        if isinstance(node, yaml.MappingNode):
            number = next(
                n for n, (key, _) in enumerate(node.value) if key.value == name and (name == "<<" or not is_merge(key))
            )
            spans = [(start_of(key), self._end(value)) for key, value in node.value]
        else:
            number, spans = int(name), [(start_of(one), self._end(one)) for one in node.value]
        if node.flow_style:
            return [self._without_bracketed(spans, number)]
        if len(spans) == 1:
            return self._replaced(place, "{}" if isinstance(node, yaml.MappingNode) else "[]")
        if isinstance(node, yaml.SequenceNode):
            spans = [
                (self._token_before(yaml.BlockEntryToken, start_of(one)), end)
                for one, (_, end) in zip(node.value, spans, strict=True)
            ]
        start, end = spans[number]
        if self._begins_line(start):
            return [Splice(self._line_start(start), self._line_end(end), "")]
        # the first key behind a dash: the next one takes its place, unless comments stand before it
        following = spans[number + 1][0]
        between = self.text[self._line_end(end) : following]
        return [Splice(start, self._line_end(end) - len(self._break) if between.strip() else following, "")]

    def _without_bracketed(self, spans: Sequence[tuple[int, int]], number: int) -> Splice:
        start, end = spans[number]
        if number + 1 < len(spans):
            return Splice(start, spans[number + 1][0], "")
        if number > 0:
            return Splice(spans[number - 1][1], end, "")
        comma = re.compile(r"\s*,").match(self.text, end)
        return Splice(start, comma.end() if comma else end, "")

    def _moved_anchors(self, splices: Sequence[Splice]) -> list[Splice]:
        """Anchors that would be lost stand at the first alias that needs them from now on."""
        assert self.root is not None

        def gone(node: yaml.Node) -> bool:
            return any(start <= start_of(node) < end for start, end, _ in splices)

        paths = {id(node): path for path, node in own_nodes(self.root)}
        first: dict[int, Alias] = {}
        for alias in aliases(self.root):
            if gone(alias.value) and not gone(alias):
                first.setdefault(id(alias.value), alias)
        if not first.keys() <= paths.keys():
            raise ConfigError("an anchor within a merge would be lost")
        return [
            Splice(start_of(alias), alias.end_mark.index, f"&{alias.tag} {inline(value_at(self.value, paths[target]))}")
            for target, alias in first.items()
        ]
