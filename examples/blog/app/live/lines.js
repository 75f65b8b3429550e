// What was, over the last two minutes: kept here, drawn as small lines.

const SPAN = 120_000;
const WIDTH = 240;
const HEIGHT = 36;
const SVG = "http://www.w3.org/2000/svg";

/** Values over time; `null` is a gap. */
export class History {
  #points = [];

  add(at, value) {
    this.#points.push([at, value]);
    while (this.#points.length && this.#points[0][0] < at - SPAN) this.#points.shift();
  }

  /** Null if nothing is known. */
  get most() {
    const known = this.#points.map(([, value]) => value).filter((value) => value !== null);
    return known.length ? Math.max(...known) : null;
  }

  /** The points as the path of a line that ends at the right edge now. */
  path(now, most) {
    let path = "";
    let drawing = false;
    for (const [at, value] of this.#points) {
      if (value === null) {
        drawing = false;
        continue;
      }
      const x = WIDTH * (1 - (now - at) / SPAN);
      const y = HEIGHT - 2 - (HEIGHT - 4) * (value / most);
      path += `${drawing ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      drawing = true;
    }
    return path;
  }
}

/** Counters that only grow, and how fast they do: over the last two seconds or so. */
export class Speed {
  #seen = [];

  add(at, count) {
    const last = this.#seen[this.#seen.length - 1];
    // A counter that has shrunk belongs to another run of the application.
    if (last && last[1] > count) this.#seen = [];
    this.#seen.push([at, count]);
    while (this.#seen.length > 2 && this.#seen[1][0] < at - 2000) this.#seen.shift();
  }

  get now() {
    const first = this.#seen[0];
    const last = this.#seen[this.#seen.length - 1];
    if (!first || last[0] - first[0] < 200) return null;
    return ((last[1] - first[1]) * 1000) / (last[0] - first[0]);
  }
}

/**
 * A line for each history, on one scale that reaches at least to `least`, so that what is next to
 * nothing looks like it. What is shown is said in words beside it.
 */
export function chart(classes, least = 1) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "line");
  svg.setAttribute("aria-hidden", "true");
  const paths = classes.map((name) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    svg.append(path);
    return path;
  });
  const draw = (now, histories) => {
    const most = Math.max(least, ...histories.map((history) => history.most));
    histories.forEach((history, place) => {
      paths[place].setAttribute("d", history.path(now, most));
    });
  };
  return { svg, draw };
}
