// What a caller of client.js may rely on.

/** What the gateway, or this client, has against a request. */
export class GatewayError extends Error {
  name: "GatewayError";
  /**
   * For programs: the gateway's (`model_not_found`, `queue_full`, `replay_gap`, `stream_not_found`, `taken_over`, …), or
   * the client's own: `connection_lost`, `connection_closed`, `frame_missing`, `cancelled`, `body_too_large`.
   */
  code: string | null;
  type: string | null;
  param: string | null;
  /** As HTTP would have it; 0 where nobody said one. */
  status: number;
  /** When to try again, if the gateway said so. */
  retryAfterMs: number | null;
  /** With `replay_gap`: the number of the first item that can still be had. */
  oldest: number | null;
  constructor(message: string, facts?: Partial<Pick<GatewayError, "code" | "type" | "param" | "status" | "retryAfterMs" | "oldest">>);
}

export type Ending = { how: "done"; usage: Usage | null } | { how: "cancelled" };

/** Token counts under the names that the request's protocol has for them. */
export type Usage = Record<string, number>;

/**
 * - `waiting`: on its way to the gateway, or for a place there;
 * - `queued`: in the gateway's queue, at `position`;
 * - `streaming`: accepted;
 * - `lost`: its socket is, and it goes on with the next;
 * - `done`, `cancelled`, `failed`: over.
 */
export type StreamState = "waiting" | "queued" | "streaming" | "lost" | "done" | "cancelled" | "failed";

/** One answer. Read it once: with `for await`, `text()` or `result()`. A slow reader slows this stream, and no other. */
export interface Stream<Item = unknown> extends EventTarget, AsyncIterable<Item> {
  readonly state: StreamState;
  /** In the gateway's queue; 0 when it is in none. */
  readonly position: number;
  /** What resumes it, from anywhere, with the same key; null until it is accepted, and for what cannot be resumed. */
  readonly streamId: string | null;
  /** The number of the last item read. */
  readonly seq: number;
  readonly model: string | null;
  readonly requestId: string | null;
  /** Known when the stream is done, if anybody counted. */
  readonly usage: Usage | null;
  /** How it ended; rejects if it failed. Does not read; as long as nobody does, everything is kept for who may yet. */
  readonly done: Promise<Ending>;
  /** Over at once here, and upstream as soon as the gateway can be told. A reader's loop ends without an error. */
  cancel(): void;
  /** All of its text, read to the end. */
  text(): Promise<string>;
  /** Its last item, read to the end: for a request with `"stream": false` the whole answer. */
  result(): Promise<Item | null>;
  /** Leaving a loop early cancels. */
  [Symbol.asyncIterator](): AsyncGenerator<Item, void, void>;
  addEventListener(type: "state", listener: (event: Event) => void, options?: AddEventListenerOptions | boolean): void;
}

export interface ReadOptions {
  /** Its abort cancels the stream, which then fails with the signal's reason. */
  signal?: AbortSignal;
  /** So many items may wait for the reader before the gateway holds this stream back. Default: 512. */
  window?: number;
}

export interface RequestOptions extends ReadOptions {
  /** Whether it outlives its socket. Default: true. */
  resumable?: boolean;
  /**
   * Whether it is started again when its socket is lost before the gateway has accepted it. Default: true, but for
   * requests that run tools, for those have effects.
   */
  restarts?: boolean;
}

