// The playground: builds each part once and joins them. A prompt goes composer → talk → gateway; its events come back
// gateway → talk (meter, answer) and frames, and are drawn once an animation frame.

import { readCatalogue } from "./catalogue.js";
import { Composer } from "./composer.js";
import { Frames } from "./frames.js";
import { Gateway } from "./gateway.js";
import { Gauges } from "./gauges.js";
import { KeyDialog } from "./key.js";
import { LineSign } from "./line.js";
import { Talk } from "./talk.js";
import { Talks } from "./talks.js";
import { wireTheme } from "./theme.js";

const MODEL_PLACE = "penstock.model";
const INSTRUMENTS_MS = 100; // ten readings a second: calm to look at, and most of a frame's drawing is saved
const METERS_KEPT = 64;
const byId = (id) => document.getElementById(id);

const frames = new Frames(document);
const gauges = new Gauges(document);
const keyDialog = new KeyDialog(document, { changed: () => gateway.open() });
const lineSign = new LineSign(document, { reconnect: () => gateway.reconnect(), cut: () => gateway.cut() });
const composer = new Composer(document, { send: ask, stop: () => talks.shown.stop() });
const talks = new Talks(document, { choose: show, close });
const gateway = new Gateway(socketUrl(), {
  key: () => keyDialog.key,
  admit,
  watch: {
    state(state) {
      lineSign.show(state);
      composer.connected = state.name === "connected";
    },
    refused(error) { refuse(error, error.status); },
    frame(way, text, at) {
      frames.add(way, text, at);
      paintSoon();
    },
  },
});

const meters = /** @type {import("./meter.js").Meter[]} */ ([]); // of the last answers, in the order they were asked for
let painting = 0, measured = 0;

function ask(prompt) {
  begin((tuning, now) => talks.shown.ask(prompt, tuning, now));
}

function askAgain(/** @type {Talk} */ talk) {
  if (!talk.isRunning && composer.ready()) begin((tuning, now) => talk.askAgain(tuning, now));
}

/** Has the shown talk send something, with the settings as they are. */
function begin(send) {
  const { tuning } = composer, now = performance.now();
  localStorage.setItem(MODEL_PLACE, tuning.model);
  frames.begin(now);
  send(tuning, now);
  meters.push(talks.shown.current.meter);
  meters.splice(0, meters.length - METERS_KEPT);
  composer.running = true;
  talks.paint();
}

function ended(/** @type {Talk} */ talk, ending) {
  if (talk === talks.shown) composer.running = false;
  if (ending.how === "error" && ending.status === 401) keyDialog.ask(ending.error.message);
  paintSoon();
}

function startAnew() {
  if (!talks.shown?.isEmpty) show(new Talk(document, gateway, { again: askAgain, changed: paintSoon, ended }));
  composer.focus();
}

function show(/** @type {Talk} */ talk) {
  if (talks.shown) talks.shown.draft = composer.draft;
  talks.show(talk);
  settleOn(talk);
}

function close(/** @type {Talk} */ talk) {
  talk.stop();
  talks.remove(talk);
  settleOn(talks.shown);
}

/** Everything about the shown talk that is not its turns. */
function settleOn(/** @type {Talk} */ talk) {
  composer.draft = talk.draft;
  composer.running = talk.isRunning;
  measured = 0;
  paintSoon();
}

/** One drawing a frame, however many events came; while an answer runs the clock on the gauges goes on too. */
function paintSoon() {
  painting ||= requestAnimationFrame(paint);
}

function paint() {
  painting = 0;
  const now = performance.now();
  talks.shown.paint();
  if (!talks.areRunning || now - measured >= INSTRUMENTS_MS) {
    measured = now;
    frames.paint(talks.areRunning);
    talks.paint();
    if (talks.shown.isEmpty) gauges.rest();
    else gauges.show(talks.shown.current.meter, meters, now);
  }
  if (talks.areRunning) paintSoon();
}

/** Whether the gateway takes this page's key; its models are shown on the way. */
async function admit() {
  const catalogue = await readCatalogue(new URL("v1/models", document.baseURI), keyDialog.key);
  if (catalogue.admission === "welcome") {
    composer.offer(catalogue.models, localStorage.getItem(MODEL_PLACE) ?? "");
    notice(catalogue.models.length ? "" : "No models: routes.yaml has no route that this key may use.");
  } else if (catalogue.admission === "refused") refuse(catalogue.error, catalogue.status);
  return catalogue.admission;
}

function refuse(error, status) {
  notice(`${error?.message ?? "The gateway refused this page."} (${status})`);
  if (status === 401) keyDialog.ask(keyDialog.key ? "The gateway does not know this key." : "This gateway asks for a key.");
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
  if (key.key === "Escape" && key.target !== byId("frame-filter")) talks.shown.stop(); // there it empties the field
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
document.addEventListener("visibilitychange", () => document.hidden || talks.areRunning || admit());
startAnew();
gateway.open();
