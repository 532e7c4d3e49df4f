// An API key as a request carries it. Keys may hold any character; headers only bytes.

/** The key's UTF-8 bytes as a string of characters below 256, which is how a page hands bytes to a header. */
const bytes = (key) => String.fromCharCode(...new TextEncoder().encode(key));

/** The headers of a request; none without a key. */
export function headers(/** @type {string} */ key) {
  return key ? { Authorization: `Bearer ${bytes(key)}` } : {};
}
