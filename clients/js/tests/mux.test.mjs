// The dialect without a socket: what the client says, and what it makes of what it hears.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Link, Mux, textOf } from "penstock-client";
import { accepted, done, readyFrame, refusal, token } from "./scripted_gateway.mjs";

const CHAT = { path: "/v1/chat/completions", body: '{"model":"chat"}', resumable: true, restarts: true, window: 8 };

/** A mux, and what it told its owner. */
function world() {
  const told = [];
  const mux = new Mux({
    ready: () => told.push("ready"),
    goaway: ({ reason }) => told.push(`goaway ${reason}`),
    error: ({ code }) => told.push(`error ${code}`),
  });
  return { mux, told };
}

/** A link whose messages are kept in `said`, decoded. */
function laid(mux, { ready = true, ...limits } = {}) {
  const said = [];
  const link = new Link((text) => said.push(JSON.parse(text)));
  mux.attach(link);
  const hear = (...frames) => { for (const frame of frames) mux.hear(link, JSON.stringify(frame)); };
  if (ready) hear(readyFrame(limits));
  return { link, said, hear, take: () => said.splice(0) };
}

const numbers = (items) => items.map((item) => Number(textOf(item)));
const types = (messages) => messages.map(({ type, rid }) => (rid ? `${type} ${rid}` : type));

test("init comes first and requests wait for ready", () => {
  const { mux, told } = world();
  mux.begin(CHAT);
  const line = laid(mux, { ready: false });
  assert.deepEqual(line.take(), [{ type: "init", v: 1, features: ["ack", "ndjson"], resume: [] }]);
  line.hear(readyFrame());
  assert.deepEqual(line.take(), [
    { type: "start", rid: "r1", path: "/v1/chat/completions", resumable: true, window: 8, body: { model: "chat" } },
  ]);
  assert.deepEqual(told, ["ready"]);
});

test("an answer is its items in order, its usage and its end", () => {
  const { mux } = world();
  const line = laid(mux);
  const channel = mux.begin(CHAT);
  const states = [channel.state];
  channel.changed = () => states.push(channel.state);
  line.hear({ type: "queued", rid: "r1", position: 3 }, accepted("r1", "s_1"), token("r1", 1), token("r1", 2), done("r1", 3, { n: 2 }));
  assert.deepEqual(numbers(channel.items), [1, 2]);
  assert.deepEqual(channel.ending, { how: "done", usage: { n: 2 } });
  assert.deepEqual(states, ["waiting", "queued", "streaming", "done"]);
  assert.deepEqual(mux.channels, []);
});

test("several frames may share a message, a line each", () => {
  const { mux } = world();
  const { link } = laid(mux);
  const channel = mux.begin(CHAT);
  mux.hear(link, [accepted("r1", "s_1"), token("r1", 1), token("r1", 2)].map((frame) => JSON.stringify(frame)).join("\n"));
  assert.deepEqual(numbers(channel.items), [1, 2]);
});

test("pings are answered", () => {
  const { mux } = world();
  const line = laid(mux);
  line.take();
  line.hear({ type: "ping", t: 7 });
  assert.deepEqual(line.take(), [{ type: "pong", t: 7 }]);
});

test("a lost stream is resumed behind the last frame, and what comes twice counts once", () => {
  const { mux } = world();
  const first = laid(mux);
  const channel = mux.begin(CHAT);
  first.hear(accepted("r1", "s_1"), token("r1", 1), token("r1", 2));
  mux.detach(first.link);
  assert.equal(channel.state, "lost");

  const second = laid(mux, { ready: false });
  assert.deepEqual(second.take()[0].resume, [{ rid: "r1", stream: "s_1", after: 2, window: 8 }]);
  second.hear(readyFrame(), { type: "resumed", rid: "r1", stream: "s_1", from: 3, head: 4, live: true });
  second.hear(token("r1", 2), token("r1", 3), token("r1", 4), done("r1", 5));
  assert.deepEqual(numbers(channel.items), [1, 2, 3, 4]);
  assert.equal(channel.state, "done");
});

