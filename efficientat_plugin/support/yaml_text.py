"""Reads untrusted YAML, within limits, before any object is built from it."""

from pathlib import Path

from ruamel.yaml.nodes import Node, ScalarNode, SequenceNode

from efficientat_plugin.support.files import open_file
from efficientat_plugin.support.plain_text import shown

MAX_NODES = 200_000  # with aliases expanded: a few lines can make billions
MAX_BYTES = 2_000_000  # of a YAML: 50 000 classes


class Refused(ValueError):
    """Raised with a sentence on what is wrong with a model folder, and where."""

    def __init__(self, sentence: str) -> None:
        super().__init__(shown(sentence))


def read_text(path: Path) -> str:
    """Reads the text of a YAML, unless parsing it would take minutes.

    Arguments
    ---------
    path : Path

    Raises
    ------
    Refused
        If it is longer than 2 MB.
    """
    with open_file(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise Refused(
            f"{path} is longer than {MAX_BYTES} bytes, too long for the settings of a "
            "model; copy the folder again"
        )
    return content.decode("utf-8")


def refuse_too_many(root: Node | None, origin: str) -> None:
    """Refuses a YAML that its aliases expand to far more than its text.

    Arguments
    ---------
    root : Node or None
        Parsed, not yet built.
    origin : str
        The file, for the message.

    Raises
    ------
    Refused
        For more than 200 000 entries, with aliases expanded.
    """
    waiting, count = [] if root is None else [root], 1
    while waiting:
        node = waiting.pop()
        children = entries_of(node)
        count += len(children)
        if count > MAX_NODES:
            raise Refused(
                f"{origin}, line {node.start_mark.line + 1}: aliases expand to more "
                f"than {MAX_NODES} entries; remove some"
            )
        waiting += children


def entries_of(node: Node) -> list[Node]:
    """Lists the keys and values of a mapping, or the values of a sequence."""
    if isinstance(node, ScalarNode):
        return []
    if isinstance(node, SequenceNode):
        return list(node.value)
    return [each for pair in node.value for each in pair]
