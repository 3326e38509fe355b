// What `tests.cutting.Talker` does, in a browser: clients that talk while they are cut off, and write down what they hear.
async ({ names, address, clerk }) => {
  const { Hub, OutcomeUnknown } = await import("/page/hub.js");
  const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));
  const quick = { longest: 10, heartbeat: 200, patience: 200 };

  class Talker {
    constructor(user, address, options) {
      Object.assign(this, { user, said: [], heard: [], gaps: [], runs: {}, begun: [] });
      this.hub = new Hub(`${address}/ws?user=${user}`, (it) => this.hear(it), options);
    }

    hear(it) {
      if (it.type === "message") this.heard.push(it);
      if (it.type === "gap") this.gaps.push(it);
      if (it.type === "run") (this.runs[it.run] ??= []).push(it);
    }

    async talk() {
      for (let number = 1; !window.enough; number++) {
        const text = `${this.user} ${number}`;
        this.said.push([text, await this.certain(this.hub.publish("room", text))]);
        if (number % 20 === 5) this.begun.push(await this.certain(this.hub.run("counting", 20)));
        if (number % 5 === 0) await pause(2);
      }
    }

    async certain(promise) {
      try {
        return await promise;
      } catch (error) {
        if (error instanceof OutcomeUnknown) return null;
        throw error;
      }
    }

    reached(goal) {
      const runs = [...Object.values(this.runs), ...this.begun.filter(Boolean).map((run) => this.runs[run])];
      const came = Math.max(0, this.heard.at(-1)?.seq ?? 0, ...this.gaps.filter((gap) => gap.room).map((gap) => gap.until));
      return came >= goal && runs.every((events) => events?.at(-1).event === "run_ended");
    }
  }

  const talkers = [new Talker("clerk", clerk, quick), ...names.map((name) => new Talker(name, address, quick))];
  for (const talker of talkers) await talker.hub.join("room");
  await Promise.all(talkers.slice(1).map((talker) => talker.talk()));
  const goal = Math.max(...talkers.map((talker) => talker.hub.rooms.get("room").sequence.last));
  for (let tries = 0; tries < 1000 && !talkers.every((talker) => talker.reached(goal)); tries++) await pause(20);
  for (const talker of talkers) talker.hub.close();
  return talkers.map(({ user, said, heard, gaps, runs, begun }) => ({ user, said, heard, gaps, runs, begun }));
}
