"""`edgekit connect`: every client's files, written beside what is there, and put back as it was."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit.cli import run
from edgekit.connect.clients import clients, fim_format, path_of
from edgekit.connect.textedit import FORMATS
from edgekit.running import Running, announced
from tests.support.cli import Cli, free_port
from tests.support.http_server import config_for, running
from tests.support.latency_records import bare_record
from tests.support.pocket import convert_pocket

KEY = "sk-the-real-key"
FOREIGN = {
    "jsonc": '// mine\n{\n\t"editor.fontSize": 13, // big\n\t"theme": "x", /* kept */\n}\n',
    "yaml": "# mine\nname: mine\nmodels:\n  - name: other # kept\n    roles: [chat]\n\nrules: []\n",
    "toml": "# mine\nmodel = 'gpt' # kept\n\n[features]\nx = true\n\n[mcp_servers.y]\nz = 1\n",
    "text": '" mine\nset number\n',
}
LISTS = {
    "chatLanguageModels.json": '[\n  {"name": "other", "vendor": "x"}, // kept\n]\n',
    "extra-openai-models.yaml": "# mine\n- model_id: other # kept\n  model_name: o\n",
}

Edgekit = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_pocket(tmp_path_factory.mktemp("gguf"), "Q4_0")


@pytest.fixture(scope="module")
def url(pocket: Path) -> Iterator[str]:
    with running(config_for(pocket)) as server:
        yield server.url


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with nothing but a folder; no variable of a client points anywhere else."""
    for name in [n for n in os.environ if n.startswith("EDGEKIT_")]:
        monkeypatch.delenv(name)
    for name in ("CODEX_HOME", "CLAUDE_CONFIG_DIR", "XDG_CONFIG_HOME", "LLM_USER_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DATA", "CONFIG", "CACHE"):
        monkeypatch.setenv(f"EDGEKIT_{name}_DIR", str(tmp_path / "edgekit" / name.lower()))
    folder = tmp_path / "home"
    (folder / ".config" / "nvim").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def edgekit(home: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Edgekit]:
    """Run a command here, without a process for each."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*words: object) -> tuple[int, str, str]:
        code = run(["connect", *map(str, words)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    yield call
    signal.signal(signal.SIGTERM, before)


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder: content and mode; folders too."""
    return {
        str(p.relative_to(folder)): (
            p.read_bytes() if p.is_file() else b"",
            stat.S_IMODE(p.stat().st_mode),
        )
        for p in sorted(folder.rglob("*"))
    }


def written(edgekit: Edgekit, *words: object) -> dict[str, Any]:
    code, out, err = edgekit(*words, "--no-test", "--json")
    assert code == 0, err + out
    found: dict[str, Any] = json.loads(out)
    return found


WRITING = [c.id for c in clients().values() if c.files]


@pytest.mark.parametrize("name", WRITING)
def test_undo_is_byte_identical(name: str, url: str, home: Path, edgekit: Edgekit) -> None:
    for file in clients()[name].files:
        path = path_of(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LISTS.get(path.name, FOREIGN[file.kind]))
        path.chmod(0o640)
    before = tree(home)
    assert written(edgekit, name, "--url", url)["files"]
    after = tree(home)
    assert after != before
    assert {k: mode for k, (_, mode) in after.items()} == {k: m for k, (_, m) in before.items()}
    for file in clients()[name].files:
        if file.kind != "text":
            assert "kept" in path_of(file).read_text()
            assert "mine" in path_of(file).read_text() or path_of(file).name in LISTS
    written(edgekit, name, "--url", f"{url}/v1", "--full")
    assert edgekit(name, "--undo")[0] == 0
    assert tree(home) == before
    assert edgekit(name, "--undo")[1].startswith("Nothing")


