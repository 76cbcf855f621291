"""llama-server's own dialect: /infill, /props, /apply-template, /completion."""

from __future__ import annotations

from fastapi import APIRouter

routes = APIRouter()
