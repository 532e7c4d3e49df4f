// Says how the line to the gateway stands: connecting, connected, lost with a countdown, or refused.

/** @typedef {import("./gateway.js").LineState} LineState */

const TICK_MS = 250;

export class LineSign {
  #host; #words; #now; #ticking = 0;

  /** @param {{reconnect(): void}} hooks */
  constructor(/** @type {Document} */ page, { reconnect }) {
    this.#host = page.getElementById("line-state");
    this.#words = page.getElementById("line-words");
    this.#now = page.getElementById("reconnect");
    this.#now.addEventListener("click", reconnect);
  }

  show(/** @type {LineState} */ state) {
    clearInterval(this.#ticking);
    this.#host.dataset.state = state.name;
    this.#now.hidden = state.name !== "lost";
    if (state.name === "lost") this.#countDown(performance.now() + state.again_ms);
    else this.#say(state.name === "refused" ? "not admitted" : state.name);
  }

  #countDown(due) {
    const tick = () => this.#say(`lost, again in ${Math.max(0, Math.ceil((due - performance.now()) / 1000))} s`);
    tick();
    this.#ticking = setInterval(tick, TICK_MS);
  }

  #say(words) {
    if (this.#words.textContent !== words) this.#words.textContent = words;
  }
}
