// What can be done to the servers, where they are the application's own.

import { make, say } from "./words.js";

const said = document.getElementById("said");

/** Tells the application to do something, and says what became of it. */
async function tell(path, what) {
  say(said, `${what} …`);
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "X-Requested-With": "live" },
    });
    if (answer.ok) {
      say(said, `${what}: done`);
    } else {
      const body = await answer.json().catch(() => ({}));
      say(said, `${what}: ${body.error || `refused (${answer.status})`}`);
    }
  } catch {
    say(said, `${what}: the application does not answer`);
  }
}

/** Verb, label, and when it makes sense. Of each pair one is shown. */
const VERBS = [
  ["kill", "Kill", (_, server) => server.running],
  ["restart", "Restart", (_, server) => server.running && !server.frozen],
  ["restart", "Start", (_, server) => !server.running],
  ["freeze", "Freeze", (_, server) => server.running && !server.frozen],
  ["thaw", "Thaw", (_, server) => server.running && server.frozen],
  ["pause", "Pause replay", (node, server) => answers(server) && !server.primary && !node.replay_paused],
  ["resume", "Resume replay", (node, server) => answers(server) && !server.primary && node.replay_paused],
  ["promote", "Promote", (_, server) => answers(server) && !server.primary],
];

function answers(server) {
  return server.running && !server.frozen;
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

/** The switch of the routing, and what it has moved and held back. */
export class Routing {
  constructor(buttons, text) {
    Object.assign(this, { buttons, text });
    this.all = MODES.map(([mode, label]) => {
      const button = make("button", "quiet", label);
      button.type = "button";
      button.addEventListener("click", () =>
        tell(`/status/routing/${encodeURIComponent(mode)}`, `Routing: ${label}`),
      );
      buttons.append(button);
      return [mode, button];
    });
  }

  show(routing, demo) {
    this.buttons.hidden = !demo;
    for (const [mode, button] of this.all) {
      button.setAttribute("aria-pressed", String(mode === routing.mode));
    }
    const { on_replicas: moved, could_move: could, could_not_yet: not } = routing;
    const kept = routing.kept_on_primary.slice(0, 3).map(
      ({ reason, name, statements }) => `${name || reason} (${statements})`,
    );
    const held = could + not > 0 ? ` Held back: ${could} that could move, ${not} that could not yet.` : "";
    const why = kept.length > 0 ? ` Kept on the primary by ${kept.join(", ")}.` : "";
    say(this.text, `Routing: ${routing.mode}. On replicas: ${moved}.${held}${why}`);
  }
}

/** The switch of the traffic. */
export class Traffic {
  #running = false;

  constructor(root, button, text) {
    Object.assign(this, { root, button, text });
    button.addEventListener("click", () => {
      const [verb, what] = this.#running ? ["stop", "Stop traffic"] : ["start", "Start traffic"];
      tell(`/status/traffic/${verb}`, what);
    });
  }

  show(demo) {
    this.root.hidden = !demo;
    if (!demo) return;
    const { running, seconds_left: left, readers, failed, in_doubt: doubt } = demo.traffic;
    this.#running = running;
    say(this.button, running ? "Stop traffic" : "Start traffic");
    const now = running ? `${readers} readers and a writer, for ${left} s more. ` : "";
    say(this.text, `${now}Failed: ${failed}; writes in doubt: ${doubt}.`);
  }
}
