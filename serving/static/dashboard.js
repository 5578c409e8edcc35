// Generations over time: what changed, and why the gate let them in or not.

import { ask, say, withKey } from "./api.js";
import { chart } from "./chart.js";
import { byId, element, number, percent } from "./dom.js";

async function begin() {
  const [{ wheel, champion, missing, generations }, settings] = await Promise.all([ask("/api/generations"), ask("/api/settings")]);
  byId("generation").textContent = settings.generation;
  byId("wheel").textContent = wheel ? `Generations of ${wheel}` : "Generations";
  say(missing ?? `${generations.length} generations; ${champion ?? "none"} is the champion.`);
  for (const section of byId("content").children) section.hidden = generations.length === 0;
  if (generations.length === 0) return;
  byId("charts").replaceChildren(...charts(generations));
  byId("turns").replaceChildren(...turns(generations));
  byId("verdicts").replaceChildren(...[...generations].reverse().map(verdict));
}

function charts(generations) {
  const ids = generations.map((one) => one.id);
  const made = metricNames(generations).map(({ model, metric }) => {
    const of = (field) => generations.map((one) => one.metrics.find((m) => m.model === model && m.metric === metric)?.[field] ?? null);
    const lines = [
      { name: "candidate", values: of("candidate") },
      { name: "champion before it", values: of("champion") },
      { name: "popularity", values: of("popularity") },
    ];
    return chart({ title: `${model}: ${metric}`, ids, lines, show: number });
  });
  const figure = (title, value, show, hint) =>
    made.push(chart({ title, ids, lines: [{ name: title, values: generations.map(value) }], show, hint, from: 0 }));
  figure("Share explored", (one) => one.explored_share, percent, "Of all titles shown, those that chance put there.");
  figure("Popularity amplification", (one) => one.amplification, number, "Above 1 popular titles are shown more often than people took them.");
  figure("Columns drifted", (one) => one.drift?.drifted.length ?? null, number, "Since the champion's snapshot.");
  figure("Events of the loop", (one) => one.served_events, number, "Made of impressions and actions.");
  return made.filter((one) => one !== null);
}

function metricNames(generations) {
  const named = new Map();
  for (const one of generations) for (const { model, metric } of one.metrics) named.set(`${model} ${metric}`, { model, metric });
  return [...named.values()];
}

function turns(generations) {
  const names = ["Generation", "Begun", "Outcome", "Events", "New", "Drifted", "Skewed", "Requests", "Explored", "Amplification"];
  const head = element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))));
  const rows = [...generations].reverse().map((one) => {
    const n = (text) => element("td", { class: "n" }, text);
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, one.id),
      element("td", {}, one.started_at.slice(0, 16).replace("T", " ")),
      element("td", {}, element("span", { class: `outcome ${one.outcome}` }, one.in_service ? `${one.outcome}, in service` : one.outcome)),
      n(number(one.events)),
      n(number(one.new_events)),
      n(one.drift ? `${one.drift.drifted.length} of ${one.drift.columns}` : "–"),
      n(one.skew ? `${one.skew.skewed.length} of ${one.skew.features}` : "–"),
      n(number(one.served?.requests)),
      n(percent(one.explored_share)),
      n(number(one.amplification)),
    );
  });
  return [head, element("tbody", {}, ...rows)];
}

function verdict(one) {
  const failed = one.verdict?.checks.filter((check) => check.verdict === "failed") ?? [];
  const said = one.verdict === null ? "no verdict" : failed.length ? `refused: ${failed.map((check) => words(check.check)).join(", ")}` : "passed";
  const checks = (one.verdict?.checks ?? []).map((check) =>
    element(
      "li",
      {},
      element("span", { class: `outcome ${check.verdict}` }, check.verdict),
      element("strong", {}, ` ${words(check.check)}`),
      element("ul", {}, ...check.reasons.map((reason) => element("li", {}, reason))),
    ),
  );
  const drifted = (one.drift?.drifted ?? []).map((column) =>
    element("li", {}, column.measure ? `${column.column}: ${column.measure.name} ${number(column.measure.value)} (limit ${number(column.measure.threshold)})` : column.column),
  );
  return element(
    "details",
    { open: failed.length > 0 },
    element("summary", {}, element("strong", {}, one.id), ` · ${said}`),
    checks.length ? element("ul", { class: "checks" }, ...checks) : null,
    drifted.length ? element("p", {}, "Drifted columns") : null,
    drifted.length ? element("ul", {}, ...drifted) : null,
  );
}

const words = (name) => name.replaceAll("_", " ");

withKey(begin);
