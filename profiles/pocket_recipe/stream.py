"""Training rows: each a pure function of (seed, step, row), so that a run can stop and go on.

A row is `length + 1` token ids and a mask of the ids worth learning. Rows of code are windows of
the standard library; rows of FIM and of conversations are packed from documents drawn at random.
"""

from __future__ import annotations

import json
import random

import facts
import jinja2
import numpy as np
import world
from numpy.typing import NDArray
from tokenizers import Tokenizer

BOS, EOS, PREFIX, SUFFIX = 1, 2, 14, 16
SYSTEM = (
    "You are a helpful assistant.", "Use the tools.", "You are pocket.", "Answer briefly.",
    "You are an assistant with tools. Call them when needed.",
)  # fmt: skip
Document = tuple[list[int], list[bool]]


class Chat:
    """Renders conversations exactly as the server will, and marks the assistant's tokens."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self.tokenizer = tokenizer
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)
        self.template = environment.from_string(template)

    def text(
        self, messages: list[dict[str, object]], tools: list[dict[str, object]] | None = None
    ) -> str:
        return self.template.render(
            messages=messages, tools=tools, bos_token="<s>", eos_token="</s>"
        )

    def document(
        self, messages: list[dict[str, object]], tools: list[dict[str, object]] | None
    ) -> Document:
        ids: list[int] = []
        mask: list[bool] = []
        before = ""
        for i in range(1, len(messages) + 1):
            if i < len(messages) and messages[i - 1]["role"] == "system":
                continue
            after = self.text(messages[:i], tools)
            part = self.tokenizer.encode(after[len(before) :], add_special_tokens=False).ids
            ids += part
            mask += [messages[i - 1]["role"] == "assistant"] * len(part)
            before = after
        return ids, mask

    def draw(self, r: random.Random, python: list[tuple[str, str]]) -> Document:
        messages: list[dict[str, object]] = []
        tools = None
        if r.random() < 0.4:
            messages.append({"role": "system", "content": r.choice(SYSTEM)})
        kind = r.random()
        if kind < 0.22:
            for _ in range(r.choice((1, 1, 2, 3))):
                messages += question(*facts.draw(r, python))
        else:
            found = world.task(r, chain=kind > 0.6, held_out=False)
            tools = world.tools_for(r, found)
            if r.random() < 0.1:
                messages += question(*facts.draw(r, python))
            messages += conversation(found)
        return self.document(messages, tools)


def question(ask: str, answer: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]


def call_message(call: world.Call, call_id: str = "000000000") -> dict[str, object]:
    function = {"name": call[0], "arguments": json.dumps(call[1], ensure_ascii=False)}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def conversation(found: world.Task) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = [{"role": "user", "content": found.user}]
    for call, result in found.steps:
        messages += [call_message(call), {"role": "tool", "content": result}]
    return [*messages, {"role": "assistant", "content": found.answer}]


def fim_split(r: random.Random, text: str) -> tuple[str, str, str]:
    """Cut a window out of `text` into prefix, middle, suffix: half of them one line's rest."""
    lines = text.splitlines(keepends=True)
    start = r.randrange(max(1, len(lines) - 8))
    window = lines[start : start + r.randint(8, 60)]
    if r.random() < 0.6:
        candidates = [i for i, line in enumerate(window) if len(line.strip()) > 3]
        if candidates:
            i = r.choice(candidates)
            line = window[i]
            indent = len(line) - len(line.lstrip())
            cut = indent if r.random() < 0.5 else r.randint(indent, len(line.rstrip()) - 1)
            body = line.rstrip("\r\n")
            return (
                "".join(window[:i]) + line[:cut],
                body[cut:],
                line[len(body) :] + "".join(window[i + 1 :]),
            )
    whole = "".join(window)
    a, b = sorted((r.randint(0, len(whole)), r.randint(0, len(whole))))
    b = min(b, a + 400)
    return whole[:a], whole[a:b], whole[b:]


class Rows:
    """The whole training stream: code, FIM and conversations in fixed shares of each batch."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str], template: str, seed: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.texts = [t for t in texts if len(t) > 400]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        self.files = [np.array([BOS, *e.ids, EOS], dtype=np.uint16) for e in encoded]
        self.n_tokens = sum(len(f) for f in self.files)
        self.chat = Chat(tokenizer, template)
        self.python = facts.python_facts()
        self._epochs: dict[int, NDArray[np.uint16]] = {}

    def _epoch(self, number: int) -> NDArray[np.uint16]:
        if number not in self._epochs:
            order = list(range(len(self.files)))
            random.Random(f"{self.seed}-epoch-{number}").shuffle(order)
            self._epochs = {number: np.concatenate([self.files[i] for i in order])}
        return self._epochs[number]

    def code(self, position: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the window that starts at token `position` of the endless shuffled stream."""
        per_epoch = self.n_tokens - length - 1
        stream = self._epoch(position // per_epoch)
        start = position % per_epoch
        window = stream[start : start + length + 1].astype(np.int64)
        return window, np.ones(length + 1, dtype=np.float32)

    def repeats(
        self, r: random.Random, length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return spans that come back after a while; only what comes back is learned.

        Copying from the context (a tool's argument, a name seen above) needs induction heads; in
        plain text they form late, from spans of random tokens within a few hundred steps.
        """
        rng = np.random.default_rng(r.getrandbits(64))
        ids: list[NDArray[np.int64]] = []
        mask: list[NDArray[np.float32]] = []
        size = 0
        while size < length + 1:
            spans = [rng.integers(64, 4096, rng.integers(4, 33)) for _ in range(rng.integers(2, 6))]
            order = [*range(len(spans)), *rng.integers(0, len(spans), len(spans))]
            for n, i in enumerate(order):
                again = np.full(len(spans[i]), n >= len(spans))
                again[0] = False
                ids.append(spans[i])
                mask.append(again)
                size += len(spans[i])
        weights = np.concatenate(mask)[: length + 1].astype(np.float32)
        return np.concatenate(ids)[: length + 1], weights

    def packed(
        self, r: random.Random, length: int, *, fim: bool, middle_weight: float = 1.0
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        ids: list[int] = []
        mask: list[float] = []
        while len(ids) < length + 1:
            if fim:
                prefix, middle, suffix = fim_split(r, r.choice(self.texts))
                p, m, s = (
                    e.ids
                    for e in self.tokenizer.encode_batch(
                        [prefix, middle, suffix], add_special_tokens=False
                    )
                )
                part = [BOS, SUFFIX, *s, PREFIX, *p, *m, EOS]
                learn = [0.0] * 2 + [1.0] * (len(s) + 1 + len(p)) + [middle_weight] * (len(m) + 1)
            else:
                part, marks = self.chat.draw(r, self.python)
                learn = [float(x) for x in marks]
            ids += part
            mask += learn
        return np.array(ids[: length + 1]), np.array(mask[: length + 1], dtype=np.float32)
