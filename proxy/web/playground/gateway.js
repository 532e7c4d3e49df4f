// The line to the gateway. Whether this page's key may connect is asked over HTTP, for only there a refusal has a status;
// the socket, with all that runs on it, is then the client's, which reconnects and resumes by itself.

import { connect } from "../client.js";

/** @typedef {{message: string, type?: string|null, param?: string|null, code?: string|null}} GatewayError */
/** @typedef {{how: "done"|"cancelled"} | {how: "error", error: GatewayError, status: number}} Ending */
/** @typedef {{state(state: string, position: number): void, event(data: object, at: number): void,
 *             end(ending: Ending, at: number): void}} Listener  times in ms */
/** @typedef {{name: "connecting"|"connected"|"refused"} | {name: "lost", again_ms: number}} LineState */
/** @typedef {"welcome"|"refused"|"unreachable"} Admission */

export class Gateway {
  #url; #key; #admit; #watch;
  #client = /** @type {import("../client.js").Gateway|null} */ (null);
  #socket = /** @type {WebSocket|null} */ (null);
  #epoch = 0; // counts what open() started: what belongs to an older epoch is over
  #isKnown = false; // whether the models on the page are this connection's

  /**
   * @param {URL} url  of the WebSocket
   * @param {{key: () => string, admit: () => Promise<Admission>,
   *          watch: {state(state: LineState): void, refused(error: GatewayError): void,
   *                  frame(way: "in"|"out"|"note", text: string, at: number): void}}} parts
   */
  constructor(url, { key, admit, watch }) {
    this.#url = url;
    this.#key = key;
    this.#admit = admit;
    this.#watch = watch;
  }

  /** Connects anew, with the key as it is now. What runs is given up. */
  async open() {
    const epoch = ++this.#epoch;
    const old = this.#client;
    this.#client = null;
    old?.close();
    this.#watch.state({ name: "connecting" });
    const admission = await this.#admit();
    if (epoch !== this.#epoch) return;
    if (admission === "refused") return this.#watch.state({ name: "refused" });
    this.#isKnown = admission === "welcome";
    this.#connect();
  }

  /** Now, instead of when its time comes. */
  reconnect() { this.#client?.reconnect(); }

  /** Closes the socket, and nothing else: what runs goes on when the next one is there. */
  cut() { this.#socket?.close(); }

  /** Sends one chat-completions body; the caller has seen that the line is connected. Returns what cancels it. */
  ask(body, /** @type {Listener} */ listener) {
    const stream = this.#client.chat({ ...body, stream: true });
    stream.addEventListener("state", () => listener.state(stream.state, stream.position));
    this.#read(stream, listener);
    return stream;
  }

  async #read(stream, listener) {
    const ending = { how: "done" };
    try {
      for await (const chunk of stream) listener.event(chunk, performance.now());
      ending.how = stream.state;
    } catch (error) {
      Object.assign(ending, { how: "error", error, status: error.status ?? 0 });
    }
    listener.end(ending, performance.now());
  }

  #connect() {
    const note = (words) => this.#watch.frame("note", words, performance.now());
    const keep = (socket) => { this.#socket = socket; };
    class NotedSocket extends WebSocket {
      constructor(...given) {
        super(...given);
        keep(this);
        this.addEventListener("open", () => note("connected"));
        this.addEventListener("close", ({ code, reason }) => note(`closed ${code} ${reason}`.trim()));
      }
    }
    const frame = (way, text) => this.#watch.frame(way, text, performance.now());
    const client = this.#client = connect(this.#url, { key: this.#key, WebSocket: NotedSocket, onframe: frame });
    client.addEventListener("state", () => { if (client === this.#client) this.#tell(client); });
  }

  #tell({ state, retryInMs, error }) {
    if (state === "connecting") this.#watch.state({ name: state });
    if (state === "open") this.#welcome();
    if (state === "lost") this.#lose(retryInMs);
    if (state === "refused") {
      this.#watch.state({ name: state });
      this.#watch.refused(error);
    }
  }

  #welcome() {
    this.#watch.state({ name: "connected" });
    if (!this.#isKnown) this.#admit(); // another gateway may be there now, with other models
    this.#isKnown = true;
  }

  #lose(again_ms) {
    this.#isKnown = false;
    this.#watch.state({ name: "lost", again_ms });
  }
}
