"""GET /v1/models and /v1/models/{id}: one shape for every reader, true fields only."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ..roles import capabilities
from ..router import Router, Served
from .llamacpp_props import meta_of

routes = APIRouter()


@routes.get("/v1/models")
async def list_models(request: Request) -> dict[str, object]:
    """List the models that this server runs, the first one first."""
    router: Router = request.app.state.router
    data = [describe(served, router.created) for served in router.served]
    return {"object": "list", "data": data}


@routes.get("/v1/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> dict[str, object]:
    """Describe one model; ids may hold `/` and `:`."""
    router: Router = request.app.state.router
    return describe(router.find(model_id), router.created)


def describe(served: Served, created: int) -> dict[str, object]:
    """Return the model object. What only a loaded model knows is left out until it was loaded once.

    `meta` tells llama.vscode to call /props, /apply-template and /tokenize.
    """
    described: dict[str, object] = {
        "id": served.id,
        "object": "model",
        "created": created,
        "owned_by": "edgekit",
        "aliases": list(served.aliases),
        "status": {"value": served.status},
    }
    if served.config.roles:
        described["roles"] = list(served.config.roles)
    hello = served.hello
    if hello is not None:
        described |= {
            "max_model_len": hello.n_ctx_seq,
            "context_length": hello.n_ctx_seq,
            "max_output_tokens": hello.n_ctx_seq,
            "n_ctx_train": hello.n_ctx_train,
            "n_params": hello.n_params,
            "size_bytes": hello.size_bytes,
            "description": hello.description,
            "capabilities": list(capabilities(hello)),
            "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
            "meta": meta_of(hello),
        }
    return described
