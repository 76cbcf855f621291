// The page's own life: the key, the two-second look at /status, and who draws what.

import { ask, keep, key, Refused } from "./api.js";
import { $, say, show } from "./dom.js";
import { offer, showSilence, showStatus } from "./live.js";
import { allow, fills, play } from "./play.js";
import { showReport } from "./report.js";
import { settings } from "./settings.js";

const EVERY_MS = 2000;
const NO_KEY = "The server does not take that key.";

let status = null;
let model = null;
let report = null;
let version = "none yet";
let timer = 0;
let asking = false;

async function look() {
  clearTimeout(timer);
  if (asking) return;
  asking = true;
  try {
    const found = await (await ask("status")).json();
    if (found.report_version !== version) await fetchReport(found.report_version);
    status = found;
    draw();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) {
      lock();
      return;
    }
    show($("page"), true);
    showSilence(error.message);
  } finally {
    asking = false;
    plan();
  }
}

async function fetchReport(found) {
  report = found === null ? null : await ask("status/report").then(
    (answer) => answer.json(),
    (error) => {
      if (error.status === 404) return null;
      throw error;
    },
  );
  version = found;
  showReport(report);
}

function draw() {
  model = offer(status.models);
  const ours = report?.model === model.id ? report : null;
  show($("gate"), false);
  show($("page"), true);
  show($("rest"), true);
  show($("nav"), true);
  show($("forget"), Boolean(key()));
  show($("licences"), !key()); // a plain link sends no key
  showStatus(status, model, ours);
  allow(model, status.models);
  settings(model, status.models);
}

function plan() {
  clearTimeout(timer);
  if (document.visibilityState === "visible" && $("gate").hidden) timer = setTimeout(look, EVERY_MS);
}

/** Ask for the key. One that was kept and is refused is forgotten. */
function lock() {
  const refused = Boolean(key());
  keep("");
  show($("page"), false);
  show($("nav"), false);
  show($("forget"), false);
  show($("gate"), true);
  document.title = "Key needed · edgekit";
  if (refused) say($("gate-error"), "The server no longer takes that key.");
  $("gate-key").focus();
}

async function unlock(event) {
  event.preventDefault();
  const given = $("gate-key").value.trim();
  say($("gate-error"), "");
  try {
    if (!/^[\x21-\x7e]+$/.test(given)) throw new Refused(NO_KEY); // no header could carry it
    await ask("status", { as: given });
  } catch (error) {
    say($("gate-error"), error.status === 401 ? NO_KEY : error.message);
    $("gate-key").select();
    return;
  }
  keep(given);
  $("gate-key").value = "";
  show($("gate"), false);
  await look();
  $("main").focus();
}

$("gate-form").addEventListener("submit", unlock);
$("forget").addEventListener("click", () => {
  keep("");
  // A new page holds nothing of what this one showed.
  location.reload();
});
$("model").addEventListener("change", draw);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && $("gate").hidden) look();
  else clearTimeout(timer);
});
play(() => model, () => fills(model, status.models));
look();
