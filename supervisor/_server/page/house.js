// Every user a card, every connection a seat in it. Only what changes is touched.

// So long an end stays visible, in milliseconds, though the connection may be gone at once.
const VISIBLE = 1200;
// Of a larger limit, free seats are not drawn.
const MAX_DRAWN = 24;

export class House {
  constructor(list, open) {
    this.list = list;
    this.open = open;
    this.users = new Map();
    this.seats = new Map();
    this.perUser = 5;
    this.shedAt = 0.8;
    this.wanted = "";
  }

  show({ connections, stuck, limits, shed_at }) {
    this.perUser = limits.per_user;
    this.shedAt = shed_at;
    for (const { button } of this.seats.values()) button.className = "seat here";
    const here = new Set([...connections, ...stuck].map((one) => one.connection));
    for (const id of [...this.seats.keys()]) if (!here.has(id)) this.drop(id);
    for (const one of connections) this.enter(one.connection, one.user);
    for (const one of stuck) this.mark(one.connection, one.user, "stuck", one.stuck_at);
    for (const user of this.users.values()) this.count(user);
  }

  hear(event) {
    const { connection, user } = event;
    switch (event.event) {
      case "admitted": this.enter(connection, user, "new"); break;
      case "leaving": if (this.seats.has(connection)) this.mark(connection, user, "leaving", event.reason); break;
      case "closed": this.fade(connection); break;
      case "handler_stuck": this.mark(connection, user, "stuck", event.stuck_at); break;
      case "handler_returned": this.fade(connection); break;
    }
  }

  clear() {
    for (const id of [...this.seats.keys()]) this.drop(id);
  }

  find(text) {
    this.wanted = text.toLowerCase();
    for (const user of this.users.values()) this.filter(user);
  }

  // -- one connection

  enter(id, name, state = "") {
    if (this.seats.has(id)) return;
    const user = this.users.get(name) ?? this.welcome(name);
    const button = document.createElement("button");
    button.type = "button";
    button.tabIndex = -1;
    button.className = `seat here ${state}`;
    button.title = button.ariaLabel = `${id} of ${name}`;
    button.onclick = () => this.open({ connection: id, user: name });
    user.row.insertBefore(button, user.row.querySelector(".free"));
    user.seats.add(id);
    this.seats.set(id, { button, user, since: 0 });
    this.count(user);
  }

  mark(id, name, state, why) {
    if (!this.seats.has(id)) this.enter(id, name);
    const seat = this.seats.get(id);
    seat.button.className = `seat ${state}`;
    seat.button.title = seat.button.ariaLabel = `${id} of ${name}: ${state}, ${why}`;
    if (why === "evicted" || why === "shed") seat.button.classList.add("forced");
    seat.since = performance.now();
    seat.user.seats.delete(id);
    this.count(seat.user);
  }

  fade(id) {
    const seat = this.seats.get(id);
    if (!seat) return;
    seat.user.seats.delete(id);
    this.count(seat.user);
    const left = seat.since + VISIBLE - performance.now();
    seat.button.classList.add("gone");
    setTimeout(() => this.seats.get(id) === seat && this.drop(id), Math.max(0, left));
  }

  drop(id) {
    const { button, user } = this.seats.get(id);
    this.seats.delete(id);
    user.seats.delete(id);
    button.remove();
    if (!user.row.querySelector("button")) {
      user.card.remove();
      this.users.delete(user.name);
    } else {
      this.count(user);
    }
  }

  // -- one user

  welcome(name) {
    const card = document.createElement("li");
    const title = document.createElement("button");
    title.type = "button";
    title.className = "name";
    title.onclick = () => this.open({ user: name });
    const label = document.createElement("b");
    label.textContent = name;
    const share = document.createElement("span");
    title.append(label, share);
    const row = document.createElement("div");
    row.className = "seats";
    card.append(title, row);
    this.list.append(card);
    const user = { name, card, title, share, row, seats: new Set() };
    this.users.set(name, user);
    this.filter(user);
    return user;
  }

  count(user) {
    const here = user.seats.size;
    user.share.textContent = `${here}/${this.perUser}`;
    user.title.ariaLabel = `${user.name}: ${here} of ${this.perUser} connections`;
    user.card.classList.toggle("high", here >= Math.ceil(this.perUser * this.shedAt) && this.perUser > 1);
    user.card.classList.toggle("full", here >= this.perUser);
    const taken = user.row.querySelectorAll("button").length;
    const free = this.perUser > MAX_DRAWN ? 0 : Math.max(0, this.perUser - taken);
    const drawn = user.row.querySelectorAll(".free");
    for (let extra = free; extra < drawn.length; extra++) drawn[extra].remove();
    for (let missing = drawn.length; missing < free; missing++) {
      const place = document.createElement("i");
      place.className = "seat free";
      user.row.append(place);
    }
  }

  filter(user) {
    user.card.hidden = !user.name.toLowerCase().includes(this.wanted);
  }

  resize(perUser) {
    if (perUser === this.perUser) return;
    this.perUser = perUser;
    for (const user of this.users.values()) this.count(user);
  }
}
