// A small line chart in SVG, one point a generation; its figures are in its label, too, for who cannot see it.

import { element, svg } from "./dom.js";

const WIDTH = 340, HEIGHT = 150;
const LEFT = 46, RIGHT = 18, TOP = 10, BOTTOM = 24;

export function chart({ title, ids, lines, show, hint, from }) {
  const drawn = lines.filter((line) => line.values.some((value) => value !== null));
  if (drawn.length === 0) return null;
  const values = drawn.flatMap((line) => line.values).filter((value) => value !== null);
  const [low, high] = bounds(values, from);
  const x = (place) => (ids.length === 1 ? (LEFT + WIDTH - RIGHT) / 2 : LEFT + (place / (ids.length - 1)) * (WIDTH - LEFT - RIGHT));
  const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const said = drawn.map((line) => `${line.name}: ${line.values.map((value, place) => `${ids[place]} ${show(value)}`).join(", ")}`);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${said.join(". ")}` });
  for (const value of [low, (low + high) / 2, high]) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    picture.append(svg("text", { class: "tick", x: LEFT - 5, y: y(value) + 3.5, "text-anchor": "end" }, show(value)));
  }
  const every = Math.ceil(ids.length / 6);
  ids.forEach((id, place) => {
    if (place % every === 0) picture.append(svg("text", { class: "tick", x: x(place), y: HEIGHT - 7, "text-anchor": "middle" }, id));
  });
  drawn.forEach((line, number) => picture.append(...drawLine(line, number, ids, x, y, show)));
  const keys = drawn.map((line, number) => element("li", { class: `series-${number}` }, line.name));
  const caption = element("figcaption", {}, element("strong", {}, title), hint ? element("span", { class: "hint" }, ` ${hint}`) : null);
  return element("figure", {}, caption, picture, drawn.length > 1 ? element("ul", { class: "keys" }, ...keys) : null);
}

function bounds(values, from) {
  let low = Math.min(...values, from ?? Infinity), high = Math.max(...values);
  if (low === high) [low, high] = [low - (from === undefined ? 0.5 : 0), high + (from === undefined ? 0.5 : 1)];
  const room = (high - low) * 0.08;
  return [from === undefined ? low - room : low, high + room];
}

// A generation without the figure is a gap, not a zero.
function drawLine(line, number, ids, x, y, show) {
  const parts = [], points = [];
  let pen = "M";
  line.values.forEach((value, place) => {
    if (value === null) {
      pen = "M";
      return;
    }
    parts.push(`${pen}${x(place).toFixed(1)} ${y(value).toFixed(1)}`);
    pen = "L";
    const tip = svg("title", {}, `${ids[place]} ${line.name}: ${show(value)}`);
    points.push(svg("circle", { class: `series-${number}`, cx: x(place), cy: y(value), r: 3.2 }, tip));
  });
  return [svg("path", { class: `series-${number}`, d: parts.join("") }), ...points];
}