test("a frame that is missing ends the stream instead of leaving a hole", () => {
  const { mux } = world();
  const line = laid(mux);
  const channel = mux.begin(CHAT);
  line.hear(accepted("r1", "s_1"), token("r1", 1));
  line.take();
  line.hear(token("r1", 3));
  assert.equal(channel.ending.error.code, "frame_missing");
  assert.deepEqual(types(line.take()), ["cancel r1"]);
});

test("a request that was not accepted is started again, five times at most", () => {
  const { mux } = world();
  const channel = mux.begin(CHAT);
  for (let starts = 1; starts <= 5; starts += 1) {
    const line = laid(mux);
    assert.equal(channel.ending, null);
    assert.deepEqual(types(line.take()), ["init", "start r1"]);
    mux.detach(line.link);
  }
  assert.equal(channel.ending.error.code, "connection_lost");
});

test("a request with effects is not started twice, but it waits for the first time", () => {
  const { mux } = world();
  const channel = mux.begin({ ...CHAT, restarts: false });
  const silent = laid(mux, { ready: false });
  mux.detach(silent.link);
  assert.equal(channel.ending, null);
  mux.detach(laid(mux).link);
  assert.equal(channel.ending.error.code, "connection_lost");
});

test("a request that cannot be resumed ends with its socket", () => {
  const { mux } = world();
  const line = laid(mux);
  const channel = mux.begin({ ...CHAT, resumable: false });
  line.hear(accepted("r1"), token("r1", 1));
  mux.detach(line.link);
  assert.deepEqual(numbers(channel.items), [1]);
  assert.equal(channel.ending.error.code, "connection_lost");
});

for (const [status, code, more] of [[410, "replay_gap", { oldest: 40 }], [404, "stream_not_found", {}], [409, "taken_over", {}]]) {
  test(`${code} ends the stream with its code`, () => {
    const { mux } = world();
    const first = laid(mux);
    const channel = mux.begin(CHAT);
    first.hear(accepted("r1", "s_1"), token("r1", 1));
    mux.detach(first.link);
    laid(mux).hear(refusal("r1", status, code, more));
    const { error } = channel.ending;
    assert.deepEqual([error.name, error.code, error.status, error.oldest], ["GatewayError", code, status, more.oldest ?? null]);
    assert.deepEqual(numbers(channel.items), [1]);
  });
}

test("a stream that the gateway forgot before it said anything is asked for anew", () => {
  const { mux } = world();
  const first = laid(mux);
  mux.begin(CHAT);
  first.hear(accepted("r1", "s_1"));
  mux.detach(first.link);
  const second = laid(mux);
  assert.deepEqual(types(second.take()), ["init"]);
  second.hear(refusal("r1", 404, "stream_not_found"));
  assert.deepEqual(types(second.take()), ["start r1"]);
});

test("no more streams are begun than the gateway takes at once", () => {
  const { mux } = world();
  const line = laid(mux, { streams: 2 });
  for (let count = 0; count < 4; count += 1) mux.begin(CHAT);
  assert.deepEqual(types(line.take()), ["init", "start r1", "start r2"]);
  line.hear(accepted("r2", "s_2"), done("r2", 1));
  assert.deepEqual(types(line.take()), ["start r3"]);
});

test("a stream too many is asked for again when another has ended", () => {
  const { mux } = world();
  const line = laid(mux);
  const channels = [mux.begin(CHAT), mux.begin(CHAT)];
  line.hear(accepted("r1", "s_1"), refusal("r2", 429, "too_many_streams", { seq: 1 }));
  line.take();
  assert.equal(channels[1].state, "waiting");
  line.hear(done("r1", 1));
  assert.deepEqual(types(line.take()), ["start r2"]);
  line.hear(refusal("r2", 429, "too_many_streams", { seq: 1, retry_after_ms: 50 })); // and nothing to wait for
  assert.deepEqual([channels[1].ending.error.code, channels[1].ending.error.retryAfterMs], ["too_many_streams", 50]);
});

