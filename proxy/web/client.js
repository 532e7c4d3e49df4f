// The client's end of `llm-mux.v1`: many requests on one WebSocket, each of which outlives the socket it began on.
//
//   import { connect, textOf } from "/client.js";
//   const gateway = connect("/v1/ws", { key });
//   for await (const chunk of gateway.chat({ model: "chat", messages })) show(textOf(chunk));
//
// From pure to not: Channel (one answer: its numbers, what waits for its reader), Mux (what to say, what was meant), Pulse
// (is anybody there), Stream (what a caller holds), Line (one socket), Gateway (coming back).
// What callers may rely on, and what it means, is in client.d.ts.

const DIALECT = "llm-mux.v1";
const FEATURES = ["ack", "ndjson"];
const WINDOW = 512; // frames that may wait for a reader before the gateway holds its stream back
const MOST_STARTS = 5; // of one request whose sockets are lost before it is accepted
const BACKOFF_MS = { first: 500, most: 30_000 };
const READY_WITHIN_MS = 15_000;
const SETTLED_MS = 5_000; // a socket that lived so long was a good one: the backoff begins anew
const PONG_WITHIN_MS = 4_000;
const BUFFERED_MS = 1_000; // what comes sooner than this after a ping may be old
const CHECK_MS = 12_500; // at most, between looks at the pulse
const LATE_MS = 2_000; // a timer so late slept: the page was frozen, or the computer
const DEAD_AFTER_BEATS = 2.5;
const RETURN_MS = 1_000;

export class GatewayError extends Error {
  name = "GatewayError";

  constructor(message, { code = null, type = null, param = null, status = 0, retryAfterMs = null, oldest = null } = {}) {
    super(message);
    Object.assign(this, { code, type, param, status, retryAfterMs, oldest });
  }

  static told({ data, status, retry_after_ms, oldest }) {
    const { message = "The gateway gave no reason.", ...error } = data?.error ?? {};
    return new GatewayError(message, { ...error, status, retryAfterMs: retry_after_ms, oldest });
  }
}

const failed = (message, code, status) => ({ how: "failed", error: new GatewayError(message, { code, status }) });
const closed = () => failed("This side closed the connection.", "connection_closed");

// ---- channels: one request and its answer, whichever socket carries it ----

class Channel {
  link = null; // the Link that carries it
  accepted = false;
  abandoned = false; // nobody wants it, but the gateway has yet to say its last word
  position = 0; // in the gateway's queue
  starts = 0;
  acknowledged = 0;
  items = []; // came, and the reader has not taken them
  ending = null; // {how: "done", usage} | {how: "cancelled"} | {how: "failed", error}
  unread = false; // somebody waits for the end and nobody reads: everything is acknowledged as it comes
  model = null;
  requestId = null;
  changed = () => {}; // other than by an item
  #wake = () => {};

  /** `asked`: path, body (JSON text), resumable, restarts, window; of one that runs already its `stream`, and its `seq`. */
  constructor(rid, asked) {
    Object.assign(this, { rid, stream: null, seq: 0, ...asked });
    this.accepted = this.stream !== null;
  }

  /** The number of the last item that the reader has. */
  get taken() { return this.seq - this.items.length; }

  get state() {
    if (this.ending) return this.ending.how;
    if (this.accepted) return this.link ? "streaming" : "lost";
    return this.position ? "queued" : "waiting";
  }

