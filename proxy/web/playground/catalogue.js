// The models this key may use, as GET /v1/models tells them.

import { headers } from "./credentials.js";

/** @typedef {import("./gateway.js").GatewayError} GatewayError */
/** @typedef {{admission: "welcome", models: string[]}
 *         | {admission: "refused", status: number, error: GatewayError}
 *         | {admission: "unreachable"}} Catalogue */

const PATIENCE_MS = 10_000;

/** @returns {Promise<Catalogue>}  never rejects: an answer that makes no sense is an unreachable gateway */
export async function readCatalogue(/** @type {URL} */ url, /** @type {string} */ key) {
  try {
    const answer = await fetch(url, { headers: headers(key), cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    const body = await answer.json();
    if (answer.ok) return { admission: "welcome", models: body.data.map((model) => model.id) };
    // 429 and 5xx pass; what is wrong with the key or with where the page came from does not.
    if (answer.status === 429 || answer.status >= 500) return { admission: "unreachable" };
    return { admission: "refused", status: answer.status, error: body.error };
  } catch {
    return { admission: "unreachable" };
  }
}
