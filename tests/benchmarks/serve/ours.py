"""Our server with any engine setting, as a process: `python -m tests.benchmarks.serve.ours JSON`.

Prints one JSON line when ready: the settings that the engine chose, and why.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgekit_server.config import EngineConfig, ServeConfig
from edgekit_server.engine.spawn import Ahead


def main() -> None:
    given = json.loads(sys.argv[1])
    model = Path(given["model"])
    engine = EngineConfig(model_path=model, model_id=model.stem, **given["engine"])
    with Ahead(engine) as spawn:  # as edgekit_server.serve does it
        from edgekit_server.app import Server

        server = Server(ServeConfig(engine, port=given["port"]), spawn=spawn)

        def say(_url: str) -> None:
            hello = server.app.state.router.client.hello
            print(json.dumps({"reasons": hello.reasons}), flush=True)

        server.run(say)


if __name__ == "__main__":
    main()
