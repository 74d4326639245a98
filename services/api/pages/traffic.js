// Rates, charts, meters, verdicts, rings: what the counters say.

import { $, element, keep, percent, say, short, span, whole } from "./dom.js";

const KEPT_S = 180;
const COLOURS = 8;

/** What went by each second, from two pictures' totals. */
export class Rates {
  constructor() {
    this.in = this.out = this.flows = null;
    this.byNode = new Map();
    this.verdicts = new Map();
    this.series = [[], [], []];
    this.before = null;
  }

  take(picture) {
    const now = totals(picture), before = this.before;
    if (now.at == null || now.at === before?.at) return;
    this.before = now;
    if (!before || now.at < before.at) return;
    const seconds = (now.at - before.at) / 1000;
    const rate = (after, earlier) => Math.max(0, (after - (earlier ?? after)) / seconds);
    this.in = rate(now.in, before.in);
    this.out = rate(now.out, before.out);
    this.flows = rate(now.flows, before.flows);
    this.byNode = new Map([...now.byNode].map(([id, count]) => [id, rate(count, before.byNode.get(id))]));
    this.verdicts = new Map(Object.entries(picture.verdicts).map(([name, count]) => [name, rate(count, before.verdicts[name])]));
    for (const [row, value] of [[0, Date.now() / 1000], [1, this.in], [2, this.out]]) {
      this.series[row].push(value);
      if (this.series[row].length > KEPT_S) this.series[row].shift();
    }
  }
}

function totals(picture) {
  const sum = { at: picture.counted_ms, in: 0, out: 0, flows: 0, byNode: new Map(), verdicts: picture.verdicts };
  for (const node of picture.nodes ?? []) {
    let packets = 0;
    for (const seat of node.services) {
      sum.in += seat.packets_in;
      sum.out += seat.packets_out;
      sum.flows += seat.flows;
      packets += seat.packets_in + seat.packets_out;
    }
    sum.byNode.set(node.id, packets);
  }
  return sum;
}

// ---------------------------------------------------------------------------- the chart

let chart = null;

export function drawChart(rates) {
  const place = $("packets-chart");
  if (!chart) {
    chart = new uPlot(options(place), rates.series, place);
    new ResizeObserver(() => chart.setSize({ width: place.clientWidth, height: place.clientHeight })).observe(place);
  } else chart.setData(rates.series);
  place.setAttribute("aria-label", `Packets a second over the last three minutes: now ${short(rates.in)} in and ${short(rates.out)} out`);
}

/** The colours are the theme's, so a chart belongs to one. */
export function forgetChart() {
  chart?.destroy();
  chart = null;
}

function options(place) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  const line = (label, name) => ({ label, stroke: colour(name), width: 2, fill: `${colour(name)}18`, points: { show: false } });
  return {
    width: place.clientWidth, height: place.clientHeight, legend: { show: false }, cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_chart, _low, high) => [0, Math.max(10, (high ?? 0) * 1.15)] } },
    axes: [axis, { ...axis, size: 56, values: (_chart, values) => values.map(short) }],
    series: [{}, line("in", "--in"), line("out", "--out")],
  };
}

// ---------------------------------------------------------------------------- room and verdicts

export function drawRoom(picture) {
  const dataplane = picture.status.dataplane;
  const used = (dataplane?.conntrack_established ?? 0) + (dataplane?.conntrack_half_open ?? 0);
  meter("flow", used, dataplane?.conntrack_capacity, `${whole(dataplane?.conntrack_half_open)} of them half-open`);
  meter("port", picture.snat_ports_used ?? 0, picture.snat_ports_capacity, "");
  say($("rest"), picture.snat_port_rest_s == null ? "none taken again yet" : span(1000 * picture.snat_port_rest_s));
}

function meter(name, used, capacity, more) {
  const part = capacity ? Math.min(1, used / capacity) : 0;
  $(`${name}-meter`).value = part;
  say($(`${name}-words`), capacity ? `${whole(used)} of ${whole(capacity)} (${percent(part)})${more ? `, ${more}` : ""}` : "not known yet");
}

export function drawVerdicts(picture, rates) {
  const rows = Object.entries(picture.verdicts).filter(([, count]) => count > 0)
    .map(([name, count]) => ({ name, count, rate: rates.verdicts.get(name) ?? 0 }))
    .sort((a, b) => b.rate - a.rate || b.count - a.count || a.name.localeCompare(b.name)).slice(0, 16);
  $("no-verdicts").hidden = rows.length > 0;
  keep($("verdicts").tBodies[0], rows, (row) => row.name, () => element("tr", {}, element("th", { scope: "row" }), element("td"),
    element("td", { class: "number" }), element("td", { class: "number" })), (line, row) => {
    const [hook, reason] = row.name.split(".");
    line.cells[0].classList.toggle("drop", reason.startsWith("drop"));
    [reason, hook, short(row.rate), whole(row.count)].forEach((words, index) => say(line.cells[index], words));
  });
}

export function drawProcesses(status) {
  keep($("processes").tBodies[0], Object.entries(status.processes), ([name]) => name, () => element("tr", {},
    element("th", { scope: "row" }), element("td"), element("td", { class: "number" })), (line, [name, process]) => {
    line.cells[1].classList.toggle("drop", !process.alive);
    const words = process.age_ms == null ? "not yet" : process.alive ? "just now" : `${span(process.age_ms)} ago`;
    [name, process.waiting_for ? `waits: ${process.waiting_for}` : words, process.pid ?? "–"].forEach((each, index) => say(line.cells[index], each));
  });
}

// ---------------------------------------------------------------------------- rings

export function drawRings(picture) {
  const nodes = picture.nodes ?? [];
  const colours = new Map(nodes.map((node, index) => [node.id, `n${index % COLOURS}`]));
  const services = picture.status.services.map((service) => ({
    service, parts: nodes.map((node) => ({ node, share: node.services.find((seat) => seat.service === service.name)?.share ?? 0 }))
      .filter((part) => part.share > 0),
  }));
  keep($("rings"), services, ({ service }) => service.name, () => element("li", { class: "card" },
    element("div", { class: "head" }, element("strong"), element("span", { class: "facts" })),
    element("div", { class: "ring-bar", ariaHidden: "true" }), element("ul", { class: "ring-key" })), (card, { service, parts }) => {
    say(card.querySelector("strong"), service.name);
    const ports = service.ports > 1 ? `${service.port}–${service.port + service.ports - 1}` : service.port;
    say(card.querySelector(".facts"), `${service.protocol} ${service.address ?? "own address"}:${ports} · mode ${service.mode} · by ${service.affinity} · ${service.nodes_up} nodes`);
    keep(card.querySelector(".ring-bar"), parts, (part) => part.node.id, () => element("span"), (bar, part) => {
      bar.className = colours.get(part.node.id);
      bar.style.flexGrow = part.share;
    });
    keep(card.querySelector(".ring-key"), parts, (part) => part.node.id, () => element("li", {}, element("i", { ariaHidden: "true" }), element("span")), (item, part) => {
      item.firstChild.className = colours.get(part.node.id);
      say(item.lastChild, `${part.node.name} ${percent(part.share)}`);
    });
  });
}
