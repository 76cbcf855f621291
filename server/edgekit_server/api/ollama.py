"""Ollama's dialect: /api/*."""

from __future__ import annotations

from fastapi import APIRouter

routes = APIRouter()
