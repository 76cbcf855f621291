"""Hold a Responses stream to the contract of its strictest readers.

Pure. Every violation is an AssertionError that says which event broke which rule. Sources: the
official clients' accumulators (order, identity, one item per index), Codex (named events, a real
event as keep-alive, a last event), and OpenAI's reference (which event carries which key).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Typed = dict[str, Any]

LAST = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
}
LIFECYCLE = {"response.created", "response.in_progress", *LAST}
_HEAD = {"type", "sequence_number"}
_IN_PART = {*_HEAD, "item_id", "output_index", "content_index"}
_IN_ITEM = {*_HEAD, "item_id", "output_index"}
KEYS = {
    **{kind: {*_HEAD, "response"} for kind in LIFECYCLE},
    "response.output_item.added": {*_HEAD, "output_index", "item"},
    "response.output_item.done": {*_HEAD, "output_index", "item"},
    "response.content_part.added": {*_IN_PART, "part"},
    "response.content_part.done": {*_IN_PART, "part"},
    "response.output_text.delta": {*_IN_PART, "delta", "logprobs"},
    "response.output_text.done": {*_IN_PART, "text", "logprobs"},
    "response.reasoning_text.delta": {*_IN_PART, "delta"},
    "response.reasoning_text.done": {*_IN_PART, "text"},
    "response.function_call_arguments.delta": {*_IN_ITEM, "delta"},
    "response.function_call_arguments.done": {*_IN_ITEM, "name", "arguments"},
}
"""All events there are, with exactly their keys."""
RESPONSE_KEYS = {
    "id", "object", "created_at", "status", "error", "incomplete_details", "instructions",
    "max_output_tokens", "metadata", "model", "output", "parallel_tool_calls",
    "previous_response_id", "reasoning", "store", "temperature", "text", "tool_choice", "tools",
    "top_p", "truncation", "usage",
}  # fmt: skip
ITEM_KEYS = {
    "message": {"id", "type", "status", "role", "content"},
    "reasoning": {"id", "type", "status", "summary", "content"},
    "function_call": {"id", "type", "status", "call_id", "name", "arguments"},
}
PART_KEYS = {
    "output_text": {"type", "text", "annotations", "logprobs"},
    "reasoning_text": {"type", "text"},
}
PARTS_OF = {"message": "output_text", "reasoning": "reasoning_text"}
PREFIX = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}


def read(lines: Iterable[str]) -> list[Typed]:
    """Return a stream's events from its lines; asserts their form on the wire."""
    events: list[Typed] = []
    name: str | None = None
    data: Typed | None = None
    for line in lines:
        if line.startswith("event: "):
            assert name is None, f"event line within an event: {line}"
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            assert name is not None, f"data without an event name: {line}"
            assert data is None, f"two data lines in one event: {line}"
            data = json.loads(line.removeprefix("data: "))
        elif line.startswith(": ") and not events and name is None:
            continue  # A model is being loaded: there is no response yet that could be in progress.
        else:
            assert line == "", f"neither event nor data (readers ignore comments): {line!r}"
            if name is None:
                continue  # Readers skip further empty lines; `split` makes one of the end.
            assert data is not None, f"event {name} has no data"
            assert data["type"] == name, f"event {name} has data of type {data['type']}"
            events.append(data)
            name = data = None
    assert name is None, "the stream ends within an event"
    return events


def check_stream(events: Sequence[Typed], *, ended: bool = True) -> Typed | None:
    """Assert the contract over a stream's events; return the last event's response object.

    `ended` False: the reader left early, so the end may be missing; then the result is None.
    """
    state = _Stream()
    for at, event in enumerate(events):
        try:
            state.take(at, event)
        except AssertionError as error:
            raise AssertionError(f"event {at} ({event.get('type')}): {error}") from None
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise AssertionError(f"event {at} is malformed: {error!r}: {event}") from error
    assert not ended or state.final is not None, "the stream has no last event"
    return state.final


