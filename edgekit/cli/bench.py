"""`edgekit bench`: the latency report of a running endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json, keys_option

if TYPE_CHECKING:
    from edgekit.report import LatencyRecord
    from edgekit.running import Running

DEFAULT_URL = "http://127.0.0.1:8484/v1"
LIMIT_S = 120.0

Levels = Annotated[str, typer.Option(help="Users at the same time, one load level each.")]


def register(app: typer.Typer) -> None:
    @app.command(short_help="Measure the latency of an endpoint under load.")
    def bench(
        target: Annotated[
            str, typer.Argument(metavar="[MODEL_OR_URL]", help="A model deployed here, or a URL.")
        ] = DEFAULT_URL,
        model: Annotated[str | None, typer.Option(help="Default: the first one served.")] = None,
        users: Levels = "1,2,4,8",
        prompt_tokens: Annotated[int, typer.Option(min=1)] = 512,
        output_tokens: Annotated[int, typer.Option(min=2)] = 128,
        requests: Annotated[
            int, typer.Option(min=1, help="Requests at each load level; p95 needs 20.")
        ] = 20,
        level_limit: Annotated[
            float, typer.Option(min=1, help="Begin no request of a level after this, in seconds.")
        ] = LIMIT_S,
        api_key: Annotated[list[str] | None, keys_option("BENCH")] = None,
        html: Annotated[Path | None, typer.Option(help="Write the report as a page.")] = None,
        json: Json = False,
    ) -> None:
        """Measure TTFT, ITL and throughput of an endpoint for several users.

        Example: edgekit bench http://127.0.0.1:8484/v1 --users 1,4
        """
        from edgekit import latency
        from edgekit.report import ceiling_line, render_html, render_text, to_json
        from edgekit.store import write_durably

        counts = levels(users)
        key = api_key[0] if api_key else None
        url, running = resolve(target)
        if not json:
            output.say("Endpoint", url)
            unknown = "not known: no deployment of this machine answers there"
            output.say("Ceiling", ceiling_line(running.head.ceiling) if running else unknown)
        with output.StepLines(quiet=json) as lines:
            lines.begin("measure", url)
            record = latency.measure(
                url,
                model or (running.head.model if running else served_model(url, key)),
                users=counts,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                requests_per_user=1,
                min_requests=requests,
                level_limit_s=level_limit,
                api_key=key,
                pids=[running.pid] if running else [],
                progress=lambda p: lines.progress(p.done, p.total),
            )
            sent = sum(r.requests for r in record.rows)
            lines.end("measure", f"{sent} requests, {record.errors} failed")
        record = with_plan(record, running)
        if html is not None:
            write_durably(html, render_html(record).encode())
        if json:
            output.emit(to_json(record))
        else:
            print("\n" + render_text(record, output.WIDTH))
            if html is not None:
                output.say("Report", str(html))


def levels(text: str) -> list[int]:
    """Parse `1,2,4,8`. Raises UsageError."""
    from edgekit.errors import UsageError

    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or not all(0 < n <= 1024 for n in counts):
        raise UsageError(
            f"{text!r} is not a list of numbers of users",
            code="bad_users",
            hint="write numbers from 1 to 1024 with commas between, such as 1,2,4,8",
        )
    return counts


def resolve(target: str) -> tuple[str, Running | None]:
    """Return the address, and the deployment of this machine behind it if there is one.

    Raises MissingInputError when a model is named that is not deployed here.
    """
    from edgekit import paths, running
    from edgekit.catalogue import find_model
    from edgekit.errors import MissingInputError

    is_url = "://" in target or ":" in target or target == "localhost"
    name = target
    if not is_url:
        try:
            name = find_model(target).id
        except MissingInputError:
            if "." in target and "/" in target:
                is_url = True
    found = running.find(paths.running_dir(), name)
    if found is not None:
        return f"{found.url}/v1", found
    if not is_url:
        raise MissingInputError(
            f"no deployment of {target} runs on this machine",
            code="not_running",
            hint=f"edgekit deploy {target} starts one; or pass the URL of an endpoint",
        )
    return target, None


def with_plan(record: LatencyRecord, running: Running | None) -> LatencyRecord:
    """Add what the deployment's plan says, where the endpoint is a deployment of ours."""
    from dataclasses import replace

    if running is None:
        return record
    head = running.head
    return replace(
        record,
        device=head.device,
        filetype=head.filetype,
        n_ctx=head.n_ctx,
        predicted=head.predicted,
        plan_digest=head.plan_digest,
        ceiling=head.ceiling,
    )


def served_model(url: str, api_key: str | None) -> str:
    """Ask the endpoint which model it serves."""
    import httpx

    from edgekit.errors import DeniedError, EngineFailedError
    from edgekit.latency import api_root

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    root = api_root(url)
    local = httpx.URL(root).host in ("127.0.0.1", "::1", "localhost")
    try:
        with httpx.Client(trust_env=not local, timeout=10) as client:
            answer = client.get(f"{root}/models", headers=headers)
        if answer.status_code in (401, 403):
            raise DeniedError(
                f"{root} wants an API key",
                code="bad_api_key",
                hint="set EDGEKIT_API_KEY to a key of that server",
            )
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise EngineFailedError(
            f"{root} does not say which model it serves: {error}",
            code="no_server",
            hint="start one with `edgekit deploy pocket`, or name the model with --model",
        ) from error
