// Shows a meter: four numbers and the gaps between tokens; and the first tokens of the answers before it.

import { GAPS_KEPT } from "./meter.js";
import { Plot } from "./plot.js";

/** @typedef {import("./meter.js").Reading} Reading */

const FIRSTS_KEPT = 40;

const whole = (number) => Math.round(number).toLocaleString("en-GB");
const fixed = (number, places) => number.toFixed(places);

/** @returns {{first: string, rate: string, tokens: string, time: string}}  as the gauges and the turns write them */
export function words(/** @type {Reading} */ reading) {
  return {
    first: reading.first_ms === null ? "–" : whole(reading.first_ms),
    rate: reading.rate === null ? "–" : fixed(reading.rate, reading.rate < 100 ? 1 : 0),
    tokens: whole(reading.tokens),
    time: fixed(reading.duration_ms / 1000, reading.duration_ms < 100_000 ? 2 : 0),
  };
}

export class Gauges {
  #outputs = {}; #gaps; #firsts; #exact; #host;

  constructor(/** @type {Document} */ page) {
    this.#host = page.getElementById("gauges");
    for (const gauge of this.#host.querySelectorAll("[data-gauge]")) {
      this.#outputs[gauge.dataset.gauge] = gauge.querySelector("output");
    }
    this.#exact = this.#host.querySelector("[data-gauge=tokens] abbr");
    this.#gaps = new Plot(page.getElementById("gaps"), GAPS_KEPT);
    this.#firsts = new Plot(page.getElementById("firsts"), FIRSTS_KEPT);
  }

  /** Draws what `meter` reads at `now` (ms), and what each of `meters`, in the order they began, knows of first tokens. */
  show(meter, meters, now) {
    const reading = meter.read(now);
    const texts = words(reading);
    for (const name in texts) if (this.#outputs[name].value !== texts[name]) this.#outputs[name].value = texts[name];
    this.#exact.textContent = reading.exact || reading.tokens === 0 ? "" : "deltas";
    this.#exact.title = "counted by the page: the model has not told its own count";
    this.#host.classList.remove("idle");
    this.#host.classList.toggle("waiting", reading.waiting);
    this.#gaps.draw(meter.gaps);
    this.#firsts.draw(meters.slice(-FIRSTS_KEPT).map((each) => each.untilFirst(now)).filter((time) => time !== null));
  }

  /** Nothing is measured. */
  rest() {
    for (const name in this.#outputs) this.#outputs[name].value = "–";
    this.#host.classList.remove("waiting");
    this.#host.classList.add("idle");
    this.#gaps.draw([]);
  }
}
