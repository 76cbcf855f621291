"""The OpenAPI document: FastAPI's, with what it cannot know of routes that read their own body."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ..errors import RequestError
from .failures import body_for

STATUSES = {
    "400": "the request cannot be served as it is; `message` says why",
    "401": "no key, or a wrong one",
    "403": "this host name or web page may not use the server",
    "404": "there is no such model or object",
    "413": "the body is too large",
    "429": "too many requests are waiting",
    "499": "the client left, or a newer fill-in-the-middle request of its took the place",
    "500": "a fault of the server",
    "501": "the loaded model cannot do this",
    "503": "the model is loading or finds no room, or the engine is being restarted",
    "504": "the deadline passed",
}


def install_document(app: FastAPI) -> None:
    """Serve `document(app)` as /openapi.json."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def document(app: FastAPI) -> dict[str, Any]:
    """Return the document of an application's routes."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for path, operations in found["paths"].items():
        for operation in operations.values():
            _body(operation, schemas)
            _streams(path, operation)
            operation["responses"].pop("422", None)  # FastAPI's own shape; ours is a 400
            for status, about in STATUSES.items():
                operation["responses"].setdefault(status, _failure(path, int(status), about))
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return found


def _body(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Move a body's schema and its parts to the components, where every reader finds them."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        if "title" in schema:
            for name, part in schema.pop("$defs", {}).items():
                schemas[f"{schema['title']}.{name}"] = part
            schemas[schema["title"]] = schema
            content["schema"] = {"$ref": f"#/components/schemas/{schema['title']}"}


def _streams(path: str, operation: dict[str, Any]) -> None:
    if operation.get("x-streams"):
        kind = "application/x-ndjson" if path.startswith("/api/") else "text/event-stream"
        operation["responses"]["200"]["content"][kind] = {"schema": {"type": "string"}}


def _failure(path: str, status: int, about: str) -> dict[str, Any]:
    example = body_for(path, RequestError(about, status=status))
    schema = {"type": "object", "required": list(example)}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"description": about, "content": content}
