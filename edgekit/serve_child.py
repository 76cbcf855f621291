"""The server of a deployment: `python -m edgekit.serve_child`, its settings in the request.

Answers `{"ready": url}` once the model is loaded, or `{"error": ...}`. Settings and keys come
through the pipe: neither the environment nor the user's configuration changes them on the way.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgekit import child
from edgekit.errors import from_foreign

if TYPE_CHECKING:
    from edgekit_server import ServeConfig


def main() -> int:
    """Serve until a signal or until the parent is gone."""
    request = child.read_request()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        from edgekit_server import serve

        serve(from_request(request), on_ready=lambda url: child.answer({"ready": url}))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        mapped = from_foreign(error)
        logging.getLogger("edgekit").error("%s", mapped.message)
        child.answer_error(mapped)
        return mapped.exit_code
    return 0


def to_request(config: ServeConfig) -> dict[str, object]:
    """Return settings as the JSON object that `from_request` reads."""
    record: dict[str, object] = json.loads(json.dumps(asdict(config), default=str))
    return record


def from_request(request: Mapping[str, object]) -> ServeConfig:
    """Rebuild settings; the parent is of the same version, so nothing is unknown."""
    from pydantic import TypeAdapter

    from edgekit_server import ServeConfig

    return TypeAdapter(ServeConfig).validate_python(request)


if __name__ == "__main__":
    sys.exit(main())
