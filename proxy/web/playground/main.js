// The playground: builds each part once and joins them. A prompt goes composer → conversation → gateway; its events
// come back gateway → meter, answer, frames, and are drawn once an animation frame.

import { readCatalogue } from "./catalogue.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { Frames } from "./frames.js";
import { Gateway } from "./gateway.js";
import { Gauges } from "./gauges.js";
import { KeyDialog } from "./key.js";
import { LineSign } from "./line.js";
import { Meter } from "./meter.js";
import { wireTheme } from "./theme.js";
import { Transcript } from "./transcript.js";

const MODEL_PLACE = "penstock.model";
const INSTRUMENTS_MS = 100; // ten readings a second: calm to look at, and most of a frame's drawing is saved
const byId = (id) => document.getElementById(id);

let conversation = new Conversation();
const frames = new Frames(document);
const gauges = new Gauges(document);
const transcript = new Transcript(document, { again: askAgain });
const keyDialog = new KeyDialog(document, { changed: () => gateway.open() });
const lineSign = new LineSign(document, { reconnect: () => gateway.open() });
const composer = new Composer(document, { send: ask, stop: () => gateway.cancel() });
const gateway = new Gateway(socketUrl(), {
  key: () => keyDialog.key,
  admit,
  watch: {
    state(state) {
      lineSign.show(state);
      composer.connected = state.name === "connected";
    },
    frame(way, text, at) {
      frames.add(way, text, at);
      paintSoon();
    },
  },
});

/**
 * One prompt and its answer; `kept` says whether the turn became part of its conversation.
 * @typedef {{prompt: string, conversation: Conversation, answer: import("./answer.js").Answer, meter: Meter,
 *            running: boolean, kept: boolean}} Exchange
 */
let current = /** @type {Exchange|null} */ (null); // under way, or the last one
let painting = 0, measured = 0;

function ask(prompt) {
  const { tuning } = composer;
  const body = conversation.body(tuning, prompt);
  const answer = transcript.begin(prompt, body.model);
  const sent = performance.now();
  const exchange = { prompt, conversation, answer, meter: new Meter(sent), running: true, kept: false };
  current = exchange;
  composer.running = true;
  localStorage.setItem(MODEL_PLACE, tuning.model);
  frames.begin(sent);
  gateway.ask(body, {
    event(data, at) {
      if (exchange.answer.take(data)) exchange.meter.token(at);
      if (data.usage?.completion_tokens) exchange.meter.usage(data.usage.completion_tokens);
    },
    end: (ending, at) => conclude(exchange, ending, at),
  });
}

function conclude(/** @type {Exchange} */ exchange, ending, at) {
  exchange.running = false;
  exchange.meter.end(at);
  exchange.answer.paint();
  exchange.kept = exchange.conversation.keep(exchange.prompt, exchange.answer.text);
  transcript.end(exchange.answer, ending, exchange.meter.read(at));
  composer.running = false;
  if (ending.how === "error" && ending.status === 401) keyDialog.ask(ending.error.message);
  paintSoon();
}

function askAgain() {
  if (!current || current.running || !composer.ready()) return;
  if (current.kept) conversation.forgetLast();
  transcript.withdraw();
  ask(current.prompt);
}

function startAnew() {
  if (current?.running) gateway.cancel();
  conversation = new Conversation();
  transcript.clear();
  composer.focus();
}

/** One drawing a frame, however many events came; while an answer runs the clock on the gauges goes on too. */
function paintSoon() {
  painting ||= requestAnimationFrame(paint);
}

function paint() {
  painting = 0;
  const now = performance.now();
  const running = current?.running ?? false;
  current?.answer.paint();
  transcript.follow();
  if (!running || now - measured >= INSTRUMENTS_MS) {
    measured = now;
    frames.paint(running);
    if (current) gauges.show(current.meter, now);
  }
  if (running) paintSoon();
}

/** Whether the gateway takes this page's key; its models are shown on the way. */
async function admit() {
  const catalogue = await readCatalogue(new URL("v1/models", document.baseURI), keyDialog.key);
  if (catalogue.admission === "welcome") {
    composer.offer(catalogue.models, localStorage.getItem(MODEL_PLACE) ?? "");
    notice(catalogue.models.length ? "" : "No models: routes.yaml has no route that this key may use.");
  } else if (catalogue.admission === "refused") {
    notice(`${catalogue.error?.message ?? "The gateway refused this page."} (${catalogue.status})`);
    if (catalogue.status === 401) keyDialog.ask(keyDialog.key ? "The gateway does not know this key." : "This gateway asks for a key.");
  }
  return catalogue.admission;
}

function notice(words) {
  byId("notice").textContent = words;
  byId("notice").hidden = words === "";
}

function socketUrl() {
  const url = new URL("v1/ws", document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  return url;
}

function pressed(/** @type {KeyboardEvent} */ key) {
  if (key.isComposing || document.querySelector("dialog[open]")) return;
  if (key.key === "Escape" && key.target !== byId("frame-filter")) gateway.cancel(); // there it empties the field
  if (key.key === "/" && !key.target.closest?.("input, textarea, select") && !key.ctrlKey && !key.metaKey) {
    key.preventDefault();
    composer.focus();
  }
}

wireTheme(byId("theme"));
byId("frames").open = matchMedia("(min-width: 64rem)").matches;
byId("samples").addEventListener("click", (click) => {
  if (click.target instanceof HTMLButtonElement) composer.write(click.target.textContent);
});
byId("new-conversation").addEventListener("click", startAnew);
document.addEventListener("keydown", pressed);
addEventListener("online", () => gateway.connected || gateway.open());
document.addEventListener("visibilitychange", () => document.hidden || gateway.busy || admit());
gateway.open();