@pytest.mark.parametrize("name", WRITING)
def test_a_dry_run_writes_nothing_and_undo_takes_away_what_we_made(
    name: str, url: str, home: Path, edgekit: Edgekit
) -> None:
    before = tree(home.parent)
    code, out, _ = edgekit(name, "--url", url, "--dry-run")
    assert code == 0
    assert out.startswith("--- /dev/null\n+++ ")
    assert url in out
    assert tree(home.parent) == before
    before = tree(home)
    rows = written(edgekit, name, "--url", url)["files"]
    assert all(stat.S_IMODE(Path(row["path"]).stat().st_mode) == 0o600 for row in rows)
    first = tree(home)
    written(edgekit, name, "--url", url)
    if name != "cline":  # it wants the time
        assert tree(home) == first
        assert edgekit(name, "--url", url, "--dry-run")[1].startswith("Unchanged")
    assert edgekit(name, "--undo")[0] == 0
    assert tree(home) == before


def test_what_is_written_is_what_the_client_reads(url: str, home: Path, edgekit: Edgekit) -> None:
    import tomllib

    import yaml

    for name in ("continue", "zed", "claude-code", "codex"):
        written(edgekit, name, "--url", url)
    models = yaml.safe_load((home / ".continue/config.yaml").read_text())["models"]
    assert [m["name"] for m in models] == ["edgekit chat", "edgekit tab"]
    assert models[0]["apiBase"] == f"{url}/v1"
    assert (models[0]["contextLength"], models[0]["model"]) == (2048, "tiny")
    zed = json.loads((home / ".config/zed/settings.json").read_text())
    assert zed["language_models"]["openai_compatible"]["edgekit"]["available_models"][0] == {
        **zed["language_models"]["openai_compatible"]["edgekit"]["available_models"][0],
        "name": "tiny",
        "max_tokens": 2048,
        "max_output_tokens": 512,
    }
    claude = json.loads((home / ".claude/settings.json").read_text())["env"]
    assert claude["ANTHROPIC_BASE_URL"] == url
    assert all(isinstance(value, str) for value in claude.values())
    codex = tomllib.loads((home / ".codex/config.toml").read_text())
    assert codex["model_providers"]["edgekit"]["wire_api"] == "responses"
    catalogue = json.loads(Path(codex["model_catalog_json"]).read_text())
    assert catalogue["models"][0]["context_window"] == codex["model_context_window"] == 2048


def test_full_leaves_the_slim_settings_out(url: str, home: Path, edgekit: Edgekit) -> None:
    short = written(edgekit, "codex", "--url", url)
    assert len(short["files"]) == 2
    edgekit("codex", "--undo")
    full = written(edgekit, "codex", "--url", url, "--full")
    assert len(full["files"]) == 1
    assert "goals" not in (home / ".codex/config.toml").read_text()


def test_a_link_is_followed(url: str, home: Path, edgekit: Edgekit) -> None:
    real, link = home / "dotfiles.json", home / ".claude" / "settings.json"
    link.parent.mkdir()
    real.write_text(FOREIGN["jsonc"])
    link.symlink_to(real)
    written(edgekit, "claude-code", "--url", url)
    assert link.is_symlink()
    assert "ANTHROPIC_MODEL" in real.read_text()
    assert edgekit("claude-code", "--undo")[0] == 0
    assert link.is_symlink()
    assert real.read_text() == FOREIGN["jsonc"]


def test_another_file(url: str, tmp_path: Path, edgekit: Edgekit) -> None:
    path = tmp_path / "x" / "config.toml"
    rows = written(edgekit, "codex", "--url", url, "--config", path)["files"]
    assert [row["path"] for row in rows] == [str(path), str(path.parent / "edgekit-models.json")]
    assert edgekit("codex", "--undo")[0] == 0
    assert not path.parent.exists()


def test_a_file_that_was_changed_since(url: str, home: Path, edgekit: Edgekit) -> None:
    path = home / ".continue" / "config.yaml"
    path.parent.mkdir()
    path.write_text(FOREIGN["yaml"])
    written(edgekit, "continue", "--url", url)
    edited = path.read_text().replace("# mine\n", "# mine\n# added later\n")
    path.write_text(edited)
    code, _, err = edgekit("continue", "--undo")
    assert code == 65
    assert "+# added later" in err
    assert "--undo --force" in err
    assert path.read_text() == edited
    code, out, _ = edgekit("continue", "--undo", "--force")
    assert code == 0
    assert path.read_text() == FOREIGN["yaml"].replace("# mine\n", "# mine\n# added later\n")
    assert "config.yaml.edited" in out


