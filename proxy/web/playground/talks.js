// The open conversations, as a strip of tabs: which is shown, which of them are answering and at what pace. With one
// conversation there is nothing to choose, and no strip.

import { bars, scaleOf } from "./plot.js";

/** @typedef {import("./talk.js").Talk} Talk */

const SPARK = { width: 56, height: 12, kept: 28 };
const SVG = "http://www.w3.org/2000/svg";

export class Talks {
  #strip; #choose; #close;
  #tabs = /** @type {Map<Talk, ReturnType<typeof tab>>} */ (new Map());
  shown = /** @type {Talk|null} */ (null);

  /** @param {{choose(talk: Talk): void, close(talk: Talk): void}} hooks */
  constructor(/** @type {Document} */ page, { choose, close }) {
    this.#strip = page.getElementById("talks");
    this.#choose = choose;
    this.#close = close;
  }

  get all() { return [...this.#tabs.keys()]; }
  get areRunning() { return this.all.some((talk) => talk.isRunning); }

  /** Shows this one, and adds it where it is new. */
  show(/** @type {Talk} */ talk) {
    if (!this.#tabs.has(talk)) this.#add(talk);
    if (talk === this.shown) return;
    this.shown?.hide();
    this.shown = talk;
    talk.show();
    this.#tabs.get(talk).host.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.paint();
  }

  /** Takes one off the strip; of several, the one that is shown afterwards is its neighbour. */
  remove(/** @type {Talk} */ talk) {
    const at = this.all.indexOf(talk);
    this.#tabs.get(talk).host.remove();
    this.#tabs.delete(talk);
    this.#strip.hidden = this.#tabs.size < 2;
    if (talk === this.shown) this.show(this.all[Math.max(0, at - 1)]);
  }

  paint() {
    for (const [talk, { button, name, lamp, spark }] of this.#tabs) {
      button.setAttribute("aria-current", String(talk === this.shown));
      if (name.textContent !== talk.title) name.textContent = button.title = talk.title;
      lamp.dataset.state = talk.isRunning ? talk.current.state : "over";
      const gaps = talk.current?.meter.gaps.slice(-SPARK.kept) ?? [];
      spark.setAttribute("d", bars(gaps, scaleOf(gaps), SPARK));
    }
  }

  #add(talk) {
    const made = tab();
    this.#tabs.set(talk, made);
    made.button.addEventListener("click", () => this.#choose(talk));
    made.close.addEventListener("click", () => this.#close(talk));
    this.#strip.append(made.host);
    this.#strip.hidden = this.#tabs.size < 2;
  }
}

function tab() {
  const host = element("li", "talk-tab"), button = element("button", "talk-choice"), close = element("button", "talk-close");
  const lamp = element("span", "lamp"), name = element("span", "talk-name");
  const drawing = document.createElementNS(SVG, "svg"), spark = document.createElementNS(SVG, "path");
  drawing.setAttribute("viewBox", `0 0 ${SPARK.width} ${SPARK.height}`);
  drawing.setAttribute("aria-hidden", "true");
  drawing.append(spark);
  button.type = close.type = "button";
  close.textContent = "×";
  close.ariaLabel = "Close conversation";
  button.append(lamp, name, drawing);
  host.append(button, close);
  return { host, button, close, lamp, name, spark };
}

function element(tag, className) {
  const made = document.createElement(tag);
  made.className = className;
  return made;
}
