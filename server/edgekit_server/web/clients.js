// What editors, agents and tools want to be told, filled in with an address and a model.
//
// `word` is the client's name for `edgekit connect`, `least` the context below which it does not
// work well. A block is where a text goes, the text, and perhaps a note. `v` holds the values:
// root and api (addresses), id, fim (the model that fills in, if any), ctx and out (tokens),
// key, and keyed (whether the server wants one).

const json = (value) => JSON.stringify(value, null, 2);
/** A JSON string is a string of YAML, TOML and Python, too. */
const quoted = (text) => JSON.stringify(text);
export const quotedForShell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const quotedForVim = (text) => `'${text.replaceAll("'", "''")}'`;

function fields(pairs) {
  return Object.entries(pairs).map(([name, value]) => `${name}: ${value}`).join("\n");
}

export const CLIENTS = [
  { name: "Any OpenAI client", word: null, least: 0, blocks: generic },
  { name: "curl", word: null, least: 0, blocks: curl },
  { name: "OpenAI for Python", word: null, least: 0, blocks: python },
  { name: "Aider", word: "aider", least: 8192, blocks: aider },
  { name: "Claude Code", word: "claude-code", least: 65536, blocks: claudeCode },
  { name: "Cline", word: "cline", least: 32768, blocks: cline },
  { name: "Codex", word: "codex", least: 16384, blocks: codex },
  { name: "Continue", word: "continue", least: 8192, blocks: continueDev },
  { name: "JetBrains AI Assistant", word: "jetbrains", least: 0, blocks: jetbrains },
  { name: "llama.vim", word: "llama-vim", least: 0, blocks: llamaVim },
  { name: "llama.vscode", word: "llama-vscode", least: 0, blocks: llamaVscode },
  { name: "llm", word: "llm", least: 0, blocks: llm },
  { name: "Open WebUI", word: "open-webui", least: 0, blocks: openWebui },
  { name: "opencode", word: "opencode", least: 16384, blocks: opencode },
  { name: "Roo Code", word: "roo", least: 32768, blocks: roo },
  { name: "VS Code", word: "vscode", least: 16384, blocks: vscode },
  { name: "Zed", word: "zed", least: 8192, blocks: zed },
];

function generic(v) {
  return [{
    where: "Settings",
    text: fields({ "Base URL": v.api, Model: v.id, "API key": v.key, "Context, tokens": v.ctx }),
  }];
}

function curl(v) {
  const body = { model: v.id, messages: [{ role: "user", content: "Hello" }] };
  const parts = [
    `curl ${quotedForShell(`${v.api}/chat/completions`)}`,
    "  -H 'Content-Type: application/json'",
    `  -d ${quotedForShell(JSON.stringify(body))}`,
  ];
  if (v.keyed) parts.splice(2, 0, `  -H ${quotedForShell(`Authorization: Bearer ${v.key}`)}`);
  return [{ where: "Terminal", text: parts.join(" \\\n") }];
}

function python(v) {
  const text = `from openai import OpenAI

client = OpenAI(base_url=${quoted(v.api)}, api_key=${quoted(v.key)})
answer = client.chat.completions.create(
    model=${quoted(v.id)},
    messages=[{"role": "user", "content": "Hello"}],
)
print(answer.choices[0].message.content)`;
  return [{ where: "Python", text }];
}

function aider(v) {
  const model = `openai/${v.id}`;
  const text = `model: ${quoted(model)}
openai-api-base: ${quoted(v.api)}
openai-api-key: ${quoted(v.key)}`;
  const known = {
    max_input_tokens: v.ctx, max_output_tokens: v.out, input_cost_per_token: 0,
    output_cost_per_token: 0, litellm_provider: "openai", mode: "chat",
  };
  return [
    { where: "~/.aider.conf.yml", text },
    { where: "~/.aider.model.metadata.json", text: json({ [model]: known }) },
  ];
}