  /** Resolves when something has come. */
  news() { return new Promise((resolve) => { this.#wake = resolve; }); }

  put(item) {
    this.items.push(item);
    this.#wake();
  }

  change(facts) {
    Object.assign(this, facts);
    this.changed();
    this.#wake();
  }

  end(ending) { if (!this.ending) this.change({ ending }); }

  /** Before it is resumed: what a reader far behind can have again is let go, so that no loss of a socket adds to it. */
  rewind() {
    const surplus = this.unread ? 0 : Math.max(0, this.items.length - this.window);
    this.items.length -= surplus;
    this.acknowledged = this.seq -= surplus;
  }
}

/** What a frame brings: the upstream's own object. On the stream routes it goes with the name of its event. */
function itemOf({ type, data }, path) {
  if (path.startsWith("/stream/")) return { event: type, data };
  return type === "result" ? data.result : data.chunk;
}

export function textOf(item) {
  if (item?.event && item.data) return textOf(item.data.chunk ?? item.data.tool_results);
  const choice = item?.choices?.find(({ index = 0 }) => index === 0);
  if (choice) return choice.delta?.content ?? choice.text ?? choice.message?.content ?? "";
  if (item?.type === "response.output_text.delta") return item.delta;
  if (item?.type === "content_block_delta") return item.delta.text ?? "";
  const parts = item?.content ?? item?.output?.flatMap(({ content }) => content ?? []) ?? [];
  return Array.isArray(parts) ? parts.map(({ text }) => text ?? "").join("") : "";
}

// ---- the dialect ----

/** A socket as the dialect sees it. `send` gets each message, and how it may be shown; `auth` is for `init`. */
export class Link {
  ready = false;
  leaving = false; // what runs may end on it, nothing begins
  acks = false;
  answered = false; // a pong has come
  beatMs = null;
  limits = {};
  channels = new Map();

  constructor(send, auth) { Object.assign(this, { send, auth }); }

  say(message) { this.send(JSON.stringify(message)); }

  get hasRoom() { return this.ready && !this.leaving && this.channels.size < this.limits.streams; }
}

/**
 * All requests, and the links that carry them. Its owner attaches a link when a socket opens, lets it hear each message and
 * detaches it when the socket is lost. `hooks` hear what concerns a whole link: ready(link), goaway(frame), error(error).
 */
export class Mux {
  #channels = new Map();
  #link = null; // the newest
  #made = 0;
  #hooks;

  constructor(hooks) { this.#hooks = hooks; }

  get channels() { return [...this.#channels.values()]; }

  begin(asked) {
    const channel = new Channel(`r${++this.#made}`, asked);
    this.#channels.set(channel.rid, channel);
    this.#place();
    return channel;
  }

  /** The next item, for the reader. Half a window later the gateway hears of it. */
  take(channel) {
    const item = channel.items.shift();
    this.acknowledge(channel);
    return item;
  }

  acknowledge(channel) {
    const { rid, link, window, ending } = channel;
    const seq = channel.unread ? channel.seq : channel.taken;
    if (ending || !link?.acks || seq - channel.acknowledged < window / 2) return;
    channel.acknowledged = seq;
    link.say({ type: "ack", rid, seq });
  }

  /** Nobody wants it any more: over for the reader now, for the gateway when it can be told. */
  abandon(channel, ending = { how: "cancelled" }) {
    if (channel.ending) return;
    Object.assign(channel, { items: [], abandoned: true });
    if (channel.link) this.#cancel(channel);
    else if (!channel.stream) this.#forget(channel);
    channel.end(ending);
  }

  attach(link) {
    this.#link = link;
    const lost = this.channels.filter((channel) => !channel.link && channel.stream);
    const init = { type: "init", v: 1, features: FEATURES, resume: lost.map((channel) => this.#join(channel, link)) };
    const shown = JSON.stringify(init);
    link.send(link.auth ? JSON.stringify({ ...init, auth: link.auth }) : shown, shown);
    for (const channel of lost) if (channel.abandoned) this.#cancel(channel);
  }

  detach(link) {
    const lost = [...link.channels.values()];
    link.channels.clear();
    link.leaving = true;
    for (const channel of lost) this.#lose(channel);
    this.#place();
  }

  /** A message: one frame, or several, a line each. Throws SyntaxError for what is none. */
  hear(link, text) {
    for (const line of text.split("\n")) this.#obey(link, JSON.parse(line));
  }

  #obey(link, frame) {
    const channel = link.channels.get(frame.rid);
    switch (frame.type) {
      case "ready": return this.#begin(link, frame);
      case "ping": return link.say({ type: "pong", t: frame.t });
      case "goaway": return this.#leave(link, frame);
      case "queued": return channel?.change({ position: frame.position });
      case "accepted": return channel && this.#accept(channel, frame);
      case "pong": return void (link.answered = true);
      case "resumed": return;
    }
    if (channel) this.#follow(channel, frame);
    else if (frame.type === "error" && !frame.rid) this.#hooks.error(GatewayError.told(frame));
  }

  #begin(link, { features, heartbeat_s, limits }) {
    const acks = features.includes("ack");
    Object.assign(link, { ready: true, acks, beatMs: heartbeat_s && heartbeat_s * 1000, limits: { ...limits } });
    this.#hooks.ready(link);
    this.#place();
  }

  #leave(link, frame) {
    if (link.leaving) return;
    link.leaving = true;
    this.#hooks.goaway(frame);
  }

  #accept(channel, { stream = null, model, request_id }) {
    channel.change({ accepted: true, stream, model, requestId: request_id });
  }

  /** A frame of a stream, or the last word about a request. */
  #follow(channel, frame) {
    const { seq, type, data } = frame;
    if (type === "error" && this.#comesBack(channel, frame)) return;
    if (seq <= channel.seq) return; // had it on another socket
    if (seq > channel.seq + 1) return this.abandon(channel, failed("A frame is missing.", "frame_missing"));
    channel.seq = seq ?? channel.seq;
    if (type === "error") this.#end(channel, { how: "failed", error: GatewayError.told(frame) });
    else if (type === "done") this.#end(channel, { how: "done", usage: data.usage ?? null });
    else if (type === "cancel") this.#end(channel, failed(`The gateway stopped the answer: ${data.reason}.`, "cancelled"));
    else if (!channel.ending) {
      channel.put(itemOf(frame, channel.path));
      if (channel.unread) this.acknowledge(channel);
    }
  }

  /** Asked again is what the gateway had no room for, and what it forgot before that brought anything. */
  #comesBack(channel, { data, seq }) {
    const { link, accepted, restarts, starts } = channel, code = data?.error?.code;
    if (channel.abandoned || (accepted && seq)) return false;
    if (code === "too_many_streams" && link.channels.size > 1) link.limits.streams = link.channels.size - 1;
    else if (code === "draining") this.#leave(link, { reason: code, in_ms: null, reconnect_ms: RETURN_MS });
    else if (code !== "stream_not_found" || channel.seq || !restarts || starts >= MOST_STARTS) return false;
    else Object.assign(channel, { accepted: false, stream: null });
    link.channels.delete(channel.rid);
    channel.change({ link: null, position: 0 });
    this.#place();
    return true;
  }

  #end(channel, ending) {
    this.#forget(channel);
    channel.end(ending);
    this.#place();
  }

  #forget(channel) {
    channel.link?.channels.delete(channel.rid);
    channel.link = null;
    this.#channels.delete(channel.rid);
  }

  #lose(channel) {
    const mayStart = !channel.accepted && channel.restarts && channel.starts < MOST_STARTS;
    channel.change({ link: null, position: 0 });
    if (channel.stream) channel.rewind();
    else if (channel.abandoned) this.#forget(channel);
    else if (!mayStart) this.#end(channel, failed("The connection was lost, and this request with it.", "connection_lost"));
  }

