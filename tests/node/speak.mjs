// Holds one Realtime session, as the official SDK does it: node speak.mjs BASE_URL KEY MODEL node|page
// "node" sends the key in a header, "page" as a subprotocol, as in a browser. Asks one question, prints every event as one
// line of JSON, closes with 1000 at response.done, and prints {"close": code, "protocol": …}.
import OpenAI from "openai";
import { OpenAIRealtimeWebSocket } from "openai/realtime/websocket";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { WebSocket } from "ws";

const [baseURL, apiKey, model, where] = process.argv.slice(2);
globalThis.WebSocket = WebSocket; // what a page has
const client = new OpenAI({ baseURL, apiKey });
const session = where === "page" ? new OpenAIRealtimeWebSocket({ model }, client) : new OpenAIRealtimeWS({ model }, client);
const say = (value) => console.log(JSON.stringify(value));

session.on("event", (event) => {
  say(event);
  if (event.type === "session.created") session.send({ type: "response.create" });
  if (event.type === "response.done") session.close();
});
session.on("error", (error) => say({ seen: error.message }));
session.socket.addEventListener("close", ({ code }) => say({ close: code, protocol: session.socket.protocol }));
