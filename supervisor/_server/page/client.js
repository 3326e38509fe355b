// A client to try the server with: some connections of one user, in one room, each as if it were a tab of its own.

import { Hub } from "./hub.js";

export class Client {
  constructor(say) {
    this.say = say;
    this.tabs = new Map();
    this.opened = 0;
  }

  connect(user, room) {
    const tab = ++this.opened;
    const hub = new Hub(`/ws?user=${encodeURIComponent(user)}`, (happening) => this.hear(tab, happening));
    this.tabs.set(tab, hub);
    this.tell(tab, hub.join(room));
  }

  hear(tab, it) {
    const from = `tab ${tab} ←`;
    switch (it.type) {
      case "connected": return this.say(`tab ${tab} is ${it.connection} of ${it.user}${it.again ? ", again" : ""}`);
      case "disconnected": return this.say(`tab ${tab} lost: ${it.code} ${it.text}; comes back in ${(it.retryIn / 1000).toFixed(1)} s`, true);
      case "dismissed": this.tabs.delete(tab); return this.say(`tab ${tab} closed: ${it.code} ${it.text}`, it.code >= 4000);
      case "message": return this.say(`${from} ${it.from ?? "the server"}: ${JSON.stringify(it.data)}`);
      case "run": return this.say(`${from} ${it.run} #${it.seq} ${it.event} ${JSON.stringify(it.data)}`);
      default: return this.say(`${from} ${JSON.stringify(it)}`, true);
    }
  }

  // What is asked of the newest tab that is connected.
  ask(wish) {
    const [tab, hub] = [...this.tabs].findLast(([, one]) => one.welcomed) ?? [];
    if (hub) this.tell(tab, wish(hub));
    else this.say("connect first", true);
  }

  publish(room, data) {
    this.ask((hub) => hub.publish(room, data));
  }

  run(agent, data) {
    this.ask((hub) => hub.run(agent, data));
  }

  tell(tab, promise) {
    promise.catch((error) => this.say(`tab ${tab}: ${error.message}`, true));
  }

  leave() {
    for (const hub of this.tabs.values()) hub.close();
  }
}
