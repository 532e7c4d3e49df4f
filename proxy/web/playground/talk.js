// One conversation as the page has it: what was said, its turns, and the answer under way. Several may be under way at
// once, each in its own talk; which of them is shown is not its business.

import { Conversation } from "./conversation.js";
import { Meter } from "./meter.js";
import { Transcript } from "./transcript.js";

/** @typedef {import("./gateway.js").Ending} Ending */

/**
 * One prompt and its answer. `state` is its stream's; `losses` counts the sockets it lost; `isKept` says whether the turn
 * became part of the conversation.
 * @typedef {{prompt: string, answer: import("./answer.js").Answer, meter: Meter, stream: {cancel(): void}|null,
 *            state: string, losses: number, isRunning: boolean, isKept: boolean}} Exchange
 */

export class Talk {
  /** What stands in the prompt while another talk is shown. */
  draft = "";
  current = /** @type {Exchange|null} */ (null); // under way, or the last one
  #conversation = new Conversation();
  #transcript; #gateway; #hooks;

  /** @param {{again(talk: Talk): void, changed(talk: Talk): void, ended(talk: Talk, ending: Ending): void}} hooks */
  constructor(/** @type {Document} */ page, gateway, hooks) {
    this.#transcript = new Transcript(page, { again: () => hooks.again(this) });
    this.#gateway = gateway;
    this.#hooks = hooks;
  }

  get isRunning() { return this.current?.isRunning ?? false; }
  get isEmpty() { return this.current === null; }

  /** The first prompt. */
  get title() { return this.#transcript.title || "New conversation"; }

  /** Sends a prompt; throws SyntaxError as `Conversation.body` does. */
  ask(prompt, tuning, at) {
    const body = this.#conversation.body(tuning, prompt);
    const answer = this.#transcript.begin(prompt, body.model);
    const exchange = { prompt, answer, meter: new Meter(at), stream: null, state: "waiting", losses: 0, isRunning: true, isKept: false };
    this.current = exchange;
    exchange.stream = this.#gateway.ask(body, {
      state: (state, position) => this.#note(exchange, state, position),
      event: (data, at) => this.#take(exchange, data, at),
      end: (ending, at) => this.#conclude(exchange, ending, at),
    });
  }

  /** Takes the last turn back and asks its prompt once more. */
  askAgain(tuning, at) {
    if (this.current.isKept) this.#conversation.forgetLast();
    this.#transcript.withdraw();
    this.ask(this.current.prompt, tuning, at);
  }

  stop() { if (this.isRunning) this.current.stream.cancel(); }

  show() { this.#transcript.show(); }
  hide() { this.#transcript.hide(); }

  paint() {
    this.current?.answer.paint();
    this.#transcript.follow();
  }

  #note(exchange, state, position) {
    if (state === "lost") exchange.losses += 1;
    exchange.state = state;
    this.#transcript.note(exchange.answer, state, position);
    this.#hooks.changed(this);
  }

  #take(exchange, data, at) {
    if (exchange.answer.take(data)) exchange.meter.token(at);
    if (data.usage?.completion_tokens) exchange.meter.usage(data.usage.completion_tokens);
    this.#hooks.changed(this);
  }

  #conclude(exchange, ending, at) {
    exchange.isRunning = false;
    exchange.meter.end(at);
    exchange.answer.paint();
    exchange.isKept = this.#conversation.keep(exchange.prompt, exchange.answer.text);
    this.#transcript.end(exchange.answer, ending, exchange.meter.read(at), exchange.losses);
    this.#hooks.ended(this, ending);
  }
}
