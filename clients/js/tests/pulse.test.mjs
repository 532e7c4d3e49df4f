// Whether anybody is there, and when to come back: told the time, and chance.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Pulse, backoff } from "penstock-client";

/** A pulse with a beat of 10 s, checked as it asks to be until `until`; the verdicts, with their times. */
function watched(pulse, from, until) {
  const verdicts = [];
  let now = from;
  for (; now <= until; now += pulse.checkInMs) {
    const verdict = pulse.check(now);
    verdicts.push([now, verdict]);
    if (verdict === "dead") break;
  }
  return verdicts;
}

function beating() {
  const pulse = new Pulse(0);
  pulse.beatMs = 10_000;
  return pulse;
}

test("two and a half heartbeats of silence are the death of a socket", () => {
  assert.deepEqual(watched(beating(), 0, 60_000).at(-1), [30_000, "dead"]);
});

test("a socket that is heard from lives", () => {
  const pulse = beating();
  for (let now = 0; now < 300_000; now += 5_000) {
    assert.equal(pulse.check(now), "alive");
    pulse.hear(now + 100);
  }
});

test("without a heartbeat silence means nothing", () => {
  assert.ok(watched(new Pulse(0), 0, 600_000).every(([, verdict]) => verdict === "alive"));
});

test("a check that comes late asks first: the page slept, and so did what it would have heard", () => {
  const pulse = beating();
  pulse.check(0);
  assert.equal(pulse.check(3_600_000), "ask");
  assert.equal(pulse.checkInMs, 4_000);
  pulse.hear(3_600_050, true);
  assert.equal(pulse.check(3_604_000), "alive");
  assert.equal(pulse.checkInMs, 5_000);
});

test("a ping without an answer is the death of a socket, with a heartbeat or without", () => {
  for (const beatMs of [10_000, null]) {
    const pulse = new Pulse(0);
    pulse.beatMs = beatMs;
    pulse.check(0);
    assert.equal(pulse.check(1_000, true), "ask");
    assert.equal(pulse.check(1_500, true), "alive"); // asked already
    assert.equal(pulse.check(5_000), "dead");
  }
});

test("what comes at once after a question may have waited for who slept, and is no answer", () => {
  const pulse = beating();
  pulse.check(0);
  assert.equal(pulse.check(3_600_000), "ask");
  pulse.hear(3_600_050);
  pulse.hear(3_600_999);
  assert.equal(pulse.check(3_604_000), "dead");
});

test("what goes on coming is as good as an answer: a slow line is not a dead one", () => {
  const pulse = beating();
  pulse.check(0, true);
  pulse.hear(1_000);
  assert.equal(pulse.checkInMs, 5_000);
  assert.equal(pulse.check(4_000), "alive");
});

test("falling asleep while it waits for an answer, it asks again", () => {
  const pulse = beating();
  pulse.check(0);
  pulse.check(1_000, true);
  assert.equal(pulse.check(500_000), "ask");
  assert.equal(pulse.check(504_000), "dead");
});

test("the wait before a try doubles up to half a minute, and is all jitter", () => {
  assert.deepEqual([1, 2, 3, 6, 7, 8, 50].map((tries) => backoff(tries, 1)), [500, 1000, 2000, 16_000, 30_000, 30_000, 30_000]);
  assert.equal(backoff(4, 0), 0);
  assert.equal(backoff(4, 0.25), 1000);
});
