"""POST /v1/fim/completions: Mistral's fill-in-the-middle dialect."""

from __future__ import annotations

from fastapi import APIRouter

routes = APIRouter()
