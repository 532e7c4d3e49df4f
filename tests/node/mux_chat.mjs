// Asks the same chat several times at once over one WebSocket: node mux_chat.mjs CLIENT URL REQUEST TIMES
// CLIENT is the file of the client to use. Prints each answer as one line of JSON.
import { pathToFileURL } from "node:url";

import { WebSocket } from "ws";

const [client, url, request, times] = process.argv.slice(2);
const { connect } = await import(pathToFileURL(client));

const gateway = connect(url, { WebSocket });
const answers = await Promise.all(Array.from({ length: Number(times) }, () => gateway.chat(JSON.parse(request)).text()));
gateway.close();
for (const answer of answers) {
  console.log(JSON.stringify(answer));
}
