"use strict";

const byId = (id) => document.getElementById(id);
const sockets = new Set();
let opened = 0;

function say(text, bad = false) {
  const log = byId("log");
  const line = document.createElement("li");
  line.textContent = text;
  line.classList.toggle("bad", bad);
  log.append(line);
  while (log.children.length > 200) log.firstChild.remove();
  log.scrollTop = log.scrollHeight;
}

// -- the client ---------------------------------------------------------------------------------------------

function connect() {
  const tab = ++opened;
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const user = encodeURIComponent(byId("user").value);
  const socket = new WebSocket(`${scheme}://${location.host}/ws?user=${user}`, "supervisor.v1.json");
  sockets.add(socket);
  socket.onopen = () => socket.send(JSON.stringify({ op: "join", room: byId("room").value }));
  socket.onmessage = (event) => say(`tab ${tab} ← ${event.data}`);
  socket.onclose = (event) => {
    sockets.delete(socket);
    say(`tab ${tab} closed: ${event.code} ${event.reason}`, event.code >= 4000 || event.code === 1006);
  };
}

byId("connect").onclick = connect;
byId("tabs").onclick = () => { for (let tab = 0; tab < 6; tab++) connect(); };
byId("leave").onclick = () => { for (const socket of sockets) socket.close(1000); };
byId("talk").onsubmit = (event) => {
  event.preventDefault();
  const socket = [...sockets].findLast((candidate) => candidate.readyState === WebSocket.OPEN);
  if (!socket) return say("connect first", true);
  socket.send(JSON.stringify({ op: "publish", room: byId("room").value, data: byId("message").value }));
  byId("message").value = "";
};

// -- the house ----------------------------------------------------------------------------------------------

const FIGURES = ["connections", "users", "rooms", "leaving", "closing", "stuck", "admitted", "shed"];

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function showFigures(statistics) {
  byId("figures").replaceChildren(...FIGURES.map((name) => {
    const box = document.createElement("div");
    box.append(element("dt", name), element("dd", statistics[name]));
    return box;
  }));
  byId("fill").value = statistics.connections / statistics.total_limit;
}

function showUsers(connections, perUser) {
  const users = Map.groupBy ? Map.groupBy(connections, (one) => one.user) : connections.reduce(
    (map, one) => map.set(one.user, [...(map.get(one.user) ?? []), one]), new Map());
  byId("users").replaceChildren(...[...users].map(([user, theirs]) => {
    const row = document.createElement("li");
    row.append(element("b", user), ` ${theirs.length} of ${perUser}`, document.createElement("br"));
    row.append(...theirs.map((one) => element("span", `${one.connection} · idle ${Math.round(one.idle)} s`)));
    return row;
  }));
}

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.json()).detail ?? answer.statusText);
  return answer.json();
}

async function look() {
  try {
    const statistics = await ask("/api/statistics");
    showFigures(statistics);
    showUsers((await ask("/api/connections?limit=200")).connections, statistics.per_user_limit);
    byId("state").textContent = statistics.draining ? "draining: nobody is admitted" : "serving";
  } catch (error) {
    byId("state").textContent = `no answer: ${error.message}`;
  }
  setTimeout(look, 1000);
}

look();
