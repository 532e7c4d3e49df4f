// The client over real sockets, against a gateway that does what each test tells it to.
import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";

import { GatewayError, connect } from "penstock-client";
import { ScriptedGateway, accepted, done, refusal, texts, token } from "./scripted_gateway.mjs";

const BODY = { model: "chat", messages: [{ role: "user", content: "hi" }] };

/** A test with a gateway and a client that goes on at once where it would wait by chance. */
function journey(name, run, { connects = true } = {}) {
  test(name, { timeout: 20_000 }, async (t) => {
    t.mock.method(Math, "random", () => 0);
    const server = await ScriptedGateway.start();
    const clients = [];
    const dial = (options, url = server.url) => clients[clients.push(connect(url, options)) - 1];
    try {
      await run(connects ? { server, client: dial({ key: "sk-ü" }), dial, t } : { server, dial, t });
    } finally {
      for (const client of clients) client.close();
      await server.stop();
    }
  });
}

const until = async (target, isSo) => { while (!isSo()) await once(target, "state"); };

/** The error that a promise rejects with. */
const failure = (promise) => promise.then(() => assert.fail("it did not fail"), (error) => error);

async function started(server, client, limits) {
  const stream = client.chat(BODY);
  const session = await server.greeted(limits);
  const { rid } = await session.hear("start");
  session.say(accepted(rid, "s_1"));
  return { stream, session, rid };
}

journey("the dialect is offered with the key, which is in no message", async ({ server, client }) => {
  const { session, stream } = await started(server, client);
  const credential = Buffer.from("sk-ü").toString("base64url");
  assert.deepEqual(session.protocols, ["llm-mux.v1", `bearer.b64url.${credential}`]);
  assert.equal(session.init.auth, undefined);
  await until(stream, () => stream.state === "streaming");
  assert.deepEqual([stream.model, stream.requestId, stream.streamId], ["chat", "req_1", "s_1"]);
});

journey("without a key no credential is offered, and an http address will do", async ({ server, dial }) => {
  dial({}, server.url.replace("ws", "http"));
  assert.deepEqual((await server.greeted()).protocols, ["llm-mux.v1"]);
}, { connects: false });

journey("a ticket is asked for before each connection, and a key may be, too", async ({ server, dial }) => {
  let asked = 0;
  dial({ ticket: async () => `t-${++asked}`, key: () => "k" });
  for (const ticket of ["t-1", "t-2"]) {
    const session = await server.greeted();
    assert.equal(new URL(session.upgrade.url, "http://x").searchParams.get("ticket"), ticket);
    session.cut();
  }
}, { connects: false });

journey("an answer is read item by item, with its usage at the end", async ({ server, client }) => {
  const { session, stream, rid } = await started(server, client);
  session.say(token(rid, 1), token(rid, 2), done(rid, 3, { completion_tokens: 2 }));
  const got = [];
  for await (const chunk of stream) got.push(chunk.choices[0].delta.content);
  assert.deepEqual(got, ["1 ", "2 "]);
  assert.deepEqual(await stream.done, { how: "done", usage: { completion_tokens: 2 } });
  assert.deepEqual(stream.usage, { completion_tokens: 2 });
});

journey("each way to ask has its path", async ({ server, client }) => {
  const session = await server.greeted();
  const ways = { chat: "chat/completions", completions: "completions", responses: "responses", messages: "messages" };
  for (const [way, path] of Object.entries(ways)) {
    client[way](BODY, { resumable: false, window: 7 });
    const { path: asked, resumable, window, body } = await session.hear("start");
    assert.deepEqual([asked, resumable, window, body], [`/v1/${path}`, false, 7, BODY]);
  }
  client.stage({ stage_id: "a" });
  assert.equal((await session.hear("start")).path, "/stream/v1/chat");
  client.toolchain({ stage_id: "a" });
  assert.equal((await session.hear("start")).path, "/stream/v1/toolchain");
});

