// The turns on the page: prompt, answer, and the line beneath with what was measured. It follows the answer's end
// unless the reader scrolled away.

import { Answer } from "./answer.js";
import { words } from "./gauges.js";

/** @typedef {import("./gateway.js").Ending} Ending */
/** @typedef {import("./meter.js").Reading} Reading */

const NEAR_END_PX = 48;

const ENDED = {
  done: (answer) => answer.finish || "done",
  cancelled: () => "stopped",
  error: () => "failed",
};

const UNDER_WAY = {
  queued: (position) => `in the queue, place ${position}`,
  lost: () => "the connection is lost; the answer goes on when it is back",
};

export class Transcript {
  title = ""; // the first prompt
  #scroller; #turns; #opening; #follows = true; #isShown = false;
  #kept = document.createDocumentFragment(); // the turns, while another transcript is on the page
  #again; // asks for the last prompt once more

  constructor(/** @type {Document} */ page, { again }) {
    this.#scroller = page.getElementById("talk");
    this.#turns = page.getElementById("turns");
    this.#opening = page.getElementById("opening");
    this.#again = again;
    this.#scroller.addEventListener("scroll", () => { if (this.#isShown) this.#follows = this.#atEnd(); }, { passive: true });
    new ResizeObserver(() => this.follow()).observe(this.#scroller); // the composer grew, or a phone's keyboard came
  }

  /** Puts a prompt on the page and a place for its answer. */
  begin(/** @type {string} */ prompt, /** @type {string} */ model) {
    this.title ||= prompt;
    this.#opening.hidden = true;
    for (const old of this.#place.querySelectorAll(".again")) old.remove();
    const turn = element("li", "turn running");
    const asked = element("div", "asked");
    asked.append(element("p", "speaker", "You"), element("p", "asked-text", prompt));
    const answered = element("article", "answered");
    const place = element("div", "answer");
    place.setAttribute("aria-busy", "true");
    answered.append(element("p", "speaker", model), place, element("p", "turn-foot"));
    turn.append(asked, answered);
    this.#place.append(turn);
    this.#follows = true;
    this.follow();
    return new Answer(place);
  }

  /** Says how an answer under way stands, where there is something to say. */
  note(/** @type {Answer} */ answer, /** @type {string} */ state, /** @type {number} */ position) {
    const turn = answer.host.closest(".turn");
    if (turn?.classList.contains("running")) turn.querySelector(".turn-foot").textContent = UNDER_WAY[state]?.(position) ?? "";
  }

  /** Closes an answer's turn: how it ended, what was measured, and a way to ask again. */
  end(/** @type {Answer} */ answer, /** @type {Ending} */ ending, /** @type {Reading} */ reading, /** @type {number} */ losses) {
    const turn = answer.host.closest(".turn");
    if (!turn) return; // withdrawn
    turn.classList.remove("running");
    answer.host.removeAttribute("aria-busy");
    if (ending.how === "error") answer.host.append(complaint(ending));
    const foot = turn.querySelector(".turn-foot");
    foot.replaceChildren();
    const outcome = element("span", "outcome", ENDED[ending.how](answer));
    outcome.dataset.how = ending.how;
    foot.append(outcome);
    if (losses) foot.append(element("span", "resumed", losses === 1 ? "resumed once" : `resumed ${losses} times`));
    foot.append(element("span", "measured", measured(reading)));
    if (answer.text && navigator.clipboard) { // pages on plain HTTP from afar have no clipboard
      foot.append(button("copy", "Copy", () => navigator.clipboard.writeText(answer.text)));
    }
    foot.append(button("again", "Again", () => this.#again()));
    this.follow();
  }

  /** Takes the last turn off the page, for its prompt is asked again. */
  withdraw() { this.#place.lastElementChild?.remove(); }

  /** Puts its turns on the page, unannounced: they are not news. */
  show() {
    this.#isShown = true;
    this.#turns.setAttribute("aria-live", "off");
    this.#turns.append(this.#kept);
    this.#opening.hidden = this.#turns.childElementCount > 0;
    requestAnimationFrame(() => this.#turns.setAttribute("aria-live", "polite"));
  }

  hide() {
    this.#isShown = false;
    this.#kept.append(...this.#turns.children);
  }

  /** Where its turns are. */
  get #place() { return this.#isShown ? this.#turns : this.#kept; }

  /** Keeps the answer's end in view. Reads the layout, so it is called once a frame. */
  follow() {
    if (this.#isShown && this.#follows) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  #atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  }
}

function measured(/** @type {Reading} */ reading) {
  if (reading.first_ms === null) return "";
  const text = words(reading);
  const rate = reading.rate === null ? [] : [`${text.rate} tok/s`];
  const count = `${text.tokens} ${reading.exact ? "tokens" : "deltas"}`;
  return [`first ${text.first} ms`, ...rate, count, `${text.time} s`].join(" · ");
}

/** The error as a sentence for people, with what a developer searches for beneath. */
function complaint({ error, status }) {
  const box = element("div", "failure");
  box.append(element("p", "", error.message ?? "The gateway gave no reason."));
  const facts = [status || "", error.code ?? error.type ?? "", error.param ? `param ${error.param}` : ""];
  box.append(element("p", "failure-facts", facts.filter(Boolean).join(" · ")));
  return box;
}

function button(className, words, press) {
  const made = element("button", `quiet ${className}`, words);
  made.type = "button";
  made.addEventListener("click", press);
  return made;
}

function element(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}
