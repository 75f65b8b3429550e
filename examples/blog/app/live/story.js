// The outages that can be shown, and what the visitors of both sides have met.

import { tell } from "./demo.js";
import { make, say, seconds } from "./words.js";

/** Name, label, what to watch, and what plain pools do. */
const OUTAGES = [
  [
    "old-primary",
    "The old primary comes back",
    "Watch the writes to a replaced primary: a replica has taken over, and the old server takes writes again. This pool sees its older timeline and writes nothing there.",
    "Plain pools go on writing to the URL that they know. These rows are in no history that lasts.",
  ],
  [
    "frozen-replica",
    "A replica freezes",
    "Watch the errors and the slowest request: connections stay open and nothing answers. This pool soon reads elsewhere.",
    "Plain pools send every second read there, and each waits until its time is over.",
  ],
  [
    "all-behind",
    "All replicas fall behind",
    "Watch the stale reads: the replicas answer at once, with old data. This pool reads on the primary what they do not show yet.",
    "Plain pools tell users that what they have just saved is not there.",
  ],
  [
    "dead-primary",
    "The primary dies under load",
    "Watch the errors and the longest pause: a replica takes over. Writes of this pool wait for it and go on there. One that was on its way may fail, and the error says that it may have been written.",
    "Plain pools cannot write until somebody changes their URL, which “Back to normal” does.",
  ],
];

const PHASES = {
  preparing: (label) => `All servers are brought back to normal first. Then: ${label}`,
  beginning: (label) => `It begins: ${label}`,
  on: (label) => `It lasts until you press “Back to normal”: ${label}`,
  healing: () => "The servers are brought back to normal …",
  over: (label) => `Back to normal. The last outage was: ${label}`,
  failed: (label) => `The demonstration did not succeed. Press again: ${label}`,
};

const LABELS = new Map(OUTAGES.map(([name, label]) => [name, label]));

/** The buttons of the outages. While one is being caused, the others wait. */
export class Story {
  #shown = new Map();
  #busy = false;

  constructor(root, list, normal, text) {
    Object.assign(this, { root, normal, text });
    for (const [name, label, watch, plain] of OUTAGES) {
      const item = make("li");
      const button = make("button", "", label);
      button.type = "button";
      button.addEventListener("click", () => this.#press(name, label));
      item.append(button, make("p", "", watch), make("p", "meta", plain));
      list.append(item);
      this.#shown.set(name, { item, button });
    }
    normal.addEventListener("click", () => this.#press("none", "Back to normal"));
  }

  /** A button that is busy can keep the focus, so it is not disabled. */
  async #press(name, label) {
    if (this.#busy) return;
    this.#busy = true;
    await tell(`/status/outages/${name}`, label, this.text);
    this.#busy = false;
  }

  show(demo) {
    this.root.hidden = !demo;
    if (!demo) return;
    const { outage, phase } = demo.outage || {};
    const moving = ["preparing", "beginning", "healing"].includes(phase);
    for (const [name, { item, button }] of this.#shown) {
      const on = name === outage && phase === "on";
      item.dataset.state = on ? "on" : "";
      button.setAttribute("aria-pressed", String(on));
      button.setAttribute("aria-disabled", String(moving));
    }
    this.normal.setAttribute("aria-disabled", String(moving));
    if (phase && !this.text.dataset.wrong) say(this.text, PHASES[phase](LABELS.get(outage)));
  }
}

/** Label, what of the figures, and from where on it is bad. */
const FIGURES = [
  ["Requests", "requests"],
  ["Errors", "errors", 1],
  ["Of these, told as “it may have been written”", "in_doubt"],
  ["Stale reads: the row just written was not there", "stale_reads", 1],
  ["Rows that were confirmed", "rows"],
  ["Of these, written to a primary that was replaced", "replaced_writes", 1],
  ["Of these, lost: the primary does not have them", "lost_rows", 1],
  ["Longest pause: nobody got an answer", "longest_pause", 2, seconds],
  ["Slowest request", "slowest", 2, seconds],
];

/** The table of both sides, and the switch of the traffic. */
export class Sides {
  #running = false;
  #rows = [];

  constructor(root, body, button, text, since) {
    Object.assign(this, { root, button, text, since });
    for (const [label, key, bad = Infinity, words = String] of FIGURES) {
      const row = make("tr");
      const head = make("th", "", label);
      head.scope = "row";
      const cells = [0, 1].map(() => make("td", "number"));
      cells.forEach((cell, place) => (cell.dataset.figure = `${["ours", "plain"][place]}-${key}`));
      row.append(head, ...cells);
      body.append(row);
      this.#rows.push({ key, bad, words, cells });
    }
    button.addEventListener("click", () => {
      const [verb, what] = this.#running ? ["stop", "Stop traffic"] : ["start", "Start traffic"];
      tell(`/status/traffic/${verb}`, what, text);
    });
  }

  show(demo) {
    this.root.hidden = !demo;
    if (!demo) return;
    const { running, seconds_left: left, visitors, ours, plain } = demo.traffic;
    this.#running = running;
    say(this.button, running ? "Stop traffic" : "Start traffic");
    const now = running ? `${visitors} visitors on each side, for ${left} s more.` : "Nobody visits now.";
    if (!this.text.dataset.wrong) say(this.text, now);
    const label = demo.outage && LABELS.get(demo.outage.outage);
    say(this.since, label ? `Since “${label}” was pressed` : "Since the start");
    for (const { key, bad, words, cells } of this.#rows) {
      [ours, plain].forEach((figures, place) => {
        const value = figures[key];
        // An error of a plain pool does not say whether the write was done.
        const untold = key === "in_doubt" && figures === plain;
        say(cells[place], untold ? "not told" : value === 0 ? "0" : words(value));
        cells[place].dataset.state = value >= bad ? "bad" : "";
      });
    }
  }
}
