// A gateway that does what a test tells it to: real sockets, WebSocket framing by hand, no dialect of its own.
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";

const ACCEPT = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455, section 1.3

/** One client's socket. `upgrade` is its request; `hear()` resolves to its next message, `closed` when it has gone. */
export class Session {
  #socket; #heard = []; #waiting = []; #bytes = Buffer.alloc(0);

  constructor(upgrade, socket) {
    this.upgrade = upgrade;
    this.#socket = socket;
    this.closed = once(socket, "close");
    socket.on("data", (bytes) => this.#take(bytes));
    socket.on("error", () => {});
  }

  get protocols() { return this.upgrade.headers["sec-websocket-protocol"].split(", "); }

  /** Its next message, decoded; of the given type, where one is given: others on the way to it are passed over. */
  async hear(type) {
    for (;;) {
      const message = this.#heard.shift() ?? (await new Promise((resolve) => this.#waiting.push(resolve)));
      if (!type || message.type === type) return message;
    }
  }

  say(...messages) { for (const message of messages) this.#write(0x1, Buffer.from(JSON.stringify(message))); }

  sayText(text) { this.#write(0x1, Buffer.from(text)); }

  close(code, reason = "") {
    const head = Buffer.alloc(2);
    head.writeUInt16BE(code);
    this.#write(0x8, Buffer.concat([head, Buffer.from(reason)]));
    this.#socket.end();
  }

  /** As a cable is cut. */
  cut() { this.#socket.destroy(); }

  #write(opcode, payload) {
    const long = payload.length > 125;
    const head = Buffer.from(long ? [0x80 | opcode, 126, payload.length >> 8, payload.length & 255] : [0x80 | opcode, payload.length]);
    this.#socket.write(Buffer.concat([head, payload]));
  }

  #take(bytes) {
    this.#bytes = Buffer.concat([this.#bytes, bytes]);
    for (let frame = this.#cutFrame(); frame; frame = this.#cutFrame()) {
      if (frame.opcode === 0x8) this.#socket.end();
      if (frame.opcode !== 0x1) continue;
      const message = JSON.parse(frame.payload.toString());
      if (this.#waiting.length > 0) this.#waiting.shift()(message);
      else this.#heard.push(message);
    }
  }

  /** The next whole frame off the bytes that came: a client's is masked. */
  #cutFrame() {
    const bytes = this.#bytes;
    if (bytes.length < 6) return null;
    let length = bytes[1] & 0x7f, start = 2;
    if (length === 126) [length, start] = [bytes.readUInt16BE(2), 4];
    if (length === 127) [length, start] = [Number(bytes.readBigUInt64BE(2)), 10];
    if (bytes.length < start + 4 + length) return null;
    const mask = bytes.subarray(start, start + 4);
    const payload = Buffer.from(bytes.subarray(start + 4, start + 4 + length)).map((byte, at) => byte ^ mask[at % 4]);
    this.#bytes = bytes.subarray(start + 4 + length);
    return { opcode: bytes[0] & 0xf, payload };
  }
}

/** Listens on a free port. `refuse` (upgrade → status, or nothing) decides about handshakes. */
export class ScriptedGateway {
  refuse = () => undefined;
  #server = createServer(); #sessions = []; #waiting = []; #open = new Set();
  dials = 0;

  static async start() {
    const gateway = new ScriptedGateway();
    gateway.#server.on("upgrade", (upgrade, socket) => gateway.#admit(upgrade, socket));
    gateway.#server.listen(0, "127.0.0.1");
    await once(gateway.#server, "listening");
    return gateway;
  }

  get url() { return `ws://127.0.0.1:${this.#server.address().port}/v1/ws`; }

  /** The next client's socket. */
  async session() {
    return this.#sessions.shift() ?? new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** The next client's socket, once both sides have said that they are ready; `init` is what the client said. */
  async greeted(limits = {}, heartbeat_s = 25) {
    const session = await this.session();
    session.init = await session.hear("init");
    session.say(readyFrame(limits, heartbeat_s));
    return session;
  }

  async stop() {
    for (const socket of this.#open) socket.destroy();
    this.#server.close();
    await once(this.#server, "close");
  }

  #admit(upgrade, socket) {
    this.dials += 1;
    this.#open.add(socket);
    socket.on("close", () => this.#open.delete(socket));
    const status = this.refuse(upgrade);
    if (status) return socket.end(`HTTP/1.1 ${status} Refused\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
    const accept = createHash("sha1").update(upgrade.headers["sec-websocket-key"] + ACCEPT).digest("base64");
    const head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"];
    socket.write([...head, `Sec-WebSocket-Accept: ${accept}`, "Sec-WebSocket-Protocol: llm-mux.v1", "", ""].join("\r\n"));
    const session = new Session(upgrade, socket);
    if (this.#waiting.length > 0) this.#waiting.shift()(session);
    else this.#sessions.push(session);
  }
}

export function readyFrame(limits = {}, heartbeat_s = 25) {
  const all = { streams: 16, message_bytes: 1 << 25, age_s: 3600, detach_s: 30, replay_s: 120, ...limits };
  return { type: "ready", v: 1, conn: "c_1", features: ["ack", "ndjson"], heartbeat_s, limits: all };
}

export const accepted = (rid, stream) => ({ type: "accepted", rid, ...(stream && { stream }), model: "chat", status: 200, request_id: "req_1" });

/** A chat chunk with a piece of text, as frame number `seq`. */
export const token = (rid, seq, text = `${seq} `) => ({
  data: { chunk: { choices: [{ index: 0, delta: { content: text } }] }, stage_id: rid }, type: "chat_completion_chunk", rid, seq,
});

export const done = (rid, seq, usage) => ({ data: { stage_id: rid, ...(usage && { usage }) }, type: "done", rid, seq });

export const refusal = (rid, status, code, more = {}) => ({
  data: { error: { message: `No: ${code}.`, type: "invalid_request_error", param: null, code } }, type: "error", rid, status, ...more,
});

/** The texts of the tokens numbered `first` to `last`. */
export const texts = (first, last) => Array.from({ length: last - first + 1 }, (_, at) => `${first + at} `).join("");
