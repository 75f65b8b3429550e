// What can be done to the servers, where they are the application's own.

import { make, say } from "./words.js";

const said = document.getElementById("said");

/** Tells the application to do something, and says there what became of it. */
export async function tell(path, what, there = said, headers = {}) {
  delete there.dataset.wrong;
  say(there, `${what} …`);
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "X-Requested-With": "live", ...headers },
    });
    if (answer.ok) {
      say(there, `${what}: done`);
      return true;
    }
    const body = await answer.json().catch(() => ({}));
    say(there, `${what}: ${body.error || `refused (${answer.status})`}`);
  } catch {
    say(there, `${what}: the application does not answer`);
  }
  // Until somebody tries again.
  there.dataset.wrong = "true";
  return false;
}

/** Verb, label, and when it makes sense. Of each pair one is shown. */
const VERBS = [
  ["kill", "Kill", (_, server) => server.running],
  ["restart", "Restart", (_, server) => server.running && !server.frozen && !server.outdated],
  ["restart", "Make it a copy", (_, server) => server.running && !server.frozen && server.outdated],
  ["restart", "Start", (_, server) => !server.running],
  ["freeze", "Freeze", (_, server) => server.running && !server.frozen],
  ["thaw", "Thaw", (_, server) => server.running && server.frozen],
  ["pause", "Pause replay", (node, server) => follows(server) && !node.replay_paused],
  ["resume", "Resume replay", (node, server) => follows(server) && node.replay_paused],
  ["promote", "Promote", (_, server) => follows(server)],
];

function answers(server) {
  return server.running && !server.frozen;
}

function follows(server) {
  return answers(server) && !server.primary && !server.outdated;
}

/** The buttons of one node; none are shown for servers of others. */
export function buttons(name) {
  const root = make("div", "buttons");
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", `What can be done to ${name}`);
  let busy = false;
  const all = VERBS.map(([verb, label, fits]) => {
    const button = make("button", "quiet", label);
    button.type = "button";
    button.addEventListener("click", async () => {
      if (busy) return;
      busy = true;
      root.setAttribute("aria-busy", "true");
      await tell(`/status/nodes/${encodeURIComponent(name)}/${verb}`, `${label} ${name}`);
      busy = false;
      root.removeAttribute("aria-busy");
    });
    root.append(button);
    return [button, fits];
  });
  const show = (node, server) => {
    root.hidden = !server;
    for (const [button, fits] of all) {
      const hidden = !server || !fits(node, server);
      // Whoever has just pressed it should not fall out of the group.
      if (hidden && button === document.activeElement) {
        button.hidden = true;
        root.querySelector("button:not([hidden])")?.focus();
      }
      button.hidden = hidden;
    }
  };
  return { root, show };
}

/** The modes of the routing, as the pool reads them, and what they do. */
const MODES = [
  ["observe", "Observe"],
  ["opt_in", "Opt in"],
  ["automatic:0.25", "25 %"],
  ["automatic", "All"],
];

/** The switch of the routing, and how much it has moved and held back. */
export class Routing {
  constructor(buttons, text) {
    Object.assign(this, { buttons, text });
    this.all = MODES.map(([mode, label]) => {
      const button = make("button", "quiet", label);
      button.type = "button";
      button.addEventListener("click", () => this.#set(mode, label));
      buttons.append(button);
      return [mode, button];
    });
  }

  /** With servers of others the page asks for the key, and keeps it until it is closed or was the wrong one. */
  async #set(mode, label) {
    const headers = {};
    if (this.opened === "key") {
      this.key ||= prompt("The key (BLOG_ROUTING_KEY)");
      if (!this.key) return;
      headers.Authorization = `Bearer ${this.key}`;
    }
    const path = `/status/routing/${encodeURIComponent(mode)}`;
    if (!(await tell(path, `Routing: ${label}`, said, headers))) this.key = "";
  }

  /** `opened`: to whom the switch is; to nobody, if there is none. */
  show(routing, opened) {
    this.opened = opened;
    this.buttons.hidden = !opened;
    for (const [mode, button] of this.all) {
      button.setAttribute("aria-pressed", String(mode === routing.mode));
    }
    const { on_replicas: moved, could_move: could, could_not_yet: not } = routing;
    const held = could + not > 0 ? ` Held back: ${could} that could move, ${not} that could not yet.` : "";
    say(this.text, `Routing: ${routing.mode}. On replicas: ${moved} statements.${held}`);
  }
}
