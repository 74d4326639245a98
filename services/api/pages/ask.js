// What changes something, or asks before it: orders to nodes, plan and trace.

import { $, element, keep, say } from "./dom.js";

const MEANINGS = {
  drain: "No new flows; those that are there go on, to the deadline if there is one.",
  enable: "A drain or a ban of an operator's is over.",
  ban: "Nobody routes to it, for as long as the order stands.",
  pardon: "A ban is over, whoever said it, and the node's failures are forgotten.",
  weight: "Its part of the rings, whatever its agent says.",
};

let asked = null;

export function setUpAsking() {
  const token = $("token");
  token.value = sessionStorage.getItem("gale-token") ?? "";
  token.addEventListener("input", () => sessionStorage.setItem("gale-token", token.value));
  $("token-form").addEventListener("submit", (event) => event.preventDefault());
  $("order-cancel").addEventListener("click", () => $("order").close());
  $("order-form").addEventListener("submit", (event) => {
    event.preventDefault();
    giveOrder();
  });
  $("trace").addEventListener("submit", (event) => {
    event.preventDefault();
    const { protocol, source, destination } = Object.fromEntries(new FormData(event.target));
    ask("/v1/trace", { protocol, source: source.trim(), destination: destination.trim() }, $("trace-answer"));
  });
  const plan = $("plan");
  plan.kind.addEventListener("change", () => { $("plan-weight").hidden = plan.kind.value !== "weight"; });
  plan.addEventListener("submit", (event) => {
    event.preventDefault();
    const node = plan.node.value;
    ask("/v1/plan", plan.kind.value === "weight" ? { weights: { [node]: Number(plan.weight.value) } } : { without: [node] }, $("plan-answer"));
  });
}

export function showChoices(nodes) {
  keep($("plan-node"), nodes, (node) => node.id, () => element("option"), (option, node) => {
    option.value = node.id;
    say(option, node.name);
  });
}

/** Open the dialogue for an order about a node, as it is now: its tag goes with the order. */
export async function openOrder(kind, id, name) {
  asked = { kind, id, tag: null };
  say($("order-title"), `${kind[0].toUpperCase()}${kind.slice(1)} ${name}`);
  say($("order-meaning"), MEANINGS[kind]);
  say($("order-answer"), "");
  $("order-within").hidden = kind !== "drain";
  $("order-weight").hidden = kind !== "weight";
  $("order-give").disabled = false;
  $("order").showModal();
  try {
    const answer = await fetch(`/v1/nodes/${encodeURIComponent(id)}`);
    asked.tag = answer.headers.get("etag");
  } catch {
    say($("order-answer"), "The load balancer does not answer.");
  }
}

async function giveOrder() {
  const form = $("order-form");
  const body = { why: form.why.value.trim() };
  if (asked.kind === "weight") body.weight = Number(form.weight.value);
  if (asked.kind === "drain" && form.within.value.trim()) {
    body.within = form.within.value.trim();
  }
  $("order-give").disabled = true;
  const headers = asked.tag ? { "If-Match": asked.tag } : {};
  const { ok, said } = await post(`/v1/nodes/${encodeURIComponent(asked.id)}/${asked.kind}`, body, headers);
  $("order-give").disabled = false;
  if (ok) $("order").close();
  else say($("order-answer"), said);
}

async function ask(path, body, output) {
  say(output, "…");
  const { ok, said } = await post(path, body);
  output.classList.toggle("refused", !ok);
  output.replaceChildren(element("pre", { textContent: said }));
}

async function post(path, body, more = {}) {
  const token = $("token").value;
  const headers = { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}), ...more };
  try {
    const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
    const said = await answer.json();
    return { ok: answer.ok, said: answer.ok ? words(said) : said.detail ?? said.title };
  } catch (error) {
    return { ok: false, said: `The load balancer does not answer (${error.message}).` };
  }
}

/** An answer as indented lines: what a reader needs of JSON, without its punctuation. */
function words(value, depth = 0) {
  const indent = "  ".repeat(depth);
  if (Array.isArray(value)) return value.map((each) => (typeof each === "object" ? words(each, depth) : `${indent}${each}`)).join("\n");
  if (value === null || typeof value !== "object") return `${indent}${value}`;
  return Object.entries(value).map(([name, each]) => (each !== null && typeof each === "object"
    ? `${indent}${name}\n${words(each, depth + 1)}` : `${indent}${name.replaceAll("_", " ")}: ${each}`)).join("\n");
}