test("a resumption that there is no room for is tried again, not started anew", () => {
  const { mux } = world();
  const first = laid(mux);
  const channels = [mux.begin(CHAT), mux.begin(CHAT)];
  first.hear(accepted("r1", "s_1"), accepted("r2", "s_2"), token("r2", 1));
  mux.detach(first.link);
  const second = laid(mux);
  second.hear(refusal("r2", 429, "too_many_streams"), token("r1", 1));
  second.take();
  assert.equal(channels[1].state, "lost");
  second.hear(done("r1", 2));
  assert.deepEqual(second.take(), [{ type: "resume", rid: "r2", stream: "s_2", after: 1, window: 8 }]);
});

test("an answer's own error is its end, whatever its code", () => {
  const { mux } = world();
  const line = laid(mux);
  const channel = mux.begin(CHAT);
  line.hear(accepted("r1", "s_1"), refusal("r1", 503, "draining", { seq: 1 }));
  assert.equal(channel.ending.error.code, "draining");
});

test("cancelled by who sees it start, it is cancelled after its start", () => {
  const { mux } = world();
  const channel = mux.begin(CHAT);
  channel.changed = () => channel.link && mux.abandon(channel);
  assert.deepEqual(types(laid(mux).take()), ["init", "start r1", "cancel r1"]);
});

test("after goaway nothing begins on a link, and what runs on it ends on it", () => {
  const { mux, told } = world();
  const first = laid(mux);
  const running = mux.begin(CHAT);
  first.hear(accepted("r1", "s_1"), token("r1", 1), { type: "goaway", reason: "age", in_ms: null, reconnect_ms: 900 });
  first.take();
  mux.begin(CHAT);
  assert.deepEqual(first.take(), []);
  const second = laid(mux);
  assert.deepEqual(types(second.take()), ["init", "start r2"]);
  first.hear(token("r1", 2), done("r1", 3));
  assert.deepEqual(numbers(running.items), [1, 2]);
  assert.deepEqual(told, ["ready", "goaway age", "ready"]);
});

test("a request that came too late for a link goes to the next", () => {
  const { mux, told } = world();
  const first = laid(mux);
  mux.begin(CHAT);
  first.hear(refusal("r1", 503, "draining", { seq: 1 }));
  assert.deepEqual(told, ["ready", "goaway draining"]);
  assert.deepEqual(types(laid(mux).take()), ["init", "start r1"]);
});

test("what runs on a link that was told to go is resumed on the next when it is cut", () => {
  const { mux } = world();
  const first = laid(mux);
  mux.begin(CHAT);
  first.hear(accepted("r1", "s_1"), token("r1", 1), { type: "goaway", reason: "drain", in_ms: 10, reconnect_ms: 900 });
  const second = laid(mux);
  second.take();
  mux.detach(first.link);
  assert.deepEqual(second.take(), [{ type: "resume", rid: "r1", stream: "s_1", after: 1, window: 8 }]);
});

test("half a window later the gateway hears what the reader took", () => {
  const { mux } = world();
  const line = laid(mux);
  const channel = mux.begin(CHAT);
  line.hear(accepted("r1", "s_1"), ...[1, 2, 3, 4, 5, 6, 7, 8].map((seq) => token("r1", seq)));
  line.take();
  for (let taken = 1; taken <= 3; taken += 1) mux.take(channel);
  assert.deepEqual(line.take(), []);
  mux.take(channel);
  assert.deepEqual(line.take(), [{ type: "ack", rid: "r1", seq: 4 }]);
});

test("a window of one is acknowledged item by item", () => {
  const { mux } = world();
  const line = laid(mux);
  const channel = mux.begin({ ...CHAT, window: 1 });
  line.hear(accepted("r1", "s_1"), token("r1", 1));
  line.take();
  mux.take(channel);
  assert.deepEqual(line.take(), [{ type: "ack", rid: "r1", seq: 1 }]);
});

test("a gateway that does not know acks gets none", () => {
  const { mux } = world();
  const line = laid(mux, { ready: false });
  line.hear({ ...readyFrame(), features: [] });
  const channel = mux.begin({ ...CHAT, window: 1 });
  line.hear(accepted("r1", "s_1"), token("r1", 1));
  line.take();
  mux.take(channel);
  assert.deepEqual(line.take(), []);
});

