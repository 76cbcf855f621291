// Settings for editors, agents and tools, filled in with this server's address and model.

import { key, root } from "./api.js";
import { $, count, el, fill, say, show } from "./dom.js";
import { fills } from "./play.js";

const json = (value) => JSON.stringify(value, null, 2);
/** A JSON string is a string of YAML and TOML, too. */
const quoted = (text) => JSON.stringify(text);
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/**
 * Name, its word for `edgekit connect`, the least context that it works in, and its blocks: where
 * a text goes, the text, and perhaps a note.
 */
const CLIENTS = [
  ["Any OpenAI client", "", 0, (v) => [{ where: "Settings", text: lines({
    "Base URL": v.api, Model: v.id, "API key": v.key, "Context, tokens": String(v.ctx) }) }]],
  ["curl", "", 0, (v) => [{ where: "Terminal", text:
    `curl ${shell(`${v.api}/chat/completions`)} \\\n  -H 'Content-Type: application/json' \\\n` +
    (v.keyed ? `  -H ${shell(`Authorization: Bearer ${v.key}`)} \\\n` : "") +
    `  -d ${shell(JSON.stringify({ model: v.id, messages: [{ role: "user", content: "Hello" }] }))}` }]],
  ["OpenAI for Python", "", 0, (v) => [{ where: "Python", text:
    `from openai import OpenAI\n\nclient = OpenAI(base_url=${quoted(v.api)}, api_key=${quoted(v.key)})\n` +
    `answer = client.chat.completions.create(\n    model=${quoted(v.id)},\n` +
    `    messages=[{"role": "user", "content": "Hello"}],\n)\nprint(answer.choices[0].message.content)` }]],
  ["Aider", "aider", 8192, (v) => [
    { where: ".aider.conf.yml", text: `model: ${quoted(`openai/${v.id}`)}\n` +
      `openai-api-base: ${quoted(v.api)}\nopenai-api-key: ${quoted(v.key)}` },
    { where: ".aider.model.metadata.json", text: json({ [`openai/${v.id}`]: {
      max_input_tokens: v.ctx, max_output_tokens: v.out, input_cost_per_token: 0,
      output_cost_per_token: 0, litellm_provider: "openai", mode: "chat" } }) }]],
  ["Claude Code", "claude-code", 65536, (v) => [{ where: "~/.claude/settings.json", text: json({ env: {
    ANTHROPIC_BASE_URL: v.root, ANTHROPIC_AUTH_TOKEN: v.key, ANTHROPIC_MODEL: v.id,
    ANTHROPIC_DEFAULT_OPUS_MODEL: v.id, ANTHROPIC_DEFAULT_SONNET_MODEL: v.id,
    ANTHROPIC_DEFAULT_HAIKU_MODEL: v.id, CLAUDE_CODE_SUBAGENT_MODEL: v.id,
    CLAUDE_CODE_MAX_CONTEXT_TOKENS: String(v.ctx), CLAUDE_CODE_MAX_OUTPUT_TOKENS: String(v.out),
    CLAUDE_CODE_ATTRIBUTION_HEADER: "0", CLAUDE_CODE_SIMPLE: "1", MAX_THINKING_TOKENS: "0",
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1", DISABLE_AUTOUPDATER: "1",
    API_TIMEOUT_MS: "3600000" } }) }]],
  ["Cline", "cline", 32768, (v) => [{ where: "Settings, API Provider: OpenAI Compatible", text: lines({
    "Base URL": v.api, "API Key": v.key, "Model ID": v.id,
    "Context Window Size": String(v.ctx), "Max Output Tokens": String(v.out) }),
  note: "Switch on Use Compact Prompt." }]],
  ["Codex", "codex", 16384, (v) => [{ where: "~/.codex/config.toml", text: [
    `model = ${quoted(v.id)}`, 'model_provider = "edgekit"', `model_context_window = ${v.ctx}`,
    `model_auto_compact_token_limit = ${Math.floor(v.ctx * 0.8)}`, 'web_search = "disabled"', "",
    "[features]", "goals = false", "", "[agents]", "enabled = false", "",
    "[model_providers.edgekit]", 'name = "edgekit"', `base_url = ${quoted(v.api)}`,
    'wire_api = "responses"', ...(v.keyed ? ['env_key = "EDGEKIT_API_KEY"'] : []),
    "stream_idle_timeout_ms = 1800000"].join("\n"),
  note: v.keyed ? "Codex reads the key from the variable EDGEKIT_API_KEY." : null }]],
  ["Continue", "continue", 8192, (v) => [{ where: "~/.continue/config.yaml", text: [
    "name: edgekit", "version: 1.0.0", "schema: v1", "models:",
    "  - name: edgekit chat", "    provider: openai", `    model: ${quoted(v.id)}`,
    `    apiBase: ${quoted(v.api)}`, `    apiKey: ${quoted(v.key)}`,
    "    roles: [chat, edit, apply]", "    capabilities: [tool_use]", `    contextLength: ${v.ctx}`,
    "    defaultCompletionOptions:", `      maxTokens: ${v.out}`,
    ...(v.fim ? ["  - name: edgekit tab", "    provider: openai",
      `    model: ${quoted(v.fim)}`, `    apiBase: ${quoted(v.api)}`, `    apiKey: ${quoted(v.key)}`,
      "    roles: [autocomplete]", "    useLegacyCompletionsEndpoint: true", "    autocompleteOptions:",
      "      debounceDelay: 250", "      modelTimeout: 500", "      maxPromptTokens: 1024"] : []),
  ].join("\n") }]],
  ["JetBrains AI Assistant", "jetbrains", 0, (v) => [{ where: "Settings, Tools, AI Assistant, Providers & API keys",
    text: lines({ Provider: "OpenAI-compatible", URL: v.api, "API key": v.key, "Tool calling": "on" }),
    note: "Press Test Connection, then choose the model for each feature." }]],
  ["llama.vim", "llama-vim", 0, (v) => [{ where: "~/.vim/plugin/edgekit.vim", text:
    "let g:llama_config = extend(get(g:, 'llama_config', {}), {\n" +
    `      \\ 'endpoint_fim': ${vim(`${v.root}/infill`)},\n` +
    `      \\ 'endpoint_inst': ${vim(`${v.api}/chat/completions`)},\n` +
    `      \\ 'model_fim': ${vim(v.fim ?? v.id)},\n      \\ 'model_inst': ${vim(v.id)},\n` +
    `      \\ 'api_key': ${vim(v.keyed ? v.key : "")},\n      \\ })` }]],
  ["llama.vscode", "llama-vscode", 0, (v) => [{ where: "settings.json", text: json({
    "llama-vscode.endpoint": v.root, "llama-vscode.endpoint_chat": v.root,
    "llama-vscode.endpoint_tools": v.root, "llama-vscode.ai_model": v.id,
    "llama-vscode.ai_api_version": "v1", "llama-vscode.n_predict": 128,
    "llama-vscode.t_max_predict_ms": 500,
    ...(v.keyed ? { "llama-vscode.api_key": v.key, "llama-vscode.api_key_chat": v.key,
      "llama-vscode.api_key_tools": v.key } : {}) }) }]],
  ["llm", "llm", 0, (v) => [{ where: "extra-openai-models.yaml, beside the file that `llm logs path` names", text:
    `- model_id: edgekit\n  model_name: ${quoted(v.id)}\n  api_base: ${quoted(v.api)}\n` +
    "  supports_tools: true\n  supports_schema: true" +
    (v.keyed ? "\n  api_key_name: edgekit" : ""),
  note: v.keyed ? "Store the key with: llm keys set edgekit" : null }]],
  ["Open WebUI", "open-webui", 0, (v) => [{ where: "Environment", text:
    `OPENAI_API_BASE_URLS=${shell(v.api)}\nOPENAI_API_KEYS=${shell(v.key)}` }]],
  ["opencode", "opencode", 16384, (v) => [{ where: "~/.config/opencode/opencode.json", text: json({
    model: `edgekit/${v.id}`, small_model: `edgekit/${v.id}`, autoupdate: false, share: "disabled",
    provider: { edgekit: { npm: "@ai-sdk/openai-compatible", name: "edgekit",
      options: { baseURL: v.api, apiKey: v.key },
      models: { [v.id]: { name: v.id, limit: { context: v.ctx, output: v.out } } } } } }) }]],
  ["Roo Code", "roo", 32768, (v) => [{ where: "Settings, API Provider: OpenAI Compatible", text: lines({
    "Base URL": v.api, "API Key": v.key, Model: v.id,
    "Context Window Size": String(v.ctx), "Max Output Tokens": String(v.out) }) }]],
  ["VS Code", "vscode", 16384, (v) => [{ where: "chatLanguageModels.json, in the user profile", text: json([{
    name: "edgekit", vendor: "customendpoint", apiKey: "${input:edgekitKey}",
    apiType: "chat-completions", models: [{ id: v.id, name: v.id,
      url: `${v.api}/chat/completions`, toolCalling: true, vision: false,
      maxInputTokens: v.ctx - v.out, maxOutputTokens: v.out }] }]),
  note: `VS Code asks for the key once${v.keyed ? "" : "; any word will do"}. Inline suggestions need Continue or llama.vscode.` }]],
  ["Zed", "zed", 8192, (v) => [{ where: "~/.config/zed/settings.json", text: json({
    language_models: { "llama.cpp": { api_url: v.root }, openai_compatible: { edgekit: { api_url: v.api, available_models: [{
      name: v.id, display_name: v.id, max_tokens: v.ctx, max_output_tokens: v.out,
      capabilities: { tools: true, images: false, parallel_tool_calls: false,
        prompt_cache_key: true, chat_completions: true, interleaved_reasoning: false } }] } } } }),
  note: v.keyed ? "Zed reads the key from the variable EDGEKIT_API_KEY." : "Zed asks for a key; any word will do." }]],
];

