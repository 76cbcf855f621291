// The latency report of the deployment (edgekit.bench/1), predicted beside measured.

import { $, count, el, figure, fill, gib, short, speed } from "./dom.js";

const GROUPS = [
  ["First token, ms", [
    ["p50", (row) => short(row.ttft_ms?.p50)],
    ["p95", (row) => short(row.ttft_ms?.p95)],
    ["predicted", (_, plan) => estimate(plan?.ttft_ms)],
  ]],
  ["Between tokens, ms", [
    ["p50", (row) => short(row.itl_ms?.p50)],
    ["p99", (row) => short(row.itl_ms?.p99)],
  ]],
  ["Decode, tok/s", [
    ["each", (row) => figure(row.decode_tok_s_each ?? NaN)],
    ["all", (row) => figure(row.decode_tok_s ?? NaN)],
    ["predicted", (_, plan) => estimate(plan?.decode_tok_s)],
  ]],
];

/** Draw a report, or say how to get one. */
export function showReport(report) {
  const body = $("report-body");
  if (!report) {
    body.replaceChildren(el("p", {},
      "No latency report came with this server. ", el("code", {}, "edgekit deploy"),
      " measures and hands one over; ", el("code", {}, "edgekit bench"), " measures a server that runs."));
    return;
  }
  const plans = new Map((report.predicted?.rows ?? []).map((row) => [row.users, row]));
  const rows = report.rows?.length ? report.rows : [...plans.keys()].map((users) => ({ users }));
  const facts = el("dl", { className: "facts" });
  fill(facts, about(report));
  body.replaceChildren(
    el("p", { className: "big" }, verdict(report, plans)),
    table(rows, plans, report),
    facts,
    ...notes(report),
    ...method(report),
  );
}

/** One sentence: the most users for whom both figures are known. */
function verdict(report, plans) {
  if (!report.rows?.length) {
    return plans.size ? "Predicted, not measured yet." : "Nothing was measured.";
  }
  const both = report.rows.filter((row) => row.decode_tok_s && plans.get(row.users)?.decode_tok_s);
  const row = both.at(-1);
  if (!row) return "Measured on this machine; there was no prediction to hold beside it.";
  const plan = plans.get(row.users).decode_tok_s;
  const share = Math.round((100 * row.decode_tok_s) / plan.value);
  let judged = "";
  if (Number.isFinite(plan.low) && Number.isFinite(plan.high)) {
    const where = row.decode_tok_s < plan.low ? "below" : row.decode_tok_s > plan.high ? "above" : "within";
    judged = `, ${where} its error bar`;
  }
  const who = row.users === 1 ? "One user" : `${count(row.users)} users together`;
  return `${who}: ${speed(row.decode_tok_s)}. That is ${share} % of the ${estimate(plan)} predicted${judged}.`;
}

// Roles are written out: a table that a narrow screen lays out as blocks would lose them.
function table(rows, plans, report) {
  // What was never predicted is no column, nor what has not been measured yet.
  const measured = Boolean(report.rows?.length);
  const made = ([name, cell]) => name !== "predicted" ? measured : rows.some(
    (row) => cell(row, plans.get(row.users)) !== "–");
  const groups = GROUPS.map(([name, parts]) => [name, parts.filter(made)])
    .filter(([, parts]) => parts.length);
  const columns = groups.flatMap(([group, parts]) =>
    parts.map(([name, cell], at) => ({ group, name, cell, first: at === 0 })));
  const failed = rows.some((row) => row.errors);
  const head = (text, more) => el("th", { role: "columnheader", scope: "col", ...more }, text);
  const upper = el("tr", { role: "row" },
    head("Users", { rowSpan: 2 }),
    ...groups.map(([name, parts]) => head(name, { colSpan: parts.length, scope: "colgroup", className: "first" })),
    failed ? head("Failed", { rowSpan: 2 }) : null);
  const names = el("tr", { role: "row" }, ...columns.map(({ name, first }) =>
    head(name, { className: first ? "first" : "" })));
  const lines = rows.map((row) => el("tr", { role: "row" },
    el("th", { role: "rowheader", scope: "row", "data-label": "Users" }, count(row.users)),
    ...columns.map(({ group, name, cell, first }) => el("td", {
      role: "cell", "data-label": `${group.replace(/, (ms|tok\/s)$/, "")}, ${name}`,
      className: [name === "predicted" && "predicted", first && "first"]
        .filter(Boolean).join(" "),
    }, withUnit(group, cell(row, plans.get(row.users))))),
    failed ? el("td", { role: "cell", "data-label": "Failed" },
      `${count(row.errors)} of ${count(row.requests)}`) : null));
  return el("table", { role: "table" },
    el("caption", {}, load(report)),
    el("thead", { role: "rowgroup" }, upper, names),
    el("tbody", { role: "rowgroup" }, ...lines));
}