test("what nobody reads is acknowledged as it comes, once somebody waits for the end", () => {
  const { mux } = world();
  const line = laid(mux);
  const channel = mux.begin(CHAT);
  line.hear(accepted("r1", "s_1"), ...[1, 2, 3, 4, 5].map((seq) => token("r1", seq)));
  line.take();
  channel.unread = true;
  mux.acknowledge(channel);
  line.hear(...[6, 7, 8, 9].map((seq) => token("r1", seq)));
  assert.deepEqual(line.take().map(({ seq }) => seq), [5, 9]);
  assert.equal(channel.items.length, 9);
});

test("a reader far behind has no more than two windows waiting, however often the socket is lost", () => {
  const { mux } = world();
  const channel = mux.begin(CHAT);
  let line = laid(mux);
  line.hear(accepted("r1", "s_1"));
  for (let loss = 0, next = 1; loss < 5; loss += 1) {
    line.hear(...Array.from({ length: 8 }, () => token("r1", next++)));
    assert.ok(channel.items.length <= 16);
    mux.detach(line.link);
    line = laid(mux, { ready: false });
    next = line.take()[0].resume[0].after + 1;
    line.hear(readyFrame());
  }
  assert.deepEqual(numbers(channel.items), [1, 2, 3, 4, 5, 6, 7, 8]);
});

test("cancel is over at once here, and there when its last word has come", () => {
  const { mux } = world();
  const line = laid(mux);
  const channel = mux.begin(CHAT);
  line.hear(accepted("r1", "s_1"), token("r1", 1));
  line.take();
  mux.abandon(channel);
  assert.deepEqual([channel.state, channel.items], ["cancelled", []]);
  assert.deepEqual(line.take(), [{ type: "cancel", rid: "r1" }]);
  line.hear(token("r1", 2), { data: { stage_id: "r1", reason: "client" }, type: "cancel", rid: "r1", seq: 3 });
  assert.deepEqual([channel.items, mux.channels], [[], []]);
});

test("what was cancelled while no socket was there is cancelled on the next", () => {
  const { mux } = world();
  const first = laid(mux);
  const [running, unheard] = [mux.begin(CHAT), mux.begin(CHAT)];
  first.hear(accepted("r1", "s_1"), token("r1", 1));
  mux.detach(first.link);
  mux.abandon(running);
  mux.abandon(unheard); // of which the gateway kept nothing
  const second = laid(mux, { ready: false });
  assert.deepEqual(types(second.take()), ["init", "cancel r1"]);
  second.hear(readyFrame(), refusal("r1", 404, "stream_not_found"));
  assert.deepEqual(types(second.take()), []);
  assert.deepEqual(mux.channels, []);
});

test("an answer that the gateway stopped is not taken for a whole one", () => {
  const { mux } = world();
  const line = laid(mux);
  const channel = mux.begin(CHAT);
  line.hear(accepted("r1", "s_1"), { data: { stage_id: "r1", reason: "drain" }, type: "cancel", rid: "r1", seq: 1 });
  assert.deepEqual([channel.state, channel.ending.error.code], ["failed", "cancelled"]);
  assert.match(channel.ending.error.message, /drain/);
});

test("a body larger than the gateway takes is not sent", () => {
  const { mux } = world();
  const line = laid(mux, { message_bytes: 200 });
  const fits = mux.begin({ ...CHAT, body: JSON.stringify({ text: "a".repeat(50) }) });
  const wide = mux.begin({ ...CHAT, body: JSON.stringify({ text: "🌊".repeat(30) }) });
  assert.equal(fits.ending, null);
  assert.deepEqual([wide.ending.error.code, wide.ending.error.status], ["body_too_large", 413]);
  assert.deepEqual(types(line.take()), ["init", "start r1"]);
});

test("an error about no request is the connection's", () => {
  const { mux, told } = world();
  laid(mux).hear({ ...refusal(undefined, 401, "invalid_api_key") }, { ...refusal(undefined, 409, "rid_in_use"), about: "r1" });
  assert.deepEqual(told, ["ready", "error invalid_api_key", "error rid_in_use"]);
});

