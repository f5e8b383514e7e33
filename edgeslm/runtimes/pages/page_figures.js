// The live figures: what an answer's tokens tell as they come, by the page's own clock.

import {pageBytes} from "./bench.js";

const LIVE = 12; // tokens that the speed shown while an answer comes is taken over
const MEMORY_PATIENCE_MS = 60_000; // a browser may wait for its next collection before it counts
const NONE = "–";

function show(id, text) {
  const place = document.getElementById(id);
  place.textContent = text;
  place.classList.toggle("none", text === NONE);
}

export function bytes(count) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (count >= size) return `${(count / size).toPrecision(3)} ${unit}`;
  return `${count} B`;
}

export function seconds(count) {
  return count < 1 ? `${Math.round(count * 1000)} ms` : `${count.toPrecision(3)} s`;
}

const speed = (count) => (count >= 99.5 ? count.toFixed(0) : count.toPrecision(3));

// One answer: times at which its tokens came.
export class Pace {
  constructor() {
    this.began = performance.now();
    this.times = [];
  }
  token() {
    this.times.push(performance.now());
    if (this.times.length === 1) show("first", seconds(this.first_s));
    show("tokens", String(this.times.length));
    const live = this.rate(Math.max(0, this.times.length - 1 - LIVE));
    if (live) show("speed", speed(live));
    draw(this.times);
  }
  get first_s() { return (this.times[0] - this.began) / 1000; }
  // Tokens per second after token `from`; null before there are two.
  rate(from = 0) {
    const steps = this.times.length - 1 - from;
    return steps > 0 ? (steps * 1000) / (this.times.at(-1) - this.times[from]) : null;
  }
  // The whole answer in a line.
  told() {
    const rate = this.rate(), count = this.times.length;
    if (rate) show("speed", speed(rate));
    const parts = [`${count} ${count === 1 ? "token" : "tokens"}`];
    if (rate) parts.push(`${speed(rate)} per second`);
    if (count) parts.push(`first after ${seconds(this.first_s)}`);
    return parts.join(" · ");
  }
}

export function clear() {
  for (const id of ["speed", "first", "tokens"]) show(id, NONE);
  draw([]);
}

// Speed over the last tokens as a curve; the svg is 240 by 48.
function draw(times) {
  const rates = [];
  for (let at = Math.max(1, times.length - 80); at < times.length; at++) {
    const from = Math.max(0, at - 3); // smoothed over three tokens
    rates.push((at - from) / (times[at] - times[from]));
  }
  const most = Math.max(...rates), wide = 240 / Math.max(1, rates.length - 1);
  const points = rates.map((rate, i) => `${(i * wide).toFixed(1)},${(46 - (40 * rate) / most).toFixed(1)}`);
  const line = rates.length > 1 ? `M${points.join("L")}` : "";
  document.querySelector("#curve .line").setAttribute("d", line);
  document.querySelector("#curve .area").setAttribute("d", line && `${line}V48H0Z`);
}

// The memory of this page as the browser counts it, now and after each answer.
export async function memory() {
  const counted = await pageBytes(MEMORY_PATIENCE_MS);
  show("memory", counted === null ? "not told" : bytes(counted));
}
