// A person, titles for them, what they click, and what was logged of it.

import { ask, generationInService, say, tell, withKey } from "./api.js";
import { byId, clockTime, element, number } from "./dom.js";

const POLL_MS = 5000;
const TITLES = 12;
const state = { person: null, generation: null, answered: null, actions: [] };

async function begin() {
  const settings = await ask("/api/settings");
  state.actions = settings.actions;
  showGeneration(settings.generation);
  byId("find-hint").textContent =
    `${number(settings.num_users)} people and ${number(settings.num_items)} titles; shown by ${settings.policy}.`;
  await Promise.all([find(""), showPopular()]);
}

function showGeneration(generation) {
  state.generation = generation;
  byId("generation").textContent = generation;
}

// --- the person ---

let searches = 0;
async function find(prefix) {
  const search = ++searches;
  const { users } = await ask(`/api/users?${new URLSearchParams({ prefix })}`);
  if (search !== searches) return; // a later one has been asked for
  const chips = users.map((user) =>
    element("li", {}, element("button", { type: "button", onclick: () => choose(user) }, user)),
  );
  byId("found").replaceChildren(...(chips.length ? chips : [element("li", { class: "hint" }, "Nobody's id begins so.")]));
}

async function choose(person) {
  state.person = person;
  byId("person").textContent = person;
  await showAll();
}

function newPerson() {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  return `new-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

// --- rows ---

async function showAll() {
  if (state.person === null) return;
  byId("for-you").setAttribute("aria-busy", "true");
  try {
    const answer = await ask("/recommend", { user_id: state.person, k: TITLES });
    state.answered = answer;
    showGeneration(answer.generation);
    byId("swap").hidden = true;
    showTitles(answer);
    await Promise.all([showWatched(), showLogged(), showPopular()]);
    say(`${answer.items.length} titles for ${state.person}.`);
  } catch (error) {
    tell(error);
  } finally {
    byId("for-you").removeAttribute("aria-busy");
  }
}

function showTitles(answer) {
  byId("for-you").hidden = false;
  const why = answer.fallback ? ` The models did not answer (${answer.fallback}): these are popular ones.` : "";
  byId("answer").textContent = `Answered by generation ${answer.generation}.${why} Buttons tell the server what you did.`;
  const cards = answer.items.map((item) => {
    const facts = element("p", { class: "facts" }, `#${item.position + 1} · p = ${number(item.propensity, 2)}`);
    return card(item, facts, ...state.actions.map((kind) => actionButton(answer, item, kind)));
  });
  byId("for-you").querySelector("ol").replaceChildren(...cards);
}

async function showWatched() {
  const { items } = await ask(`/api/watched?${new URLSearchParams({ user_id: state.person })}`);
  const section = byId("watched");
  section.hidden = false;
  const cards = items.map((item) => card(item, element("p", { class: "facts" }, item.action ? `${item.action}, ${clockTime(item.time_ms)}` : "before this generation")));
  section.querySelector("ul").replaceChildren(...cards);
  section.querySelector("ul").hidden = cards.length === 0;
  section.querySelector(".empty").hidden = cards.length > 0;
}

async function showPopular() {
  const { items } = await ask("/api/popular");
  byId("popular").querySelector("ul").replaceChildren(...items.map((item) => card(item)));
}

function card(item, ...more) {
  const art = element("div", { class: "art", "aria-hidden": "true" }, initials(item.title));
  art.style.setProperty("--hue", hue(item.item_id));
  const made = element("li", { class: "card" }, art, element("h3", {}, item.title), ...more);
  made.dataset.item = item.item_id;
  return made;
}

function initials(title) {
  const words = title.split(/[^\p{L}\p{N}]+/u).filter((word) => word && !/^(the|a|an|of|and)$/i.test(word));
  return words.slice(0, 2).map((word) => [...word][0].toUpperCase()).join("") || "•";
}

function hue(text) {
  let sum = 0;
  for (const char of text) sum = (sum * 31 + char.codePointAt(0)) % 9973;
  return (sum * 137) % 360; // neighbours far apart
}

// --- feedback ---