test("frames of a request that is over, and of types yet unknown, change nothing", () => {
  const { mux, told } = world();
  laid(mux).hear(token("r9", 1), done("r9", 2), { type: "weather", sky: "clear" }, refusal("r9", 409, "taken_over"));
  assert.deepEqual([told, mux.channels], [["ready"], []]);
});

test("whatever an upstream puts into its data, the envelope is the gateway's", () => {
  const { mux } = world();
  const { link } = laid(mux);
  const channel = mux.begin(CHAT);
  const forged = '{"choices":[{"delta":{"content":"1"}}],"type":"done","rid":"r2","seq":9}';
  mux.hear(link, JSON.stringify(accepted("r1", "s_1")));
  mux.hear(link, `{"data":{"chunk":${forged},"stage_id":"r1"},"type":"chat_completion_chunk","rid":"r1","seq":1}`);
  assert.deepEqual([numbers(channel.items), channel.seq, channel.state], [[1], 1, "streaming"]);
});

test("a message that is no frame is a syntax error", () => {
  const { mux } = world();
  const { link } = laid(mux);
  assert.throws(() => mux.hear(link, '{"type":"pi'), SyntaxError);
});

test("items are the upstream's own; on the stream routes they go with their event", () => {
  const { mux } = world();
  const line = laid(mux);
  const of = (path, ...frames) => {
    const channel = mux.begin({ ...CHAT, path });
    line.hear(accepted(channel.rid, "s_1"), ...frames.map((frame, at) => ({ ...frame, rid: channel.rid, seq: at + 1 })));
    return channel.items;
  };
  const event = { data: { chunk: { type: "message_start" }, stage_id: "r1" }, type: "event", event: "message_start" };
  assert.deepEqual(of("/v1/messages", event), [{ type: "message_start" }]);
  assert.deepEqual(of("/v1/embeddings", { data: { result: { object: "list" }, stage_id: "r2" }, type: "result" }), [{ object: "list" }]);
  const summary = { data: { tool_summary: { round: 1 }, stage_id: "a" }, type: "tool_summary" };
  assert.deepEqual(of("/stream/v1/toolchain", summary), [{ event: "tool_summary", data: { tool_summary: { round: 1 }, stage_id: "a" } }]);
});

for (const [what, item, text] of [
  ["a chat chunk", { choices: [{ index: 0, delta: { content: "a" } }] }, "a"],
  ["the first of several choices", { choices: [{ index: 1, delta: { content: "b" } }, { index: 0, delta: { content: "a" } }] }, "a"],
  ["another choice's chunk", { choices: [{ index: 1, delta: { content: "b" } }] }, ""],
  ["a chunk without content", { choices: [{ index: 0, delta: { content: null } }] }, ""],
  ["a usage chunk", { choices: [], usage: {} }, ""],
  ["a completion's chunk", { choices: [{ index: 0, text: "a" }] }, "a"],
  ["a whole chat completion", { choices: [{ index: 0, message: { content: "a" } }] }, "a"],
  ["a Responses delta", { type: "response.output_text.delta", delta: "a" }, "a"],
  ["a Responses end", { type: "response.completed", response: {} }, ""],
  ["a whole response", { object: "response", output: [{ content: [{ text: "a" }, { text: "b" }] }, { type: "reasoning" }] }, "ab"],
  ["a message's delta", { type: "content_block_delta", delta: { type: "text_delta", text: "a" } }, "a"],
  ["a message's other delta", { type: "content_block_delta", delta: { type: "input_json_delta", partial_json: "{" } }, ""],
  ["a whole message", { type: "message", content: [{ type: "text", text: "a" }, { type: "tool_use" }] }, "a"],
  ["a stage's chunk", { event: "chat_completion_chunk", data: { chunk: { choices: [{ delta: { content: "a" } }] } } }, "a"],
  ["a synthesis chunk", { event: "tool_completion_chunk", data: { tool_results: { choices: [{ delta: { content: "a" } }] } } }, "a"],
  ["a tool summary", { event: "tool_summary", data: { tool_summary: { round: 1, calls: [] } } }, ""],
  ["something else", { raw: "a" }, ""],
  ["nothing", null, ""],
]) {
  test(`the text of ${what}`, () => assert.equal(textOf(item), text));
}
