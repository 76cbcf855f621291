"""Each folder can be moved, and has the place that its platform expects."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from edgekit import paths

FOLDERS = {
    "EDGEKIT_CONFIG_DIR": paths.config_dir,
    "EDGEKIT_DATA_DIR": paths.data_dir,
    "EDGEKIT_CACHE_DIR": paths.cache_dir,
    "EDGEKIT_STORE": paths.store_dir,
}


@pytest.fixture(autouse=True)
def no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in FOLDERS:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_variable_moves_the_folder(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "~/elsewhere")
    assert FOLDERS[variable]() == Path.home() / "elsewhere"


@pytest.mark.parametrize("variable", FOLDERS)
def test_an_empty_variable_is_an_unset_one(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = FOLDERS[variable]()
    monkeypatch.setenv(variable, "")
    assert FOLDERS[variable]() == before


@pytest.mark.skipif(os.name != "posix", reason="root is a thing of POSIX")
def test_root_uses_the_systems_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.uname().sysname != "Linux":
        pytest.skip("Linux's folders")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.config_dir() == Path("/etc/edgekit")
    assert paths.data_dir() == Path("/var/lib/edgekit")
    assert paths.cache_dir() == Path("/var/cache/edgekit")
    assert paths.store_dir() == Path("/var/lib/edgekit/store")


@pytest.mark.skipif(os.name != "posix", reason="root is a thing of POSIX")
def test_others_use_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert paths.config_dir() == Path(platformdirs.user_config_dir("edgekit"))
    assert paths.data_dir() == Path(platformdirs.user_data_dir("edgekit"))


def test_what_is_kept_lies_under_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEKIT_DATA_DIR", str(tmp_path / "d"))
    found = [paths.store_dir(), paths.reports_dir(), paths.running_dir()]
    assert found == [tmp_path / "d" / name for name in ("store", "reports", "running")]
    assert not (tmp_path / "d").exists()
