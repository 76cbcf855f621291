"""Events of one answer as Responses events, in the one order that every reader accepts.

Pure. `created`, `in_progress`; item after item: added, its parts, done; then one last event with
the whole response. A whole answer is that last response, so both ways of asking agree.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, cast

from pydantic import JsonValue as Json

from ..chat.parser import Event, ReasoningText, Text, ToolCall
from ..engine.wire import TopToken
from ..errors import ServerError
from .choice import Usage
from .responses_tools import Toolbox
from .sse import event

Typed = dict[str, Json]
"""One event, `type` and `sequence_number` first."""
Logprobs = Sequence[tuple[TopToken, Sequence[TopToken]]]
Kind = Literal["message", "reasoning"]

_PREFIX = {"message": "msg", "reasoning": "rs", "function_call": "fc", "response": "resp"}
_DELTAS = {"message": "output_text", "reasoning": "reasoning_text"}


def new_id(kind: str) -> str:
    """Return a fresh id of an item or a response."""
    return f"{_PREFIX[kind]}_{uuid.uuid4().hex}"


def written_out(events: Iterable[Typed]) -> bytes:
    """Return events as lines; readers of this dialect want the name beside the data."""
    return b"".join(
        b"event: " + str(typed["type"]).encode() + b"\n" + event(typed) for typed in events
    )


class Writer:
    """One answer being written: `begin`, then `take` as it comes, then `finish` or `fail`."""

    def __init__(
        self,
        head: Mapping[str, Json],
        box: Toolbox,
        *,
        make_id: Callable[[str], str] = new_id,
    ) -> None:
        """`head`: what of the response object is known before the answer."""
        self.output: list[Json] = []
        """Items that are done."""
        self._head = head
        self._box = box
        self._make_id = make_id
        self._number = 0
        self._said = False
        """Whether there is a message or a call."""
        self._open: _Part | None = None
        self._blank: Text | ReasoningText | None = None
        """White space that nothing else followed yet."""
        self._logprobs: list[Json] = []
        """Not yet written."""

    def begin(self) -> list[Typed]:
        """Return the first two events."""
        return [self._event("created", response=self.response()), self.still()]

    def still(self) -> Typed:
        """Return the event that keeps a silent connection alive: readers ignore comments."""
        return self._event("in_progress", response=self.response())

    def take(self, events: Sequence[Event], logprobs: Logprobs = ()) -> list[Typed]:
        """Return what the parser's events become.

        White space at the beginning of an item waits for what follows. Before a call or reasoning
        it is dropped: families write line breaks there, and clients would show an empty message.
        """
        self._logprobs += [_logprob(token, tops) for token, tops in logprobs]
        written: list[Typed] = []
        for item in events:
            match item:
                case Text():
                    written += self._text("message", item)
                case ReasoningText():
                    written += self._text("reasoning", item)
                case ToolCall():
                    self._blank = None
                    written += [*self._close("completed"), *self._call(item)]
        return written

    def finish(self, usage: Usage, *, cut: bool) -> list[Typed]:
        """Return the last events. `cut`: the token limit ended the answer, not the model.

        An answer without any item gets an empty message, so that there is one to read.
        """
        written: list[Typed] = []
        if isinstance(self._blank, Text) and not self._said:
            written += self._write("message", self._blank.text)
        elif self._open is None and not self.output and not cut:
            written += self._write("message", "")
        written += self._close("incomplete" if cut else "completed")
        status = "incomplete" if cut else "completed"
        more: dict[str, Json] = {"usage": _usage(usage)}
        if cut:
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        return [*written, self._event(status, response=self.response(status, **more))]

    def fail(self, error: ServerError) -> list[Typed]:
        """Return the last event of an answer that broke off: no item is ended that did not end."""
        output = [*self.output]
        if self._open is not None:
            output.append(self._open.item("incomplete"))
        failure: Json = {"code": error.code, "message": error.message}
        response = self.response("failed", error=failure, output=output)
        return [self._event("failed", response=response)]

    def response(self, status: str = "in_progress", **more: Json) -> dict[str, Json]:
        """Return the response object as it stands."""
        return {**self._head, "status": status, "output": [*self.output], **more}

    def _text(self, kind: Kind, event: Text | ReasoningText) -> list[Typed]:
        written: list[Typed] = []
        if self._open is not None and self._open.kind != kind:
            written += self._close("completed")
        text = event.text
        if self._open is None:
            if isinstance(self._blank, type(event)):
                text = self._blank.text + text
            self._blank = None
            if not text.strip():
                self._blank = type(event)(text)
                return written
        return written + self._write(kind, text)

    def _write(self, kind: Kind, text: str) -> list[Typed]:
        written: list[Typed] = []
        self._blank = None
        self._said = self._said or kind == "message"
        part = self._open
        if part is None:
            part = self._open = _Part(kind, self._make_id(kind))
            item: Json = {**part.item("in_progress"), "content": []}
            written += [
                self._event("output_item.added", output_index=len(self.output), item=item),
                self._in_part("content_part.added", part=part.content()),
            ]
        if text:
            part.texts.append(text)
            more: dict[str, Json] = {"delta": text}
            if kind == "message":
                more["logprobs"] = self._take_logprobs(part)
            written.append(self._in_part(f"{_DELTAS[kind]}.delta", **more))
        return written

    def _close(self, status: str) -> list[Typed]:
        part = self._open
        if part is None:
            return []
        more: dict[str, Json] = {"text": part.text}
        if part.kind == "message":
            self._take_logprobs(part)
            more["logprobs"] = [*part.logprobs]
        item = part.item(status)
        written = [
            self._in_part(f"{_DELTAS[part.kind]}.done", **more),
            self._in_part("content_part.done", part=part.content()),
            self._event("output_item.done", output_index=len(self.output), item=item),
        ]
        self.output.append(item)
        self._open = None
        return written

    def _call(self, call: ToolCall) -> list[Typed]:
        self._said = True
        name, namespace = self._box.own(call.name)
        item: dict[str, Json] = {
            "id": self._make_id("function_call"),
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": name,
            "arguments": call.arguments,
        }
        if namespace is not None:
            item["namespace"] = namespace
        begun: Json = {**item, "status": "in_progress", "arguments": ""}
        at: dict[str, Json] = {"output_index": len(self.output)}
        within = {"item_id": item["id"], **at}
        said = "function_call_arguments"
        written = [
            self._event("output_item.added", **at, item=begun),
            self._event(f"{said}.delta", **within, delta=call.arguments),
            self._event(f"{said}.done", **within, name=name, arguments=call.arguments),
            self._event("output_item.done", **at, item=item),
        ]
        self.output.append(item)
        return written

    def _take_logprobs(self, part: _Part) -> list[Json]:
        taken, self._logprobs = self._logprobs, []
        part.logprobs += taken
        return taken

    def _in_part(self, kind: str, **fields: Json) -> Typed:
        assert self._open is not None
        at: dict[str, Json] = {"output_index": len(self.output), "content_index": 0}
        return self._event(kind, item_id=self._open.id, **at, **fields)

    def _event(self, kind: str, **fields: Json) -> Typed:
        number, self._number = self._number, self._number + 1
        return {"type": f"response.{kind}", "sequence_number": number, **fields}


class _Part:
    """A text item being written; it has one part."""

    def __init__(self, kind: Kind, item_id: str) -> None:
        self.kind = kind
        self.id = item_id
        self.texts: list[str] = []
        self.logprobs: list[Json] = []

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def content(self) -> Json:
        """Return the part as it stands."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        logprobs = [*self.logprobs]
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": logprobs}

    def item(self, status: str) -> dict[str, Json]:
        """Return the item as it stands."""
        item: dict[str, Json] = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "message":
            item["role"] = "assistant"
        else:
            item["summary"] = []
        return {**item, "content": [self.content()]}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            # What was not in the cache is now.
            "cache_write_tokens": usage.prompt_tokens - usage.cached_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _logprob(token: TopToken, tops: Sequence[TopToken]) -> Json:
    def said(item: TopToken) -> dict[str, Json]:
        return {
            "token": item.text.decode("utf-8", "replace"),
            "logprob": item.logprob,
            "bytes": cast("Json", list(item.text)),
        }

    return {**said(token), "top_logprobs": cast("Json", [said(top) for top in tops])}
