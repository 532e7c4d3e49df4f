// Fills the package with the client as the gateway serves it: there is one source. `npm pack` calls this by itself.
import { copyFile } from "node:fs/promises";

const here = new URL(".", import.meta.url);
for (const name of ["client.js", "client.d.ts"]) {
  await copyFile(new URL(`../../proxy/web/${name}`, here), new URL(name, here));
}