function claudeCode(v) {
  const env = {
    ANTHROPIC_BASE_URL: v.root,
    ANTHROPIC_AUTH_TOKEN: v.key,
    ANTHROPIC_MODEL: v.id,
    ANTHROPIC_DEFAULT_OPUS_MODEL: v.id,
    ANTHROPIC_DEFAULT_SONNET_MODEL: v.id,
    ANTHROPIC_DEFAULT_HAIKU_MODEL: v.id,
    CLAUDE_CODE_SUBAGENT_MODEL: v.id,
    CLAUDE_CODE_MAX_CONTEXT_TOKENS: String(v.ctx),
    CLAUDE_CODE_MAX_OUTPUT_TOKENS: String(v.out),
    CLAUDE_CODE_ATTRIBUTION_HEADER: "0",
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
    CLAUDE_CODE_SIMPLE: "1",
    MAX_THINKING_TOKENS: "0",
    DISABLE_AUTOUPDATER: "1",
    API_TIMEOUT_MS: "3600000",
  };
  return [{ where: "~/.claude/settings.json", text: json({ env }) }];
}

function cline(v) {
  return [{
    where: "Settings, API Provider: OpenAI Compatible",
    text: fields({
      "Base URL": v.api, "API Key": v.key, "Model ID": v.id,
      "Context Window Size": v.ctx, "Max Output Tokens": v.out,
    }),
    note: "Switch on Use Compact Prompt.",
  }];
}

function codex(v) {
  const text = `model = ${quoted(v.id)}
model_provider = "edgekit"
model_context_window = ${v.ctx}
model_auto_compact_token_limit = ${Math.floor(v.ctx * 0.8)}
web_search = "disabled"

[features]
goals = false

[agents]
enabled = false

[model_providers.edgekit]
name = "edgekit"
base_url = ${quoted(v.api)}
wire_api = "responses"
stream_idle_timeout_ms = 1800000`;
  if (!v.keyed) return [{ where: "~/.codex/config.toml", text }];
  return [{
    where: "~/.codex/config.toml",
    text: `${text}\nenv_key = "EDGEKIT_API_KEY"`,
    note: "Codex reads the key from the variable EDGEKIT_API_KEY.",
  }];
}

function continueDev(v) {
  const model = (name, id, more) => `  - name: ${name}
    provider: openai
    model: ${quoted(id)}
    apiBase: ${quoted(v.api)}
    apiKey: ${quoted(v.key)}
${more}`;
  const chat = `    roles: [chat, edit, apply]
    capabilities: [tool_use]
    contextLength: ${v.ctx}
    defaultCompletionOptions:
      maxTokens: ${v.out}`;
  const tab = `    roles: [autocomplete]
    useLegacyCompletionsEndpoint: true
    autocompleteOptions:
      debounceDelay: 250
      modelTimeout: 500
      maxPromptTokens: 1024`;
  const parts = ["name: edgekit\nversion: 1.0.0\nschema: v1\nmodels:"];
  parts.push(model("edgekit chat", v.id, chat));
  if (v.fim) parts.push(model("edgekit tab", v.fim, tab));
  return [{ where: "~/.continue/config.yaml", text: parts.join("\n") }];
}

function jetbrains(v) {
  return [{
    where: "Settings, Tools, AI Assistant, Providers & API keys",
    text: fields({
      Provider: "OpenAI-compatible", URL: v.api, "API key": v.key, "Tool calling": "on",
    }),
    note: "Press Test Connection, then choose the model under Models Assignment.",
  }];
}

function llamaVim(v) {
  const line = (name, value) => `      \\ '${name}': ${quotedForVim(value)},`;
  const text = [
    "let g:llama_config = extend(get(g:, 'llama_config', {}), {",
    line("endpoint_fim", `${v.root}/infill`),
    line("endpoint_inst", `${v.api}/chat/completions`),
    line("model_fim", v.fim ?? v.id),
    line("model_inst", v.id),
    line("api_key", v.keyed ? v.key : ""),
    "      \\ })",
  ];
  return [{ where: "~/.vim/plugin/edgekit.vim", text: text.join("\n") }];
}

