"use strict";
// Light or dark: what the system prefers until the reader chooses.
(() => {
  const root = document.documentElement;
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const apply = () => {
    root.dataset.theme = chosen ?? (prefers.matches ? "dark" : "light");
    const text = document.querySelector("#theme span");
    if (text) text.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
    document.dispatchEvent(new Event("themechange"));
  };
  apply();
  prefers.addEventListener("change", apply);
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      chosen = root.dataset.theme === "dark" ? "light" : "dark";
      apply();
    });
    apply();
  });
})();
