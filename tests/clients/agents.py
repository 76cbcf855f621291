"""The clients: what each runs, and how its shell tool is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NODE, PYTHON = "npm", "pip"
CHAT, TOOLS = "chat", "tools"
QUESTION = "What is edgekit?"
CHAIN = "Find report.txt, count its lines and send the number to Grace."
"""What pocket can do by itself: find_file, count_lines, send_message."""


@dataclass(frozen=True, slots=True)
class ShellTool:
    """How an agent's own tool that runs a command is called."""

    name: str
    key: str
    more: Mapping[str, str] = field(default_factory=dict)
    """Further arguments that it demands."""


@dataclass(frozen=True, slots=True)
class Agent:
    """One client. Words in braces in `argv`, `env`: folder, home, url, model, here, question."""

    name: str
    registry: str
    package: str
    version: str
    argv: tuple[str, ...]
    shell: ShellTool | None = None
    """None: it runs pocket's own tools, so pocket itself makes the calls."""
    env: Mapping[str, str] = field(default_factory=dict)
    connect: str | None = None
    """Its name for `edgekit connect`; None: it takes an address and needs no file."""
    tools_argv: tuple[str, ...] = ()
    """Further arguments where tools are used."""


def _bin(name: str) -> str:
    return f"{{folder}}/node_modules/.bin/{name}"


AGENTS = {
    agent.name: agent
    for agent in (
        Agent(
            "codex", NODE, "@openai/codex", "0.169.0",
            (_bin("codex"), "exec", "--skip-git-repo-check",
             "--dangerously-bypass-approvals-and-sandbox", "{question}"),
            ShellTool("exec_command", "cmd"), connect="codex",
        ),
        Agent(
            "claude-code", NODE, "@anthropic-ai/claude-code", "2.1.330",
            (_bin("claude"), "--allowedTools", "Bash", "-p", "{question}"),
            ShellTool("Bash", "command", {"description": "a step"}), connect="claude-code",
        ),
        Agent(
            "opencode", NODE, "opencode-ai", "1.18.33", (_bin("opencode"), "run", "{question}"),
            ShellTool("bash", "command", {"description": "a step"}),
            {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"},
            connect="opencode",
        ),
        Agent(
            "continue", NODE, "@continuedev/cli", "1.5.47",
            (_bin("cn"), "--allow", "Bash", "--config", "{home}/.continue/config.yaml",
             "-p", "{question}"),
            ShellTool("Bash", "command"), connect="continue",
        ),
        Agent(
            "llm", PYTHON, "llm", "0.36",
            ("{folder}/llm/bin/llm", "-m", "edgekit", "{question}"), connect="llm",
            tools_argv=("--functions", "{here}/llm_functions.py", "--chain-limit", "5"),
        ),
        Agent(
            "openai-node", NODE, "openai", "7.57.0",
            ("node", "{here}/openai_node.mjs", "{folder}", "{url}", "{model}", "{question}"),
        ),
        Agent(
            "openai-python", PYTHON, "openai", "3.54.0",
            ("{folder}/openai/bin/python", "{here}/openai_python.py", "{url}", "{model}",
             "{question}"),
        ),
        Agent(
            "anthropic-python", PYTHON, "anthropic", "2.12.0",
            ("{folder}/anthropic/bin/python", "{here}/anthropic_python.py", "{url}", "{model}",
             "{question}"),
        ),
        Agent(
            "ollama-python", PYTHON, "ollama", "0.6.3",
            ("{folder}/ollama/bin/python", "{here}/ollama_python.py", "{url}", "{model}",
             "{question}"),
        ),
    )
}  # fmt: skip
