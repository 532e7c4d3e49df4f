// The API key: asked for in a dialog, kept in this tab's session storage and nowhere else.

const PLACE = "penstock.key";

export class KeyDialog {
  #dialog; #field; #reason;

  /** @param {{changed(): void}} hooks */
  constructor(/** @type {Document} */ page, { changed }) {
    this.#dialog = page.getElementById("key-dialog");
    this.#field = page.getElementById("key");
    this.#reason = page.getElementById("key-reason");
    page.getElementById("open-key").addEventListener("click", () => this.ask(""));
    page.getElementById("key-cancel").addEventListener("click", () => this.#dialog.close());
    page.getElementById("key-form").addEventListener("submit", (submit) => {
      submit.preventDefault();
      this.#keep(this.#field.value.trim());
      this.#dialog.close();
      changed();
    });
  }

  /** The key as it is now; empty for none. */
  get key() { return sessionStorage.getItem(PLACE) ?? ""; }

  /** Opens the dialog, with the reason why (or none). */
  ask(/** @type {string} */ reason) {
    this.#reason.textContent = reason;
    this.#field.value = this.key;
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#field.select();
  }

  #keep(key) {
    if (key) sessionStorage.setItem(PLACE, key);
    else sessionStorage.removeItem(PLACE);
  }
}
