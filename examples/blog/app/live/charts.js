// Larger charts: how old the replicas' data is, how long reads wait, what moves.

import { History, Speed, chart } from "./lines.js";
import { make, rate, say, seconds } from "./words.js";

/** A chart with a caption for each of its lines, as many as there are names. */
class Figure {
  #lines = new Map();

  constructor(root, least, words) {
    Object.assign(this, { root, least, words });
    this.figure = make("figure", "tall");
    this.legend = make("figcaption", "legend");
    root.append(this.figure);
  }

  /** `values`: the value of each line now, by its name; `null` is not known. */
  show(now, values) {
    // A line begins with its first value.
    const known = [...values].filter(([, value]) => value !== null).map(([name]) => name);
    if (!this.chart || known.some((name) => !this.#lines.has(name))) this.#make(known);
    for (const [name, line] of this.#lines) {
      const value = values.has(name) ? values.get(name) : null;
      line.history.add(now, value);
      say(line.text, `${name}: ${this.words(value)}, at most ${this.words(line.history.most)}`);
    }
    this.chart.draw(now, [...this.#lines.values()].map((line) => line.history));
  }

  #make(names) {
    for (const name of names) {
      if (this.#lines.has(name)) continue;
      const entry = make("span", `key key-${this.#lines.size % 4}`);
      const text = make("span");
      entry.append(text);
      this.legend.append(entry);
      this.#lines.set(name, { history: new History(), text });
    }
    const classes = [...this.#lines.keys()].map((_, place) => `key-${place % 4}`);
    this.chart = chart(classes, this.least);
    this.figure.replaceChildren(this.chart.svg, this.legend);
  }
}

/** The age of what each replica shows. */
export class Lags {
  constructor(root) {
    this.figure = new Figure(root, 1, seconds);
  }

  show(pool, now) {
    const all = pool.nodes.map((node) => [node.name, node.kind === "replica" ? node.lag : null]);
    this.figure.show(now, new Map(all));
  }
}

/** How long those reads waited on average that did, over the last two seconds or so. */
export class Waits {
  #waited = new Speed();
  #seconds = new Speed();

  constructor(root) {
    this.figure = new Figure(root, 0.01, seconds);
    this.text = make("p", "meta");
    root.append(this.text);
  }

  show(waits, now) {
    this.#waited.add(now, waits.waited);
    this.#seconds.add(now, waits.seconds);
    const [waited, time] = [this.#waited.now, this.#seconds.now];
    const mean = waited > 0 ? time / waited : waited === 0 ? 0 : null;
    this.figure.show(now, new Map([["Average wait", mean]]));
    const speed = waited === null ? "" : ` Now ${rate(waited)} a second wait.`;
    say(this.text, `Of ${waits.reads} reads ${waits.waited} have waited, ${seconds(waits.seconds)} in all.${speed}`);
  }
}

const MOVES = [
  ["Have moved to replicas", "on_replicas"],
  ["Could have moved, kept by the mode", "could_move"],
  ["Kept by the mode, and no replica was ready", "could_not_yet"],
];

/** What has moved, and what would have, in a second; and what keeps the rest. */
export class Moves {
  #speeds = MOVES.map(() => new Speed());

  constructor(root, kept) {
    this.kept = kept;
    this.figure = new Figure(root, 10, (value) => `${rate(value)} a second`);
  }

  show(routing, now) {
    const values = MOVES.map(([label, key], place) => {
      this.#speeds[place].add(now, routing[key]);
      return [label, this.#speeds[place].now];
    });
    this.figure.show(now, new Map(values));
    this.#why(routing.kept_on_primary.slice(0, 5));
  }

  #why(all) {
    const rows = all.length > 0 ? all.map(({ reason, name, statements }) => {
      const words = reason.replaceAll("_", " ");
      return [name ? `${words}: ${name}` : words, String(statements)];
    }) : [["Nothing", "0"]];
    while (this.kept.children.length > rows.length) this.kept.lastChild.remove();
    rows.forEach(([why, count], place) => {
      let row = this.kept.children[place];
      if (!row) {
        row = make("tr");
        const head = make("th");
        head.scope = "row";
        row.append(head, make("td", "number"));
        this.kept.append(row);
      }
      say(row.children[0], why);
      say(row.children[1], count);
    });
  }
}
