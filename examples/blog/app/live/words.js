// Numbers, times and events in words.

const UNKNOWN = "–";

/** An element with a class and a text. Texts are texts here, never markup. */
export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  return element;
}

/** Sets a text only if it is another, so that nothing is read aloud or selected anew for nothing. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function bytes(count) {
  if (count === null || count === undefined) return UNKNOWN;
  for (const [size, unit] of [[2 ** 30, "GB"], [2 ** 20, "MB"], [2 ** 10, "kB"]]) {
    if (count >= size) return `${digits(count / size)} ${unit}`;
  }
  return `${count} B`;
}

export function seconds(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${digits(value * 1000)} ms`;
  return value < 120 ? `${digits(value)} s` : `${Math.round(value / 60)} min`;
}

function digits(value) {
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}

export function rate(value) {
  if (value === null || value === undefined) return UNKNOWN;
  return value > 0 && value < 10 ? value.toFixed(1) : String(Math.round(value));
}

export function position(place) {
  return place ? place.lsn : UNKNOWN;
}

export function known(value) {
  return value === null || value === undefined || value === "" ? UNKNOWN : String(value);
}

export function clock(at) {
  return new Date(at).toLocaleTimeString([], { hour12: false });
}

/** One event of the pool: what it says, and how grave it is. */
export function told(event) {
  const { event: kind, node } = event;
  switch (kind) {
    case "node_changed": {
      const why = event.cause ? `: ${event.cause}` : "";
      const grave = { up: "good", down: "bad" }[event.to] || "fair";
      return [`${node} is ${event.to}${why}`, grave];
    }
    case "primary_changed": {
      const line = event.timeline ? ` on timeline ${event.timeline}` : "";
      if (event.to) return [`${event.to} takes the writes${line}`, "good"];
      return [`nobody takes writes any more; it was ${known(event.from)}`, "bad"];
    }
    case "standing_changed":
      return [`${node}: ${event.standing}`, "fair"];
    case "replication_changed": {
      const parts = [event.upstream ? `receives from ${event.upstream}` : "receives nothing"];
      if (event.replay_paused) parts.push("its replay is paused");
      if (event.diverged) parts.push("it is ahead of the primary and must be rebuilt");
      return [`${node} ${parts.join("; ")}`, event.upstream && !event.diverged ? "good" : "fair"];
    }
    case "promoted":
      return [`this application promoted ${node}: timeline ${event.timeline}`, "good"];
    case "promotion_refused": {
      const reasons = event.reasons.map((one) => one.reason.replaceAll("_", " "));
      return [`no replica is promoted: ${reasons.join(", ")}`, "bad"];
    }
    case "standby_told":
      return [`${node} was told to follow ${event.primary}`, "fair"];
    case "standby_follows":
      return [`${node} follows ${event.primary} on timeline ${event.timeline}`, "good"];
    case "standby_left":
      return [`${node} does not follow ${event.primary}: ${event.cause}`, "bad"];
    case "promotion_failed":
      return [`${node} was not promoted: ${event.cause}`, "bad"];
    case "cluster_replaced":
      return ["every node is of another cluster now, which is used from here on", "bad"];
    case "degraded":
      return [`${event.what.node ? `${event.what.node}: ` : ""}${event.what.detail}`, "fair"];
    case "degradation_over":
      return [`${event.what.node ? `${event.what.node}: ` : ""}over: ${event.what.reason.replaceAll("_", " ")}`, "good"];
    case "missed":
      return [`${event.events} events were missed`, "fair"];
    default:
      return [`${kind} ${node || ""}`, "fair"];
  }
}
