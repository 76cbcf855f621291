// The settings of one client: chosen from a list, drawn, copied.

import { key, root } from "./api.js";
import { CLIENTS, quotedForShell } from "./clients.js";
import { $, count, el, fill, say, show } from "./dom.js";
import { fills } from "./play.js";

let drawn = "";
let given = null;

/** Show the settings of the chosen client; does nothing while they stay the same. */
export function settings(model, models) {
  const list = $("client");
  if (!list.options.length) {
    list.append(...CLIENTS.map(({ name }) => el("option", { value: name }, name)));
    list.addEventListener("change", () => draw(list.value));
    $("show-key").addEventListener("change", () => draw(list.value));
  }
  show($("with-key"), Boolean(key()));
  fill($("endpoint"), [
    ["OpenAI", `${root}/v1`], ["Anthropic, Ollama, llama.cpp", root], ["Model", model.id],
    ["Key", key() ? "one of the server's" : "none needed"],
  ]);
  given = values(model, models);
  draw(list.value);
}

/** What the texts are made of; null while the model has not said how much context it has. */
function values(model, models) {
  const ctx = model.n_ctx_seq;
  if (!ctx) return null;
  const fim = fills(model, models)?.id;
  return { root, api: `${root}/v1`, id: model.id, ctx, out: Math.min(4096, Math.floor(ctx / 4)), fim };
}

function draw(name) {
  const keyed = Boolean(key());
  const shown = keyed ? ($("show-key").checked ? key() : "YOUR_KEY") : "local";
  const v = { ...given, keyed, key: shown };
  const now = JSON.stringify([name, v]);
  if (now === drawn) return;
  drawn = now;
  if (!given) {
    $("settings").replaceChildren(el("p", { className: "notice" },
      "How much context the model has is known once it was loaded; the settings follow then."));
    return;
  }
  const { word, least, blocks } = CLIENTS.find((client) => client.name === name);
  const parts = [];
  if (v.ctx < least) {
    parts.push(el("p", { className: "notice" }, `${name} needs a context of ${count(least)} ` +
      `tokens or more to work well; this model has ${count(v.ctx)}.`));
  }
  const all = blocks(v);
  if (word) {
    all.unshift({
      where: "Where edgekit is installed",
      text: `edgekit connect ${word} --url ${quotedForShell(v.root)}`,
      note: "Writes these settings and tries them. By hand:",
    });
  }
  $("settings").replaceChildren(...parts, ...all.flatMap(block));
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
