// One answer on the page while it grows: reasoning, text, tool calls, and how it ended.
// It takes events as they come and draws on `paint`, once a frame, however many came in between.

import { MarkdownStream } from "./markdown.js";

export class Answer {
  /** The text so far, as the model wrote it. */
  text = "";
  #body; #markdown; #fresh = "";
  #reasoning = /** @type {Text|null} */ (null);
  #calls = /** @type {Map<number, {name: Text, words: Text}>} */ (new Map());
  #pending = /** @type {[Text, string][]} */ ([]);
  finish = "";

  constructor(/** @type {Element} */ host) {
    this.#body = element("div", "answer-text");
    this.#markdown = new MarkdownStream(this.#body);
    this.host = host;
    host.append(this.#body);
  }

  /** Takes a chat-completions chunk; true when it brought something of the answer (a token, as the meter counts). */
  take(/** @type {any} */ chunk) {
    const choice = chunk?.choices?.[0];
    if (!choice) return false;
    if (choice.finish_reason) this.finish = choice.finish_reason;
    const delta = choice.delta ?? {};
    const said = delta.content || delta.refusal || "";
    const thought = delta.reasoning_content || delta.reasoning || "";
    if (said) this.text += said, this.#fresh += said;
    if (thought) this.#think(thought);
    for (const call of delta.tool_calls ?? []) this.#call(call);
    return Boolean(said || thought || delta.tool_calls?.length);
  }

  paint() {
    for (const [node, words] of this.#pending.splice(0)) node.appendData(words);
    if (this.#fresh) this.#markdown.append(this.#fresh);
    this.#fresh = "";
    this.#markdown.paint();
  }

  #think(words) {
    if (!this.#reasoning) {
      const block = element("details", "reasoning");
      this.#reasoning = document.createTextNode("");
      block.open = true;
      block.append(element("summary", "", "Reasoning"), element("p", "", this.#reasoning));
      this.host.insertBefore(block, this.#body);
    }
    this.#pending.push([this.#reasoning, words]);
  }

  #call({ index = 0, function: called = {} }) {
    let shown = this.#calls.get(index);
    if (!shown) {
      shown = { name: document.createTextNode(""), words: document.createTextNode("") };
      this.#calls.set(index, shown);
      const block = element("section", "tool-call");
      const title = element("h3", "", "Tool call ");
      title.append(element("b", "", shown.name));
      const listing = element("pre", "");
      listing.tabIndex = 0;
      listing.append(element("code", "", shown.words));
      block.append(title, listing);
      this.host.append(block);
    }
    this.#pending.push([shown.name, called.name ?? ""], [shown.words, called.arguments ?? ""]);
  }
}

function element(tag, className, child = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(child);
  return node;
}
