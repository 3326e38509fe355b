// Questions and streamed answers. What survives a reload is in the tab: who we are, and which runs we have asked for.

import { Hub } from "/page/hub.js";

const STEPS = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"];
const kept = JSON.parse(sessionStorage.getItem("agent") ?? "null") ?? { user: `visitor-${crypto.randomUUID().slice(0, 8)}`, runs: [] };
const keep = () => sessionStorage.setItem("agent", JSON.stringify(kept));
const byId = (id) => document.getElementById(id);
const make = (name, text = "") => Object.assign(document.createElement(name), { textContent: text });
const answers = new Map();

// One question: what the agent does, and its answer as far as it has come.
class Answer {
  constructor(run) {
    byId("empty")?.remove();
    this.box = document.createElement("article");
    this.box.dataset.outcome = "running";
    const head = make("h2");
    this.question = make("span", "…");
    this.cancel = make("button", "Cancel");
    this.cancel.onclick = () => hub.cancel(run).catch(() => {});
    head.append(this.question, this.cancel);
    this.steps = make("ol");
    this.text = make("p");
    this.box.append(head, this.steps, this.text);
    byId("answers").append(this.box);
    this.box.scrollIntoView({ block: "end" });
  }

  hear(event, data) {
    if (event === "agent_started") this.question.textContent = data.question;
    if (STEPS.includes(event)) this.steps.append(make("li", event));
    if (event === "word") this.text.append(this.text.textContent ? ` ${data}` : data);
    if (event === "run_ended") this.end(data);
  }

  end({ outcome, error }) {
    this.box.dataset.outcome = outcome ?? "lost";
    this.cancel.remove();
    if (outcome !== "completed") this.text.append(` (${error ?? outcome ?? "the server has forgotten how it ended"})`);
  }

  miss() {
    const note = make("p", "Some of this answer was lost while there was no connection.");
    note.className = "gap";
    this.box.append(note);
  }
}

const answerOf = (run) => answers.get(run) ?? answers.set(run, new Answer(run)).get(run);

function show(state) {
  Object.assign(byId("state"), { textContent: state }).dataset.state = state;
}

const hub = new Hub(`/ws?user=${kept.user}`, (it) => {
  switch (it.type) {
    case "connected": return show("connected");
    case "disconnected": return show("reconnecting");
    case "dismissed": return show(it.text);
    case "run": return answerOf(it.run).hear(it.event, it.data);
    case "gap": return it.run && answerOf(it.run).miss();
  }
});

byId("ask").onsubmit = async (event) => {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (!question) return;
  byId("question").value = "";
  try {
    kept.runs = [...kept.runs, await hub.run("librarian", question)].slice(-20);
    keep();
  } catch (error) {
    show(error.message);
  }
};
byId("cut").onclick = () => hub.drop("cut by hand");

keep();
for (const run of kept.runs) {
  hub.follow(run).catch(() => {  // it has been over for long
    kept.runs = kept.runs.filter((one) => one !== run);
    keep();
  });
}
