"""The canary, with real children that really die."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.machine import Canary
from edgekit.probe import canary, run_canary
from edgekit.probe.tool import ToolOutput, run_tool

OK = '{"ok":true,"tokens":[5,9,2],"backends":["CPU"],"gpu_offload":false,"version":"0.3.36"}'
DIE = "import os, signal; os.kill(os.getpid(), signal.{})"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def child(tmp_path: Path, code: str) -> list[str]:
    """A command that stands in for the engine's canary: `code` runs with sys.argv as it would."""
    script = tmp_path / "child.py"
    script.write_text("import sys\nsys.stdout.write('loading\\n')\n" + code + "\n")
    return [sys.executable, str(script)]


def test_a_healthy_engine(tmp_path: Path, model: Path) -> None:
    found, facts = canary.try_engine(model, command=child(tmp_path, f"print({OK!r})"))
    assert found == Canary(True, True, "decoded 3 tokens with extra buffers on")
    assert facts == canary.EngineFacts("0.3.36", ("CPU",), False, 3)


def test_an_engine_that_dies_only_with_extra_buffers(tmp_path: Path, model: Path) -> None:
    code = f"if '--no-extra-bufts' not in sys.argv:\n    {DIE.format('SIGSEGV')}\nprint({OK!r})"
    found = run_canary(model, command=child(tmp_path, code))
    assert found == Canary(
        True,
        False,
        "with extra buffers the engine died of SIGSEGV (it touched memory that is not its own); "
        "without them it decoded 3 tokens",
    )


def test_an_engine_that_dies_either_way(tmp_path: Path, model: Path) -> None:
    found = run_canary(model, command=child(tmp_path, DIE.format("SIGILL")))
    assert found.ok is False
    assert found.use_extra_bufts is None
    assert found.reason.count("SIGILL") == 2
    assert "instructions that this CPU lacks" in found.reason


def test_a_refusal_is_not_tried_again(tmp_path: Path, model: Path) -> None:
    log = tmp_path / "runs"
    code = (
        f"open({str(log)!r}, 'a').write('x')\n"
        "sys.stderr.write('llama.cpp says:\\nbad magic\\n'); sys.exit(3)"
    )
    found = run_canary(model, command=child(tmp_path, code))
    assert found == Canary(False, None, "the engine failed with exit code 3: bad magic")
    assert log.read_text() == "x"


def test_a_bad_model_says_nothing_about_the_engine(tmp_path: Path, model: Path) -> None:
    said = json.dumps({"ok": False, "error": {"code": "bad_model", "message": "bad magic"}})
    found = run_canary(model, command=child(tmp_path, f"print({said!r}); sys.exit(65)"))
    assert found == Canary(None, None, "the model file was refused with exit code 65: bad magic")


def test_the_real_engine_decodes_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if canary.installed_here() is False:
        pytest.skip("the engine is not installed")
    from tests.support.gguf_models import write_model

    path = write_model(tmp_path / "tiny.gguf", quantized=True)
    found, facts = canary.try_engine(path)
    assert found.ok is True, found.reason
    assert facts is not None
    assert facts.n_tokens > 0
    assert "CPU" in (facts.backends or ())


def test_a_hanging_engine_is_ended(tmp_path: Path, model: Path) -> None:
    found = run_canary(model, command=child(tmp_path, "import time; time.sleep(60)"), timeout_s=0.5)
    assert found == Canary(False, None, "the engine did not finish within 0.5 s")


@pytest.mark.parametrize("said", ["", '{"ok":false}', "[1]", "nonsense"])
def test_an_end_without_a_result_is_no_success(tmp_path: Path, model: Path, said: str) -> None:
    found = run_canary(model, command=child(tmp_path, f"print({said!r})"))
    assert found == Canary(False, None, "the engine ended without a result")


def test_settings_and_environment_reach_the_child(tmp_path: Path, model: Path) -> None:
    code = (
        "import json, os\n"
        "told = [sys.argv[1:], os.environ['GGML_NO_BACKTRACE'], os.environ['GOMP_SPINCOUNT']]\n"
        "print(json.dumps({'ok': True, 'version': json.dumps(told)}))"
    )
    _, facts = canary.try_engine(model, n_gpu_layers=7, command=child(tmp_path, code))
    assert facts is not None
    assert json.loads(facts.version or "") == [[str(model), "--n-gpu-layers", "7"], "1", "2000"]


def test_no_claim_is_made_without_an_engine(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(canary, "installed_here", lambda: False)
    assert run_canary(model) == Canary(None, None, canary.NOT_INSTALLED)


def test_no_claim_is_made_without_a_model(tmp_path: Path) -> None:
    found = run_canary(tmp_path / "none.gguf", command=["unused"])
    assert found.ok is None
    assert "no model file" in found.reason


def test_a_command_that_does_not_exist_is_a_reason(model: Path) -> None:
    found = run_canary(model, command=["/nonexistent/engine"])
    assert found.ok is False
    assert "could not be started" in found.reason


@pytest.mark.parametrize(
    ("code", "name"),
    [(-11, "SIGSEGV"), (-6, "SIGABRT"), (0xC0000005, "access violation"), (0, None), (3, None)],
)
def test_how_a_process_died(code: int, name: str | None) -> None:
    assert ToolOutput(code).died_of == name


def test_a_tool_that_will_not_end_is_killed_with_what_it_said() -> None:
    code = "import sys,time; print('half', flush=True); time.sleep(60)"
    output = run_tool([sys.executable, "-c", code], timeout_s=1.0)
    assert output.timed_out
    assert output.exit_code is None
    assert output.stdout == "half\n"


@given(st.text(max_size=100))
def test_the_parser_survives_any_text(text: str) -> None:
    facts = canary.parse_canary(ToolOutput(0, text))
    assert facts is None or facts.n_tokens >= 0


def test_a_model_of_several_files_gets_the_time_of_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"m-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    for file in files:
        with file.open("wb") as sparse:
            sparse.truncate(5_000_000_000)
    allowed: list[float] = []

    def told(arguments: object, *, timeout_s: float, env: object = None) -> ToolOutput:
        allowed.append(timeout_s)
        return run_tool([sys.executable, "-c", f"print({OK!r})"], timeout_s=60)

    monkeypatch.setattr(canary, "run_tool", told)
    assert run_canary(files[0], command=["engine"]).ok is True
    assert allowed == [canary.TIMEOUT_S + 300]
    files[2].unlink()
    found = run_canary(files[0], command=["engine"])
    assert found.ok is None
    assert "m-00003-of-00003.gguf is missing" in found.reason
