// The line to the gateway: one WebSocket on /v1/ws, the bare dialect, reconnecting by itself.
// It carries one exchange at a time and tells who listens; what is shown, and how, belongs to others.

import { subprotocols } from "./credentials.js";

/** @typedef {{message: string, type?: string, param?: string|null, code?: string}} GatewayError */
/** @typedef {{how: "done"|"cancelled"|"lost"} | {how: "error", error: GatewayError, status: number}} Ending */
/** @typedef {{event(data: object, at: number): void, end(ending: Ending, at: number): void}} Listener  times in ms */
/** @typedef {{name: "connecting"|"connected"|"refused"} | {name: "lost", again_ms: number}} LineState */
/** @typedef {"welcome"|"refused"|"unreachable"} Admission */

const BACKOFF_MS = { first: 500, most: 15_000 };
const SETTLED_MS = 5_000; // a socket that lived this long was a good one: the next backoff starts anew

/** How long to wait before try number `tries` (1, 2, …), in ms; `chance` in [0, 1) spreads the clients of a restart. */
export function backoff(tries, chance) {
  const whole = Math.min(BACKOFF_MS.most, BACKOFF_MS.first * 2 ** (tries - 1));
  return Math.round(whole * (0.5 + chance / 2));
}

export class Gateway {
  #url; #key; #admit; #watch;
  #socket = /** @type {WebSocket|null} */ (null);
  #listener = /** @type {Listener|null} */ (null);
  #stopping = false;
  #epoch = 0; // counts what open() started: what belongs to an older epoch is over
  #tries = 0;
  #timer = 0;

  /**
   * @param {URL} url  of the WebSocket
   * @param {{key: () => string, admit: () => Promise<Admission>,
   *          watch: {state(state: LineState): void, frame(way: "in"|"out"|"note", text: string, at: number): void}}} parts
   *   `admit` asks over HTTP whether this key may connect: a page cannot see the status of a failed handshake.
   */
  constructor(url, { key, admit, watch }) {
    this.#url = url;
    this.#key = key;
    this.#admit = admit;
    this.#watch = watch;
  }

  get connected() { return this.#socket?.readyState === WebSocket.OPEN; }
  get busy() { return this.#listener !== null; }

  /** (Re)connects now, with the key as it is now. What runs is lost. */
  async open() {
    const epoch = ++this.#epoch;
    clearTimeout(this.#timer);
    this.#drop();
    this.#watch.state({ name: "connecting" });
    const admission = await this.#admit();
    if (epoch !== this.#epoch) return;
    if (admission === "refused") this.#watch.state({ name: "refused" });
    else if (admission === "unreachable") this.#retry();
    else this.#dial(epoch);
  }

  /** Sends one chat-completions body. The caller looks at `connected` and `busy` first. */
  ask(body, /** @type {Listener} */ listener) {
    this.#listener = listener;
    this.#stopping = false;
    this.#send(JSON.stringify(body));
  }

  /** Asks the gateway to stop; the listener's end comes with its confirmation. */
  cancel() {
    if (!this.#listener || this.#stopping) return;
    this.#stopping = true;
    this.#send('{"type":"cancel"}');
  }

  #dial(epoch) {
    const socket = new WebSocket(this.#url, subprotocols(this.#key()));
    let opened_ms = 0;
    this.#socket = socket;
    socket.onopen = () => {
      opened_ms = performance.now();
      this.#watch.frame("note", "connected", opened_ms);
      this.#watch.state({ name: "connected" });
    };
    socket.onmessage = (message) => this.#receive(message.data, performance.now());
    socket.onclose = (closing) => {
      if (epoch !== this.#epoch) return;
      const now = performance.now();
      this.#watch.frame("note", `closed ${closing.code} ${closing.reason}`.trim(), now);
      if (opened_ms && now - opened_ms > SETTLED_MS) this.#tries = 0;
      this.#drop();
      this.#retry();
    };
  }

  #send(text) {
    this.#watch.frame("out", text, performance.now());
    this.#socket?.send(text);
  }

  #receive(text, at) {
    this.#watch.frame("in", text, at);
    if (text === "[DONE]") return this.#end({ how: "done" }, at);
    let data;
    try { data = JSON.parse(text); } catch { return; } // the frames panel shows it; there is nothing to add
    if (data?.error) return this.#end({ how: "error", error: data.error, status: data.status ?? 0 }, at);
    // A confirmation that comes after an answer's own end is not about the next one.
    if (data?.type === "cancel") return this.#stopping && this.#end({ how: "cancelled" }, at);
    this.#listener?.event(data, at);
  }

  #end(/** @type {Ending} */ ending, at) {
    const listener = this.#listener;
    this.#listener = null;
    this.#stopping = false;
    listener?.end(ending, at);
  }

  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
    if (this.#listener) this.#end({ how: "lost" }, performance.now());
  }

  #retry() {
    const again_ms = backoff(++this.#tries, Math.random());
    this.#watch.state({ name: "lost", again_ms });
    this.#timer = setTimeout(() => this.open(), again_ms);
  }
}
