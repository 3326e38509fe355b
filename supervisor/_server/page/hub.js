// A client of the hub for browsers: it comes back by itself, and misses nothing without saying so. No dependencies.
//
//   import { Hub } from "/page/hub.js";
//   const hub = new Hub("/ws?user=ann", (happening) => console.log(happening));
//   await hub.join("lobby");
//   await hub.publish("lobby", "hello");
//
// What happens has a `type`: connected, disconnected, dismissed, message, run, gap, presence, room_lost.

const SPREAD = 5_000;  // those who are sent away together return spread over so many milliseconds
const FIRST = 500, LONGEST = 30_000;  // the first pause, and the longest; all of it is jitter
const SUCCESS = 5_000;  // a connection that has lasted for so long was a success
const TOGETHER = new Set([1001, 1012, 1013]);

// Milliseconds until the next attempt, the `attempt`-th in vain; null if there must be none.
export function pause(code, attempt, { longest = LONGEST, random = Math.random } = {}) {
  const mayReturn = [1001, 1006, 1011, 1012, 1013].includes(code) || (code >= 4000 && code < 4500);
  if (!mayReturn) return null;
  return random() * Math.min(longest, (TOGETHER.has(code) ? SPREAD : FIRST) * 2 ** Math.min(attempt, 30));
}

// The server has declined a request; `code` says why in a word.
export class RequestFailed extends Error {
  constructor(code, detail) {
    super(`${code}: ${detail}`);
    this.code = code;
  }
}

// The connection was lost before the answer came, and nobody can say any more whether it was done.
export class OutcomeUnknown extends Error {}

// There will be no connection any more.
export class Dismissed extends Error {
  constructor(code, text) {
    super(`${code} ${text}`);
    this.code = code;
  }
}

// One audience's numbers, across as many connections as it takes: each message once and in order, and by name what is
// missing. `last` is null before any number is known.
export class Sequence {
  constructor(last = null) {
    this.last = last;
    this.recovering = false;
    this.held = new Map();
  }

  hear(number, message) {
    if (this.last === null || number === this.last + 1) {
      this.last = number;
      return [message];
    }
    if (number <= this.last) return [];
    if (this.recovering) {
      this.held.set(number, message);
      return [];
    }
    const missing = { type: "gap", after: this.last, until: number - 1 };
    this.last = number;
    return [missing, message];
  }

  recover() {
    this.recovering = this.last !== null;
  }

  settle(last) {
    this.recovering = false;
    const held = [...this.held].sort(([one], [other]) => one - other);
    this.held.clear();
    this.last ??= last;
    const told = held.flatMap(([number, message]) => this.hear(number, message));
    if (this.last < last) {
      told.push({ type: "gap", after: this.last, until: last });
      this.last = last;
    }
    return told;
  }

  restart(last = null) {
    const before = this.last;
    this.last = last;
    this.recovering = false;
    this.held.clear();
    return before === null ? [] : [{ type: "gap", after: before, until: null }];
  }
}

// What may be done with a request whose answer was lost: send it again; send it again to the same server, which knows
// it; look for it among the messages of its room; nothing.
const SAFE = "safe", KNOWN = "known", SEEN = "seen", NEVER = "never";

class Request {
  constructor(frame, again) {
    this.frame = frame;
    this.again = again;
    this.sent = this.doubtful = false;
    this.answer = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
  }

  giveUp() {
    this.reject(new OutcomeUnknown(`${this.frame.op}: the connection was lost before the answer came`));
  }
}