journey("an answer in one piece is the result", async ({ server, client }) => {
  const stream = client.request("/v1/embeddings", { model: "e", input: "x" });
  const session = await server.greeted();
  const { rid } = await session.hear("start");
  session.say(accepted(rid), { data: { result: { object: "list" }, stage_id: rid }, type: "result", rid, seq: 1 }, done(rid, 2));
  assert.deepEqual(await stream.result(), { object: "list" });
});

journey("a cut socket is replaced, and its stream goes on behind the last frame", async ({ server, client }) => {
  const { session, stream, rid } = await started(server, client);
  const states = [];
  stream.addEventListener("state", () => states.push(stream.state));
  const text = stream.text();
  session.say(...[1, 2, 3].map((seq) => token(rid, seq)));
  await session.hear("ping").catch(() => {}, client.reconnect()); // by now the tokens are on their way
  session.cut();
  const second = await server.greeted();
  const [{ rid: again, stream: id, after }] = second.init.resume;
  assert.deepEqual([again, id], [rid, "s_1"]);
  second.say({ type: "resumed", rid, stream: "s_1", from: after + 1, head: 4, live: true });
  second.say(...[1, 2, 3, 4].slice(after).map((seq) => token(rid, seq)), done(rid, 5));
  assert.equal(await text, texts(1, 4));
  assert.deepEqual(states, ["streaming", "lost", "streaming", "done"]);
});

journey("cut again and again, the answer is whole", async ({ server, client }) => {
  const stream = client.chat(BODY);
  const text = stream.text();
  let session = await server.greeted();
  const { rid } = await session.hear("start");
  session.say(accepted(rid, "s_1"));
  for (let cut = 0, sent = 0; cut < 8; cut += 1) {
    for (let count = 0; count < 5; count += 1) session.say(token(rid, ++sent));
    await new Promise(setImmediate);
    session.cut();
    session = await server.greeted();
    sent = session.init.resume[0]?.after ?? 0;
    if (session.init.resume.length === 0) session.say(accepted((await session.hear("start")).rid, "s_1"));
  }
  const { after } = session.init.resume[0];
  session.say(...Array.from({ length: 50 - after }, (_, at) => token(rid, after + at + 1)), done(rid, 51));
  assert.equal(await text, texts(1, 50));
});

journey("a gateway that falls silent is left, and its stream resumed elsewhere", async ({ server, client }) => {
  const stream = client.chat(BODY);
  const text = stream.text();
  const session = await server.greeted({}, 0.04);
  const { rid } = await session.hear("start");
  session.say(accepted(rid, "s_1"), token(rid, 1));
  const second = await server.greeted(); // nothing was closed: the first is only silent
  await session.closed;
  const { after } = second.init.resume[0];
  second.say(...[1, 2].slice(after).map((seq) => token(rid, seq)), done(rid, 3));
  assert.equal(await text, texts(1, 2));
});

