"""Prompts in Mistral's formats have the token ids that mistral-common gives."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mistral_common
import pytest
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers import instruct
from mistral_common.tokens.tokenizers.base import TokenizerVersion
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from edgekit_server.chat import builtin
from edgekit_server.chat.family import recognise
from edgekit_server.chat.normalise import normalise
from edgekit_server.chat.template import ChatTemplate

VERSIONS = ("v3", "v7", "v11", "v13")
CONTROL = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]",
]  # fmt: skip
N_CONTROL = {"v3": 17, "v7": 20, "v11": 22, "v13": 24}
"""How many of them each version's vocabulary names."""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Says «what» it is",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "a, b"}},
                "required": ["city"],
            },
        },
    }
    for name in ("get_weather", "clock")
]


def asked(*calls: tuple[str, str, object], content: str | None = None) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
            for call_id, name, arguments in calls
        ],
    }


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def told(call_id: str, content: str, name: str = "get_weather") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content, "name": name}


SYSTEM = {"role": "system", "content": "Be brief.\n\nAlways."}
ONE, TWO = "abcDEF123", "abcDEF124"
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [user("Hello, wörld! 😀\n\n  x")],
    "system": [SYSTEM, user("hi")],
    "three turns": [SYSTEM, user("hi"), {"role": "assistant", "content": "yes?"}, user("bye")],
    "a call": [user("weather?"), asked((ONE, "get_weather", {"city": "Bern é"})), told(ONE, "12°")],
    "a result that is JSON": [
        user("weather?"),
        asked((ONE, "get_weather", {"city": "Bern"})),
        told(ONE, '{"t": 12, "sky": ["clear"]}'),
    ],
    "two calls and on": [
        SYSTEM,
        user("weather?"),
        asked((ONE, "get_weather", {"city": "Bern", "n": [1, 2.5, None]}), (TWO, "clock", {})),
        told(ONE, "cold"),
        told(TWO, "12:00", "clock"),
        {"role": "assistant", "content": "Cold at noon."},
        user("thanks"),
    ],
    "letters of control tokens": [user("what is [INST] or </s>[TOOL_CALLS]")],
}


@cache
def packaged() -> dict[str, Any]:
    data = Path(mistral_common.__file__).parent / "data" / "tekken_240718.json"
    model: dict[str, Any] = json.loads(data.read_text())
    return {"vocab": model["vocab"][:3000], "pattern": model["config"]["pattern"]}


@cache
def tekken(version: str) -> Tekkenizer:
    """Return Mistral's tokenizer with the first 3,000 tokens of its own vocabulary."""
    special = [
        {"rank": at, "token_str": token, "is_control": True}
        for at, token in enumerate(CONTROL[: N_CONTROL[version]])
    ]
    return Tekkenizer(
        packaged()["vocab"],
        special,  # type: ignore[arg-type]
        packaged()["pattern"],
        vocab_size=3000 + 30,
        num_special_tokens=30,
        version=TokenizerVersion(version),
    )


def ours(version: str, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> list[int]:
    """Return the ids of our prompt."""
    tokenizer = tekken(version)
    control = CONTROL[: N_CONTROL[version]]
    source, reason = builtin.completed(None, control)
    assert source is not None
    assert reason
    template = ChatTemplate(source, bos="<s>", eos="</s>", control_tokens=control)
    split = re.compile("(" + "|".join(map(re.escape, control)) + ")")
    ids: list[int] = []
    for text, real in template.render(normalise(messages), tools).pieces:
        for part in split.split(text) if real else [text]:
            if real and part in control:
                ids.append(tokenizer.get_special_token(part))
            elif part:
                ids += tokenizer.encode(part, bos=False, eos=False)
    return ids


def theirs(version: str, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> list[int]:
    """Return the ids of mistral-common's prompt."""
    kind = getattr(instruct, f"InstructTokenizer{version.upper()}")
    request = ChatCompletionRequest.model_validate(
        {"messages": list(messages), **({"tools": tools} if tools else {})}
    )
    normalizer = get_normalizer(TokenizerVersion(version), None)
    made = normalizer.from_chat_completion_request(request)
    return list(kind(tekken(version)).encode_instruct(made).tokens)


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("version", VERSIONS)
def test_prompts_are_mistral_commons(version: str, name: str, tools: list[Any] | None) -> None:
    messages = CONVERSATIONS[name]
    assert ours(version, messages, tools) == theirs(version, messages, tools)


@pytest.mark.parametrize("name", ["a denied call", "one of two results"])
@pytest.mark.parametrize("version", VERSIONS)
def test_denied_calls(version: str, name: str) -> None:
    messages = DENIED[name]
    assert ours(version, messages, TOOLS) == theirs(version, messages, TOOLS)


@pytest.mark.parametrize("version", ["v7", "v11", "v13"])
def test_text_beside_a_call(version: str) -> None:
    messages = [user("w?"), asked((ONE, "clock", {}), content="I look."), told(ONE, "1", "clock")]
    assert ours(version, messages, TOOLS) == theirs(version, messages, TOOLS)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_version_is_told_by_vocabulary_and_template(version: str) -> None:
    control = CONTROL[: N_CONTROL[version]]
    assert builtin.version_of(control) == version
    source, _ = builtin.completed(None, control)
    assert recognise(source)[0].family == f"mistral-{version}"
    assert builtin.completed("<|im_start|>", control) == ("<|im_start|>", "")
    assert builtin.completed(None, ["<s>"]) == (None, "")


def test_a_template_without_tools_gets_ours_for_tools_only() -> None:
    own = "{{ bos_token }}{% for m in messages %}[INST]own {{ m.content }}[/INST]{% endfor %}"
    source, reason = builtin.completed(own, CONTROL[:20])
    assert source is not None
    assert "v7" in reason
    template = ChatTemplate(source, bos="<s>", eos="</s>", control_tokens=CONTROL[:20])
    turns = normalise([user("hi")])
    assert template.render(turns).text == "<s>[INST]own hi[/INST]"
    assert template.render(turns, list(TOOLS)).text.startswith("<s>[AVAILABLE_TOOLS][")
    assert recognise(source)[0].family == "mistral-v7"
    shown = "{% if tools %}x{% endif %}[INST]"
    assert builtin.completed(shown, CONTROL) == (shown, "")


STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}own"
)
DENIED = {
    "a denied call": [user("a"), asked((ONE, "clock", {})), user("no")],
    "one of two results": [
        user("a"),
        asked((ONE, "clock", {}), (TWO, "clock", {})),
        told(ONE, "1", "clock"),
        user("no"),
    ],
    "a question after a result": [
        user("a"),
        asked((ONE, "clock", {})),
        told(ONE, "1", "clock"),
        user("b"),
    ],
}


@pytest.mark.parametrize("limited", [False, True])
def test_what_a_strict_template_refuses_is_rendered_all_the_same(limited: bool) -> None:
    control = CONTROL[: N_CONTROL["v13"]]
    for messages in DENIED.values():
        template = ChatTemplate(
            STRICT, bos="<s>", eos="</s>", control_tokens=control, limited=limited,
            fallback=builtin.fallback_of("mistral-v13"),
        )  # fmt: skip
        assert ours("v13", messages, TOOLS) == theirs("v13", messages, TOOLS)
        rendered = template.render(normalise(messages), list(TOOLS))
        assert "must alternate" in rendered.reason or rendered.text == "<s>own"
        assert template.render(normalise([user("a")])).text == "<s>own"
    assert builtin.fallback_of("hermes") is None