def check_response(response: Typed) -> None:
    """Assert the form of a whole response: a request's own, or a stream's last."""
    missing = RESPONSE_KEYS - response.keys()
    assert not missing, f"the response lacks {sorted(missing)}"
    status, output = response["status"], response["output"]
    assert response["object"] == "response"
    assert re.fullmatch(r"resp_[0-9a-f]{32}", response["id"]), response["id"]
    assert isinstance(response["created_at"], int)
    assert isinstance(response["model"], str)
    assert response["model"] or status == "failed" or not output, "no model's name"
    assert isinstance(output, list), "output is no list"
    assert len({item["id"] for item in output}) == len(output), "two items have one id"
    for item in output:
        _check_item(item)
    statuses = [item["status"] for item in output]
    if status == "in_progress":
        assert response["usage"] is None
    if status == "completed":
        assert output, "a completed response has no item"
        assert set(statuses) == {"completed"}, f"completed, with items that are {statuses}"
    assert set(statuses[:-1]) <= {"completed"}, "an item after one that is incomplete"
    wanted = {"reason": "max_output_tokens"} if status == "incomplete" else None
    assert response["incomplete_details"] == wanted, "incomplete_details"
    if status == "failed":
        error = response["error"]
        assert isinstance(error, dict), "a failure without an error"
        assert error.keys() == {"code", "message"}, error
        assert all(isinstance(text, str) and text for text in error.values()), error
    else:
        assert response["error"] is None
    if status in ("completed", "incomplete"):
        _check_usage(response["usage"])


def _check_usage(usage: Mapping[str, Any]) -> None:
    counts = [usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]]
    cached = usage["input_tokens_details"]["cached_tokens"]
    reasoning = usage["output_tokens_details"]["reasoning_tokens"]
    assert all(type(n) is int and n >= 0 for n in (*counts, cached, reasoning)), usage
    assert counts[0] + counts[1] == counts[2], f"total is not the sum: {usage}"
    assert cached <= counts[0], f"more was cached than read: {usage}"
    assert reasoning <= counts[1], f"more was reasoned than written: {usage}"


def _check_item(item: Mapping[str, Any]) -> None:
    kind = item["type"]
    assert kind in ITEM_KEYS, f"unknown item type {kind}"
    assert item.keys() - {"namespace"} == ITEM_KEYS[kind], f"keys of {kind}: {sorted(item)}"
    assert item["id"].startswith(PREFIX[kind]), item["id"]
    assert item["status"] in ("completed", "incomplete"), item["status"]
    if kind == "function_call":
        assert item["status"] == "completed", "a call that is not whole"
        assert re.fullmatch("[A-Za-z0-9]{9}", item["call_id"]), item["call_id"]
        assert item["name"], "a call without a name"
        assert isinstance(json.loads(item["arguments"]), dict), item["arguments"]
        return
    if kind == "message":
        assert item["role"] == "assistant"
    else:
        assert item["summary"] == []
    assert len(item["content"]) == 1, "a text item has one part"
    _check_part(item["content"][0], kind)


def _check_part(part: Mapping[str, Any], kind: str) -> None:
    assert part["type"] == PARTS_OF[kind], f"part {part['type']} in {kind}"
    assert part.keys() == PART_KEYS[part["type"]], f"keys of part: {sorted(part)}"
    assert isinstance(part["text"], str)


