"""Text of a YAML that anybody may have written, before anything is made of it."""

from pathlib import Path

from ruamel.yaml.nodes import Node, ScalarNode, SequenceNode

from efficientat_plugin.support.files import open_file
from efficientat_plugin.support.plain_text import shown

MAX_NODES = 200_000  # aliases followed: a few lines of them are billions
MAX_BYTES = 2_000_000  # of a YAML: 50 000 classes


class Refused(ValueError):
    """A sentence that says what is wrong with a model folder, and where."""

    def __init__(self, sentence: str) -> None:
        super().__init__(shown(sentence))


def read_text(path: Path) -> str:
    """Of a YAML, if it is not so long that parsing it would take minutes.

    Arguments
    ---------
    path : Path

    Raises
    ------
    Refused
        For one beyond 2 MB.
    """
    with open_file(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise Refused(
            f"{path} is longer than {MAX_BYTES} bytes, which no model's settings are; "
            "copy the folder again"
        )
    return content.decode("utf-8")


def refuse_too_many(root: Node | None, origin: str) -> None:
    """Refuses a YAML that says far more than stands in it.

    Arguments
    ---------
    root : Node or None
        Composed, not yet built.
    origin : str
        The file, for the message.

    Raises
    ------
    Refused
        For more than 200 000 entries, aliases followed.
    """
    waiting, count = [] if root is None else [root], 1
    while waiting:
        node = waiting.pop()
        children = entries_of(node)
        count += len(children)
        if count > MAX_NODES:
            raise Refused(
                f"{origin}, line {node.start_mark.line + 1}: the aliases make more "
                f"than {MAX_NODES} entries; write them out"
            )
        waiting += children


def entries_of(node: Node) -> list[Node]:
    """Keys and values of a mapping, values of a sequence, none of a scalar."""
    if isinstance(node, ScalarNode):
        return []
    if isinstance(node, SequenceNode):
        return list(node.value)
    return [each for pair in node.value for each in pair]
