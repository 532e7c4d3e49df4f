// A little markdown, as it streams in: fences, headings, lists, quotes, **bold**, *italic*, `code`. Nodes are built one
// by one and text only ever becomes text, so nothing an answer says can become markup. Links stay plain text.

const FENCE = /^([ \t]*)(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`\n]*$/;
const HEADING = /^(#{1,6})[ \t]+(.*)$/;
const ITEM = /^([ \t]*)(?:[-*+]|(\d{1,9})[.)])(?:[ \t]+(.*))?$/;
const QUOTE = /^>[ \t]?(.*)$/;
const RULE = /^[ \t]*([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const INLINE = /(`+)([^`]+)\1(?!`)|\*\*(?=\S)(.+?)\*\*|\*(?=[^\s*])([^*]+?)\*/g;
const INLINE_MOST = 20_000; // characters of one paragraph; more is shown as it is

/** Writes growing text into `host`. Finished blocks are built once; only the open one is built again on a paint. */
export class MarkdownStream {
  #host; #open = ""; #fresh = "";
  #provisional = /** @type {Node[]} */ ([]);
  #fence = /** @type {{mark: string, indent: number, whole: Text, partial: Text}|null} */ (null);

  constructor(/** @type {Element} */ host) { this.#host = host; }

  append(text) { this.#fresh += text; }

  /** Draws what was appended. The caller paints once a frame, and once at the end. */
  paint() {
    if (!this.#fresh) return;
    this.#open += this.#fresh;
    this.#fresh = "";
    for (const node of this.#provisional) node.remove();
    this.#provisional = [];
    while (this.#settle());
    if (!this.#fence) this.#provisional = this.#write(blocks(this.#open));
  }

  /** Moves one finished piece from the open text to the page; false when what is left may still change. */
  #settle() {
    if (this.#fence) return this.#settleCode();
    const lines = this.#open.split("\n");
    for (let at = 0; at < lines.length - 1; at++) { // the last line is not whole yet
      const fence = FENCE.exec(lines[at]);
      if (!fence && lines[at].trim() !== "") continue;
      this.#write(blocks(lines.slice(0, at).join("\n")));
      this.#open = lines.slice(at + 1).join("\n");
      if (fence) this.#openFence(fence);
      return true;
    }
    return false;
  }

  /** Inside a fence whole lines only grow one text node: a long listing costs no more than a short one. */
  #settleCode() {
    const { mark, indent, whole, partial } = this.#fence;
    const end = this.#open.indexOf("\n");
    const line = end < 0 ? this.#open : this.#open.slice(0, end);
    if (closes(line, mark)) {
      partial.data = "";
      this.#fence = null;
    } else if (end < 0) {
      partial.data = mark.startsWith(line.trim()) ? "" : outdented(line, indent); // it may become the closing fence
      return false;
    } else {
      whole.appendData(`${outdented(line, indent)}\n`);
    }
    this.#open = end < 0 ? "" : this.#open.slice(end + 1);
    return this.#open !== "";
  }

  #openFence([, space, mark, language]) {
    const whole = document.createTextNode(""), partial = document.createTextNode("");
    const listing = element("pre", [element("code", [whole, partial])]);
    if (language) listing.dataset.language = language;
    listing.tabIndex = 0; // it scrolls sideways, so the keyboard must reach it
    this.#write([listing]);
    this.#fence = { mark, indent: space.length, whole, partial };
  }

  #write(nodes) {
    this.#host.append(...nodes);
    return nodes;
  }
}

/** The nodes of text without fences or blank lines: runs of like lines become one list, quote or paragraph. */
export function blocks(text) {
  const nodes = [];
  let run = /** @type {{kind: string, lines: string[]}} */ ({ kind: "", lines: [] });
  for (const line of text.split("\n")) {
    const kind = kindOf(line, run.kind);
    if (kind !== run.kind || kind === "heading" || kind === "rule") {
      nodes.push(...BUILD[run.kind](run.lines));
      run = { kind, lines: [] };
    }
    run.lines.push(line);
  }
  return [...nodes, ...BUILD[run.kind](run.lines)];
}

function kindOf(line, before) {
  if (line.trim() === "") return "";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  const item = ITEM.exec(line);
  if (item && (item[3] !== undefined || before === "list")) return "list"; // a bare mark is the start of the next item
  if (QUOTE.test(line)) return "quote";
  return before === "list" && /^[ \t]/.test(line) ? "list" : "text";
}

const BUILD = {
  "": () => [],
  heading: ([line]) => {
    const [, marks, words] = HEADING.exec(line);
    return [element(`h${Math.min(6, marks.length + 2)}`, inline(words))]; // the page's own headings stand above
  },
  rule: () => [document.createElement("hr")],
  list: (lines) => list(lines),
  quote: (lines) => [element("blockquote", inline(lines.map((line) => QUOTE.exec(line)[1]).join("\n")))],
  text: (lines) => [element("p", inline(lines.join("\n")))],
};

/** Lists by indentation: a deeper item opens a list inside the item before it. */
function list(lines) {
  const roots = [], open = /** @type {{indent: number, node: Element}[]} */ ([]);
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (!item) {
      open.at(-1).node.lastElementChild.append(" ", ...inline(line.trim())); // an item's second line
      continue;
    }
    const [, space, number, words] = item;
    while (open.length > 1 && space.length < open.at(-1).indent) open.pop();
    if (!open.length || space.length > open.at(-1).indent + 1) {
      const node = document.createElement(number ? "ol" : "ul");
      if (number) node.setAttribute("start", number);
      if (open.length) open.at(-1).node.lastElementChild.append(node);
      else roots.push(node);
      open.push({ indent: space.length, node });
    }
    open.at(-1).node.append(element("li", inline(words ?? "")));
  }
  return roots;
}

/** @returns {Node[]}  text, code, bold and italic */
export function inline(/** @type {string} */ text) {
  if (text.length > INLINE_MOST) return [document.createTextNode(text)];
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > from) nodes.push(document.createTextNode(text.slice(from, match.index)));
    nodes.push(emphasis(match));
    from = match.index + match[0].length;
  }
  if (from < text.length) nodes.push(document.createTextNode(text.slice(from)));
  return nodes;
}

function emphasis([, , code, bold, italic]) {
  if (code !== undefined) return element("code", [document.createTextNode(code)]);
  if (bold !== undefined) return element("strong", inline(bold));
  return element("em", inline(italic));
}

function closes(line, mark) {
  const trimmed = line.trim();
  return trimmed.length >= mark.length && trimmed === mark[0].repeat(trimmed.length);
}

function outdented(line, indent) {
  return line.slice(Math.min(indent, line.length - line.trimStart().length));
}

function element(tag, children) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}