/** The unit is in the column's heading; where headings are gone, it is shown beside the figure. */
function withUnit(group, text) {
  const unit = group.endsWith("ms") ? "ms" : "tok/s";
  return el("span", {}, text,
    text === "–" ? null : el("span", { className: "unit", "aria-hidden": "true" }, `\u00a0${unit}`));
}

function load(report) {
  const rows = report.rows ?? [];
  const prompts = rows.map((row) => row.prompt_tokens).filter(Number.isFinite);
  const prompt = prompts.length ? Math.max(...prompts) : report.prompt_tokens_asked;
  const answers = rows.map((row) => row.output_tokens).filter(Number.isFinite);
  const answer = answers.length ? Math.max(...answers) : report.output_tokens_asked;
  const what = [report.model, report.filetype].filter(Boolean).join(" ");
  return `${what}: prompt ${count(prompt)} tokens, answer ${count(answer)} tokens`;
}

function about(report) {
  const list = [];
  const planned = report.predicted?.peak_memory_bytes;
  if (report.peak_memory_bytes || planned) {
    list.push(["Memory", `${gib(report.peak_memory_bytes ?? NaN)} used, ${gib(planned ?? NaN)} predicted`]);
  }
  if (report.ceiling?.tok_s) {
    const alone = (report.rows ?? []).find((row) => row.users === 1)?.decode_tok_s;
    const share = alone ? `; ${Math.round((100 * alone) / report.ceiling.tok_s)} % of it was measured` : "";
    list.push(["Ceiling, one user", speed(report.ceiling.tok_s) + share]);
  }
  const on = report.device ? ` on ${report.device}` : "";
  if (report.created_at) list.push(["Measured", when(report.created_at) + on]);
  return list;
}

function notes(report) {
  if (!report.notes?.length) return [];
  return [el("div", { className: "notice" },
    el("h3", {}, "Read this with the figures"),
    el("ul", {}, ...report.notes.map((note) => el("li", {}, String(note)))))];
}

function method(report) {
  const said = Object.entries(report.method ?? {}).map(([term, text]) => [term, String(text)]);
  if (!said.length) return [];
  const list = el("dl", { className: "facts" });
  fill(list, said);
  return [el("details", {}, el("summary", {}, "What the figures mean"), list)];
}

function when(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? String(text)
    : date.toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" });
}

/** "33 ± 3" for an even error bar, "33 (20 to 40)" for an uneven one. */
function estimate(found) {
  if (!found || !Number.isFinite(found.value)) return "–";
  const { value, low, high } = found;
  if (!Number.isFinite(low) || !Number.isFinite(high)) return figure(value);
  const [down, up] = [value - low, high - value];
  const wide = Math.max(down, up);
  const digits = wide >= 1 ? 0 : wide >= 0.1 ? 1 : 2;
  const rounded = (number) => new Intl.NumberFormat("en", {
    minimumFractionDigits: digits, maximumFractionDigits: digits }).format(number);
  if (Math.abs(down - up) <= 0.1 * wide) return `${rounded(value)} ± ${rounded((down + up) / 2)}`;
  return `${rounded(value)} (${rounded(low)} to ${rounded(high)})`;
}