  /** Puts what no link carries on the newest, as far as there is room. */
  #place() {
    const link = this.#link;
    for (const channel of this.#channels.values()) {
      if (!link?.hasRoom) return;
      if (channel.link) continue;
      if (channel.stream) this.#resume(channel, link);
      else this.#start(channel, link);
    }
  }

  #resume(channel, link) {
    link.say({ type: "resume", ...this.#join(channel, link) });
    if (channel.abandoned) this.#cancel(channel);
  }

  #start(channel, link) {
    const { rid, path, resumable, window, body } = channel;
    const head = JSON.stringify({ type: "start", rid, path, resumable, window });
    const message = `${head.slice(0, -1)},"body":${body}}`;
    if (isLonger(message, link.limits.message_bytes)) {
      return this.#end(channel, failed("The request is larger than the gateway takes.", "body_too_large", 413));
    }
    channel.starts += 1;
    link.send(message);
    this.#join(channel, link);
  }

  /** Has `link` carry it from now on. Returns what resumes it there. */
  #join(channel, link) {
    const { rid, stream, seq, window } = channel;
    link.channels.set(rid, channel);
    channel.change({ link });
    return { rid, stream, after: seq, window };
  }

  #cancel({ link, rid }) { link.say({ type: "cancel", rid }); }
}

