"""OpenAI's Responses dialect: POST /v1/responses and what belongs to it."""

from __future__ import annotations

from fastapi import APIRouter

routes = APIRouter()
