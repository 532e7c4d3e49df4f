// Many streams, and a socket that is cut anywhere: every stream ends whole. The gateway here is the protocol's rules in
// twenty lines; chance is seeded, so that a failure comes again.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Link, Mux, textOf } from "penstock-client";
import { accepted, done, readyFrame, refusal, token } from "./scripted_gateway.mjs";

/** Mulberry32: numbers in [0, 1). */
function seeded(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** Keeps every stream's frames and sends one a turn on the link, within the window. Knows a stream once it is accepted. */
class Model {
  #kept = new Map(); #live = new Map(); #made = 0;
  frames = []; // for the link, in order

  constructor(length) { this.length = length; }

  hear({ type, rid, stream, after, seq, window, resume = [] }) {
    if (type === "init") {
      this.#live.clear();
      this.frames = [readyFrame({ streams: 8 })];
      for (const resuming of resume) this.hear({ type: "resume", ...resuming });
    }
    if (type === "start") this.#live.set(rid, { sent: 0, acked: 0, window, toAccept: true });
    if (type === "resume" && this.#kept.has(stream)) this.#live.set(rid, { sent: after, acked: after, window, stream });
    else if (type === "resume") this.frames.push(refusal(rid, 404, "stream_not_found"));
    if (type === "ack" && this.#live.has(rid)) this.#live.get(rid).acked = seq; // else it has ended
  }

  turn() {
    for (const [rid, each] of this.#live) {
      if (each.toAccept) {
        this.#kept.set((each.stream = `s_${++this.#made}`), true);
        this.frames.push(accepted(rid, each.stream));
        each.toAccept = false;
      } else if (each.sent < each.acked + each.window) {
        each.sent += 1;
        const isLast = each.sent > this.length;
        this.frames.push(isLast ? done(rid, each.sent) : token(rid, each.sent));
        if (isLast) this.#live.delete(rid);
      }
    }
  }
}

function journey(seed) {
  const chance = seeded(seed), streams = 20, length = 40;
  const model = new Model(length);
  const mux = new Mux({ ready() {}, goaway() {}, error({ message }) { throw new Error(message); } });
  const readers = Array.from({ length: streams }, () => ({ got: [], channel: mux.begin({
    path: "/v1/chat/completions", body: "{}", resumable: true, restarts: true, window: 1 + Math.floor(chance() * 12),
  }) }));
  let cuts = 0;
  for (let link = null, heard = 0; readers.some(({ channel }) => !channel.ending || channel.items.length > 0); heard += 1) {
    assert.ok(heard < 100_000, "it goes on for ever");
    if (!link) mux.attach((link = new Link((text) => model.hear(JSON.parse(text)))));
    model.turn();
    for (const reader of readers) if (reader.channel.items.length > 0 && chance() < 0.7) reader.got.push(mux.take(reader.channel));
    for (let count = Math.floor(chance() * 12); count > 0 && model.frames.length > 0; count -= 1) {
      mux.hear(link, JSON.stringify(model.frames.shift()));
    }
    if (chance() < 0.04) {
      mux.detach(link);
      link = null;
      cuts += 1;
    }
  }
  return { readers, cuts, length };
}

test("of twenty streams none loses or doubles a token, wherever the socket is cut", () => {
  let cuts = 0;
  for (let seed = 1; seed <= 60; seed += 1) {
    const { readers, length, ...more } = journey(seed);
    cuts += more.cuts;
    for (const { got, channel } of readers) {
      assert.equal(channel.state, "done", `seed ${seed}: ${channel.ending.error}`);
      assert.deepEqual(got.map((item) => Number(textOf(item))), Array.from({ length }, (_, at) => at + 1), `seed ${seed}`);
    }
  }
  assert.ok(cuts > 300);
});
