"""Where things stand in a YAML text, by the marks of PyYAML; aliases are kept apart from what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import yaml

from posttrain.config import ConfigPath, YamlLoader, composed


class Alias(yaml.Node):
    """``*name`` where it stands; its value is the node that it means, its tag the name."""

    id = "alias"


class Loader(YamlLoader):
    """Keeps aliases apart from what they mean."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node, as PyYAML asks for it."""
        event = self.peek_event() if self.check_event(yaml.AliasEvent) else None  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        return node if event is None else Alias(event.anchor, node, event.start_mark, event.end_mark)


def is_merge(key: yaml.Node) -> bool:
    """Whether a key is ``<<``."""
    return isinstance(key, yaml.ScalarNode) and key.value == "<<" and key.style is None


def own_nodes(node: yaml.Node | None, path: ConfigPath = ()) -> Iterator[tuple[ConfigPath, yaml.Node]]:
    """Every node that is written at its own path: not behind an alias, not in a merge."""
    assert node is not None
    yield path, node
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not is_merge(key):
                yield from own_nodes(value, (*path, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for place, entry in enumerate(node.value):
            yield from own_nodes(entry, (*path, place))


def aliases(node: yaml.Node) -> Iterator[Alias]:
    """Every alias, in the order of the text, also in merges."""
    if isinstance(node, Alias):
        yield node
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from aliases(value)
    elif isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            yield from aliases(entry)


def start_of(node: yaml.Node) -> int:
    """Index of a node's first character, with its anchor."""
    return int(node.start_mark.index)


def is_block(node: yaml.Node) -> bool:
    """Whether a collection is written over indented lines."""
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


class Splice(NamedTuple):
    """A part of the text and what takes its place."""

    start: int
    end: int
    new: str


@dataclass(frozen=True)
class Place:
    """What a path leads to in the text."""

    path: ConfigPath
    """As far as the text goes with it: to an alias, to a mapping without the next key, or to its end."""
    node: yaml.Node
    above: tuple[yaml.CollectionNode, ...]
    """The collections around it, from the outside in."""
    key: yaml.Node | None
    """Of a value in a mapping."""

    @property
    def in_flow(self) -> bool:
        """Whether it is inside of brackets."""
        return any(one.flow_style for one in self.above)


def spellings(text: str, file: str) -> dict[ConfigPath, str]:
    """Path -> how a plain value is written there, or a list or mapping in brackets on one line.

    Quoted texts, and what aliases and merges bring, are left out.
    """
    found = {}
    for path, node in own_nodes(composed(text, file, Loader)):
        if isinstance(node, yaml.ScalarNode) and node.style is None:
            found[path] = str(node.value)
        elif isinstance(node, yaml.CollectionNode) and node.flow_style:
            written = text[start_of(node) : node.end_mark.index]
            if written[0] in "[{" and "\n" not in written and not any(True for _ in aliases(node)):
                found[path] = written
    return found
