// The page: what the server tells goes to the house, the figures, the time lines and the news.

import { Declined, listen, token } from "./api.js";
import { Chart } from "./chart.js";
import { Client } from "./client.js";
import { House } from "./house.js";
import { Life } from "./life.js";

const byId = (id) => document.getElementById(id);
const FIGURES = ["users", "rooms", "runs", "waiting", "leaving", "closing", "stuck", "shed"];
const NEWS = new Set(["refused", "leaving", "handler_stuck", "handler_returned", "emergency_cleanup", "spared",
  "limits_changed", "run_started", "run_ended", "run_stuck", "failed", "drain_started", "drain_finished", "ordered", "turned_away"]);
const BAD = new Set(["handler_stuck", "failed", "emergency_cleanup", "refused"]);
const MAX_LINES = 100;

const life = new Life(byId("life"));
const house = new House(byId("users"), (whom) => life.open(whom));
const client = new Client((text, bad) => append("log", text, bad));
const charts = [
  new Chart(byId("chart-here"), ["--accent"]),
  new Chart(byId("chart-moves"), ["--accent", "--warm"]),
  new Chart(byId("chart-forced"), ["--bad", "--warm", "--quiet"]),
];
let now = null;
let epoch = null;

function append(list, text, bad = false) {
  const line = document.createElement("li");
  line.textContent = text;
  line.classList.toggle("bad", bad);
  byId(list).prepend(line);
  while (byId(list).children.length > MAX_LINES) byId(list).lastChild.remove();
}

// -- what is told ---------------------------------------------------------------------------------------------

function hear(kind, told) {
  now = told.statistics;
  if (kind === "house") {
    if (epoch !== told.epoch) {  // another server: its c1 is not the one that was here before
      house.clear();
      byId("life").close();
    }
    epoch = told.epoch;
    house.show(told);
    byId("mark").style.left = `${told.shed_at * 100}%`;
  }
  for (const event of told.events ?? []) {
    house.hear(event);
    if (NEWS.has(event.event)) append("news", tidings(event), BAD.has(event.event));
    if (event.event === "emergency_cleanup") alarm(`Emergency cleanup of ${event.limit}: ${event.shed.length} shed`);
  }
  figures();
}

function tidings(event) {
  const who = [event.connection, event.user].filter(Boolean).join(" of ");
  const changes = event.changes && Object.entries(event.changes).map(([name, value]) => `${name} ${value}`).join(", ");
  const what = event.text || event.error || changes || event.outcome || event.limit || event.stuck_at || "";
  const name = [event.event.replaceAll("_", " "), event.order, event.run, event.name].filter(Boolean).join(" ");
  return `${event.at.slice(11, 19)} ${name} ${who} ${what}`.replace(/ +/g, " ");
}

function figures() {
  document.body.classList.remove("lost");
  house.resize(now.per_user_limit);
  byId("here").textContent = now.connections.toLocaleString("en");
  byId("most").textContent = now.total_limit.toLocaleString("en");
  const share = now.connections / now.total_limit;
  const fill = byId("fill");
  fill.firstElementChild.style.width = `${Math.min(1, share) * 100}%`;
  fill.setAttribute("aria-valuemax", now.total_limit);
  fill.setAttribute("aria-valuenow", now.connections);
  byId("figures").replaceChildren(...FIGURES.map((name) => {
    const box = document.createElement("div");
    box.append(Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: now[name].toLocaleString("en") }));
    box.classList.toggle("bad", name === "stuck" && now.stuck > 0);
    return box;
  }));
  const unshown = now.connections - [...house.users.values()].reduce((sum, user) => sum + user.seats.size, 0);
  byId("empty").hidden = now.connections > 0;
  byId("unshown").hidden = unshown <= 0;
  byId("unshown").textContent = `and ${unshown} more that are not drawn`;
  const high = share >= Number.parseFloat(byId("mark").style.left) / 100;
  fill.classList.toggle("high", high);
  if (now.draining) state("draining", "draining: nobody is admitted any more");
  else if (!now.enforce) state("watching", "limits are only watched");
  else if (high) state("emergency", "emergency: above the high-water mark");
  else state("well", now.by_node ? `serving, ${Object.keys(now.by_node).length} nodes` : "serving");
}

function state(word, text) {
  if (word === "lost") {
    document.body.classList.add("lost");
    now = null;
  }
  const place = byId("state");
  if (place.textContent !== text) place.textContent = text;
  place.dataset.state = word;
}

let calm;
function alarm(text) {
  byId("alert").textContent = text;
  byId("alert").classList.remove("hidden");
  clearTimeout(calm);
  calm = setTimeout(() => byId("alert").classList.add("hidden"), 4000);
}

// -- time lines -----------------------------------------------------------------------------------------------

const sum = (counts) => Object.values(counts).reduce((all, one) => all + one, 0);
let before = null;

setInterval(() => {
  if (!now) return;
  const totals = {
    admitted: now.admitted, closed: sum(now.closed), evicted: now.closed.evicted ?? 0, shed: now.closed.shed ?? 0,
    refused: sum(now.refused) + sum(now.turned_away),
  };
  before ??= totals;
  const since = (name) => Math.max(0, totals[name] - before[name]);
  charts[0].add(now.connections);
  charts[1].add(since("admitted"), since("closed"));
  charts[2].add(since("evicted"), since("shed"), since("refused"));
  before = totals;
}, 1000);
addEventListener("resize", () => charts.forEach((chart) => chart.draw()));

// -- staying in touch -----------------------------------------------------------------------------------------

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

const seen = () => new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));

async function watch() {
  for (let tries = 0; ; tries++) {
    while (document.hidden) await seen();
    try {
      await listen((kind, told) => { tries = 0; hear(kind, told); });
      state("lost", "the server has gone; looking for it …");
    } catch (error) {
      if (error instanceof Declined && error.status === 401) return login(token.get() ? error.message : "");
      if (document.hidden) continue;
      state("lost", error instanceof Declined ? error.message : "the server is not there; looking for it …");
    }
    before = null;
    await pause(Math.min(5, 0.5 * 2 ** tries) * (0.5 + Math.random()));
  }
}

function login(why) {
  state("lost", "who looks must say who they are");
  byId("login-why").textContent = why;
  byId("login").hidden = false;
  byId("token").focus();
}

byId("login").onsubmit = (event) => {
  event.preventDefault();
  try {
    token.set(byId("token").value);
  } catch (error) {
    return login(error.message);
  }
  byId("login").hidden = true;
  watch();
};

// -- the client -----------------------------------------------------------------------------------------------

const connect = () => client.connect(byId("user").value, byId("room").value);
byId("connect").onclick = connect;
byId("tabs").onclick = () => { for (let tab = 0; tab < 8; tab++) connect(); };
byId("run").onclick = () => client.run("demo", byId("message").value || null);
byId("leave").onclick = () => client.leave();
byId("talk").onsubmit = (event) => {
  event.preventDefault();
  client.publish(byId("room").value, byId("message").value);
  byId("message").value = "";
};
byId("find").oninput = (event) => house.find(event.target.value);

watch();
