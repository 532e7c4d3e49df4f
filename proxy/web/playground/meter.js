// Measures one answer: time to first token, rate, tokens, gaps. Takes times (ms), asks no clock, draws nothing.

export const GAPS_KEPT = 160;

/** @typedef {{first_ms: number|null, rate: number|null, tokens: number, exact: boolean, duration_ms: number, waiting: boolean}} Reading */

export class Meter {
  #sent; #first = /** @type {number|null} */ (null); #last = 0;
  #deltas = 0;
  #told = /** @type {number|null} */ (null);
  #ended = /** @type {number|null} */ (null);
  #gaps = /** @type {number[]} */ ([]);

  constructor(sent_ms) { this.#sent = sent_ms; }

  /** One delta with text arrived: a token, until the model's own count says better. */
  token(at) {
    if (this.#first === null) this.#first = at;
    else {
      this.#gaps.push(at - this.#last);
      if (this.#gaps.length > GAPS_KEPT) this.#gaps.shift();
    }
    this.#last = at;
    this.#deltas += 1;
  }

  /** The model's own count of the answer's tokens. */
  usage(tokens) { this.#told = tokens; }

  end(at) { this.#ended = at; }

  /** The latest gaps, oldest first, in ms; at most GAPS_KEPT. */
  get gaps() { return this.#gaps; }

  /** How long the first token took, or takes so far, in ms; null for an answer that ended without one. */
  untilFirst(now) {
    if (this.#first !== null) return this.#first - this.#sent;
    return this.#ended === null ? now - this.#sent : null;
  }

  /** @returns {Reading}  `rate` is tokens a second after the first one; null until two have come */
  read(now) {
    const tokens = this.#told ?? this.#deltas;
    const flowing_ms = this.#last - (this.#first ?? 0);
    return {
      first_ms: this.#first === null ? null : this.#first - this.#sent,
      rate: this.#deltas > 1 && flowing_ms > 0 ? ((tokens - 1) * 1000) / flowing_ms : null,
      tokens,
      exact: this.#told !== null,
      duration_ms: (this.#ended ?? now) - this.#sent,
      waiting: this.#first === null && this.#ended === null,
    };
  }
}

/** The `share` quantile (0..1) of numbers, by nearest rank; 0 for none. */
export function quantile(numbers, share) {
  if (numbers.length === 0) return 0;
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))];
}
