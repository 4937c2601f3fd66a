/** Small charts of the last minute, from the gateway's own metrics. */

const EVERY = 1000;
const KEPT = 60;
/** The samples over which the lag is taken: the gateway measures one event in 64. */
const WINDOW = 10;
const SVG = "http://www.w3.org/2000/svg";

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

const CHARTS = [
  { name: "sockets", caption: "Open sockets", value: (now) => now.sockets, text: (value) => number.format(value) },
  { name: "deliveries", caption: "Deliveries per second", value: rate, text: (value) => number.format(value) },
  { name: "lag", caption: "Event to socket, p99 of 10 s", value: lag, text: (value) => `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms` },
];

/** Draws the charts, once a second while the page is seen. */
export function charts(parent, state) {
  const samples = [];
  const drawn = CHARTS.map((chart) => draw(parent, chart));
  const look = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch("/dev/metrics");
      if (!answer.ok) throw new Error(answer.status);
      samples.push(read(await answer.text()));
      state.textContent = "";
    } catch {
      state.textContent = "The gateway does not answer.";
      return;
    }
    if (samples.length > KEPT + WINDOW) samples.shift();
    for (const show of drawn) show(samples);
  };
  const again = () => look().finally(() => setTimeout(again, EVERY));
  again();
}

/** Reads what the charts need from a scrape, summed over all series. */
function read(text) {
  const sample = { at: performance.now(), sockets: 0, deliveries: 0, lag: new Map() };
  for (const line of text.split("\n")) {
    const parts = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!parts) continue;
    const [, name, labels = "", value] = parts;
    if (name === "lockgate_connections") sample.sockets += +value;
    if (name === "lockgate_deliveries_total") sample.deliveries += +value;
    if (name !== "lockgate_delivery_lag_seconds_bucket") continue;
    const [, bound] = /le="([^"]+)"/.exec(labels);
    const most = bound === "+Inf" ? Infinity : +bound;
    sample.lag.set(most, (sample.lag.get(most) ?? 0) + +value);
  }
  return sample;
}

function rate(now, before) {
  return before && ((now.deliveries - before.deliveries) * 1000) / (now.at - before.at);
}

/** The 99th percentile between two samples, interpolated within its bucket as Prometheus does; nothing without events. */
function lag(now, _, long) {
  const bounds = [...now.lag.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => now.lag.get(bound) - (long?.lag.get(bound) ?? 0));
  const all = counts.at(-1);
  if (!all) return undefined;
  const place = counts.findIndex((count) => count >= 0.99 * all);
  const [low, under] = place > 0 ? [bounds[place - 1], counts[place - 1]] : [0, 0];
  if (bounds[place] === Infinity) return low;
  return low + ((bounds[place] - low) * (0.99 * all - under)) / (counts[place] - under);
}

function draw(parent, { name, caption, value, text }) {
  const figure = document.createElement("figure");
  figure.className = "chart";
  figure.id = `chart-${name}`;
  figure.innerHTML = `<figcaption></figcaption><span class="value">–</span>`;
  figure.querySelector("figcaption").textContent = caption;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${KEPT - 1} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const area = svg.appendChild(document.createElementNS(SVG, "polygon"));
  const line = svg.appendChild(document.createElementNS(SVG, "polyline"));
  const most = document.createElement("span");
  most.className = "most";
  figure.append(svg, most);
  parent.append(figure);
  return (samples) => {
    const values = samples.map((now, index) => value(now, samples[index - 1], samples[Math.max(0, index - WINDOW)]));
    const shown = values.slice(-KEPT);
    const known = shown.filter((each) => each !== undefined);
    const last = shown.at(-1);
    const top = Math.max(...known, 0);
    figure.querySelector(".value").textContent = last === undefined ? "–" : text(last);
    most.textContent = known.length ? `most: ${text(top)}` : "no event was measured yet";
    const points = [];
    shown.forEach((each, index) => {
      const height = top > 0 ? (90 * (each ?? 0)) / top : 0;
      points.push(`${KEPT - shown.length + index},${96 - height}`);
    });
    line.setAttribute("points", points.join(" "));
    area.setAttribute("points", `${KEPT - shown.length},100 ${points.join(" ")} ${KEPT - 1},100`);
  };
}
