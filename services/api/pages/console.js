// The console of one load balancer: it lives on one stream of pictures (/v1/live) and draws each.

import { openOrder, setUpAsking, showChoices } from "./ask.js";
import { drawCluster } from "./cluster.js";
import { $, element, keep, say, span } from "./dom.js";
import { catchUp, setUpEvents, showEvent } from "./events.js";
import { drawChart, drawProcesses, drawRings, drawRoom, drawVerdicts, forgetChart, Rates } from "./traffic.js";

const OLD_MS = 4000;
const TOPICS = ["node.joined.", "node.up.", "node.down.", "node.draining.", "node.suspect.", "node.banned.", "node.pardoned.",
  "vip.acquired.", "vip.lost.", "quorum.leader.", "quorum.lost.", "quorum.regained.", "quorum.peer_refused.", "quorum.member_added.",
  "quorum.member_removed.", "order.given.", "config.staged.", "config.committed.", "table.committed.", "dataplane.attached.",
  "dataplane.degraded.", "process.started."];

const rates = new Rates();
let newest = null;
let heardAt = null;

function draw() {
  if (!newest) return;
  const { status } = newest;
  say($("lb-name"), status.name);
  document.title = `Gale · ${status.name}`;
  say($("version"), `Gale ${status.version}`);
  const readiness = $("readiness");
  readiness.className = `pill ${status.ready ? "is-up" : "is-bad"}`;
  say(readiness, status.ready ? "ready" : "not ready");
  keep($("notices"), [...status.not_ready, ...status.warnings, ...(status.quorum?.staged ? [`Configuration: ${status.quorum.staged}`] : []),
    ...(status.quorum?.listed ? [`List of load balancers: ${status.quorum.listed}`] : [])], (line) => line,
    () => element("p", { class: "notice" }), (notice, line) => say(notice, line));
  drawCluster(newest, rates, openOrder);
  drawChart(rates);
  drawRoom(newest);
  drawVerdicts(newest, rates);
  drawProcesses(status);
  drawRings(newest);
  showChoices(newest.nodes ?? []);
}

function showFreshness() {
  const age = heardAt === null ? null : Date.now() - heardAt;
  const isOld = age === null || age > OLD_MS;
  say($("freshness"), isOld && newest ? `no word for ${span(age)}: what you see is old` : "");
  if (isOld) {
    $("readiness").className = "pill is-warn";
    say($("readiness"), newest ? "not heard" : "connecting");
  }
}

function listen() {
  const live = new EventSource("/v1/live");
  live.addEventListener("open", () => catchUp().catch(() => {}));
  live.addEventListener("picture", (event) => {
    newest = JSON.parse(event.data);
    heardAt = Date.now();
    rates.take(newest);
    requestAnimationFrame(draw);
  });
  for (const topic of TOPICS) live.addEventListener(topic, (event) => showEvent(JSON.parse(event.data)));
  live.addEventListener("error", () => {
    // A browser gives up for good on an answer that is no stream, as while the API restarts.
    if (live.readyState === EventSource.CLOSED) setTimeout(listen, 1000);
  });
}

function setUpTheme() {
  const root = document.documentElement;
  const kept = localStorage.getItem("gale-theme");
  if (kept) root.dataset.theme = kept;
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", forgetChart);
  $("theme").addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
    root.dataset.theme = isDark ? "light" : "dark";
    localStorage.setItem("gale-theme", root.dataset.theme);
    forgetChart();
    draw();
  });
}

setUpTheme();
setUpAsking();
setUpEvents();
listen();
setInterval(showFreshness, 500);
addEventListener("resize", () => requestAnimationFrame(draw));
$("nodes").addEventListener("toggle", () => requestAnimationFrame(draw), true);