function llamaVscode(v) {
  const name = (rest) => `llama-vscode.${rest}`;
  const settings = {
    [name("endpoint")]: v.root,
    [name("endpoint_chat")]: v.root,
    [name("endpoint_tools")]: v.root,
    [name("endpoint_embeddings")]: v.root,
    [name("ai_model")]: v.id,
    [name("ai_api_version")]: "v1",
    [name("n_predict")]: 128,
    [name("t_max_predict_ms")]: 500,
  };
  if (v.keyed) {
    for (const use of ["", "_chat", "_tools", "_embeddings"]) settings[name(`api_key${use}`)] = v.key;
  }
  return [{ where: "settings.json of VS Code", text: json(settings) }];
}

function llm(v) {
  const text = `- model_id: edgekit
  model_name: ${quoted(v.id)}
  api_base: ${quoted(v.api)}
  supports_tools: true
  supports_schema: true`;
  const where = "extra-openai-models.yaml, in the folder of `llm logs path`";
  if (!v.keyed) return [{ where, text }];
  return [{
    where, text: `${text}\n  api_key_name: edgekit`, note: "Store the key with: llm keys set edgekit",
  }];
}

function openWebui(v) {
  return [{
    where: "Environment",
    text: `OPENAI_API_BASE_URLS=${quotedForShell(v.api)}\nOPENAI_API_KEYS=${quotedForShell(v.key)}`,
    note: "In a container 127.0.0.1 is the container: run it with --network host.",
  }];
}

function opencode(v) {
  const model = `edgekit/${v.id}`;
  const provider = {
    npm: "@ai-sdk/openai-compatible",
    name: "edgekit",
    options: { baseURL: v.api, apiKey: v.key },
    models: { [v.id]: { name: v.id, limit: { context: v.ctx, output: v.out } } },
  };
  return [{
    where: "~/.config/opencode/opencode.json",
    text: json({
      model, small_model: model, autoupdate: false, share: "disabled", provider: { edgekit: provider },
    }),
  }];
}

function roo(v) {
  return [{
    where: "Settings, API Provider: OpenAI Compatible",
    text: fields({
      "Base URL": v.api, "API Key": v.key, Model: v.id,
      "Context Window Size": v.ctx, "Max Output Tokens": v.out,
    }),
  }];
}

function vscode(v) {
  const model = {
    id: v.id, name: v.id, url: `${v.api}/chat/completions`, toolCalling: true, vision: false,
    maxInputTokens: v.ctx - v.out, maxOutputTokens: v.out,
  };
  const provider = {
    name: "edgekit", vendor: "customendpoint", apiKey: "${input:edgekitKey}",
    apiType: "chat-completions", models: [model],
  };
  return [{
    where: "chatLanguageModels.json, in the user's profile",
    text: json([provider]),
    note: `VS Code asks for the key once${v.keyed ? "" : "; enter any word"}. ` +
      "Its own inline suggestions cannot be local: use Continue or llama.vscode.",
  }];
}

function zed(v) {
  const model = {
    name: v.id, display_name: v.id, max_tokens: v.ctx, max_output_tokens: v.out,
    capabilities: {
      tools: true, images: false, parallel_tool_calls: false, prompt_cache_key: true,
      chat_completions: true, interleaved_reasoning: false,
    },
  };
  const providers = {
    "llama.cpp": { api_url: v.root },
    openai_compatible: { edgekit: { api_url: v.api, available_models: [model] } },
  };
  return [{
    where: "~/.config/zed/settings.json",
    text: json({ language_models: providers }),
    note: v.keyed
      ? "Zed reads the key from the variable EDGEKIT_API_KEY."
      : "Zed asks for a key: enter any word.",
  }];
}
