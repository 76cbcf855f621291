// The verdict and the live figures, from one answer of /status.

import { $, count, el, figure, fill, gib, ms, say, show, speed } from "./dom.js";

const WORDS = {
  ready: ["Ready", "is ready"],
  loading: ["Loading", "is loading"],
  restarting: ["Restarting", "is coming back: its engine died and is being restarted"],
  failed: ["Failed", "did not load"],
  stopped: ["Stopped", "has stopped"],
  unloaded: ["Resting", "is resting"],
};

const NAMES = { completion: "text completion", fim: "fill in the middle", tools: "tool calls" };

/** Show one model of a status answer. */
export function showStatus(status, model, report) {
  const [word, verdict] = WORDS[model.state] ?? [model.state, `is ${model.state}`];
  state(model.state, word, `${model.id} ${verdict}`);
  say($("lead"), lead(model, status, report));
  const failed = model.failure;
  const why = failed ? [failed.message, failed.hint].filter(Boolean).map(sentence).join(" ") : "";
  say($("reason"), why);
  show($("reason"), Boolean(why));
  fill($("tiles"), tiles(status, model), true);
  say($("window"), spanned(status));
  fill($("facts"), facts(model, report));
  const reasons = Object.entries(model.reasons);
  fill($("reasons"), reasons.map(([what, text]) => [what.replaceAll("_", " "), text]));
  show($("why"), reasons.length > 0);
}

/** Say that no answer came; what was shown last stays, since it is all that is known. */
export function showSilence(message) {
  state("silent", "No answer", message.replace(/\.$/, ""));
  say($("lead"), "This page asks again every two seconds.");
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

function state(name, word, verdict) {
  $("dot").dataset.state = name;
  say($("state-word"), word);
  say($("verdict"), verdict);
  say($("said"), verdict);
  document.title = `${verdict} · edgekit`;
}

function lead(model, status, report) {
  const kind = [model.filetype, device(model, report) && `on ${device(model, report)}`];
  const context = model.n_ctx_seq && `${count(model.n_ctx_seq)} tokens of context` + shared(model);
  const head = [kind.filter(Boolean).join(" "), context].filter(Boolean).join(", ");
  const pace = status.ttft_ms.p50 === null
    ? "" : ` Lately the first token came after ${ms(status.ttft_ms.p50)}` +
      (status.itl_ms.p50 === null ? "." : `, then one every ${ms(status.itl_ms.p50)}.`);
  const rest = model.state === "unloaded" ? " It is loaded when somebody asks for it." : "";
  return head ? `${head}.${rest}${pace}` : rest.trim();
}

function shared({ n_ctx: all, n_ctx_seq: each, n_seq_max: n }) {
  if (n === 1) return "";
  return all < each * n ? `, shared by up to ${count(n)} at once` : ` for each of ${count(n)} at once`;
}

/** The name that the deployment gave, else the engine's name of where the weights lie. */
function device(model, report) {
  if (report?.device) return report.device;
  if (!model.buffers?.length) return null;
  const host = model.buffers.every((name) => /^(CPU|AMX)/.test(name));
  return host ? "the CPU" : model.buffers.filter((name) => !/^(CPU|AMX)/.test(name)).join(", ");
}

function tiles(status, model) {
  const { ttft_ms: ttft, itl_ms: itl } = status;
  return [
    ["First token (TTFT)", ms(ttft.p50), `p95 ${ms(ttft.p95)}`],
    ["Between tokens (ITL)", ms(itl.p50), `p95 ${ms(itl.p95)}`],
    ["Generating now", speed(status.output_tok_s), `${count(status.output_tokens)} tokens so far`],
    ["Requests", `${count(model.in_flight)} open`, `${count(model.queued + status.waiting)} waiting`],
  ];
}

function spanned(status) {
  const { ttft_ms: ttft, itl_ms: itl } = status;
  if (!ttft.samples) return "No answer in the last ten minutes.";
  const whose = status.models.length > 1 ? " of all models" : "";
  const few = ttft.p95 === null || itl.p95 === null ? " A p95 needs 20." : "";
  return `TTFT and ITL are medians of the last ten minutes${whose}: ${count(ttft.samples)} ` +
    `${ttft.samples === 1 ? "answer" : "answers"}, ${count(itl.samples)} gaps.${few}`;
}

function facts(model, report) {
  const parameters = model.n_params >= 1e9
    ? `${figure(model.n_params / 1e9)} billion` : `${figure(model.n_params / 1e6)} million`;
  const can = model.capabilities?.map((name) => NAMES[name] ?? name).join(", ");
  const list = [
    ["File type", model.filetype ?? report?.filetype ?? "–"],
    ["Device", device(model, report)?.replace(/^the /, "") ?? "–"],
    ["Context", model.n_ctx_seq
      ? `${count(model.n_ctx_seq)} tokens per sequence, ${count(model.n_ctx)} for all ` +
        `${count(model.n_seq_max)} together; trained for ${count(model.n_ctx_train)}` : "–"],
    ["Size", model.n_params ? `${parameters} parameters, ${gib(model.size_bytes)}` : "–"],
    ["Can do", can || "–"],
  ];
  if (model.aliases.length) list.push(["Also called", model.aliases.join(", ")]);
  if (model.licence) {
    list.push(["Licence", [model.licence.name, model.licence.shown].filter(Boolean).join(" · ")]);
  }
  if (model.restarts) list.push(["Engine restarts", count(model.restarts)]);
  return list;
}

/** Offer the models by name; hidden while there is only one. */
export function offer(models) {
  const picked = $("model");
  const names = models.map((model) => model.id);
  if ([...picked.options].map((option) => option.value).join("\n") !== names.join("\n")) {
    const before = picked.value;
    picked.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    if (names.includes(before)) picked.value = before;
  }
  models.forEach((model, at) => say(picked.options[at], `${model.id} · ${model.state}`));
  show($("pick"), names.length > 1);
  return models.find((model) => model.id === picked.value) ?? models[0];
}
