// The raw frames, both ways, with the time since the exchange began: filtered, and bounded in memory and on the page.

const KEPT = 2_000;
const SHOWN = 240;
const SHOWN_LIVE = 80; // while they pour in: at 300 rows a drawing took 26 ms, at 80 it takes 7
const NEAR_END_PX = 24;
const CHARACTERS_KEPT = 4_000; // of one frame; the rest is counted, not kept

const NEWS = /"delta"|"usage": ?\{/; // where a chunk begins to differ from the one before
const ARROWS = { in: "↓", out: "↑", note: "·" };

/** @typedef {{way: "in"|"out"|"note", text: string, length: number, at: string}} Frame */

export class Frames {
  #kept = /** @type {Frame[]} */ ([]);
  #fresh = /** @type {Frame[]} */ ([]); // came since the last paint
  #seen = 0;
  #live = false;
  #follows = true; // else the reader scrolled up, and the rows hold still
  #origin = performance.now();
  #panel; #rows; #count; #filter; #way;

  constructor(/** @type {Document} */ page) {
    this.#panel = page.getElementById("frames");
    this.#rows = page.getElementById("frame-rows");
    this.#count = page.getElementById("frame-count");
    this.#filter = page.getElementById("frame-filter");
    this.#way = page.getElementById("frame-direction");
    const wrap = page.getElementById("frame-wrap");
    this.#rows.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#filter.addEventListener("input", () => this.#again());
    this.#way.addEventListener("change", () => this.#again());
    this.#panel.addEventListener("toggle", () => this.#again());
    wrap.addEventListener("change", () => this.#rows.classList.toggle("wrapped", wrap.checked));
    page.getElementById("frame-clear").addEventListener("click", () => this.clear());
  }

  /** Times count from here on: called when an exchange begins. */
  begin(at) { this.#origin = at; }

  /** Takes note of one frame; it is drawn with the next `paint`. `at` in ms of the page's clock. */
  add(way, text, at) {
    const kept = text.length > CHARACTERS_KEPT ? `${text.slice(0, CHARACTERS_KEPT)} …` : text;
    const frame = { way, text: kept, length: text.length, at: ((at - this.#origin) / 1000).toFixed(3) };
    this.#seen += 1;
    this.#kept.push(frame);
    this.#fresh.push(frame);
    if (this.#kept.length > KEPT * 1.1) this.#kept.splice(0, this.#kept.length - KEPT);
    if (this.#fresh.length > SHOWN * 2) this.#fresh.splice(0, this.#fresh.length - SHOWN);
  }

  /** Draws what came since the last time: few rows while an answer is `live`, and the rest once it is over. */
  paint(/** @type {boolean} */ live) {
    const settled = this.#live && !live;
    this.#live = live;
    if (this.#fresh.length === 0 && !settled) return;
    this.#count.value = this.#seen.toLocaleString("en-GB");
    const fresh = this.#fresh.filter((frame) => this.#matches(frame));
    this.#fresh = [];
    if (!this.#follows) return;
    if (settled) this.#again();
    else this.#append(fresh);
  }

  clear() {
    this.#kept = [];
    this.#fresh = [];
    this.#seen = 0;
    this.#count.value = "0";
    this.#rows.replaceChildren();
  }

  #again() {
    this.#fresh = [];
    this.#follows = true;
    this.#rows.replaceChildren();
    this.#append(this.#kept.filter((frame) => this.#matches(frame)));
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.#rows;
    const follows = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    if (follows && !this.#follows) this.#again();
    this.#follows = follows;
  }

  #matches(/** @type {Frame} */ frame) {
    if (this.#way.value && frame.way !== this.#way.value) return false;
    const wanted = this.#filter.value.trim().toLowerCase();
    return wanted === "" || frame.text.toLowerCase().includes(wanted);
  }

  #append(/** @type {Frame[]} */ frames) {
    if (!this.#panel.open) return;
    const most = this.#live ? SHOWN_LIVE : SHOWN;
    this.#rows.append(...frames.slice(-most).map(row));
    while (this.#rows.childElementCount > most) this.#rows.firstElementChild.remove();
    this.#rows.scrollTop = this.#rows.scrollHeight;
  }
}

function row(/** @type {Frame} */ frame) {
  const item = document.createElement("li");
  item.dataset.way = frame.way;
  const code = document.createElement("code");
  // On one line the head, the same in every frame, gives way first, so that what is new stays in sight.
  const cut = frame.way === "in" ? frame.text.search(NEWS) : -1;
  if (cut > 0) code.append(part("span", frame.text.slice(0, cut)), part("span", frame.text.slice(cut)));
  else code.append(frame.text);
  item.append(part("time", frame.at), part("i", ARROWS[frame.way]), code);
  item.title = `${frame.length.toLocaleString("en-GB")} characters`;
  return item;
}

function part(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}
