"""Turns of a conversation, and the answer to it, as feedback tools write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def turns_of(value: Any) -> list[dict[str, str]]:
    """Turns from a text (one user turn), a list of turns, JSON of these, or an object with ``messages``.

    Raises:
        ValueError: it is none of these.
    """
    value = _parsed(value)
    if isinstance(value, Mapping) and "messages" in value:
        value = value["messages"]
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, Mapping):
        value = [value] if "role" in value or "content" in value else [{"role": "user", "content": _text(value)}]
    if not isinstance(value, list):
        raise ValueError(f"turns are neither a text nor a list, but {type(value).__name__}")
    turns: list[dict[str, str]] = []
    for turn in value:
        if isinstance(turn, (list, tuple)) and len(turn) == 2:  # Gradio's pairs of what was asked and answered
            turns += [
                {"role": role, "content": str(text)}
                for role, text in zip(("user", "assistant"), turn, strict=True)
                if text
            ]
            continue
        own = turn.get("message", turn) if isinstance(turn, Mapping) else turn  # Phoenix nests {"message": {...}}
        if not isinstance(own, Mapping):
            raise ValueError(f"a turn is {type(own).__name__}, not an object")
        own = {str(name).removeprefix("message."): inner for name, inner in own.items()}
        turns.append({"role": _role(own.get("role")), "content": _text(own.get("content"))})
    return turns


def answer_of(value: Any) -> str:
    """The text of an answer: a text, a turn, a list whose last turn it is, or a response with ``choices``."""
    value = _parsed(value)
    if isinstance(value, Mapping) and isinstance(value.get("choices"), list) and value["choices"]:
        value = value["choices"][0].get("message")
    if isinstance(value, Mapping) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if isinstance(value, list):
        if value and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
            return _text(value)
        value = value[-1] if value else ""
    if isinstance(value, Mapping):
        value = value.get("message", value)
    if isinstance(value, Mapping):
        own = {str(name).removeprefix("message."): inner for name, inner in value.items()}
        return _text(own.get("content", own))
    return "" if value is None else str(value)


def chain_of(chat: Mapping[str, Any], message: str) -> tuple[list[dict[str, str]], str]:
    """The turns before a message of an Open WebUI chat, and its text: its history is a tree, whose branches are other tries.

    Raises:
        ValueError: the tree goes in a circle.
    """
    history = (chat.get("history") or {}) if isinstance(chat, Mapping) else {}
    nodes = history.get("messages") or {}
    node = nodes.get(message or history.get("currentId"))
    chain: list[Mapping[str, Any]] = []
    while isinstance(node, Mapping):
        chain.append(node)
        if len(chain) > len(nodes):
            raise ValueError("history of messages goes in a circle")
        node = nodes.get(node.get("parentId"))
    if not chain:
        turns = turns_of(chat.get("messages")) if isinstance(chat, Mapping) and chat.get("messages") else []
        return turns[:-1], turns[-1]["content"] if turns else ""
    turns = turns_of([{"role": one.get("role"), "content": one.get("content")} for one in reversed(chain)])
    return turns[:-1], turns[-1]["content"]


def _parsed(value: Any) -> Any:
    """JSON inside a text, where it is turns or an answer; any other text as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            return value
        named = read if isinstance(read, Mapping) else read[0] if isinstance(read, list) and read else None
        if isinstance(named, list) or (
            isinstance(named, Mapping) and named.keys() & {"role", "messages", "choices", "message"}
        ):
            return read
    return value


def _role(role: Any) -> str:
    return {"human": "user", "ai": "assistant", "model": "assistant", "developer": "system"}.get(
        str(role), str(role or "user")
    )


def _text(content: Any) -> str:
    """Text of a content: a text, or parts of which those of type text count."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        if any(
            not isinstance(part, Mapping) or part.get("type") not in ("text", "input_text", "output_text")
            for part in content
        ):
            raise ValueError("content has parts that are no text")
        return "".join(str(part.get("text", "")) for part in content)
    return "" if content is None else json.dumps(content, ensure_ascii=False, sort_keys=True)
