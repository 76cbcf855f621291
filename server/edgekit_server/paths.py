"""One spelling per path: clients send `/v1/v1/...`, `//`, a trailing `/`, or no `/v1` at all."""

from __future__ import annotations

VERSIONED = frozenset(
    {"chat", "completions", "models", "embeddings", "rerank", "responses", "messages", "fim"}
)
"""First segments that live under /v1."""
ROOTED = frozenset(
    {"health", "livez", "readyz", "metrics", "tokenize", "detokenize", "lora-adapters"}
    | {"infill", "props", "apply-template", "completion", "api", "status", "licence"}
)
"""First segments that live at the root."""
PAGE = frozenset({"/"}) | {
    f"/web/{name}"
    for name in (
        "page.css", "page.js", "api.js", "dom.js", "live.js", "report.js", "play.js", "clients.js",
        "settings.js",
    )
}  # fmt: skip
"""The page for people and its files: the same on every server, nothing of this one in them."""
PUBLIC = PAGE | {"/health", "/livez", "/readyz"}
"""Paths that need no key: monitors have none, the page asks for it, and they say nothing."""

KNOWN = PUBLIC | {
    "/metrics", "/status", "/status/report", "/licence",
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/embeddings",
    "/v1/rerank", "/tokenize", "/detokenize", "/lora-adapters", "/", "/infill", "/props",
    "/apply-template", "/completion", "/v1/fim/completions", "/v1/messages",
    "/v1/messages/count_tokens", "/v1/responses", "/api/version", "/api/tags", "/api/show",
    "/api/ps", "/api/chat", "/api/generate", "/api/embed", "/api/embeddings",
}  # fmt: skip


def canonical(path: str) -> str:
    """Return the path as the routes spell it; an unknown path comes back tidied only."""
    segments = [segment for segment in path.split("/") if segment]
    while segments[:2] == ["v1", "v1"]:
        segments.pop(0)
    if segments[-1:] == ["reranking"]:  # llama-server's other name
        segments[-1] = "rerank"
    if segments == ["license"]:
        segments = ["licence"]
    if segments and segments[0] in VERSIONED:
        segments.insert(0, "v1")
    elif segments[:1] == ["v1"] and segments[1:2] and segments[1] in ROOTED:
        segments.pop(0)
    return "/" + "/".join(segments)


def label(path: str) -> str:
    """Return a canonical path for metrics: few values, whatever clients ask for."""
    if path in KNOWN:
        return path
    if path.startswith("/v1/responses/"):
        return "/v1/responses/{id}"
    return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"