function actionButton(answer, item, kind) {
  if (!kind.needs_value) {
    const button = element("button", { type: "button", class: "action" }, kind.action);
    button.setAttribute("aria-label", `${kind.action}: ${item.title}`);
    button.addEventListener("click", () => act(answer, item, kind.action, null, button));
    return button;
  }
  const input = element("input", { type: "number", step: "any", required: true, "aria-label": `${kind.action} of ${item.title}` });
  const button = element("button", { type: "submit", class: "action" }, kind.action);
  const form = element("form", { class: "valued" }, input, button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act(answer, item, kind.action, input.valueAsNumber, button);
  });
  return form;
}

async function act(answer, item, action, value, button) {
  // The same id for the same button: a second click is the same action to the server.
  button.dataset.id ??= crypto.randomUUID?.() ?? newPerson();
  const told = { request_id: answer.request_id, item_id: item.item_id, user_id: state.person, action, action_id: button.dataset.id };
  if (value !== null) told.value = value;
  try {
    await ask("/feedback", { actions: [told] });
    button.setAttribute("aria-pressed", "true");
    button.textContent = `${action} ✓`;
    await Promise.all([showWatched(), showLogged()]);
    say(`Logged: ${action} on ${item.title}.`);
  } catch (error) {
    tell(error);
  }
}

// --- the log ---

async function showLogged() {
  const { impressions } = await ask(`/api/impressions?${new URLSearchParams({ user_id: state.person })}`);
  byId("logged").hidden = false;
  byId("impressions").replaceChildren(...impressions.map((one, place) => impression(one, place === 0)));
  markExplored(impressions.find((one) => one.request_id === state.answered?.request_id));
}

function impression(one, open) {
  const explored = one.items.filter((item) => item.explored).length;
  const summary = element(
    "summary",
    {},
    element("strong", {}, clockTime(one.time_ms)),
    ` · generation ${one.generation} · ${one.items.length} titles, ${explored} by chance`,
    one.num_candidates > 1 ? ` among ${number(one.num_candidates)}` : "",
    one.fallback ? ` · fallback: ${one.fallback}` : "",
  );
  const head = element("tr", {}, ...["#", "Title", "Score", "Propensity", "Chosen", "Done"].map((name) => element("th", { scope: "col" }, name)));
  const rows = one.items.map((item) =>
    element(
      "tr",
      { class: item.explored ? "explored" : null },
      element("td", { class: "n" }, String(item.position + 1)),
      element("th", { scope: "row" }, item.title),
      element("td", { class: "n" }, number(item.score)),
      element("td", { class: "n" }, number(item.propensity)),
      element("td", {}, item.explored ? "by chance" : "best left"),
      element("td", {}, item.actions.join(", ")),
    ),
  );
  const facts = element("p", { class: "hint" }, `Request ${one.request_id}, policy ${one.policy}.`);
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  return element("details", { open }, summary, facts, element("div", { class: "scroll" }, table));
}

function markExplored(logged) {
  for (const item of logged?.items ?? []) {
    if (!item.explored) continue;
    const shown = [...byId("for-you").querySelectorAll(".card")].find((one) => one.dataset.item === item.item_id);
    if (shown && !shown.querySelector(".badge")) shown.append(element("span", { class: "badge" }, "explored"));
  }
}

// --- the champion changes while the page is open ---

async function look() {
  if (document.hidden || state.generation === null) return;
  const health = await generationInService();
  const now = health?.generation;
  if (!now || now === state.generation) return;
  byId("swap-text").textContent = `Generation ${now} is in service now; these titles are of generation ${state.generation}.`;
  byId("swap").hidden = false;
}

byId("find-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const person = byId("find").value.trim();
  if (person) choose(person).catch(tell);
});
byId("find").addEventListener("input", () => find(byId("find").value.trim()).catch(tell));
byId("new-person").addEventListener("click", () => choose(newPerson()).catch(tell));
byId("refresh").addEventListener("click", () => {
  const back = byId("for-you-heading");
  byId("swap").hidden = true;
  if (state.person === null) begin().catch(tell);
  else showAll().then(() => back.scrollIntoView());
});
setInterval(() => look().catch(tell), POLL_MS);
withKey(begin);
