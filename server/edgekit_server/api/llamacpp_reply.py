"""llama-server's own answers, whole and in parts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from ..call import Call
from ..chat.middle import Middle
from ..chat.parser import Event, Text
from ..engine.wire import Sampling, TopToken
from ..router import Model
from .llamacpp_fit import Omitted
from .llamacpp_run import Limits, Track
from .llamacpp_schema import NativeRequest


@dataclass(frozen=True, slots=True)
class Job:
    """A request that the engine accepted."""

    body: NativeRequest
    model: Model
    call: Call
    tracks: Sequence[Track]
    limits: Limits
    sampling: Sampling
    prompts: Sequence[object]
    """As the model got them: texts, or ids where the client sent ids."""
    n_choices: int
    """Of each prompt."""
    omitted: Omitted | None = None


def part(job: Job, track: Track, events: Iterable[Event], n_before: int) -> dict[str, object]:
    """Return one part of a stream; `n_before`: tokens that went out with earlier parts."""
    index = track.choice.index
    found: dict[str, object] = {
        "index": index,
        "content": text_of(events),
        "tokens": track.tokens[n_before:],
        "stop": False,
        "id_slot": -1,
        "tokens_predicted": track.choice.n_tokens,
        "tokens_evaluated": job.call.n_prompt[index],
    }
    if job.body.timings_per_token:
        found["timings"] = track.timings(job.call.n_prompt[index], time.monotonic())
    if job.body.n_probs:
        found["completion_probabilities"] = _probabilities(track)
    return found


def final(job: Job, track: Track, content: str) -> dict[str, object]:
    """Return an answer, or the last part of a stream, cut to the fields that the client wants."""
    body, choice = job.body, track.choice
    index, n_ctx = choice.index, job.model.hello.n_ctx_seq
    n_prompt = job.call.n_prompt[index]
    if body.warms_up:
        content, choice.n_tokens, track.tokens = "", 0, []
    full = track.engine_finish == "length" and n_prompt + choice.n_tokens >= n_ctx
    found: dict[str, object] = {
        "index": index,
        "content": content,
        "tokens": track.tokens if body.return_tokens and not body.stream else [],
        "id_slot": -1,
        "stop": True,
        "model": job.model.id,
        "tokens_predicted": choice.n_tokens,
        "tokens_evaluated": n_prompt,
        "generation_settings": settings(job),
        "prompt": job.prompts[index // job.n_choices],
        "has_new_line": "\n" in content,
        "truncated": job.omitted is not None or full,
        "stop_type": stop_type(track, warms_up=body.warms_up),
        "stopping_word": choice.parser.stopped_by or "",
        "tokens_cached": choice.n_cached if track.first is None else n_prompt + choice.n_tokens,
        "timings": track.timings(n_prompt, time.monotonic()),
    }
    if track.limit is not None:
        found["stopped_by"] = track.limit
    if job.omitted is not None:
        found["omitted"] = job.omitted.as_dict()
    if body.n_probs and not body.stream:
        found["completion_probabilities"] = _probabilities(track)
    return found if not body.response_fields else chosen(found, body.response_fields)


def settings(job: Job) -> dict[str, object]:
    """Return what the answer was drawn with, the server's defaults included."""
    body = job.body
    found = asdict(job.sampling)
    found.pop("logit_bias")
    return found | {
        "n_ctx": job.model.hello.n_ctx_seq,
        "n_predict": -1 if body.n_predict is None else body.n_predict,
        "seed": -1 if job.sampling.seed is None else job.sampling.seed,
        "stop": body.stops,
        "ignore_eos": bool(body.ignore_eos),
        "stream": bool(body.stream),
        "n_probs": body.n_probs or 0,
        "t_max_prompt_ms": body.t_max_prompt_ms,
        "t_max_predict_ms": body.t_max_predict_ms,
    }


def stop_type(track: Track, *, warms_up: bool) -> str:
    """Return eos, word (a stop string) or limit (of tokens, time, context or indentation)."""
    parser = track.choice.parser
    if track.limit is not None or warms_up:
        return "limit"
    if parser.stopped_by is not None:
        return "word"
    if isinstance(parser, Middle) and parser.dedented:
        return "limit"
    return "limit" if track.choice.finish == "length" else "eos"


def chosen(found: Mapping[str, object], fields: Sequence[str]) -> dict[str, object]:
    """Return the named fields; `a/b` is b within a, under that whole name."""
    result: dict[str, object] = {}
    for path in fields:
        value: object = found
        for key in path.split("/"):
            value = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is not _ABSENT:
            result[path] = value
    return result


_ABSENT = object()


def text_of(events: Iterable[Event]) -> str:
    return "".join(item.text for item in events if isinstance(item, Text))


def _probabilities(track: Track) -> list[dict[str, object]]:
    """Return the tokens not yet told, each with the best ones."""
    told, track.choice.logprobs = track.choice.logprobs, []
    return [{**_scored(token), "top_logprobs": [_scored(top) for top in tops]}
            for token, tops in told]  # fmt: skip


def _scored(token: TopToken) -> dict[str, object]:
    return {
        "id": token.token,
        "token": token.text.decode("utf-8", "replace"),
        "bytes": list(token.text),
        "logprob": token.logprob,
    }
