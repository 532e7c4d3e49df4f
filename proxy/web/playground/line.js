// Says how the line to the gateway stands: connecting, connected (and it may be cut), lost with a countdown, or refused.

/** @typedef {import("./gateway.js").LineState} LineState */

const TICK_MS = 250;

export class LineSign {
  #host; #words; #now; #cut; #ticking = 0;

  /** @param {{reconnect(): void, cut(): void}} hooks */
  constructor(/** @type {Document} */ page, { reconnect, cut }) {
    this.#host = page.getElementById("line-state");
    this.#words = page.getElementById("line-words");
    this.#now = page.getElementById("reconnect");
    this.#cut = page.getElementById("cut");
    this.#now.addEventListener("click", reconnect);
    this.#cut.addEventListener("click", cut);
  }

  show(/** @type {LineState} */ state) {
    clearInterval(this.#ticking);
    this.#host.dataset.state = state.name;
    this.#now.hidden = state.name !== "lost";
    this.#cut.hidden = state.name !== "connected";
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