def test_connecting_again_keeps_a_change(url: str, home: Path, edgekit: Edgekit) -> None:
    path = home / ".continue" / "config.yaml"
    path.parent.mkdir()
    path.write_text(FOREIGN["yaml"])
    written(edgekit, "continue", "--url", url)
    path.write_text(path.read_text().replace("# mine\n", "# mine\n# added later\n"))
    written(edgekit, "continue", "--url", url, "--full")
    assert edgekit("continue", "--undo")[0] == 0
    assert path.read_text() == FOREIGN["yaml"].replace("# mine\n", "# mine\n# added later\n")


def test_a_change_to_what_we_wrote_is_not_written_over(
    url: str, home: Path, edgekit: Edgekit
) -> None:
    written(edgekit, "claude-code", "--url", url)
    path = home / ".claude" / "settings.json"
    edited = path.read_text().replace('"tiny"', '"mine"')
    path.write_text(edited)
    code, _, err = edgekit("claude-code", "--url", url, "--no-test")
    assert code == 65
    assert '+    "ANTHROPIC_MODEL": "mine"' in err
    assert path.read_text() == edited
    written(edgekit, "claude-code", "--url", url, "--force")
    assert '"mine"' not in path.read_text()
    assert edgekit("claude-code", "--undo")[0] == 0
    assert path.read_text() == edited


@pytest.mark.parametrize(
    ("name", "path", "text"),
    [
        ("zed", ".config/zed/settings.json", "{ not json"),
        ("continue", ".continue/config.yaml", "a: [\n"),
        ("codex", ".codex/config.toml", "a = \n"),
        ("llm", ".config/io.datasette.llm/extra-openai-models.yaml", "a: 1\n"),
    ],
)
def test_a_file_that_cannot_be_read_is_left_alone(
    name: str, path: str, text: str, url: str, home: Path, edgekit: Edgekit
) -> None:
    file = home / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    code, _, err = edgekit(name, "--url", url)
    assert code == 65
    assert f"{file} is left as it is" in err
    assert "--config PATH" in err
    assert file.read_text() == text


def test_no_server(edgekit: Edgekit, home: Path) -> None:
    before = tree(home)
    code, out, err = edgekit("continue", "--url", f"http://127.0.0.1:{free_port()}")
    assert (code, out) == (70, "")
    assert "no server answers at" in err
    assert "hint: start one: edgekit deploy MODEL" in err
    assert tree(home) == before
    code, _, err = edgekit("continue", "--url", "ftp://x")
    assert code == 2


def test_unknown_words(url: str, edgekit: Edgekit) -> None:
    code, _, err = edgekit("emacs")
    assert code == 2
    assert "claude-code, " in err
    code, _, err = edgekit("zed", "--url", url, "--model", "nope")
    assert code == 66
    assert "it serves: tiny" in err
    code, _, err = edgekit("jetbrains", "--url", url, "--config", "x")
    assert code == 2


def test_the_list(home: Path, edgekit: Edgekit) -> None:
    code, out, _ = edgekit()
    assert code == 0
    assert len(out.splitlines()) == len(clients()) + 1 == 15
    assert all(f"edgekit connect {name}\n" in out for name in clients())
    (home / ".continue").mkdir()
    rows = {row["client"]: row for row in json.loads(edgekit("--json")[1])["rows"]}
    assert rows["continue"]["found"] == str(home / ".continue")


def test_printed_steps_name_this_server(url: str, edgekit: Edgekit) -> None:
    for name in ("jetbrains", "open-webui"):
        steps = written(edgekit, name, "--url", url)["steps"]
        assert any(f"{url}/v1" in step for step in steps)
        assert not any("{" in step for step in steps)


def test_a_context_that_is_too_small_is_said(url: str, edgekit: Edgekit) -> None:
    warnings = written(edgekit, "claude-code", "--url", url)["warnings"]
    assert any("2,048" in w and "65,536" in w for w in warnings)
    code, out, _ = edgekit("claude-code", "--url", url, "--no-test")
    assert code == 0
    assert "Warning   the context of tiny is 2,048 tokens" in out


