"""`edgekit bench`: the latency report of a running endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json


def register(app: typer.Typer) -> None:
    @app.command()
    def bench(
        url: Annotated[str, typer.Argument(help="Base URL.")] = "http://127.0.0.1:8484/v1",
        model: Annotated[str | None, typer.Option(help="Default: the first one served.")] = None,
        users: Annotated[str, typer.Option(help="Load levels.")] = "1,2,4,8",
        prompt_tokens: Annotated[int, typer.Option(min=1)] = 512,
        output_tokens: Annotated[int, typer.Option(min=2)] = 128,
        requests: Annotated[int, typer.Option(min=1, help="Requests per user.")] = 3,
        api_key: Annotated[str | None, typer.Option()] = None,
        html: Annotated[Path | None, typer.Option(help="Write the report as a page.")] = None,
        json: Json = False,
    ) -> None:
        """Measure TTFT, ITL and throughput of an endpoint for several users.

        Example: edgekit bench http://127.0.0.1:8484/v1 --users 1,4
        """
        from edgekit import latency
        from edgekit.report import render_html, render_text, to_json
        from edgekit.store import write_durably

        lines = output.StepLines(quiet=json)
        lines.begin("measure", url)
        record = latency.measure(
            url,
            model or served_model(url, api_key),
            users=levels(users),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            requests_per_user=requests,
            api_key=api_key,
            progress=lambda p: lines.progress(p.done, p.total),
        )
        lines.end("measure", f"{sum(r.requests for r in record.rows)} requests")
        if html is not None:
            write_durably(html, render_html(record).encode())
        if json:
            output.emit(to_json(record))
        else:
            print(render_text(record))


def levels(text: str) -> list[int]:
    """Parse `1,2,4,8`. Raises UsageError."""
    from edgekit.errors import UsageError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--users {text} is not a list of numbers", code="bad_users", hint="--users 1,2,4,8"
        ) from None


def served_model(url: str, api_key: str | None) -> str:
    """Ask the endpoint which model it serves."""
    import httpx

    from edgekit.errors import EngineFailedError
    from edgekit.latency import api_root

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.get(f"{api_root(url)}/models", headers=headers, timeout=10)
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError) as error:
        raise EngineFailedError(
            f"{url} does not say which model it serves: {error}",
            code="no_server",
            hint="start one with `edgekit deploy pocket`, or name the model with --model",
        ) from error
