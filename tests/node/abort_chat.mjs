// Leaves a streamed chat in the middle, as the official SDK does it: node abort_chat.mjs BASE_URL REQUEST CHUNKS
// Aborts after CHUNKS chunks, and stays alive until its standard input ends: the gateway must see the abort, not the exit.
// Prints how many chunks it saw.
import OpenAI from "openai";

const [baseURL, request, chunks] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0, timeout: 60_000 });

const stream = await client.chat.completions.create({ ...JSON.parse(request), stream: true });
let seen = 0;
for await (const _ of stream) {
  seen += 1;
  if (seen === Number(chunks)) {
    stream.controller.abort();
  }
}
console.log(seen);
process.stdin.resume();
