"""The server process of a deployment, seen from the command that started it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekit import child, paths
from edgekit.errors import CannotCreateError, EdgekitError, EngineFailedError, from_os
from edgekit.preflight import local_url

if TYPE_CHECKING:
    from edgekit.plan import Plan
    from edgekit.report.record import LatencyRecord
    from edgekit_server import ServeConfig
    from edgekit_server.config import Notice

READY_TIMEOUT_S: Final = 900.0
"""A 50 GB model from a slow disk; a hung load is noticed by a person long before."""

FIRST_TOKEN_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Hosted:
    """One model that a server is to run. Empty `roles`: whatever it can do."""

    plan: Plan
    file: Path
    use_extra_bufts: bool = True
    roles: tuple[str, ...] = ()
    pinned: bool = False

    @property
    def memory_bytes(self) -> int:
        """What it takes of the memory that holds the layers, as planned."""
        return self.plan.choice.plan.parts[0].total


class Server:
    """One server, a child that ends with this process. Use as a context manager.

    Raises CannotCreateError when its log cannot be written.
    """

    def __init__(
        self,
        models: Sequence[Hosted],
        *,
        api_keys: Sequence[str] = (),
        memory_budget_bytes: int | None = None,
    ) -> None:
        """The first model is the one that is measured; the budget is for all that are loaded."""
        from edgekit.serve_child import to_request
        from edgekit.switch import order_file

        plan = models[0].plan
        self.url = local_url(plan.host, plan.port)
        self.model = plan.card.id
        self._key = api_keys[0] if api_keys else None
        self.log = paths.data_dir() / "logs" / f"{plan.card.id}-{plan.port}.log"
        self.report = paths.data_dir() / "pages" / f"{plan.card.id}-{plan.port}.json"
        self.orders = order_file(plan.port)
        config = config_of(models, api_keys, memory_budget_bytes, self.report, self.orders)
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.report.unlink(missing_ok=True)
            self.orders.parent.mkdir(parents=True, exist_ok=True)
            self.orders.unlink(missing_ok=True)
            with self.log.open("wb") as log:
                self.process = child.start("edgekit.serve_child", to_request(config), log)
        except OSError as error:
            found = from_os(error)
            raise CannotCreateError(
                f"cannot start the server: {found.message}", code="cannot_start", hint=found.hint
            ) from error
        self._answer: dict[str, object] = {}
        self._answered = threading.Event()
        threading.Thread(target=self._listen, name="server-answers", daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        child.stop(self.process)
        with contextlib.suppress(OSError):
            self.report.unlink(missing_ok=True)

    def hand_over(self, record: LatencyRecord) -> None:
        """Let the server's page show this report from now on.

        Raises CannotCreateError or IoFailedError when it cannot be written.
        """
        from edgekit.report import to_json
        from edgekit.store import write_durably

        try:
            self.report.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os(error) from error
        write_durably(self.report, json.dumps(to_json(record)).encode())

    def wait_ready(self) -> None:
        """Return when the model answers.

        Raises the EdgekitError that the server ended with, or EngineFailedError on a time-out.
        """
        if not self._answered.wait(READY_TIMEOUT_S):
            raise EngineFailedError(
                f"the server was not ready after {READY_TIMEOUT_S:.0f} s",
                code="not_ready",
                hint=f"read {self.log}",
            )
        if "ready" not in self._answer:
            raise self.failure()

    def first_token(self, model: str | None = None) -> None:
        """Ask a model (None: the first) for one token, so that "ready" is a fact.

        Raises EngineFailedError.
        """
        import httpx

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        body = {"model": model or self.model, "prompt": "def ", "max_tokens": 1}
        try:
            # A proxy of the environment has no business between us and our own child.
            with httpx.Client(trust_env=False, timeout=FIRST_TOKEN_TIMEOUT_S) as client:
                answer = client.post(f"{self.url}/v1/completions", json=body, headers=headers)
        except httpx.HTTPError as error:
            raise self._no_token(f"did not answer its first request: {error}") from error
        if answer.status_code != 200:
            raise self._no_token(f"answered its first request with {answer.status_code}")

    def wait(self) -> None:
        """Return when the server was stopped in order. Raises the error that it died of."""
        self.process.wait()
        self._answered.wait(child.GRACE_S)
        if self.process.returncode not in (0, 130):
            raise self.failure()

    def failure(self) -> EdgekitError:
        """Say why the server ended."""
        self.process.wait()
        error = child.error_of(self._answer)
        if error is not None:
            error.hint = error.hint or f"read {self.log}"
            return error
        name = child.signal_name(self.process)
        how = f"died of {name}" if name else f"ended with status {self.process.returncode}"
        return EngineFailedError(
            f"the server {how}", code="server_died", hint=f"read {self.log}, then deploy again"
        )

    def _no_token(self, what: str) -> EngineFailedError:
        return EngineFailedError(
            f"the endpoint {what}", code="first_token_failed", hint=f"read {self.log}"
        )

    def _listen(self) -> None:
        assert self.process.stdout is not None
        try:
            for line in self.process.stdout:
                answer = child.parse(line)
                if answer:
                    self._answer = answer
                    self._answered.set()
        except ValueError:
            pass  # the pipe was closed by `child.stop`
        self._answered.set()


def config_of(
    models: Sequence[Hosted],
    api_keys: Sequence[str],
    memory_budget_bytes: int | None,
    report: Path | None = None,
    orders: Path | None = None,
) -> ServeConfig:
    """Return the server's settings: of several models, those are loaded at start that fit."""
    from edgekit.several import loaded_at_start
    from edgekit.tuning import engine_options
    from edgekit_server import EngineConfig, ServeConfig
    from edgekit_server.config import ModelConfig

    sizes = {m.plan.card.id: m.memory_bytes for m in models}
    first = [m.plan.card.id for i, m in enumerate(models) if i == 0 or m.pinned]
    at_start = loaded_at_start(sizes, first, memory_budget_bytes)
    configs = []
    for hosted in models:
        choice, name = hosted.plan.choice, hosted.plan.card.id
        options = {
            "use_extra_bufts": hosted.use_extra_bufts,
            **engine_options(hosted.plan.tuned),
        }
        engine = EngineConfig(
            model_path=hosted.file,
            model_id=name,
            n_ctx=choice.n_ctx,
            n_seq_max=choice.users,
            n_gpu_layers=choice.n_gpu_layers,
            **options,  # type: ignore[arg-type]
        )
        configs.append(
            ModelConfig(
                engine,
                aliases=hosted.plan.card.aliases,
                roles=hosted.roles,
                pinned=hosted.pinned,
                preload=name in at_start,
                memory_bytes=sizes[name],
                notice=_notice(hosted),
            )
        )
    plan = models[0].plan
    return ServeConfig(
        engine=configs[0].engine,
        host=plan.host,
        port=plan.port,
        api_keys=tuple(api_keys),
        models=tuple(configs),
        memory_budget_bytes=memory_budget_bytes if len(models) > 1 else None,
        report=report,
        swap=orders,
    )


def _notice(hosted: Hosted) -> Notice:
    from edgekit.licence_served import notice_of, notice_of_entry
    from edgekit.store import Store

    plan = hosted.plan
    if plan.entry is not None:
        store = Store(paths.store_dir())
        return notice_of_entry(plan.card, plan.entry, store, plan.weights, paths.data_dir())
    changes = f"converted to GGUF and quantized to {plan.choice.filetype} by edgekit"
    if plan.ready is not None:
        changes = f"a finished GGUF of {plan.choice.filetype}, served as it is"
    return notice_of(plan.card, changes, plan.weights, paths.data_dir())
