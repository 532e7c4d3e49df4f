// An API key as each way to the gateway carries it. Keys may hold any character; headers and subprotocols only bytes.

/** The key's UTF-8 bytes as a string of characters below 256, which is how a page hands bytes to a header. */
const bytes = (key) => String.fromCharCode(...new TextEncoder().encode(key));

/** The headers of a request; none without a key. */
export function headers(/** @type {string} */ key) {
  return key ? { Authorization: `Bearer ${bytes(key)}` } : {};
}

/** The subprotocols of a WebSocket: the credential is never selected, so a second entry stands beside it. */
export function subprotocols(/** @type {string} */ key) {
  if (!key) return [];
  const base64url = btoa(bytes(key)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return [`bearer.b64url.${base64url}`, "penstock"];
}
