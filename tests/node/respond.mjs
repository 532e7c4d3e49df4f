// Holds conversations over one socket, as the official SDK does it: node respond.mjs BASE_URL KEY
// Reads requests from standard input, one JSON object a line: the messages to send at once. Prints every event as one line
// of JSON, as it comes, and the close as {"close": code}. Ends with the connection, or with its input.
import { createInterface } from "node:readline";
import OpenAI from "openai";
import { ResponsesWS } from "openai/resources/responses/ws";

const [baseURL, apiKey] = process.argv.slice(2);
const socket = new ResponsesWS(new OpenAI({ baseURL, apiKey }));
const say = (value) => console.log(JSON.stringify(value));
socket.on("event", say);
socket.on("error", (error) => say({ seen: error.error?.code ?? error.message }));
socket.socket.on("close", (code) => {
  say({ close: code });
  process.exit(0);
});

for await (const line of createInterface({ input: process.stdin })) {
  for (const message of JSON.parse(line)) socket.send(message);
}
socket.close();
