"""The assistant's message of a reply that comes as bytes of HTTP, whole or as a stream of events. Pure."""

import json
from typing import Any

import httptools
import msgspec

# Of these the last one counts; all other texts of a stream are continued.
_WHOLE = frozenset({"role", "type", "id", "index"})
_END = b"[DONE]"


class _Choice(msgspec.Struct):
    message: msgspec.Raw = msgspec.Raw()


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []


_ANSWER = msgspec.json.Decoder(_Answer)


class Reply:
    """Is fed with a reply as the client gets it. `is_over` once all that matters of it is there."""

    def __init__(self) -> None:
        self.is_stream = self.is_over = False
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._rest = b""
        self._merged: dict[str, Any] = {}
        self._is_finished = self._is_faulty = False

    def feed(self, data: bytes) -> None:
        """Takes the next bytes."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._is_faulty = self.is_over = True

    def forget(self) -> None:
        """There will be no message of it."""
        self._is_faulty = self.is_over = True
        self._parts.clear()

    def message(self) -> str:
        """The message as JSON, of a reply that is whole; "" where it holds none."""
        if self._is_faulty or self._parser.get_status_code() != 200:
            return ""
        if self.is_stream:
            return _to_json(self._merged) if self._is_finished and self._merged else ""
        try:
            choices = _ANSWER.decode(b"".join(self._parts)).choices
        except (msgspec.DecodeError, RecursionError):
            return ""
        return bytes(choices[0].message).decode() if choices else ""

    # Of the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream"):
            self.is_stream = True

    def on_body(self, data: bytes) -> None:
        if self._is_faulty:
            return
        if not self.is_stream:
            self._parts.append(data)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._add(line[5:].strip())

    def on_message_complete(self) -> None:
        self.is_over = True

    def _add(self, event: bytes) -> None:
        if event == _END:
            self._is_finished = self.is_over = True
            return
        try:
            told = json.loads(event)
            if "error" in told:
                self._is_faulty = True
            for choice in told.get("choices") or ():
                if choice.get("index", 0) == 0:
                    merge(self._merged, choice.get("delta") or {})
                    self._is_finished |= choice.get("finish_reason") is not None
        except (ValueError, TypeError, AttributeError, RecursionError):
            self._is_faulty = True


def merge(into: dict[str, Any], delta: dict[str, Any]) -> None:
    """Adds what one event of a stream says to what those before it said."""
    for key, value in delta.items():
        known = into.get(key)
        if value is None:
            into.setdefault(key, None)
        elif isinstance(value, list):
            into[key] = _merged_list(known or [], value)
        elif isinstance(value, dict):
            into[key] = known or {}
            merge(into[key], value)
        elif isinstance(value, str) and isinstance(known, str) and key not in _WHOLE:
            into[key] = known + value
        else:
            into[key] = value


def _merged_list(known: list[Any], added: list[Any]) -> list[Any]:
    """Items with an index continue the item of this index; others are new."""
    for item in added:
        index = item.get("index") if isinstance(item, dict) else None
        same = [one for one in known if isinstance(one, dict) and one.get("index") == index]
        if index is None or not same:
            same = [{}] if isinstance(item, dict) else [item]
            known.append(same[0])
        if isinstance(item, dict):
            merge(same[0], item)
    return known


def _to_json(merged: dict[str, Any]) -> str:
    message = {"role": "assistant", "content": None, **merged}
    for items in message.values():
        for item in items if isinstance(items, list) else ():
            # It tells where a piece belongs; in a message the order does.
            if isinstance(item, dict):
                item.pop("index", None)
    text = json.dumps(message, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, as some engines cut them
        return json.dumps(message)
    return text