/** Fires `state`, `goaway` (the socket is to be left: `reason`, `inMs`) and `error` (about no one stream: `error`). */
export interface Gateway extends EventTarget {
  /** `lost`: it is tried again in `retryInMs`. `refused`: because of `error`, and not tried again unless asked to. */
  readonly state: "connecting" | "open" | "lost" | "refused" | "closed";
  readonly retryInMs: number | null;
  readonly error: Error | null;
  chat(body: ChatBody & { stream: false }, options?: RequestOptions): Stream<ChatCompletion>;
  chat(body: ChatBody, options?: RequestOptions): Stream<ChatChunk>;
  completions<Item = unknown>(body: Body, options?: RequestOptions): Stream<Item>;
  /** Items are the Responses API's events. */
  responses<Item = TypedEvent>(body: Body, options?: RequestOptions): Stream<Item>;
  /** Items are the events of Anthropic's messages. */
  messages<Item = TypedEvent>(body: Body, options?: RequestOptions): Stream<Item>;
  /** `/stream/v1/chat`, with an `LLMRequest`. */
  stage(body: StageBody, options?: RequestOptions): Stream<StageEvent>;
  /** `/stream/v1/toolchain`, with an `LLMRequest`. */
  toolchain(body: StageBody, options?: RequestOptions): Stream<StageEvent>;
  /** Any path that the gateway serves. Sent at the next chance; the body is taken as it is now. */
  request<Item = unknown>(path: string, body: object, options?: RequestOptions): Stream<Item>;
  /** Goes on with an answer begun elsewhere: behind the item numbered `after`, at `path`. */
  resume<Item = unknown>(streamId: string, options?: ReadOptions & { after?: number; path?: string }): Stream<Item>;
  /** Now, not when its time comes. An open socket is asked whether it still is one. */
  reconnect(): void;
  /** Cancels what runs, and is of no more use. */
  close(): void;
  addEventListener(type: "state", listener: (event: Event) => void, options?: AddEventListenerOptions | boolean): void;
  addEventListener(type: "goaway", listener: (event: GoawayEvent) => void, options?: AddEventListenerOptions | boolean): void;
  addEventListener(type: "error", listener: (event: ErrorEvent) => void, options?: AddEventListenerOptions | boolean): void;
}

export interface GoawayEvent extends Event {
  reason: string;
  /** When the gateway will close the socket; null: when what runs on it has ended. */
  inMs: number | null;
}

export interface ErrorEvent extends Event {
  error: GatewayError;
}

type Given = string | null | undefined;

export interface ConnectOptions {
  /** An API key, or what gives one; asked before each connection. */
  key?: Given | (() => Given | Promise<Given>);
  /** What gives a ticket of `POST /v1/ws/tickets`, for pages that hold no key: a ticket is good for one connection. */
  ticket?: () => Given | Promise<Given>;
  /** Where there is no global one, as in Node.js before 22: `import { WebSocket } from "ws"`. */
  WebSocket?: unknown;
  /** Sees each message, credentials left out. */
  onframe?: (way: "in" | "out", text: string) => void;
}

/** Connects, and stays connected. `url` may be relative to the page, and http(s). */
export function connect(url: string | URL, options?: ConnectOptions): Gateway;

/** The text in an item, whichever protocol it is of; "" when it has none. */
export function textOf(item: unknown): string;

// ---- bodies and items, as far as the client has to do with them ----

export interface Body {
  model: string;
  [member: string]: unknown;
}

export interface ChatBody extends Body {
  messages: readonly object[];
}

export interface StageBody {
  stage_id: string;
  model_container: string;
  user_prompt: string;
  [member: string]: unknown;
}

export interface ChatChunk {
  choices: { index: number; delta: { role?: string; content?: string | null; [member: string]: unknown }; finish_reason?: string | null }[];
  usage?: Usage | null;
  [member: string]: unknown;
}

export interface ChatCompletion {
  choices: { index: number; message: { role: string; content: string | null; [member: string]: unknown }; finish_reason: string | null }[];
  usage?: Usage | null;
  [member: string]: unknown;
}

export interface TypedEvent {
  type: string;
  [member: string]: unknown;
}

export type StageEvent =
  | { event: "chat_completion_chunk"; data: { stage_id: string; chunk: ChatChunk } }
  | { event: "tool_completion_chunk"; data: { stage_id: string; tool_results: ChatChunk } }
  | { event: "tool_summary"; data: { stage_id: string; tool_summary: object } };
