// Streams one chat through the official SDK: node stream_chat.mjs BASE_URL REQUEST
// REQUEST is the body as JSON. Prints every chunk as one line of JSON, as it comes.
import OpenAI from "openai";

const [baseURL, request] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0, timeout: 60_000 });

const stream = await client.chat.completions.create({ ...JSON.parse(request), stream: true });
for await (const chunk of stream) {
  console.log(JSON.stringify(chunk));
}