def test_the_server_that_is_deployed_here_is_taken(
    url: str, edgekit: Edgekit, tmp_path: Path
) -> None:
    folder = tmp_path / "edgekit" / "data" / "running"
    with announced(folder, Running(os.getpid(), f"{url}/v1", bare_record())):
        code, out, _ = edgekit("llm", "--no-test")
    assert code == 0
    assert f"{url} (deployed here)" in out


# keys


@pytest.fixture(scope="module")
def locked_url(pocket: Path) -> Iterator[str]:
    with running(config_for(pocket, api_keys=(KEY,))) as server:
        yield server.url


def test_a_key_is_asked_for(locked_url: str, edgekit: Edgekit) -> None:
    code, _, err = edgekit("zed", "--url", locked_url)
    assert code == 77
    assert "EDGEKIT_API_KEY" in err
    code, _, err = edgekit("zed", "--url", locked_url, "--api-key", "wrong")
    assert code == 77
    assert "refuses this key" in err


@pytest.mark.parametrize("name", WRITING)
def test_a_key_goes_into_private_files_only(
    name: str,
    locked_url: str,
    home: Path,
    edgekit: Edgekit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEKIT_API_KEY", KEY)
    code, out, _ = edgekit(name, "--url", locked_url, "--dry-run")
    assert code == 0
    assert KEY not in out
    made = written(edgekit, name, "--url", locked_url)
    assert KEY not in json.dumps(made)
    holding = [Path(row["path"]) for row in made["files"] if KEY in Path(row["path"]).read_text()]
    assert bool(holding) == clients()[name].holds_key
    assert holding or made["steps"]
    for folder in (home, home.parent / "edgekit"):
        for path in folder.rglob("*"):
            if path.is_file() and KEY.encode() in path.read_bytes():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_key_does_not_go_into_a_file_that_others_read(
    locked_url: str, home: Path, edgekit: Edgekit
) -> None:
    path = home / ".claude" / "settings.json"
    path.parent.mkdir()
    path.write_text("{}")
    path.chmod(0o644)
    words = ("claude-code", "--url", locked_url, "--api-key", KEY, "--no-test")
    code, _, err = edgekit(*words)
    assert code == 77
    assert f"chmod 600 '{path}'" in err
    assert path.read_text() == "{}"
    path.chmod(0o600)
    assert edgekit(*words)[0] == 0


def test_a_key_is_tried(locked_url: str, edgekit: Edgekit) -> None:
    code, out, _ = edgekit("llm", "--url", locked_url, "--api-key", KEY)
    assert code == 0, out
    assert "the key works, a wrong one is refused" in out


# facts


@pytest.mark.parametrize("name", list(clients()))
def test_facts(name: str) -> None:
    client = clients()[name]
    assert client.files or client.steps
    assert (client.min_ctx is None) == (client.min_ctx_why == "")
    assert "models" in client.checks or name == "llama-vim"
    for file in client.files:
        assert file.kind in FORMATS
        assert file.settings


@pytest.mark.parametrize(
    ("model", "zed"),
    [
        ("qwen2.5-coder-7b", "qwen"),
        ("codestral-22b", "codestral"),
        ("code-llama-70b", "codellama"),
        ("mistral-3-small", None),
        ("qwen2.5-14b", None),
    ],
)
def test_fim_formats(model: str, zed: str | None) -> None:
    found = fim_format(model)
    assert (found.zed if found else None) == zed


def test_two_at_once(url: str, tmp_path: Path, edgekit: Edgekit) -> None:
    cli = Cli(tmp_path)
    config = tmp_path / "c.yaml"
    both = [
        cli.start("connect", "llm", "--url", url, "--config", config, "--no-test") for _ in "ab"
    ]
    assert [p.communicate(timeout=60) and p.returncode for p in both] == [0, 0]
    assert config.read_text().count("model_id: edgekit") == 1


def test_the_server_is_not_held_up(url: str, edgekit: Edgekit) -> None:
    """After a self-test nothing of it runs on."""
    code, out, _ = edgekit("llm", "--url", url)
    assert code == 0, out
    deadline = time.monotonic() + 5
    while "edgekit_requests_in_flight 0" not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
