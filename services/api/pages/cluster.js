// The cluster as a picture: clients, load balancers, nodes, and what runs between them.

import { $, element, keep, kind, percent, say, short, span } from "./dom.js";

const MOST_WIRED = 24;
const SVG = "http://www.w3.org/2000/svg";

export function drawCluster(picture, rates, give) {
  const { status, nodes } = picture;
  say($("in-rate"), short(rates.in));
  say($("out-rate"), short(rates.out));
  say($("flow-rate"), short(rates.flows));
  say($("summary"), summary(status, nodes ?? []));
  keep($("lbs"), members(status), (each) => each.address, makeLb, (card, each) => showLb(card, each, status));
  keep($("nodes"), nodes ?? [], (each) => each.id, (each) => makeNode(each, give), showNode);
  $("no-nodes").hidden = (nodes ?? []).length > 0;
  drawWires(picture, rates);
}

function summary(status, nodes) {
  const up = nodes.filter((node) => node.state === "up").length;
  const leader = status.quorum?.leader;
  const holders = (status.quorum?.vips ?? []).map((vip) => `${vip.address} is at ${vip.holder ?? "nobody"}`);
  const agreed = !status.quorum ? "The quorum has not spoken yet." : status.quorum.quorum
    ? `The load balancers agree${leader ? `, ${leader} leads` : ""}.` : "No majority of load balancers is heard: nothing new can be agreed.";
  return [`${up} of ${nodes.length} nodes up.`, agreed, holders.length ? `${holders.join(", ")}.` : ""].join(" ");
}

function members(status) {
  const { quorum } = status;
  if (!quorum) return [{ name: status.name, address: "", alive: true, isSelf: true }];
  return quorum.members.map((member) => ({ ...member, isSelf: member.name === quorum.name }));
}

function makeLb() {
  return element("li", { class: "card lb" },
    element("div", { class: "head" }, element("strong"), element("span", { class: "state" })),
    element("p", { class: "facts" }), element("p", { class: "facts vips" }),
    element("div", { class: "bar-of lease" }, element("span")));
}

function showLb(card, member, status) {
  const quorum = status.quorum ?? {};
  const isLeader = member.name && member.name === quorum.leader;
  const held = (quorum.vips ?? []).filter((vip) => vip.holder && vip.holder === member.name);
  card.classList.toggle("self", member.isSelf);
  card.classList.toggle("gone", !member.alive);
  say(card.querySelector("strong"), (member.name || member.address) + (member.isSelf ? " (this one)" : ""));
  const state = card.querySelector(".state");
  state.className = `state ${member.alive ? (isLeader ? "" : "is-up") : "is-bad"}`;
  say(state, member.alive ? (isLeader ? "leader" : "follower") : "not heard");
  const why = member.why_not ?? [];
  const eligible = !member.alive ? "" : why.length ? ` · may hold no VIP: ${why.join(", ")}` : " · eligible";
  const trouble = [member.staged && "another configuration is staged", member.listed && "another list of load balancers is staged", member.trouble].filter(Boolean).map((each) => ` · ${each}`).join("");
  const heard = member.isSelf ? "" : ` · heard ${span(member.heard_ms)} ago`;
  say(card.querySelector(".facts"), `term ${member.term ?? "–"} · epoch ${member.epoch ?? "–"}${eligible}${heard}${trouble}`);
  say(card.querySelector(".vips"), held.length ? `holds ${held.map((vip) => vip.address).join(", ")}${
    member.isSelf && quorum.lease_remaining_ms ? ` · lease ${span(quorum.lease_remaining_ms)}` : ""}` : "holds no VIP");
  const lease = card.querySelector(".lease");
  lease.hidden = !(member.isSelf && quorum.lease_remaining_ms);
  lease.firstChild.style.width = `${Math.min(100, quorum.lease_remaining_ms / 2.25)}%`;
}

const ORDERS = ["drain", "enable", "ban", "pardon", "weight"];

function makeNode(node, give) {
  const orders = element("div", { class: "orders" });
  for (const order of ORDERS) {
    const button = element("button", { type: "button", textContent: order });
    button.setAttribute("aria-label", `${order} ${node.name}`);
    button.addEventListener("click", () => give(order, node.id, node.name));
    orders.append(button);
  }
  return element("li", { class: "card node" },
    element("div", { class: "head" }, element("strong"), element("span", { class: "state" })),
    element("p", { class: "facts" }), element("p", { class: "why" }),
    element("div", { class: "bar-of share" }, element("span")),
    element("ul", { class: "chips", ariaLabel: `Services of ${node.name}` }),
    element("details", {}, element("summary", { textContent: "Why, and orders" }), element("dl"), orders));
}

