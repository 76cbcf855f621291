"""GET /props and POST /apply-template: what llama-server's clients ask before anything else."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ..engine.wire import Hello, Sampling
from ..errors import RequestError
from ..roles import capabilities
from ..router import Router, Served
from .body import body_document, read_model, while_connected
from .conversation import prompt_of
from .schema import ChatRequest

routes = APIRouter()

BUILD = "edgekit"


@routes.get("/props")
async def props(
    request: Request, model: str | None = None, autoload: str | None = None
) -> dict[str, object]:
    """Say what a model can do and what it is asked with by default.

    A model that was loaded once is described from memory. `autoload=false`: never load one.
    """
    router: Router = request.app.state.router
    served = router.find(model)
    hello = served.hello
    if hello is None:
        if autoload in ("false", "0"):
            raise RequestError(
                f"the model '{served.id}' is not loaded", code="model_not_loaded", param="model"
            )
        hello = (await router.model(served.id)).hello
    return described(served, hello)


@routes.post("/apply-template", openapi_extra=body_document(ChatRequest))
async def apply_template(request: Request) -> Response:
    """Return a conversation as the text that the model would read."""
    body = await read_model(request, ChatRequest)
    prompt = await while_connected(request, prompt_of(request, body))
    return JSONResponse({"prompt": prompt.rendered.text})


def described(served: Served, hello: Hello) -> dict[str, object]:
    """Return llama-server's object. The context is one sequence's, which a client can use."""
    tools = "tools" in capabilities(hello)
    defaults = asdict(Sampling())
    for name in ("logit_bias", "n_logprobs"):
        del defaults[name]
    params = {**defaults, "seed": -1, "n_predict": -1, "max_tokens": -1, "n_keep": 0, "stop": []}
    return {
        "default_generation_settings": {"n_ctx": hello.n_ctx_seq, "params": params},
        "total_slots": hello.n_seq_max,
        "model_alias": served.id,
        "model_path": served.config.engine.model_path.name,
        "modalities": {"vision": False, "audio": False, "video": False},
        "endpoint_slots": False,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "chat_template": hello.chat_template or "",
        "chat_template_caps": {
            "supports_string_content": True,
            "supports_typed_content": True,
            "supports_tools": tools,
            "supports_tool_calls": tools,
            "supports_parallel_tool_calls": tools,
        },
        "bos_token": hello.bos or "",
        "eos_token": hello.eos or "",
        "build_info": BUILD,
        "is_sleeping": False,
    }


def meta_of(hello: Hello) -> dict[str, object]:
    """Return the `meta` of a model in /v1/models. Its presence tells llama.vscode to use /props,
    /apply-template and /tokenize; Zed reads the context from it."""
    meta: dict[str, object] = {
        "n_vocab": hello.n_vocab,
        "n_ctx": hello.n_ctx_seq,
        "n_ctx_train": hello.n_ctx_train,
        "n_params": hello.n_params,
        "size": hello.size_bytes,
    }
    if hello.n_embd is not None:
        meta["n_embd"] = hello.n_embd
    return meta
