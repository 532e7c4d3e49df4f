// Shows a meter: four numbers and the gaps between tokens.

import { GAPS_KEPT, quantile } from "./meter.js";

/** @typedef {import("./meter.js").Reading} Reading */

const WIDTH = 320, HEIGHT = 56, PITCH = WIDTH / GAPS_KEPT; // the sparkline's own units
const LEAST_SCALE_MS = 10;

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

/** The path of one bar a gap, newest at the right edge, at most the drawing's height. */
export function bars(gaps, scale_ms) {
  const left = WIDTH - gaps.length * PITCH;
  return gaps.map((gap, at) => {
    const height = Math.max(1, Math.min(1, gap / scale_ms) * (HEIGHT - 2));
    return `M${(left + (at + 0.5) * PITCH).toFixed(1)} ${HEIGHT}v${(-height).toFixed(1)}`;
  }).join("");
}

export class Gauges {
  #outputs = {}; #bars; #median; #gapWords; #exact; #host;

  constructor(/** @type {Document} */ page) {
    this.#host = page.getElementById("gauges");
    for (const gauge of this.#host.querySelectorAll("[data-gauge]")) {
      this.#outputs[gauge.dataset.gauge] = gauge.querySelector("output");
    }
    this.#exact = this.#host.querySelector("[data-gauge=tokens] abbr");
    this.#bars = page.getElementById("gap-bars");
    this.#median = page.getElementById("gap-median");
    this.#gapWords = page.getElementById("gap-words");
  }

  /** Draws what `meter` reads at `now` (ms). */
  show(meter, now) {
    const reading = meter.read(now);
    const texts = words(reading);
    for (const name in texts) if (this.#outputs[name].value !== texts[name]) this.#outputs[name].value = texts[name];
    this.#exact.textContent = reading.exact || reading.tokens === 0 ? "" : "deltas";
    this.#exact.title = "counted by the page: the model has not told its own count";
    this.#host.classList.remove("idle");
    this.#host.classList.toggle("waiting", reading.waiting);
    this.#draw(meter.gaps);
  }

  #draw(gaps) {
    const median = quantile(gaps, 0.5), late = quantile(gaps, 0.95), worst = Math.max(0, ...gaps);
    const scale_ms = Math.max(LEAST_SCALE_MS, Math.min(worst, median * 6 || worst));
    const level = (HEIGHT - (median / scale_ms) * (HEIGHT - 2)).toFixed(1);
    this.#bars.setAttribute("d", bars(gaps, scale_ms));
    this.#median.setAttribute("d", gaps.length ? `M0 ${level}h${WIDTH}` : "");
    this.#gapWords.value = gaps.length
      ? `median ${fixed(median, 1)} · p95 ${fixed(late, 1)} · most ${fixed(worst, 1)} ms`
      : "";
  }
}
