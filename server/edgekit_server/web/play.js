// Two playgrounds that stream from this server: chat, and filling in the middle.

import { events } from "./api.js";
import { $, count, el, ms, say, show, speed } from "./dom.js";

const SAMPLE = [
  "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        ",
  "\n\n    def pop(self):\n        return self.items.pop()\n",
];
const LONG_ENOUGH_MS = 100;
/** What arrives within one tick of the browser has no speed that could be told. */

/** One running answer: streams, counts, and can be stopped. */
class Run {
  constructor(path, body, onEvent) {
    this.stopper = new AbortController();
    this.path = path;
    this.body = { ...body, stream_options: { include_usage: true } };
    this.onEvent = onEvent;
  }

  stop() {
    this.stopper.abort();
  }

  /** Return how it went, in words. Throws what the server refused. */
  async go() {
    const began = performance.now();
    let first = null;
    let last = null;
    let usage = null;
    let finish = null;
    try {
      for await (const event of events(this.path, this.body, this.stopper.signal)) {
        usage = event.usage ?? usage;
        const choice = event.choices?.[0];
        if (!choice) continue;
        finish = choice.finish_reason ?? finish;
        if (!this.onEvent(choice)) continue;
        last = performance.now();
        first ??= last;
      }
    } catch (error) {
      if (!this.stopper.signal.aborted) throw error;
      return "Stopped.";
    }
    const parts = [];
    if (first !== null) parts.push(`first text after ${ms(first - began)}`);
    if (usage) parts.push(`${count(usage.completion_tokens)} tokens`);
    if (usage?.completion_tokens > 1 && last - first >= LONG_ENOUGH_MS) {
      parts.push(speed((1000 * (usage.completion_tokens - 1)) / (last - first)));
    }
    if (finish === "length") parts.push("ended by the length limit");
    const said = parts.join(" · ");
    return said ? `${said[0].toUpperCase()}${said.slice(1)}.` : "The answer was empty.";
  }
}

/** Wire both playgrounds; `current()` and `filler()` give the models that answer. */
export function play(current, filler) {
  chat(current);
  fim(filler);
}

/** Show which playground the model has; one that was never loaded may well have both. */
export function allow(model, models) {
  const chats = model.capabilities?.includes("chat") ?? true;
  const filler = fills(model, models);
  show($("chat-none"), !chats);
  show($("chat-form"), chats);
  show($("fim-none"), !filler);
  show($("fim-form"), Boolean(filler));
  say($("fim-label"), filler && filler !== model ? `Filled in by ${filler.id}` : "Filled in");
}

/** The model that fills in: this one if it can, else another one of the server that can. */
export function fills(model, models) {
  const can = (one) => one.capabilities?.includes("fim");
  if (can(model) || !model.capabilities) return model;
  return models.find(can) ?? null;
}

function number(id) {
  const value = $(id).valueAsNumber;
  return Number.isFinite(value) ? value : undefined;
}

function onKeys(form, { send, stop }) {
  form.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") stop();
    else if (event.key === "Enter" && event.target.matches("textarea") && send(event)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}

function chat(current) {
  const form = $("chat-form");
  const log = $("chat-log");
  let history = [];
  let run = null;

  const busy = (is) => {
    $("chat-send").disabled = is;
    $("chat-stop").disabled = !is;
    log.setAttribute("aria-busy", String(is));
  };
  const stop = () => {
    if (!run) return;
    run.stop();
    $("chat-text").focus();
  };
  const turn = (who, text) => {
    const said = el("p", { className: "text" }, text);
    const node = el("article", { className: `turn ${who === "You" ? "you" : "model"}` },
      el("h3", {}, who), said);
    show(log, true);
    log.append(node);
    log.scrollTop = log.scrollHeight;
    return { node, said };
  };

  $("chat-stop").addEventListener("click", stop);
  $("chat-new").addEventListener("click", () => {
    run?.stop();
    history = [];
    log.replaceChildren();
    show(log, false);
    say($("chat-status"), "");
    $("chat-text").focus();
  });
  onKeys(form, { send: (event) => event.target.id === "chat-text" && !event.shiftKey, stop });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = $("chat-text").value;
    if (run || !text.trim()) return;
    const mine = history;
    const asked = { role: "user", content: text };
    const system = $("chat-system").value.trim();
    const { node: question } = turn("You", text);
    const { node, said } = turn(current().id, "");
    let thought = null;
    let answer = "";
    const mineRun = new Run("v1/chat/completions", {
      model: current().id,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...mine, asked],
      temperature: number("chat-temperature"),
      max_tokens: number("chat-max"),
    }, ({ delta }) => {
      const low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      if (delta.reasoning_content) {
        if (!thought) {
          thought = el("p", { className: "text" });
          said.before(el("details", {}, el("summary", {}, "Reasoning"), thought));
        }
        thought.append(delta.reasoning_content);
      }
      if (delta.content) {
        answer += delta.content;
        said.append(delta.content);
      }
      if (low) log.scrollTop = log.scrollHeight;
      return Boolean(delta.content || delta.reasoning_content);
    });
    run = mineRun;
    $("chat-text").value = "";
    say($("chat-status"), "Answering…");
    busy(true);
    try {
      say($("chat-status"), await mineRun.go());
      // Shown struck out: what got no answer is not part of what the model is told next.
      if (answer) mine.push(asked, { role: "assistant", content: answer });
      else question.classList.add("unanswered");
    } catch (error) {
      // It goes back to be sent again.
      node.append(el("p", { className: "error", role: "alert" }, error.message));
      say($("chat-status"), "");
      question.classList.add("unanswered");
      if (!$("chat-text").value) $("chat-text").value = text;
    } finally {
      run = null;
      busy(false);
      log.scrollTop = log.scrollHeight;
    }
  });
}

function fim(filler) {
  const [prefix, suffix, out] = [$("fim-prefix"), $("fim-suffix"), $("fim-out")];
  [prefix.value, suffix.value] = SAMPLE;
  let run = null;

  const stop = () => {
    if (!run) return;
    run.stop();
    prefix.focus();
  };
  const busy = (is) => {
    $("fim-run").disabled = is;
    $("fim-stop").disabled = !is;
    $("fim-take").disabled = is || !out.textContent;
    out.setAttribute("aria-busy", String(is));
  };
  $("fim-stop").addEventListener("click", stop);
  $("fim-take").addEventListener("click", () => {
    prefix.value += out.textContent;
    out.replaceChildren();
    busy(false);
    say($("fim-status"), "Taken.");
    prefix.focus();
    prefix.setSelectionRange(prefix.value.length, prefix.value.length);
  });
  onKeys($("fim-form"), { send: (event) => event.ctrlKey || event.metaKey, stop });

  $("fim-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (run) return;
    out.replaceChildren();
    run = new Run("v1/completions", {
      model: filler().id,
      prompt: prefix.value,
      suffix: suffix.value,
      temperature: number("fim-temperature"),
      max_tokens: number("fim-max"),
    }, ({ text }) => {
      out.append(text ?? "");
      return Boolean(text);
    });
    say($("fim-status"), "Filling in…");
    busy(true);
    try {
      say($("fim-status"), await run.go());
    } catch (error) {
      say($("fim-status"), error.message);
    } finally {
      run = null;
      busy(false);
    }
  });
}
