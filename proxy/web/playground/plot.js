// A row of bars, one a value, with the median across it and the figures in words: how times are shown here.

import { quantile } from "./meter.js";

const LEAST_SCALE_MS = 10;
const fixed = (number) => number.toFixed(1);

/** The path of one bar a value, the newest at the right edge, at most the drawing's height. */
export function bars(values, scale, { width, height, kept }) {
  const pitch = width / kept, left = width - values.length * pitch;
  return values.map((value, at) => {
    const bar = Math.max(1, Math.min(1, value / scale) * (height - 2));
    return `M${(left + (at + 0.5) * pitch).toFixed(1)} ${height}v${(-bar).toFixed(1)}`;
  }).join("");
}

/** The value of a full bar: a few that stand far out are cut off, so that the others can be told apart. */
export function scaleOf(values) {
  const worst = Math.max(0, ...values);
  return Math.max(LEAST_SCALE_MS, Math.min(worst, quantile(values, 0.5) * 6 || worst));
}

export class Plot {
  #size; #bars; #median; #words;

  /** A figure with a drawing of two paths, `.plot-bars` and `.plot-median`, and an output; so many bars fill it. */
  constructor(/** @type {HTMLElement} */ figure, /** @type {number} */ kept) {
    const { width, height } = figure.querySelector("svg").viewBox.baseVal;
    this.#size = { width, height, kept };
    this.#bars = figure.querySelector(".plot-bars");
    this.#median = figure.querySelector(".plot-median");
    this.#words = figure.querySelector("output");
  }

  /** Draws the last values, oldest first, in ms. */
  draw(/** @type {number[]} */ times) {
    const { width, height, kept } = this.#size;
    const values = times.slice(-kept);
    const median = quantile(values, 0.5), late = quantile(values, 0.95), worst = Math.max(0, ...values);
    const scale = scaleOf(values);
    const level = height - (median / scale) * (height - 2);
    this.#bars.setAttribute("d", bars(values, scale, this.#size));
    this.#median.setAttribute("d", values.length ? `M0 ${fixed(level)}h${width}` : "");
    const words = `median ${fixed(median)} · p95 ${fixed(late)} · most ${fixed(worst)} ms`;
    this.#words.value = values.length ? words : "";
  }
}
