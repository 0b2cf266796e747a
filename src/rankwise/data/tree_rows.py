"""Rows that hold a whole tree of OpenAssistant messages: one conversation is read from each."""

from __future__ import annotations

from rankwise.config.base import shown
from rankwise.data.columns import Row
from rankwise.data.fields import require
from rankwise.data.turns import read_turns
from rankwise.errors import DataError
from rankwise.text.example import Example


def tree_example(row: Row, where: str) -> Example:
    """The best-ranked path through a tree of OpenAssistant messages, as long as it ends with an answer."""
    require(row, where, "oasst-trees", "prompt")
    node, path = row["prompt"], []
    while isinstance(node, dict):
        path.append({"role": {"prompter": "user"}.get(str(node.get("role")), node.get("role")),
                     "content": node.get("text")})  # fmt: skip
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise DataError(f"{where}: the replies are {shown(replies)}; a list of messages is expected.")
        replies = [reply for reply in replies if isinstance(reply, dict)]
        node = min(replies, key=_rank, default=None)
    while path and path[-1]["role"] == "user":
        path.pop()
    if not path:
        raise DataError(f"{where}: no message of the tree is an answer.")
    return Example(read_turns(path, where, "prompt"), where)


def _rank(reply: Row) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int) else float("inf")
