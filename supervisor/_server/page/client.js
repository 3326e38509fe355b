// A small client to try the server with: some connections of one user, in one room.

// Another application than the hub may say anything.
function frameOf(data) {
  try {
    return JSON.parse(data);
  } catch {
    return { type: "other", data: typeof data === "string" ? data : "binary" };
  }
}

export class Client {
  constructor(say) {
    this.say = say;
    this.sockets = new Set();
    this.opened = 0;
  }

  connect(user, room) {
    const tab = ++this.opened;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/ws?user=${encodeURIComponent(user)}`, "supervisor.v1.json");
    this.sockets.add(socket);
    socket.onopen = () => socket.send(JSON.stringify({ op: "join", room }));
    socket.onmessage = (event) => this.hear(tab, frameOf(event.data));
    socket.onclose = (event) => {
      this.sockets.delete(socket);
      const refused = event.code === 1006 ? "refused, or the connection was lost" : `${event.code} ${event.reason}`;
      this.say(`tab ${tab} closed: ${refused}`, event.code >= 4000 || event.code === 1006);
    };
  }

  hear(tab, frame) {
    switch (frame.type) {
      case "welcome": return this.say(`tab ${tab} is ${frame.connection} of ${frame.user}`);
      case "message": return this.say(`tab ${tab} ← ${frame.from ?? "the server"}: ${JSON.stringify(frame.data)}`);
      case "run": return this.say(`tab ${tab} ← ${frame.run} #${frame.seq} ${frame.event} ${JSON.stringify(frame.data)}`);
      case "presence": return;
      case "reply": return frame.delivered !== undefined && this.say(`tab ${tab}: ${frame.delivered} have it`);
      default: return this.say(`tab ${tab} ← ${JSON.stringify(frame)}`, frame.type === "error");
    }
  }

  publish(room, data) {
    this.send({ op: "publish", room, data });
  }

  run(agent, data) {
    this.send({ op: "run", agent, data });
  }

  send(frame) {
    const socket = [...this.sockets].findLast((one) => one.readyState === WebSocket.OPEN);
    if (!socket) return this.say("connect first", true);
    socket.send(JSON.stringify(frame));
  }

  leave() {
    for (const socket of this.sockets) socket.close(1000);
  }
}
