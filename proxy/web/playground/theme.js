// Light, dark, or as the system says; the choice outlives the tab.

const PLACE = "penstock.theme";
const NEXT = { auto: "light", light: "dark", dark: "auto" };
const WORDS = { auto: "Auto", light: "Light", dark: "Dark" };

export function wireTheme(/** @type {HTMLButtonElement} */ button) {
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = WORDS[theme];
    button.title = `Theme: ${theme}; press for ${NEXT[theme]}`;
    button.setAttribute("aria-label", `Theme: ${theme}`);
  };
  const kept = localStorage.getItem(PLACE);
  show(kept in NEXT ? kept : "auto");
  button.addEventListener("click", () => {
    const theme = NEXT[document.documentElement.dataset.theme];
    localStorage.setItem(PLACE, theme);
    show(theme);
  });
}
