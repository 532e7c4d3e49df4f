// The form: prompt, model, settings. It knows when a prompt may be sent and says why not; sending is the caller's.

import { readMembers } from "./conversation.js";

export class Composer {
  #form; #prompt; #model; #send; #complaint; #tuning; #words;
  #running = false; #connected = false;
  #hooks;

  /** @param {{send(prompt: string): void, stop(): void}} hooks */
  constructor(/** @type {Document} */ page, hooks) {
    this.#form = page.getElementById("composer");
    this.#prompt = page.getElementById("prompt");
    this.#model = page.getElementById("model");
    this.#send = page.getElementById("send");
    this.#complaint = page.getElementById("complaint");
    this.#tuning = page.getElementById("tuning");
    this.#words = page.getElementById("tuning-words");
    this.#hooks = hooks;
    this.#form.addEventListener("submit", (submit) => { submit.preventDefault(); this.#submit(); });
    this.#form.addEventListener("input", () => this.#typed());
    this.#prompt.addEventListener("keydown", (key) => this.#enter(key));
  }

  /** @returns {import("./conversation.js").Tuning} */
  get tuning() {
    const { model, system, temperature, max_tokens, more } = this.#form.elements;
    return { model: model.value, system: system.value, temperature: temperature.value, max_tokens: max_tokens.value, more: more.value };
  }

  /** Offers these models, keeping the choice (or taking `wish`) where it is still among them. */
  offer(/** @type {string[]} */ models, /** @type {string} */ wish) {
    const choice = this.#model.value || wish;
    const options = models.map((model) => new Option(model, model));
    this.#model.replaceChildren(...(options.length ? options : [new Option("none", "")]));
    this.#model.disabled = models.length === 0;
    if (models.includes(choice)) this.#model.value = choice;
    this.#update();
  }

  set running(/** @type {boolean} */ running) { this.#running = running; this.#update(); }
  set connected(/** @type {boolean} */ connected) { this.#connected = connected; this.#update(); }

  /** Puts a text into the prompt, ready to be sent or changed. */
  write(/** @type {string} */ text) {
    this.#prompt.value = text;
    this.#typed();
    this.focus();
  }

  /** What stands in the prompt. */
  get draft() { return this.#prompt.value; }
  set draft(/** @type {string} */ text) {
    this.#prompt.value = text;
    this.#typed();
  }

  focus() { this.#prompt.focus(); }

  #submit() {
    if (this.#running) return this.#hooks.stop();
    const prompt = this.#prompt.value;
    if (!prompt.trim() || !this.ready()) return;
    this.#prompt.value = "";
    this.#typed();
    this.#hooks.send(prompt);
  }

  /** Says what stands in the way of sending, if anything does. */
  ready() {
    const reason = this.#obstacle();
    this.#complaint.textContent = reason;
    return reason === "";
  }

  #obstacle() {
    if (!this.#connected) return "Not connected yet; your prompt is kept.";
    if (!this.#model.value) return "There is no model to ask.";
    if (!this.#form.checkValidity()) return this.#open("Temperature is 0 to 2, max tokens a whole number from 1.");
    try { readMembers(this.tuning.more); } catch { return this.#open("More members must be a JSON object."); }
    return "";
  }

  #open(reason) {
    this.#tuning.open = true;
    return reason;
  }

  #enter(/** @type {KeyboardEvent} */ key) {
    if (key.key !== "Enter" || key.shiftKey || key.isComposing) return;
    key.preventDefault();
    if (!this.#running) this.#submit();
  }

  #typed() {
    this.#complaint.textContent = "";
    this.#prompt.style.height = "auto";
    this.#prompt.style.height = `${this.#prompt.scrollHeight}px`;
    const { system, temperature, max_tokens, more } = this.tuning;
    const set = [system.trim() && "system", temperature && `t ${temperature}`, max_tokens && `≤ ${max_tokens}`, more.trim() && "more"];
    this.#words.textContent = set.filter(Boolean).join(" · ");
  }

  #update() {
    this.#send.textContent = this.#running ? "Stop" : "Send";
    this.#send.classList.toggle("stop", this.#running);
    this.#send.disabled = !this.#running && !(this.#connected && this.#model.value);
    if (this.#connected) this.#complaint.textContent = "";
  }
}
