// One user or one connection: what is there, what has happened, and the button that ends it.

import { ask, tell } from "./api.js";

const byId = (id) => document.getElementById(id);
const TOLD = ["run", "name", "outcome", "reason", "text", "what", "error", "stuck_at", "duration", "cleanup"];
const short = (value) => typeof value === "number" && !Number.isInteger(value) ? `${value.toFixed(3)} s` : value;

// What is there already stays what it is, with the focus in it and what is selected; only its words change.
function refill(list, things, keyOf, make) {
  const before = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const after = things.map((thing) => {
    const fresh = make(thing);
    fresh.dataset.key = keyOf(thing);
    const old = before.get(fresh.dataset.key);
    if (!old) return fresh;
    const [was, is] = [texts(old), texts(fresh)];
    if (was.length !== is.length) return fresh;
    was.forEach((text, index) => { if (text.data !== is[index].data) text.data = is[index].data; });
    return old;
  });
  if (after.length !== list.children.length || after.some((child, index) => child !== list.children[index])) {
    list.replaceChildren(...after);
  }
}

function texts(node) {
  return node.nodeType === Node.TEXT_NODE ? [node] : [...node.childNodes].flatMap(texts);
}

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

const left = (card) => card.expires_in === null ? "for ever" : `${Math.max(0, card.expires_in).toFixed(0)} s left, then ${card.expires_for}`;

export class Life {
  constructor(dialog) {
    this.dialog = dialog;
    this.whom = null;
    byId("life-end").onclick = () => this.end();
    dialog.onclose = () => { this.whom = null; };
  }

  async open(whom) {
    this.whom = whom;
    byId("life-title").textContent = whom.connection ? `${whom.connection} of ${whom.user}` : whom.user;
    byId("life-end").textContent = whom.connection ? "Disconnect it" : "Disconnect all of theirs";
    byId("life-here").replaceChildren();
    byId("story").replaceChildren();
    byId("life-gone").hidden = true;
    this.complain("");
    if (!this.dialog.open) this.dialog.showModal();
    while (this.whom === whom) {
      await this.look();
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }

  async look() {
    const whom = this.whom;
    const query = whom.connection ? `connection=${encodeURIComponent(whom.connection)}` : `user=${encodeURIComponent(whom.user)}`;
    try {
      const { here, story } = await ask(`/api/why?${query}`);
      if (this.whom !== whom) return;
      refill(byId("life-here"), here, (card) => card.connection, (card) => whom.connection ? this.card(card) : this.row(card));
      refill(byId("story"), story.reverse(), (event) => `${event.at} ${event.event} ${event.connection}`, (event) => this.line(event));
      byId("life-gone").hidden = here.length > 0;
      byId("life-end").disabled = !here.length;
    } catch (error) {
      if (this.whom === whom) this.complain(error.message);
    }
  }

  complain(text) {
    byId("life-error").textContent = text;
  }

  row(card) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(element("b", card.connection), element("span", `from ${card.peer}`),
      element("span", `here for ${card.age.toFixed(0)} s`), element("span", `idle for ${card.idle.toFixed(0)} s`),
      element("span", left(card), "quiet"));
    button.onclick = () => this.open({ connection: card.connection, user: card.user });
    return button;
  }

  card(card) {
    const list = document.createElement("dl");
    const rows = {
      connection: card.connection, from: card.peer, session: card.session, here: `for ${card.age.toFixed(0)} s`,
      idle: `for ${card.idle.toFixed(0)} s`, left: left(card), rooms: card.rooms.join(", "), run: card.run, request: card.request,
      received: card.bytes_received === null ? null : `${card.bytes_received} bytes`,
      sent: card.bytes_sent === null ? null : `${card.bytes_sent} bytes`,
      queued: `${card.bytes_queued} bytes`,
    };
    for (const [name, value] of Object.entries(rows)) {
      if (!value) continue;
      const box = document.createElement("div");
      box.append(element("dt", name), element("dd", value));
      list.append(box);
    }
    return list;
  }

  line(event) {
    const line = element("li", "");
    const told = TOLD.filter((name) => event[name]).map((name) => `${name} ${short(event[name])}`).join(" · ");
    line.append(element("time", event.at.slice(11, 23)), element("b", event.event.replaceAll("_", " ")), element("span", told));
    if (!this.whom.connection && event.connection) line.append(element("i", event.connection, "quiet"));
    return line;
  }

  async end() {
    const { connection, user } = this.whom;
    try {
      await tell("/api/disconnect", connection ? { connection } : { user });
      this.complain("");
    } catch (error) {
      this.complain(error.message);
    }
    if (this.whom) await this.look();
  }
}