journey("a gateway that sends its heartbeat is not left", async ({ server, client }) => {
  const session = await server.greeted({}, 0.04);
  for (let beat = 0; beat < 8; beat += 1) {
    session.say({ type: "ping", t: beat });
    assert.equal((await session.hear("pong")).t, beat);
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
  assert.deepEqual([server.dials, client.state], [1, "open"]);
});

journey("an open socket is asked whether it still is one", async ({ server, client }) => {
  const session = await server.greeted();
  await until(client, () => client.state === "open");
  client.reconnect();
  await session.hear("ping");
  assert.equal(server.dials, 1);
});

journey("words that are no frame are the end of a socket, not of a stream", async ({ server, client }) => {
  const { session, stream, rid } = await started(server, client);
  session.say(token(rid, 1));
  session.sayText("<html>");
  const second = await server.greeted();
  second.say(token(rid, 2), done(rid, 3));
  assert.equal(await stream.text(), texts(1, 2));
});

journey("a refused key is said in words, after the handshake that had none", async ({ server, dial }) => {
  server.refuse = ({ headers }) => (headers["sec-websocket-protocol"].includes("bearer") ? 401 : undefined);
  const client = dial({ key: "sk-wrong" });
  const text = failure(client.chat(BODY).text());
  const session = await server.session();
  assert.deepEqual((await session.hear("init")).auth, { bearer: "sk-wrong" });
  session.say(refusal(undefined, 401, "invalid_api_key"));
  session.close(4401, "invalid_api_key");
  assert.deepEqual([(await text).code, (await text).status], ["invalid_api_key", 401]);
  await until(client, () => client.state === "refused");
  assert.equal(client.error.message, "No: invalid_api_key.");
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(server.dials, 2); // it does not knock again by itself
  client.reconnect();
  assert.equal(client.state, "connecting");
}, { connects: false });

journey("the key is not among the frames that are shown", async ({ server, dial }) => {
  server.refuse = ({ headers }) => (headers["sec-websocket-protocol"].includes("bearer") ? 401 : undefined);
  const shown = [];
  dial({ key: "sk-secret", onframe: (way, text) => shown.push(`${way} ${text}`) });
  const session = await server.greeted();
  assert.equal(session.init.auth.bearer, "sk-secret");
  session.say({ type: "ping", t: 1 });
  await session.hear("pong");
  assert.deepEqual(shown.map((line) => line.slice(0, 14)), ['out {"type":"i', 'in {"type":"re', 'in {"type":"pi', 'out {"type":"p']);
  assert.ok(!shown.join("").includes("secret"));
}, { connects: false });

journey("while it cannot be reached it is tried again, and what is asked waits", async ({ server, client }) => {
  const session = await server.greeted();
  await until(client, () => client.state === "open");
  server.refuse = () => 503;
  session.cut();
  await until(client, () => client.state === "lost");
  assert.equal(client.retryInMs, 0);
  const stream = client.chat(BODY);
  await until(client, () => server.dials > 3);
  assert.equal(stream.state, "waiting");
  server.refuse = () => undefined;
  const { rid } = await (await server.greeted()).hear("start");
  assert.ok(rid);
});

journey("what comes after goaway goes over a new socket, what runs ends on the old", async ({ server, client }) => {
  const { session, stream, rid } = await started(server, client);
  const told = once(client, "goaway");
  session.say(token(rid, 1), { type: "goaway", reason: "age", in_ms: null, reconnect_ms: 10 });
  assert.deepEqual([(await told)[0].reason, (await told)[0].inMs], ["age", null]);
  const next = client.chat(BODY);
  const second = await server.greeted();
  assert.deepEqual(second.init.resume, []);
  const { rid: other } = await second.hear("start");
  second.say(accepted(other, "s_2"), token(other, 1), done(other, 2));
  session.say(token(rid, 2), done(rid, 3));
  assert.deepEqual(await Promise.all([stream.text(), next.text()]), [texts(1, 2), texts(1, 1)]);
  session.close(1012, "age");
  await session.closed;
  assert.deepEqual([server.dials, client.state], [2, "open"]);
});

journey("a slow reader is acknowledged as it reads, a quick one beside it too", async ({ server, client }) => {
  const session = await server.greeted();
  const [slow, quick] = [client.chat(BODY, { window: 4 }), client.chat(BODY, { window: 4 })];
  const [{ rid: slowRid }, { rid: quickRid }] = [await session.hear("start"), await session.hear("start")];
  for (const rid of [slowRid, quickRid]) session.say(accepted(rid, `s_${rid}`), ...[1, 2, 3, 4].map((seq) => token(rid, seq)));
  const text = quick.text();
  assert.deepEqual(await session.hear("ack"), { type: "ack", rid: quickRid, seq: 2 });
  assert.deepEqual(await session.hear("ack"), { type: "ack", rid: quickRid, seq: 4 });
  session.say(done(quickRid, 5));
  assert.equal(await text, texts(1, 4));
  const reading = slow[Symbol.asyncIterator]();
  await reading.next();
  assert.equal(slow.seq, 1);
  await reading.next();
  assert.deepEqual(await session.hear("ack"), { type: "ack", rid: slowRid, seq: 2 });
});

journey("who waits for the end without reading gets there, and may read afterwards", async ({ server, client }) => {
  const session = await server.greeted();
  const stream = client.chat(BODY, { window: 2 });
  const { rid } = await session.hear("start");
  session.say(accepted(rid, "s_1"), token(rid, 1), token(rid, 2));
  const end = stream.done;
  await session.hear("ack");
  session.say(token(rid, 3), done(rid, 4));
  assert.equal((await end).how, "done");
  assert.equal(await stream.text(), texts(1, 3));
});

journey("leaving the loop cancels", async ({ server, client }) => {
  const { session, stream, rid } = await started(server, client);
  session.say(token(rid, 1), token(rid, 2));
  for await (const chunk of stream) if (chunk) break;
  assert.deepEqual(await session.hear("cancel"), { type: "cancel", rid });
  assert.deepEqual([stream.state, await stream.done], ["cancelled", { how: "cancelled" }]);
});

journey("cancel ends a loop that waits", async ({ server, client }) => {
  const { session, stream } = await started(server, client);
  const text = stream.text();
  await until(stream, () => stream.state === "streaming");
  stream.cancel();
  assert.equal(await text, "");
  await session.hear("cancel");
});

journey("an abort signal ends a stream with its reason", async ({ server, client }) => {
  const controller = new AbortController();
  const stream = client.chat(BODY, { signal: controller.signal });
  const session = await server.greeted();
  const { rid } = await session.hear("start");
  session.say(accepted(rid, "s_1"), token(rid, 1));
  const text = failure(stream.text());
  controller.abort();
  assert.equal((await text).name, "AbortError");
  assert.deepEqual(await session.hear("cancel"), { type: "cancel", rid });
  assert.equal((await failure(stream.done)).name, "AbortError");
  assert.throws(() => client.chat(BODY, { signal: controller.signal }), { name: "AbortError" });
});

journey("an error in the middle comes after what came before it", async ({ server, client }) => {
  const { session, stream, rid } = await started(server, client);
  session.say(token(rid, 1), refusal(rid, 502, "upstream_truncated", { seq: 2 }));
  const got = [];
  const error = await failure((async () => { for await (const chunk of stream) got.push(chunk); })());
  assert.ok(error instanceof GatewayError);
  assert.deepEqual([got.length, error.code, error.status, stream.state], [1, "upstream_truncated", 502, "failed"]);
});

journey("a stream begun elsewhere is gone on with", async ({ server, client }) => {
  const session = await server.greeted();
  const stream = client.resume("s_far", { after: 7 });
  const { rid, stream: id, after } = await session.hear("resume");
  assert.deepEqual([id, after], ["s_far", 7]);
  session.say({ type: "resumed", rid, stream: "s_far", from: 8, head: 8, live: true }, token(rid, 8), done(rid, 9));
  assert.equal(await stream.text(), texts(8, 8));
  assert.equal(stream.seq, 9);
});

journey("a stream is read once", async ({ client }) => {
  const stream = client.chat(BODY);
  stream[Symbol.asyncIterator]();
  assert.throws(() => stream[Symbol.asyncIterator](), TypeError);
  await assert.rejects(stream.text(), TypeError);
});

journey("close cancels what runs and refuses what comes", async ({ server, client }) => {
  const { session, stream } = await started(server, client);
  const text = failure(stream.text());
  client.close();
  assert.equal((await text).code, "connection_closed");
  await session.hear("cancel");
  await session.closed;
  assert.equal(client.state, "closed");
  assert.throws(() => client.chat(BODY), { code: "connection_closed" });
});

test("where there is no WebSocket one is asked for", () => {
  assert.throws(() => connect("ws://127.0.0.1:9/v1/ws", { WebSocket: null }), TypeError);
});