function isLonger(text, bytes) {
  return text.length * 3 > bytes && new TextEncoder().encode(text).length > bytes;
}

// ---- the pulse ----

/** Whether the other side is there. Times are the wall clock's, in ms: it goes on while a computer sleeps. */
export class Pulse {
  beatMs = null; // the gateway is heard from at least so often (null: when it has something to say)
  #heard; #due; #asked = null;

  constructor(now) { this.#heard = this.#due = now; }

  /** When to `check` next. */
  get checkInMs() { return this.#asked === null ? Math.min(CHECK_MS, (this.beatMs ?? Infinity) / 2) : PONG_WITHIN_MS; }

  /** Something has come; `isAnswer`: to a ping. */
  hear(now, isAnswer = false) {
    this.#heard = now;
    if (isAnswer || now - this.#asked >= BUFFERED_MS) this.#asked = null;
  }

  /** "alive"; "ask": send a ping; "dead". `isDoubted`: the page was away, or the network was. */
  check(now, isDoubted = false) {
    const isSilent = this.beatMs !== null && now - this.#heard > DEAD_AFTER_BEATS * this.beatMs;
    const isUnanswered = this.#asked !== null && now - this.#asked >= PONG_WITHIN_MS;
    const asks = now - this.#due > LATE_MS || (isDoubted && this.#asked === null);
    if (asks) this.#asked = now;
    this.#due = now + this.checkInMs;
    if (asks) return "ask";
    return isUnanswered || (isSilent && this.#asked === null) ? "dead" : "alive";
  }
}

/** How long to wait before try number `tries` (1, 2, …), in ms: full jitter, so that the clients of a restart come spread. */
export function backoff(tries, chance) {
  return chance * Math.min(BACKOFF_MS.most, BACKOFF_MS.first * 2 ** (tries - 1));
}

// ---- the stream: what a caller holds ----

export class Stream extends EventTarget {
  #mux; #channel; #signal; #state; #done; #settle;
  #isRead = false;

  constructor(mux, channel, signal) {
    super();
    this.#mux = mux;
    this.#channel = channel;
    this.#signal = signal;
    this.#done = new Promise((resolve, reject) => { this.#settle = { resolve, reject }; });
    this.#done.catch(() => {}); // the reader is told, too
    signal?.addEventListener("abort", this.#abort);
    channel.changed = () => this.#change();
    this.#change();
  }

  get state() { return this.#channel.state; }
  get position() { return this.#channel.position; }
  get streamId() { return this.#channel.stream; }
  get seq() { return this.#channel.taken; }
  get model() { return this.#channel.model; }
  get requestId() { return this.#channel.requestId; }
  get usage() { return this.#channel.ending?.usage ?? null; }

  /** As long as nobody reads, everything is kept for who may yet. */
  get done() {
    this.#channel.unread = !this.#isRead;
    this.#mux.acknowledge(this.#channel);
    return this.#done;
  }

  cancel() { this.#mux.abandon(this.#channel); }

  async text() {
    let text = "";
    for await (const item of this) text += textOf(item);
    return text;
  }

  async result() {
    let last = null;
    for await (const item of this) last = item;
    return last;
  }

  [Symbol.asyncIterator]() {
    if (this.#isRead) throw new TypeError("A stream is read once.");
    this.#isRead = true;
    this.#channel.unread = false;
    return this.#read();
  }

  async *#read() {
    const channel = this.#channel;
    try {
      for (;;) {
        if (channel.items.length > 0) yield this.#mux.take(channel);
        else if (!channel.ending) await channel.news();
        else if (channel.ending.error) throw channel.ending.error;
        else return;
      }
    } finally {
      this.cancel(); // the reader may have left early
    }
  }

  #abort = () => this.#mux.abandon(this.#channel, { how: "failed", error: this.#signal.reason });

  #change() {
    const { ending, state } = this.#channel;
    if (state === this.#state) return;
    this.#state = state;
    if (ending) {
      this.#signal?.removeEventListener("abort", this.#abort);
      if (ending.error) this.#settle.reject(ending.error);
      else this.#settle.resolve(ending);
    }
    this.dispatchEvent(new Event("state"));
  }
}

// ---- lines: one socket each ----

class Line {
  opened = false;
  heard = 0;
  #born = Date.now();
  #pulse = new Pulse(this.#born);
  #socket; #mux; #hooks; #timer;

  /** `hooks.lost(line, code, reason)` comes once, unless it is dropped before. */
  constructor(socket, mux, auth, hooks) {
    this.#socket = socket;
    this.#mux = mux;
    this.#hooks = hooks;
    this.link = new Link((text, shown = text) => this.#send(text, shown), auth);
    socket.onopen = () => this.#open();
    socket.onmessage = ({ data }) => this.#hear(data);
    socket.onclose = ({ code, reason }) => this.#lose(code, reason);
    socket.onerror = () => this.#lose(1006, ""); // not every implementation lets a close follow
    this.#timer = setTimeout(() => this.#lose(1006, "no answer"), READY_WITHIN_MS);
  }

  get wasGood() { return this.heard > 1 || Date.now() - this.#born > SETTLED_MS; }

  /** From `ready` on. */
  check(isDoubted) {
    if (!this.link.ready) return;
    clearTimeout(this.#timer);
    this.#pulse.beatMs = this.link.beatMs;
    const verdict = this.#pulse.check(Date.now(), isDoubted);
    if (verdict === "dead") return this.#lose(1006, "silent");
    if (verdict === "ask") this.link.say({ type: "ping", t: Date.now() });
    this.#timer = setTimeout(() => this.check(), this.#pulse.checkInMs);
  }

  drop() {
    clearTimeout(this.#timer);
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.onerror = () => {}; // `ws` throws what nobody listens for
    this.#socket.close();
  }

  #open() {
    this.opened = true;
    this.#mux.attach(this.link);
  }

  #send(text, shown) {
    this.#hooks.frame?.("out", shown);
    this.#socket.send(text);
  }

  #hear(text) {
    this.heard += 1;
    this.#hooks.frame?.("in", text);
    try {
      this.#mux.hear(this.link, text);
      this.#pulse.hear(Date.now(), this.link.answered);
      this.link.answered = false;
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      this.#lose(1002, "no frame of the dialect");
    }
  }

  #lose(code, reason) {
    this.drop();
    this.#hooks.lost(this, code, reason);
  }
}

// ---- the gateway ----

export class Gateway extends EventTarget {
  state = "connecting";
  retryInMs = null;
  error = null;
  #mux = new Mux({
    ready: (link) => this.#settleIn(link),
    goaway: (frame) => this.#makeWay(frame),
    error: (error) => this.#complain(error),
  });
  #lines = new Set();
  #newest = null;
  #dials = 0; // an older one is of no interest
  #tries = 0;
  #keyInside = false;
  #leaving = new AbortController();
  #url; #options; #timer;

  constructor(url, options) {
    super();
    this.#url = url;
    this.#options = options;
    this.#watchTheWorld();
    this.#dial();
  }

  chat(body, options) { return this.request("/v1/chat/completions", body, options); }
  completions(body, options) { return this.request("/v1/completions", body, options); }
  responses(body, options) { return this.request("/v1/responses", body, options); }
  messages(body, options) { return this.request("/v1/messages", body, options); }
  stage(body, options) { return this.request("/stream/v1/chat", body, options); }
  toolchain(body, options) { return this.request("/stream/v1/toolchain", body, options); }

  /** Tools have effects: a request that runs some is not started twice. */
  request(path, body, { resumable = true, window = WINDOW, signal, restarts } = {}) {
    restarts ??= body.tools !== "gateway" && !path.endsWith("/toolchain");
    return this.#begin({ path, body: JSON.stringify(body), resumable, restarts, window }, signal);
  }

  resume(stream, { after = 0, path = "", window = WINDOW, signal } = {}) {
    return this.#begin({ path, window, stream, seq: after, acknowledged: after }, signal);
  }

  reconnect() {
    if (this.state === "lost" || this.state === "refused") this.#dial();
    else for (const line of this.#lines) line.check(true);
  }

  close() {
    this.#dials += 1;
    clearTimeout(this.#timer);
    this.#leaving.abort();
    this.#failAll(closed());
    for (const line of this.#lines) line.drop();
    this.#lines.clear();
    this.#become("closed");
  }

  #begin(asked, signal) {
    signal?.throwIfAborted();
    if (this.state === "closed") throw closed().error;
    return new Stream(this.#mux, this.#mux.begin(asked), signal);
  }

  #failAll(ending) { for (const channel of this.#mux.channels) this.#mux.abandon(channel, ending); }

  async #dial() {
    const dial = ++this.#dials;
    clearTimeout(this.#timer);
    this.#become("connecting");
    try {
      const [key, ticket] = await Promise.all([valueOf(this.#options.key), valueOf(this.#options.ticket)]);
      if (dial !== this.#dials) return;
      this.#newest = this.#connect(key, ticket);
      this.#lines.add(this.#newest);
    } catch (error) {
      if (dial === this.#dials) this.#retry(error);
    }
  }

  /** A page is not told why a handshake failed. After one that did the key goes into `init`: then a refusal has words. */
  #connect(key, ticket) {
    const url = new URL(this.#url), protocols = [DIALECT];
    if (ticket) url.searchParams.set("ticket", ticket);
    if (key && !this.#keyInside) protocols.push(`bearer.b64url.${base64url(key)}`);
    return new Line(new this.#options.WebSocket(url, protocols), this.#mux, key && this.#keyInside && { bearer: key }, {
      lost: (line, code, reason) => this.#lose(line, code, reason),
      frame: this.#options.onframe,
    });
  }

  #settleIn(link) {
    [...this.#lines].find((line) => line.link === link).check();
    this.#become("open");
  }

  #lose(line, code, reason) {
    const { leaving } = line.link;
    this.#lines.delete(line);
    this.#mux.detach(line.link);
    if (line.wasGood) this.#tries = 0;
    this.#keyInside = !line.opened && !this.#keyInside;
    if (code === 4400 || code === 4401 || code === 4403) this.#refuse(code - 4000, reason);
    else if (line === this.#newest && !leaving) this.#retry();
  }

  #refuse(status, reason) {
    const { error } = this.error ? this : failed("The gateway refused the connection.", reason, status);
    this.#failAll({ how: "failed", error });
    this.#become("refused", { error });
  }

  #retry(error) {
    const retryInMs = backoff(++this.#tries, Math.random());
    this.#dialIn(retryInMs);
    this.#become("lost", { retryInMs, error });
  }

  #dialIn(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#dial(), ms);
  }

  /** What runs ends on the socket that is to go, what comes goes to the next. */
  #makeWay({ reason, in_ms, reconnect_ms }) {
    this.#dialIn(reconnect_ms);
    this.#tell("goaway", { reason, inMs: in_ms });
  }

  #become(state, { retryInMs = null, error = null } = {}) {
    Object.assign(this, { state, retryInMs, error });
    this.#tell("state");
  }

  #complain(error) {
    this.error = error;
    this.#tell("error", { error });
  }

  #tell(name, facts) { this.dispatchEvent(Object.assign(new Event(name), facts)); }

  /** Whatever changes the network, or wakes the page, is a reason to look. */
  #watchTheWorld() {
    const { document } = globalThis, { signal } = this.#leaving;
    const look = () => document?.hidden || this.state === "refused" || this.reconnect();
    for (const news of ["online", "pageshow"]) globalThis.addEventListener?.(news, look, { signal });
    for (const news of ["visibilitychange", "resume"]) document?.addEventListener(news, look, { signal });
  }
}

const valueOf = (given) => (typeof given === "function" ? given() : given);

function base64url(key) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(key));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

export function connect(url, { WebSocket = globalThis.WebSocket, ...options } = {}) {
  if (!WebSocket) throw new TypeError("There is no WebSocket here: give one as an option.");
  const whole = new URL(url, globalThis.location?.href);
  whole.protocol = whole.protocol.replace("http", "ws");
  return new Gateway(whole, { WebSocket, ...options });
}