function lines(pairs) {
  return Object.entries(pairs).map(([name, value]) => `${name}: ${value}`).join("\n");
}

function vim(text) {
  return `'${text.replaceAll("'", "''")}'`;
}

let drawn = "";

/** Show the settings of the chosen client; does nothing while they stay the same. */
export function settings(model, models) {
  const list = $("client");
  if (!list.options.length) {
    list.append(...CLIENTS.map(([name]) => el("option", { value: name }, name)));
    list.addEventListener("change", () => draw(list.value));
    $("show-key").addEventListener("change", () => draw(list.value));
  }
  show($("with-key"), Boolean(key()));
  fill($("endpoint"), [
    ["OpenAI", `${root}/v1`], ["Anthropic, Ollama, llama.cpp", root], ["Model", model.id],
    ["Key", key() ? "one of the server's" : "none needed"],
  ]);
  draw.of = values(model, models);
  draw(list.value);
}

function values(model, models) {
  const ctx = model.n_ctx_seq ?? 4096;
  const fim = model.capabilities && fills(model, models)?.id;
  return { root, api: `${root}/v1`, id: model.id, ctx, out: Math.min(4096, Math.floor(ctx / 4)), fim };
}

function draw(name) {
  const keyed = Boolean(key());
  const shown = keyed ? ($("show-key").checked ? key() : "YOUR_KEY") : "local";
  const v = { ...draw.of, keyed, key: shown };
  const now = JSON.stringify([name, v]);
  if (now === drawn) return;
  drawn = now;
  const [, word, least, blocks] = CLIENTS.find(([known]) => known === name);
  const short = v.ctx < least ? [el("p", { className: "notice" },
    `${name} needs a context of ${count(least)} tokens or more to work well; this model has ${count(v.ctx)}.`)] : [];
  const command = word ? [{
    where: "Where edgekit is installed", text: `edgekit connect ${word} --url ${shell(v.root)}`,
    note: "Writes these settings and tries them. By hand:",
  }] : [];
  $("settings").replaceChildren(...short, ...[...command, ...blocks(v)].flatMap(block));
}

function block({ where, text, note }, at) {
  const label = el("p", { className: "label", id: `where-${at}` }, where);
  const shown = el("pre", { className: "code", tabIndex: 0, role: "group", "aria-labelledby": `where-${at}` }, text);
  const button = el("button", { type: "button", "aria-describedby": `where-${at}` }, "Copy");
  button.addEventListener("click", async () => {
    const done = await copy(text, shown);
    button.textContent = done ? "Copied" : "Select it and copy";
    say($("copied"), done ? `Copied: ${where}` : "The browser did not let this page copy.");
    setTimeout(() => {
      button.textContent = "Copy";
      say($("copied"), "");
    }, 3000);
  });
  return [el("div", { className: "block" }, el("div", { className: "bar" }, label, button), shown),
    note ? el("p", { className: "soft small" }, note) : null].filter(Boolean);
}

/** Copy; over plain HTTP from another machine there is no clipboard API, so select and ask. */
async function copy(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(node);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return document.execCommand("copy");
  }
}
