"use strict";
// Filters and sorts the overview and hides the sections that it hides. Nothing is sent anywhere.
const form = document.getElementById("filter");
const rows = [...document.querySelectorAll("#overview tbody tr")];
const body = rows.length ? rows[0].parentNode : null;
const texts = rows.map((row) => row.textContent.toLowerCase());

function apply() {
  const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = new Set([...form.querySelectorAll("[name=verdict]:checked")].map((b) => b.value));
  let shown = 0;
  rows.forEach((row, i) => {
    const on = wanted.has(row.dataset.v) && words.every((word) => texts[i].includes(word));
    row.hidden = !on;
    shown += on ? 1 : 0;
    const link = row.querySelector("a");
    const part = link && document.getElementById(link.hash.slice(1));
    if (part) part.closest(".group").hidden = !on;
  });
  document.getElementById("count").textContent = `${shown} of ${rows.length} shown`;
}

function sort() {
  const key = form.elements.order.value;
  const up = key === "cost" ? 1 : -1;
  const value = (row) => (row.dataset[key] === undefined ? null : Number(row.dataset[key]));
  const sorted = key === "" ? [...rows] : [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return up * (x - y);
  });
  body.append(...sorted);
}

function reveal() {
  const part = location.hash && document.getElementById(location.hash.slice(1));
  const group = part && part.closest("details.group");
  if (group) { group.open = true; group.scrollIntoView(); }
}

if (form && body) {
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", apply);
  form.elements.order.addEventListener("change", sort);
  apply();
}
window.addEventListener("hashchange", reveal);
reveal();