const randomName = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export class Hub {
  // `url` may be relative. Options: `token`, a string or an async function that is asked for every connection; `session`,
  // what survives a reconnect (random; null for nothing); `heartbeat`, `patience` and `longest`, in milliseconds.
  constructor(url, hear, { token = null, session = randomName(), heartbeat = 20_000, patience = 10_000, longest = LONGEST } = {}) {
    this.url = new URL(url, location.href);
    this.url.protocol = this.url.protocol.replace("http", "ws");
    if (session !== null) {
      this.url.searchParams.set("session", session);
    }
    Object.assign(this, { tell: hear, token, heartbeat, patience, longest });
    this.user = "";
    this.epoch = null;
    this.welcomed = false;
    this.rooms = new Map();
    this.runs = new Map();
    this.toMe = new Sequence();
    this.requests = new Map();
    this.early = [];
    this.endedEarly = new Set();
    this.dismissed = null;
    this.attempt = 0;
    this.prefix = randomName();
    this.named = 0;
    this.connect();
  }

  // -- what the application wants: promises, which wait for the answer, however many connections that takes

  // Be a member, now and after each reconnect. With `presence`, who comes and goes is told.
  async join(room, { metadata = null, presence = false } = {}) {
    const place = this.rooms.get(room) ?? { joined: false, sequence: new Sequence(), present: null };
    this.rooms.set(room, place);
    place.metadata = metadata;
    place.present = presence ? place.present ?? new Map() : null;
    try {
      const answer = await this.ask({ op: "join", room, metadata }, SAFE);
      this.settleRoom(room, answer);
      return answer.members;
    } catch (error) {
      if (!place.joined) this.rooms.delete(room);
      throw error;
    }
  }

  async leave(room) {
    this.rooms.delete(room);
    await this.ask({ op: "leave", room }, SAFE);
  }

  // Exactly once, to all members, ourselves included; its number in the room. Or `OutcomeUnknown`.
  async publish(room, data) {
    return (await this.ask({ op: "publish", room, data, id: this.name() }, SEEN)).seq;
  }

  // At most once; how many connections have taken it. `OutcomeUnknown` if the answer is lost.
  async send(user, data) {
    return (await this.ask({ op: "send", user, data, id: this.name() }, NEVER)).delivered;
  }

  async presence(room) {
    return (await this.ask({ op: "presence", room }, SAFE)).members;
  }

  // Have an agent work, and follow it; the run's id.
  async run(agent, data = null) {
    const answer = await this.ask({ op: "run", agent, data, id: this.name() }, KNOWN);
    if (!this.endedEarly.delete(answer.run)) {
      if (!this.runs.has(answer.run)) this.runs.set(answer.run, new Sequence(0));
      this.settleRun(answer.run, answer);
    }
    return answer.run;
  }

  // Hear what a run has said after number `after`, and says; how it has ended, null if it has not.
  async follow(run, after = 0) {
    if (!this.runs.has(run)) this.runs.set(run, new Sequence(after));
    try {
      const answer = await this.ask({ op: "follow", run, seq: after }, SAFE);
      this.settleRun(run, answer);
      return answer.outcome;
    } catch (error) {
      this.runs.delete(run);
      throw error;
    }
  }

  async cancel(run) {
    return (await this.ask({ op: "cancel", run }, SAFE)).cancelled;
  }

  close() {
    this.dismiss(1000, "closed");
    this.socket?.close(1000);
  }

  name() {
    return `${this.prefix}-${++this.named}`;
  }

  ask(frame, again) {
    if (this.dismissed) return Promise.reject(this.dismissed);
    const ref = this.name();
    const request = new Request({ ...frame, ref }, again);
    this.requests.set(ref, request);
    this.sendWaiting();
    return request.answer;
  }

  // -- one connection after another

  async connect() {
    const began = performance.now();
    const lost = (code, text) => this.lost(code, text, performance.now() - began);
    let protocols = ["supervisor.v1.json"];
    try {
      if (this.token !== null) {
        protocols = [...protocols, `bearer.${typeof this.token === "function" ? await this.token() : this.token}`];
      }
    } catch (error) {
      return lost(1006, `no token: ${error.message}`);
    }
    if (this.dismissed) return;
    if (this.url.searchParams.has("session")) {  // an attempt that was given up must not take over from a later one
      this.tried = Math.max((this.tried ?? 0) + 1, Date.now());
      this.url.searchParams.set("takeover", this.tried);
    }
    const socket = this.socket = new WebSocket(this.url, protocols);
    // A browser waits for long until it believes that a connection is gone.
    this.drop = (text) => {
      socket.onmessage = socket.onclose = null;
      socket.close();
      lost(1006, text);
    };
    this.watch(this.patience);
    socket.onmessage = ({ data }) => {
      this.watch(this.heartbeat);
      try {
        this.hear(JSON.parse(data));
      } catch (error) {
        socket.onmessage = socket.onclose = null;
        socket.close();
        lost(1003, `this is no hub: ${error}`);
      }
      this.sendWaiting();
    };
    // Why a handshake was refused is told to nobody in a browser: 1006, and so it is tried again.
    socket.onclose = ({ code, reason }) => lost(code, reason);
  }

  // After `time` of silence the server is asked for a sign of life; without a welcome, or an answer, it is gone.
  watch(time) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (!this.welcomed || time === this.patience) return this.drop("no answer");
      this.restore({ op: "ping" }, () => {});
      this.watch(this.patience);
    }, time);
  }

  lost(code, text, lasted) {
    clearTimeout(this.timer);
    this.welcomed = false;
    if (this.dismissed) return;
    if (lasted > SUCCESS) this.attempt = 0;
    const wait = pause(code, this.attempt++, { longest: this.longest });
    if (wait === null) return this.dismiss(code, text);
    this.tell({ type: "disconnected", code, text, retryIn: wait });
    setTimeout(() => !this.dismissed && this.connect(), wait);
  }

  dismiss(code, text) {
    if (this.dismissed) return;
    this.dismissed = new Dismissed(code, text);
    for (const request of this.requests.values()) request.reject(this.dismissed);
    this.requests.clear();
    this.tell({ type: "dismissed", code, text });
  }

  // -- what the server says

  hear(frame) {
    if (frame.type === "welcome") return this.welcome(frame);
    if (!this.welcomed) return this.early.push(frame);
    switch (frame.type) {
      case "message": return this.hearMessage(frame);
      case "run": return this.hearRun(frame);
      case "presence": return this.rooms.get(frame.room)?.present && this.tellPresence(frame.room, frame.joined, frame.left);
      case "reply": case "error": return this.hearAnswer(frame);
    }
  }

  welcome({ connection, user, epoch, seq }) {
    const again = this.epoch !== null, same = this.epoch === epoch;
    Object.assign(this, { user, epoch, welcomed: true });
    this.tell({ type: "connected", connection, user, again });
    const joined = [...this.rooms].filter(([, room]) => room.joined);
    this.reconnected(same, new Set(joined.map(([name]) => name)));
    if (!same) {
      this.handOn(this.toMe.restart(seq));
    } else if (this.toMe.last !== seq) {
      this.toMe.recover();
      this.restore({ op: "recover", seq: this.toMe.last, epoch }, (answer) => this.handOn(this.toMe.settle(answer.seq)));
    }
    for (const [name, room] of joined) this.restoreRoom(name, room, same);
    for (const [run, sequence] of again ? [...this.runs] : []) this.restoreRun(run, sequence, same);
    for (const frame of this.early.splice(0)) this.hear(frame);
  }

  // What restores something on this connection is asked at once, before anything else, and not on another.
  restore(frame, then) {
    const ref = this.name();
    const request = new Request({ ...frame, ref }, null);
    Object.assign(request, { sent: true, then });
    this.requests.set(ref, request);
    this.socket.send(JSON.stringify(request.frame));
  }

  reconnected(same, rooms) {
    for (const [ref, request] of [...this.requests]) {
      const { again, frame } = request;
      if (again === null) this.requests.delete(ref);
      if (!request.sent || again === null) continue;
      if (again === SAFE || (again === KNOWN && same)) request.sent = false;
      else if (again === SEEN && same && rooms.has(frame.room)) request.doubtful = true;
      else this.giveUp(ref, request);
    }
  }

  // All that was missed in a room has been heard, or not: what was to be seen there was, or was not done.
  recovered(room, complete) {
    for (const [ref, request] of [...this.requests]) {
      if (!request.doubtful || request.frame.room !== room) continue;
      if (complete) request.sent = request.doubtful = false;
      else this.giveUp(ref, request);
    }
  }

  giveUp(ref, request) {
    this.requests.delete(ref);
    request.giveUp();
  }

  sendWaiting() {
    if (!this.welcomed) return;
    for (const request of this.requests.values()) {
      if (request.sent || this.socket.readyState !== WebSocket.OPEN) continue;
      request.sent = true;
      this.socket.send(JSON.stringify(request.frame));
    }
  }

  restoreRoom(name, room, same) {
    const after = room.sequence.last;
    if (same) room.sequence.recover();
    else this.handOn(room.sequence.restart(), { room: name });
    const since = after === null ? {} : { seq: after, epoch: this.epoch };
    this.restore({ op: "join", room: name, metadata: room.metadata, ...since }, (answer) => {
      if (answer.type === "reply") this.settleRoom(name, answer);
      else if (this.rooms.delete(name)) this.tell({ type: "room_lost", room: name, code: answer.code, detail: answer.detail });
      this.recovered(name, same && answer.complete === true);
    });
  }

  settleRoom(name, answer) {
    const room = this.rooms.get(name);
    if (!room) return;
    room.joined = true;
    this.handOn(room.sequence.settle(answer.seq), { room: name });
    if (room.present) this.lookAround(name);
  }

  lookAround(name) {
    if (!this.welcomed) return;
    this.restore({ op: "presence", room: name }, (answer) => {
      const before = this.rooms.get(name)?.present;
      if (!before || answer.type !== "reply") return;
      const now = new Map(answer.members.map((card) => [card.connection, card]));
      const differs = (one, other) => JSON.stringify(one) !== JSON.stringify(other);
      this.tellPresence(
        name,
        [...now.values()].filter((card) => differs(before.get(card.connection), card)),
        [...before.values()].filter((card) => differs(now.get(card.connection), card)),
      );
    });
  }

  tellPresence(room, joined, left) {
    const { present } = this.rooms.get(room);
    for (const card of left) present.delete(card.connection);
    for (const card of joined) present.set(card.connection, card);
    if (joined.length || left.length) this.tell({ type: "presence", room, joined, left });
  }

  restoreRun(run, sequence, same) {
    const over = () => {
      this.runs.delete(run);
      this.handOn(sequence.restart(), { run });
      this.tell({ type: "run", run, event: "run_ended", data: { outcome: null }, seq: 0 });
    };
    if (!same) return over();
    sequence.recover();
    this.restore({ op: "follow", run, seq: sequence.last }, (answer) => {
      if (answer.type === "reply") this.settleRun(run, answer);
      else if (answer.code === "unavailable" && this.runs.has(run)) this.restoreRun(run, sequence, true);
      else if (this.runs.has(run)) over();
    });
  }

  settleRun(run, answer) {
    const sequence = this.runs.get(run);
    if (!sequence) return;
    this.handOn(sequence.settle(answer.seq), { run });
    if (answer.outcome !== null && this.runs.delete(run)) {
      this.tell({ type: "run", run, event: "run_ended", data: { outcome: answer.outcome }, seq: answer.seq });
    }
  }

  hearMessage(frame) {
    const room = frame.room === undefined ? null : this.rooms.get(frame.room);
    if (room === undefined) return;  // left, and told before the server knew
    if (frame.id !== undefined && frame.from === this.user) this.seen(frame.id, frame.seq);
    const { type, from, data, seq } = frame;
    const message = { type, room: frame.room ?? null, from: from ?? null, data, seq };
    this.handOn((room?.sequence ?? this.toMe).hear(seq, message), { room: message.room });
  }

  // The message with this id has come to us: it is done, whatever becomes of the answer.
  seen(id, seq) {
    for (const [ref, request] of this.requests) {
      if (request.again !== SEEN || request.frame.id !== id) continue;
      this.requests.delete(ref);
      return request.resolve({ seq });
    }
  }

  hearRun(frame) {
    if (this.endedEarly.has(frame.run)) return;  // all of it was told; this answers a request that was sent again
    if (!this.runs.has(frame.run)) this.runs.set(frame.run, new Sequence(0));
    this.handOn(this.runs.get(frame.run).hear(frame.seq, frame), { run: frame.run });
    if (frame.event !== "run_ended") return;
    this.runs.delete(frame.run);
    if ([...this.requests.values()].some((request) => request.frame.op === "run")) this.endedEarly.add(frame.run);
  }

  hearAnswer(frame) {
    const request = this.requests.get(frame.ref);
    if (!request) return;
    this.requests.delete(frame.ref);
    if (request.then) request.then(frame);
    else if (frame.type === "error") request.reject(new RequestFailed(frame.code, frame.detail));
    else request.resolve(frame);
  }

  handOn(things, of = {}) {
    for (const thing of things) this.tell(thing.type === "gap" ? { ...thing, room: null, run: null, ...of } : thing);
  }
}
