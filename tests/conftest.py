"""What holds for every test."""

from __future__ import annotations

import sys


def pytest_unconfigure() -> None:
    """Close two handles on /dev/null that llama-cpp-python opens at import and never closes.

    They are for its own high-level class; here they would end each run with a ResourceWarning.
    """
    module = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if module is not None and hasattr(module, name):
            getattr(module, name).close()
