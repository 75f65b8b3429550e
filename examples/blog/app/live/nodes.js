// The nodes as a tree of cards: who receives from whom, and how each one is.

import { buttons } from "./demo.js";
import { History, chart } from "./lines.js";
import { bytes, known, make, position, rate, say, seconds } from "./words.js";

const FACTS = [
  ["Timeline", (node) => known(node.timeline)],
  ["Position", (node) => position(node.position)],
  ["Behind", (node) => bytes(behind(node))],
  ["Data at most", (node) => (follows(node) && node.lag !== null ? `${seconds(node.lag)} old` : known())],
  ["Round trip", (node) => seconds(node.round_trip)],
  ["Weight", (node) => known(node.weight)],
  ["Connections", (node) => `${node.connections} of ${node.max_size}, ${node.idle_connections} idle`],
  ["Running now", (node) => known(node.in_flight)],
  ["Reads", (_, speed) => `${rate(speed.reads)} a second`],
  ["Writes", (_, speed) => `${rate(speed.writes)} a second`],
];

function follows(node) {
  return node.kind === "replica";
}

function behind(node) {
  return follows(node) ? node.lag_bytes : null;
}

/** A node's card, made once and kept up to date, so that a button stays the same button. */
class Card {
  #lag = new History();
  #values = [];

  constructor(name) {
    this.item = make("li");
    this.root = make("article", "card");
    const head = make("div", "card-head");
    this.name = make("h3", "", name);
    this.role = make("span", "node");
    this.health = make("span", "pill");
    head.append(this.name, this.role, this.health);
    this.why = make("p", "why");
    const facts = make("dl", "facts small");
    for (const [label] of FACTS) {
      const pair = make("div");
      const value = make("dd");
      pair.append(make("dt", "", label), value);
      facts.append(pair);
      this.#values.push(value);
    }
    this.figure = make("figure");
    this.line = chart(["lag"], 1024);
    this.caption = make("figcaption", "meta");
    this.figure.append(this.line.svg, this.caption);
    this.buttons = buttons(name);
    this.root.append(head, this.why, facts, this.figure, this.buttons.root);
    this.children = make("ul");
    this.item.append(this.root, this.children);
  }

  show(node, speed, server, now) {
    const [health, state] = howItIs(node, server);
    say(this.role, node.kind || "not in use");
    this.role.className = `node ${node.kind || "neither"}`;
    say(this.health, health);
    this.health.dataset.state = state;
    say(this.why, reasons(node));
    this.why.hidden = this.why.textContent === "";
    FACTS.forEach(([, value], place) => say(this.#values[place], value(node, speed)));
    this.#lag.add(now, behind(node));
    this.figure.hidden = !follows(node);
    this.line.draw(now, [this.#lag]);
    say(this.caption, `behind, last 2 minutes: at most ${bytes(this.#lag.most)}`);
    this.buttons.show(node, server);
  }
}

const STATES = { up: "good", down: "bad" };

/** In words, and as a colour. */
function howItIs(node, server) {
  let words = node.health;
  if (server && !server.running) words += ", not running";
  else if (server && server.frozen) words += ", frozen";
  else if (node.replay_paused) words += ", replay paused";
  const state = STATES[node.health] || "fair";
  const held = node.replay_paused || node.diverged || (server && (server.frozen || !server.running));
  return [words, state === "good" && held ? "fair" : state];
}

function reasons(node) {
  const reasons = [];
  // In most cases the standing is the kind once more.
  if (node.standing !== node.kind) reasons.push(node.standing);
  if (node.cause) reasons.push(node.cause);
  if (node.diverged) reasons.push("it is ahead of the primary, and must be rebuilt: restart it");
  return reasons.join("; ");
}

/** All cards, each in its place. */
export class Nodes {
  #cards = new Map();
  #places = "";

  constructor(tree, apart, loose) {
    this.tree = tree;
    this.apart = apart;
    this.loose = loose;
  }

  show(pool, speeds, demo, now) {
    for (const node of pool.nodes) {
      if (!this.#cards.has(node.name)) this.#cards.set(node.name, new Card(node.name));
    }
    this.#arrange(pool);
    for (const node of pool.nodes) {
      const server = demo ? demo.servers[node.name] : undefined;
      this.#cards.get(node.name).show(node, speeds(node.name), server, now);
    }
  }

  #arrange(pool) {
    const places = placesOf(pool);
    const now = JSON.stringify(places);
    // Cards that are where they belong are left there: moving one takes the focus from its buttons.
    if (now === this.#places) return;
    this.#places = now;
    const focused = document.activeElement;
    const lists = new Map([["", []], ["?", []]]);
    for (const [name, parent] of places) {
      if (!lists.has(parent)) lists.set(parent, []);
      lists.get(parent).push(this.#cards.get(name).item);
    }
    this.tree.replaceChildren(...lists.get(""));
    this.loose.replaceChildren(...lists.get("?"));
    this.apart.hidden = lists.get("?").length === 0;
    for (const [name, card] of this.#cards) {
      card.children.replaceChildren(...(lists.get(`/${name}`) || []));
    }
    if (focused && focused !== document.activeElement && focused.isConnected) focused.focus();
  }
}

/**
 * Each node with its place: "" is the root, "/name" is below that node, "?" is not known. What a node
 * receives from is known only while it receives, and nodes that name each other have no place.
 */
function placesOf(pool) {
  const byName = new Map(pool.nodes.map((node) => [node.name, node]));
  const reaches = (node) => {
    const seen = new Set();
    for (let at = node; at; at = byName.get(at.upstream)) {
      if (at.kind === "primary") return true;
      if (seen.has(at.name)) return false;
      seen.add(at.name);
    }
    return false;
  };
  return pool.nodes.map((node) => {
    if (node.kind === "primary") return [node.name, ""];
    return [node.name, reaches(node) ? `/${node.upstream}` : "?"];
  });
}
