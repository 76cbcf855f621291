// Small tools. Everything that is shown goes in as text, never as markup.

export const $ = (id) => document.getElementById(id);

/** Make an element; `props` are properties or, with a dash, attributes; children text or nodes. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Set text only where it changes, so that nothing is read out or redrawn for nothing. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function show(node, visible) {
  node.hidden = !visible;
}

/** Fill a `dl` with [term, text, ...] lists, keeping the nodes it has. */
export function fill(list, pairs, grouped) {
  const pair = (term, ...texts) => {
    const parts = [el("dt", {}, term), ...texts.map((text) => el("dd", {}, text))];
    return grouped ? [el("div", {}, ...parts)] : parts;
  };
  const terms = [...list.querySelectorAll("dt")].map((node) => node.textContent);
  if (terms.join("\n") !== pairs.map(([term]) => term).join("\n")) {
    list.replaceChildren(...pairs.flatMap((one) => pair(...one)));
    return;
  }
  const texts = pairs.flatMap(([, ...rest]) => rest);
  list.querySelectorAll("dd").forEach((node, at) => say(node, texts[at]));
}

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const NONE = "–";

/** Whole numbers with thousands apart; a dash for what is unknown. */
export function count(value) {
  return Number.isFinite(value) ? plain.format(value) : NONE;
}

/** Three figures below a hundred, whole numbers above. */
export function figure(value) {
  if (!Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  const digits = size === 0 || size >= 100 ? 0 : size >= 10 ? 1 : 2;
  return new Intl.NumberFormat("en", {
    minimumFractionDigits: digits, maximumFractionDigits: digits,
  }).format(value);
}

/** Two figures below ten, whole numbers above. */
export function short(value) {
  if (!Number.isFinite(value)) return NONE;
  const digits = value === 0 || value >= 10 ? 0 : value >= 1 ? 1 : 2;
  return new Intl.NumberFormat("en", {
    minimumFractionDigits: digits, maximumFractionDigits: digits,
  }).format(value);
}

export function ms(value) {
  if (!Number.isFinite(value)) return NONE;
  if (value >= 10000) return `${figure(value / 1000)}\u00a0s`;
  return `${short(value)}\u00a0ms`;
}

export function speed(value) {
  return Number.isFinite(value) ? `${figure(value)}\u00a0tok/s` : NONE;
}

export function gib(bytes) {
  if (!Number.isFinite(bytes)) return NONE;
  const mib = bytes / 2 ** 20;
  return mib < 1024 ? `${figure(mib)}\u00a0MiB` : `${figure(mib / 1024)}\u00a0GiB`;
}