class _Stream:
    """What has been read so far."""

    def __init__(self) -> None:
        self.head: Typed = {}
        self.done: list[Typed] = []
        self.item: Typed | None = None
        """The item that is open, as it was added."""
        self.stage = ""
        self.part: Typed = {}
        self.texts: list[str] = []
        self.logprobs: list[Any] = []
        self.final: Typed | None = None

    def take(self, at: int, event: Typed) -> None:
        kind = event["type"]
        assert self.final is None, "something follows the last event"
        assert kind in KEYS, "unknown event"
        assert event.keys() == KEYS[kind], f"keys {sorted(event.keys() ^ KEYS[kind])}"
        assert event["sequence_number"] == at, f"sequence_number {event['sequence_number']}"
        wanted = {0: "response.created", 1: "response.in_progress"}.get(at)
        assert wanted in (None, kind), f"{wanted} must be here"
        assert kind != "response.created" or at == 0, "created twice"
        if kind in LIFECYCLE:
            self._life(kind, event["response"])
            return
        assert event["output_index"] == len(self.done), f"output_index {event['output_index']}"
        if kind == "response.output_item.added":
            self._added(event["item"])
            return
        assert self.item is not None, "no item is open"
        if kind == "response.output_item.done":
            self._item_done(event["item"])
            return
        assert event["item_id"] == self.item["id"], f"item_id {event['item_id']}"
        assert event.get("content_index", 0) == 0, "content_index"
        word = kind.removeprefix("response.")
        if word.startswith("content_part"):
            self._part_event(word, event["part"])
        else:
            self._content(word, event)

    def _life(self, kind: str, response: Typed) -> None:
        check_response(response)
        fixed = {
            key: value
            for key, value in response.items()
            if key not in ("status", "output", "usage", "error", "incomplete_details")
        }
        if not self.head:
            self.head = fixed
            assert response["output"] == [], "created with output"
        assert fixed == self.head, "the response object changed"
        assert response["status"] == LAST.get(kind, "in_progress"), response["status"]
        output = response["output"]
        if kind == "response.failed":
            done = self.done
            if self.item is not None and "content" in self.item and self.stage:
                assert len(output) == len(done) + 1, "the item that was open is missing"
                assert output[-1]["id"] == self.item["id"]
                assert output[-1]["status"] == "incomplete"
                assert output[-1]["content"][0]["text"] == "".join(self.texts)
                output = output[:-1]
        else:
            done = self.done
            assert kind == "response.in_progress" or self.item is None, "an item is still open"
        assert output == done, "output is not what the items were"
        if kind in LAST:
            self.final = response

    def _added(self, item: Typed) -> None:
        assert self.item is None, "an item is added while another is open"
        assert item["type"] in ITEM_KEYS, f"unknown item type {item['type']}"
        assert item["status"] == "in_progress", f"added with status {item['status']}"
        assert item["id"] not in {done["id"] for done in self.done}, "an id for the second time"
        if item["type"] == "function_call":
            assert item["arguments"] == "", "added with arguments"
        else:
            assert item["content"] == [], "added with content"
        self.item, self.stage, self.part, self.texts, self.logprobs = item, "added", {}, [], []

    def _part_event(self, word: str, part: Typed) -> None:
        assert self.item is not None
        _check_part(part, self.item["type"])
        if word == "content_part.added":
            assert self.stage == "added", f"a part is added after {self.stage}"
            assert part["text"] == "", "a part is added with text"
            self.stage = "part"
            return
        assert self.stage == "text done", f"the part is done after {self.stage}"
        assert part["text"] == "".join(self.texts), "the part's text is not its deltas"
        self.stage, self.part = "part done", part

    def _content(self, word: str, event: Typed) -> None:
        assert self.item is not None
        kind, what = self.item["type"], word.split(".")[0]
        wanted = {**PARTS_OF, "function_call": "function_call_arguments"}[kind]
        assert what == wanted, f"{what} in {kind}"
        begun = "added" if kind == "function_call" else "part"
        assert self.stage == begun, f"{word} after {self.stage}"
        if word.endswith(".delta"):
            assert isinstance(event["delta"], str)
            assert event["delta"], "an empty delta"
            self.texts.append(event["delta"])
            self.logprobs += event.get("logprobs", [])
            return
        text = event.get("arguments" if kind == "function_call" else "text")
        assert text == "".join(self.texts), "the whole is not the sum of its deltas"
        assert event.get("name") == self.item.get("name"), "the call's name changed"
        seen = event.get("logprobs", [])[: len(self.logprobs)]
        assert seen == self.logprobs, "logprobs of the deltas are missing in the whole"
        self.stage = "text done"

    def _item_done(self, item: Typed) -> None:
        assert self.item is not None
        _check_item(item)
        kind = item["type"]
        wanted = "text done" if kind == "function_call" else "part done"
        assert self.stage == wanted, f"the item is done after {self.stage}"
        for key in self.item.keys() - {"status", "content", "arguments"}:
            assert item[key] == self.item[key], f"the item's {key} changed"
        if kind == "function_call":
            assert item["arguments"] == "".join(self.texts), "arguments are not their deltas"
        else:
            assert item["content"] == [self.part], "content is not the part that was done"
        self.done.append(item)
        self.item, self.stage = None, ""