function showNode(card, node) {
  say(card.querySelector("strong"), node.name);
  const state = card.querySelector(".state");
  state.className = `state ${kind(node.state)}`;
  say(state, node.state);
  card.classList.toggle("bad", kind(node.state) === "is-bad");
  card.classList.toggle("warn", kind(node.state) === "is-warn");
  card.classList.toggle("gone", node.share === 0);
  say(card.querySelector(".facts"), `${node.address} · ${percent(node.share)} of the rings · weight ${node.weight}`);
  say(card.querySelector(".why"), node.order ? `${node.reason} · order: ${orderWords(node.order)}` : node.reason);
  card.querySelector(".share span").style.width = percent(node.share).replace(" ", "");
  keep(card.querySelector(".chips"), node.services, (seat) => seat.service, () => element("li"), (chip, seat) => {
    const sick = seat.state !== "up" || seat.reason !== "";
    chip.classList.toggle("bad", sick);
    say(chip, `${seat.service} ${sick ? seat.reason || seat.state : percent(seat.share)}`);
  });
  showWhy(card.querySelector("dl"), node);
}

function orderWords(order) {
  const asked = order.asked ?? order;
  return [asked.what ?? asked.kind, asked.why && `“${asked.why}”`, asked.by && `by ${asked.by}`].filter(Boolean).join(" ");
}

function showWhy(list, node) {
  const facts = [
    ["Here", `${node.state}: ${node.reason}`],
    ["Agreed", node.agreed_state ?? "not in the table"],
    ["Checks", `${node.checks_passed} of ${node.checks_required} in a row`],
    ["Fails", node.fails],
    ["Ban", node.banned_for_ms ? `${span(node.banned_for_ms)} left` : "none"],
    ["Seen", `${span(node.observed_ms)} ago`],
    ["Load", Number(node.load).toFixed(2)],
    ...node.services.map((seat) => [seat.service,
      `port ${seat.port ?? "–"}, ${seat.slots} slots, next hop ${seat.resolved ? "known" : "asked for"}`]),
  ];
  keep(list, facts.flatMap(([term, words]) => [[`t ${term}`, "dt", term], [`d ${term}`, "dd", words]]),
    ([key]) => key, ([, tag]) => element(tag), (item, [, , words]) => say(item, words));
}

// ---------------------------------------------------------------------------- wires

function drawWires(picture, rates) {
  const wires = $("wires");
  const lbs = [...$("lbs").children], nodes = [...$("nodes").children];
  const wanted = [];
  if (nodes.length <= MOST_WIRED && getComputedStyle(wires).display !== "none") {
    const client = document.querySelector(".clients .card");
    const self = $("lbs").querySelector(".self") ?? lbs[0];
    for (const lb of lbs) wanted.push({ key: `c ${lb.dataset.key}`, from: client, to: lb, width: 1.5, rate: lb === self ? rates.in : 0 });
    for (const [index, node] of (picture.nodes ?? []).entries()) {
      if (self && node.share > 0) wanted.push({ key: `n ${node.id}`, from: self, to: nodes[index],
        width: 1 + 5 * node.share, rate: rates.byNode.get(node.id) ?? 0 });
    }
  }
  const paths = wanted.flatMap((wire) => [{ ...wire, live: false }, ...(wire.rate > 0 ? [{ ...wire, key: `l ${wire.key}`, live: true }] : [])]);
  const origin = wires.getBoundingClientRect();
  keep(wires, paths, (path) => path.key, () => document.createElementNS(SVG, "path"), (path, wire) => {
    const d = curve(wire.from.getBoundingClientRect(), wire.to.getBoundingClientRect(), origin);
    if (path.getAttribute("d") !== d) path.setAttribute("d", d);
    path.classList.toggle("live", wire.live);
    if (!wire.live) path.style.strokeWidth = wire.width;
    else {
      const speed = `${Math.max(0.35, 2.4 - 0.5 * Math.log10(1 + wire.rate)).toFixed(1)}s`;
      if (path.style.animationDuration !== speed) path.style.animationDuration = speed;
    }
  });
}

function curve(from, to, origin) {
  const x1 = from.right - origin.left, y1 = from.top + Math.min(34, from.height / 2) - origin.top;
  const x2 = to.left - origin.left, y2 = to.top + Math.min(34, to.height / 2) - origin.top;
  const bend = (x2 - x1) / 2;
  return `M${x1.toFixed(1)} ${y1.toFixed(1)}C${(x1 + bend).toFixed(1)} ${y1.toFixed(1)} ${(x2 - bend).toFixed(1)} ${y2.toFixed(1)} ${x2.toFixed(1)} ${y2.toFixed(1)}`;
}
