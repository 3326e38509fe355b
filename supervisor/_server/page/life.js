// One user or one connection: what is there, what has happened, and the button that ends it.

import { ask, tell } from "./api.js";

const byId = (id) => document.getElementById(id);
const TOLD = ["reason", "text", "what", "error", "stuck_at", "duration", "cleanup"];

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
      byId("life-here").replaceChildren(...here.map((card) => whom.connection ? this.card(card) : this.row(card)));
      if (!here.length) byId("life-here").replaceChildren(element("p", "Not here any more.", "quiet"));
      byId("story").replaceChildren(...story.reverse().map((event) => this.line(event)));
      byId("life-end").disabled = !here.length;
    } catch (error) {
      byId("life-here").replaceChildren(element("p", error.message, "quiet"));
      byId("life-end").disabled = true;
    }
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
    const told = TOLD.filter((name) => event[name]).map((name) => `${name} ${event[name]}`).join(" · ");
    line.append(element("time", event.at.slice(11, 23)), element("b", event.event.replaceAll("_", " ")), element("span", told));
    if (!this.whom.connection && event.connection) line.append(element("i", event.connection, "quiet"));
    return line;
  }

  async end() {
    const { connection, user } = this.whom;
    try {
      await tell("/api/disconnect", connection ? { connection } : { user });
    } catch (error) {
      byId("life-here").replaceChildren(element("p", error.message, "quiet"));
    }
    if (this.whom) await this.look();
  }
}
