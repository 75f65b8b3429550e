// The page: takes what the server sends, and shows it.

import { Lags, Moves, Waits } from "./charts.js";
import { Routing } from "./demo.js";
import { History, Speed, chart } from "./lines.js";
import { Nodes } from "./nodes.js";
import { Sides, Story } from "./story.js";
import { clock, known, make, rate, say, told } from "./words.js";

const LOGGED = 100;

const at = (id) => document.getElementById(id);
const nodes = new Nodes(at("tree"), at("apart"), at("loose"));
const story = new Story(at("story"), at("outages"), at("normal"), at("story-said"));
const sides = new Sides(at("sides"), at("figures"), at("traffic-button"), at("traffic-text"), at("since"));
const lags = new Lags(at("lags"));
const waiting = new Waits(at("waits"));
const moves = new Moves(at("moves"), at("kept"));
const routing = new Routing(at("routing-buttons"), at("routing-text"));

/** Who is a node, or was one when it served something. */
function namesOf(pool, served) {
  return new Set([...pool.nodes.map((node) => node.name), ...Object.keys(served)]);
}

function countsOf(served, name) {
  return served[name] || { reads: 0, writes: 0 };
}

/** How fast the counters of each node grow. */
const speeds = new Map();

function measure(pool, served, now) {
  for (const name of namesOf(pool, served)) {
    const counts = countsOf(served, name);
    if (!speeds.has(name)) speeds.set(name, { reads: new Speed(), writes: new Speed() });
    speeds.get(name).reads.add(now, counts.reads);
    speeds.get(name).writes.add(now, counts.writes);
  }
}

function speed(name) {
  const { reads, writes } = speeds.get(name);
  return { reads: reads.now, writes: writes.now };
}

/** All nodes together; not known before that of each is known. */
function whole() {
  const sum = { reads: 0, writes: 0 };
  for (const name of speeds.keys()) {
    const { reads, writes } = speed(name);
    if (reads === null || writes === null) return { reads: null, writes: null };
    sum.reads += reads;
    sum.writes += writes;
  }
  return sum;
}

/** The facts about the whole, with a line for reads and one for writes. */
class Facts {
  #values = new Map();
  #reads = new History();
  #writes = new History();

  constructor(root) {
    for (const label of ["Primary", "Timeline", "Nodes up", "Connections out"]) this.#add(root, label);
    this.readLine = this.#add(root, "Reads a second", "reads");
    this.writeLine = this.#add(root, "Writes a second", "writes");
  }

