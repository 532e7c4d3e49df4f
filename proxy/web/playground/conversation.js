// What was said so far, and the body that asks for the next answer. Nothing here knows the page.

/** @typedef {{prompt: string, answer: string}} Turn */
/** @typedef {{model: string, system: string, temperature: string, max_tokens: string, more: string}} Tuning  as typed */

export class Conversation {
  #turns = /** @type {Turn[]} */ ([]);

  /**
   * Keeps a turn whose answer has text; one that brought none would leave two prompts in a row, which templates refuse.
   * @returns {boolean}  whether it was kept
   */
  keep(prompt, answer) {
    if (answer) this.#turns.push({ prompt, answer });
    return answer !== "";
  }

  /** Takes back the last turn kept. */
  forgetLast() { this.#turns.pop(); }

  /** The chat messages that lead up to `prompt`. */
  messages(system, prompt) {
    const told = this.#turns.flatMap((turn) => [
      { role: "user", content: turn.prompt },
      { role: "assistant", content: turn.answer },
    ]);
    const head = system.trim() ? [{ role: "system", content: system }] : [];
    return [...head, ...told, { role: "user", content: prompt }];
  }

  /**
   * The chat-completions body. Usage is asked for, so that the token count is the model's own.
   * @param {Tuning} tuning
   * @throws {SyntaxError} when `more` is neither empty nor a JSON object
   */
  body(tuning, prompt) {
    const body = {
      model: tuning.model,
      messages: this.messages(tuning.system, prompt),
      stream: true,
      stream_options: { include_usage: true },
    };
    if (tuning.temperature !== "") body.temperature = Number(tuning.temperature);
    if (tuning.max_tokens !== "") body.max_tokens = Number(tuning.max_tokens);
    return Object.assign(body, readMembers(tuning.more));
  }
}

/** @returns {object}  the members typed in; none for an empty text */
export function readMembers(/** @type {string} */ text) {
  if (!text.trim()) return {};
  const members = JSON.parse(text);
  if (members === null || typeof members !== "object" || Array.isArray(members)) throw new SyntaxError("not an object");
  return members;
}
