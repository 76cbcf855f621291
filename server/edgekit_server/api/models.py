"""GET /v1/models and /v1/models/{id}: one shape for every reader, true fields only."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ..client import State
from ..router import Router

routes = APIRouter()


@routes.get("/v1/models")
async def list_models(request: Request) -> dict[str, object]:
    """List the model that this server runs."""
    return {"object": "list", "data": [describe(request.app.state.router)]}


@routes.get("/v1/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> dict[str, object]:
    """Describe one model; ids may hold `/` and `:`."""
    router: Router = request.app.state.router
    router.check_name(model_id)
    return describe(router)


def describe(router: Router) -> dict[str, object]:
    """Return the model object. What only the loaded model knows is left out until it is loaded.

    No `meta` object: its presence tells llama.vscode to call endpoints that are not here yet.
    """
    client = router.client
    states = {State.READY: "loaded", State.LOADING: "loading", State.RESTARTING: "loading"}
    described: dict[str, object] = {
        "id": router.model_id,
        "object": "model",
        "created": router.created,
        "owned_by": "edgekit",
        "aliases": list(router.aliases),
        "status": {"value": states.get(client.state, "unloaded")},
    }
    hello = client.hello
    if hello is not None:
        described |= {
            "max_model_len": hello.n_ctx_seq,
            "context_length": hello.n_ctx_seq,
            "max_output_tokens": hello.n_ctx_seq,
            "n_ctx_train": hello.n_ctx_train,
            "n_params": hello.n_params,
            "size_bytes": hello.size_bytes,
            "description": hello.description,
            "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        }
    return described