  #add(root, label, line) {
    const pair = make("div");
    const value = make("dd");
    pair.append(make("dt", "", label), value);
    this.#values.set(label, value);
    root.append(pair);
    if (!line) return null;
    const drawn = chart([line], 10);
    pair.append(drawn.svg);
    return drawn;
  }

  show(pool, sum, now) {
    const up = pool.nodes.filter((node) => node.health === "up").length;
    const facts = {
      Primary: known(pool.primary),
      Timeline: known(pool.timeline || null),
      "Nodes up": `${up} of ${pool.nodes.length}`,
      "Connections out": known(pool.connections_out),
      "Reads a second": rate(sum.reads),
      "Writes a second": rate(sum.writes),
    };
    for (const [label, value] of Object.entries(facts)) say(this.#values.get(label), value);
    this.#reads.add(now, sum.reads);
    this.#writes.add(now, sum.writes);
    this.readLine.draw(now, [this.#reads]);
    this.writeLine.draw(now, [this.#writes]);
  }
}

const facts = new Facts(at("facts"));

/** Who served what: a row for each node, with its share as a bar. */
const rows = new Map();

function showServed(pool, served) {
  const names = namesOf(pool, served);
  let all = 0;
  for (const name of names) all += countsOf(served, name).reads;
  for (const name of names) {
    if (!rows.has(name)) rows.set(name, makeRow(name));
    const { cells, bar, share } = rows.get(name);
    const { reads, writes } = countsOf(served, name);
    const now = speed(name);
    [reads, rate(now.reads), writes, rate(now.writes)].forEach((text, place) => {
      say(cells[place], String(text));
    });
    const part = all ? Math.round((100 * reads) / all) : 0;
    bar.value = part;
    say(share, `${part} % of the reads`);
  }
}

function makeRow(name) {
  const row = make("tr");
  const head = make("th", "", name);
  head.scope = "row";
  const bar = make("progress");
  bar.max = 100;
  bar.setAttribute("aria-hidden", "true");
  const share = make("span", "meta");
  head.append(bar, share);
  const cells = [0, 1, 2, 3].map(() => make("td", "number"));
  row.append(head, ...cells);
  at("served").append(row);
  return { cells, bar, share };
}

function showBanner(pool) {
  let text = "";
  if (pool.closed) text = "The pool is closed.";
  else if (!pool.takes_writes && pool.takes_reads) text = "Nothing can be written now. Reads go on.";
  else if (!pool.takes_writes) text = "Nothing can be written or read now.";
  say(at("banner"), text);
}

/** When the last thing that was logged has happened. */
let logged = 0;

function log(when, text, state) {
  logged = Math.max(logged, when);
  const entry = make("li");
  const time = make("time", "meta", clock(when));
  time.dateTime = new Date(when).toISOString();
  const words = make("span", "", text);
  entry.dataset.state = state;
  entry.append(time, words);
  const list = at("log");
  list.prepend(entry);
  while (list.children.length > LOGGED) list.lastChild.remove();
  at("quiet").hidden = true;
}

function show({ pool, served, waits, demo, switch: opened }) {
  const now = performance.now();
  measure(pool, served, now);
  nodes.show(pool, speed, demo, now);
  facts.show(pool, whole(), now);
  showServed(pool, served);
  showBanner(pool);
  story.show(demo);
  sides.show(demo);
  lags.show(pool, now);
  waiting.show(waits, now);
  moves.show(pool.routing, now);
  routing.show(pool.routing, opened);
}

/** What has happened before this page listened, as far as the nodes still tell it. */
function recall(pool) {
  const past = pool.nodes.flatMap((node) =>
    node.transitions.map((change) => ({ event: "node_changed", node: node.name, ...change })),
  );
  past.sort((one, other) => one.at - other.at);
  const since = logged;
  for (const event of past) if (event.at > since) log(event.at, ...told(event));
}

/** What is still to be shown. A page that is slower than the news shows the newest, and is never late. */
let next = null;

function showSoon(snapshot) {
  if (!next) {
    setTimeout(() => {
      const newest = next;
      next = null;
      show(newest);
    });
  }
  next = snapshot;
}

let source = null;
let heard = Date.now();
let open = false;

/** The browser tries again by itself, unless the server has refused; then this does. */
function connect() {
  if (source || document.hidden) return;
  source = new EventSource("/status/events");
  source.addEventListener("snapshot", (message) => {
    const snapshot = JSON.parse(message.data);
    const first = !open;
    if (first) recall(snapshot.pool);
    heard = Date.now();
    open = true;
    showConnection();
    if (first) show(snapshot);
    else showSoon(snapshot);
  });
  source.addEventListener("pool", (message) => {
    const event = JSON.parse(message.data);
    log(event.at || Date.now(), ...told(event));
  });
  source.addEventListener("error", () => {
    if (open) log(Date.now(), "the connection to the application was lost", "bad");
    open = false;
    showConnection();
    if (source?.readyState !== EventSource.CLOSED) return;
    source = null;
    setTimeout(connect, 2000);
  });
}

/** A browser has few connections to one server: pages that nobody sees leave theirs to others. */
function rest() {
  source?.close();
  source = null;
  open = false;
}

function showConnection() {
  const live = open && Date.now() - heard < 5000;
  const pill = at("connection");
  pill.dataset.state = live ? "good" : "bad";
  document.body.classList.toggle("stale", !live);
  if (live) say(pill, "live");
  else say(pill, open ? "connected, and nothing comes" : "not connected; trying again");
}

document.addEventListener("visibilitychange", () => (document.hidden ? rest() : connect()));
connect();
setInterval(showConnection, 1000);
