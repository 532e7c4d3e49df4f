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
  lost: () => "connection lost",
  error: () => "failed",
};

export class Transcript {
  #scroller; #turns; #opening; #follows = true;
  #again; // asks for the last prompt once more

  constructor(/** @type {Document} */ page, { again }) {
    this.#scroller = page.getElementById("talk");
    this.#turns = page.getElementById("turns");
    this.#opening = page.getElementById("opening");
    this.#again = again;
    this.#scroller.addEventListener("scroll", () => { this.#follows = this.#atEnd(); }, { passive: true });
    new ResizeObserver(() => this.follow()).observe(this.#scroller); // the composer grew, or a phone's keyboard came
  }

  /** Puts a prompt on the page and a place for its answer. */
  begin(/** @type {string} */ prompt, /** @type {string} */ model) {
    this.#opening.hidden = true;
    for (const old of this.#turns.querySelectorAll(".again")) old.remove();
    const turn = element("li", "turn running");
    const asked = element("div", "asked");
    asked.append(element("p", "speaker", "You"), element("p", "asked-text", prompt));
    const answered = element("article", "answered");
    const place = element("div", "answer");
    place.setAttribute("aria-busy", "true");
    answered.append(element("p", "speaker", model), place, element("p", "turn-foot"));
    turn.append(asked, answered);
    this.#turns.append(turn);
    this.#follows = true;
    this.follow();
    return new Answer(place);
  }

  /** Closes an answer's turn: how it ended, what was measured, and a way to ask again. */
  end(/** @type {Answer} */ answer, /** @type {Ending} */ ending, /** @type {Reading} */ reading) {
    const turn = answer.host.closest(".turn");
    turn.classList.remove("running");
    answer.host.removeAttribute("aria-busy");
    if (ending.how === "error") answer.host.append(complaint(ending));
    if (ending.how === "lost") answer.host.append(element("p", "failure", "The connection was lost before the answer ended."));
    const foot = turn.querySelector(".turn-foot");
    const outcome = element("span", "outcome", ENDED[ending.how](answer));
    outcome.dataset.how = ending.how;
    foot.append(outcome, element("span", "measured", measured(reading)));
    if (answer.text && navigator.clipboard) { // pages on plain HTTP from afar have no clipboard
      foot.append(button("copy", "Copy", () => navigator.clipboard.writeText(answer.text)));
    }
    foot.append(button("again", "Again", () => this.#again()));
    this.follow();
  }

  /** Takes the last turn off the page, for its prompt is asked again. */
  withdraw() { this.#turns.lastElementChild?.remove(); }

  clear() {
    this.#turns.replaceChildren();
    this.#opening.hidden = false;
  }

  /** Keeps the answer's end in view. Reads the layout, so it is called once a frame. */
  follow() {
    if (this.#follows) this.#scroller.scrollTop = this.#scroller.scrollHeight;
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
