"""GET /: the page for people, and a word for Ollama's clients."""

from __future__ import annotations

from fastapi import APIRouter

routes = APIRouter()
