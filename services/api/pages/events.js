// The event log: what was kept, then what happens. The NAT log is not for watching.

import { $, element } from "./dom.js";

const MOST_LINES = 300;
const GOOD = ["node.up.", "quorum.regained.", "vip.acquired.", "node.pardoned.", "dataplane.attached."];
const BAD = ["node.down.", "node.banned.", "quorum.lost.", "vip.lost.", "dataplane.degraded."];
const WARN = ["node.draining.", "node.suspect.", "quorum.peer_refused.", "order.given."];

let last = null;
const seen = new Set();

export function setUpEvents() {
  const filter = $("event-filter");
  filter.addEventListener("change", () => {
    for (const line of $("log-lines").children) line.hidden = !line.dataset.topic.startsWith(filter.value);
  });
}

/** What is in the log since the last one shown: all that is kept, at first. */
export async function catchUp() {
  for (;;) {
    const page = await (await fetch(`/v1/events?since=${encodeURIComponent(last ?? "none:0")}&limit=1000`)).json();
    page.events.forEach(showEvent);
    last = page.next;
    if (page.events.length < 1000) return;
  }
}

export function showEvent(message) {
  last = `${message.boot}:${message.seq}`;
  const origin = `${message.source} ${message.origin.boot} ${message.origin.seq}`;
  if (/^(state|flow)\./.test(message.topic) || seen.has(origin)) return;
  seen.add(origin);
  const at = new Date(message.time_ms);
  const line = element("li", {}, element("time", { dateTime: at.toISOString(), textContent: at.toLocaleTimeString() }),
    element("b", { textContent: message.topic.slice(0, -1) }), element("span", { textContent: words(message) }));
  line.dataset.topic = message.topic;
  line.className = GOOD.includes(message.topic) ? "up" : BAD.includes(message.topic) ? "bad" : WARN.includes(message.topic) ? "warn" : "";
  line.hidden = !message.topic.startsWith($("event-filter").value);
  const lines = $("log-lines");
  lines.prepend(line);
  while (lines.children.length > MOST_LINES) lines.lastChild.remove();
}

function words({ topic, host, data }) {
  if (!data) return host;
  if (topic.startsWith("node.")) return `${data.name}${data.service ? `, ${data.service}` : ""}${data.previous ? `: ${data.previous} → ${data.state}` : `: ${data.state}`}. ${data.reason}`;
  if (topic.startsWith("vip.")) return `${data.address} at ${data.holder ?? "nobody"}, term ${data.term}. ${data.reason}`;
  if (topic.startsWith("table.")) return `epoch ${data.epoch}, ${data.nodes_up} up: ${data.changes.join(", ") || "nothing new"}`;
  if (topic.startsWith("process.")) return `${data.process} pid ${data.pid}${data.adopted ? `, took over ${data.adopted}` : ""}`;
  return Object.entries(data).filter(([, value]) => value !== null && value !== "")
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");
}
