"""Where edgekit keeps things. Every folder has an environment variable that moves it.

As root: /etc/edgekit, /var/lib/edgekit, /var/cache/edgekit; else the platform's user folders.
Nothing is created here.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

APP = "edgekit"


def _folder(variable: str, system: str, user: str) -> Path:
    # An empty variable is an unset one, as everywhere in the XDG rules.
    if os.environ.get(variable):
        return Path(os.environ[variable]).expanduser()
    if os.name == "posix" and os.geteuid() == 0 and os.uname().sysname == "Linux":
        return Path(system)
    return Path(user)


def config_dir() -> Path:
    """User catalogue entries and settings (EDGEKIT_CONFIG_DIR)."""
    return _folder("EDGEKIT_CONFIG_DIR", "/etc/edgekit", platformdirs.user_config_dir(APP))


def data_dir() -> Path:
    """Reports, receipts and, unless moved, the store (EDGEKIT_DATA_DIR)."""
    return _folder("EDGEKIT_DATA_DIR", "/var/lib/edgekit", platformdirs.user_data_dir(APP))


def cache_dir() -> Path:
    """What can be made again (EDGEKIT_CACHE_DIR)."""
    return _folder("EDGEKIT_CACHE_DIR", "/var/cache/edgekit", platformdirs.user_cache_dir(APP))


def store_dir() -> Path:
    """The model store (EDGEKIT_STORE)."""
    return Path(os.environ.get("EDGEKIT_STORE") or data_dir() / "store").expanduser()


def running_dir() -> Path:
    """One file for each deployment that runs."""
    return data_dir() / "running"


def reports_dir() -> Path:
    """Reports and receipts of deployments."""
    return data_dir() / "reports"
