"use strict";

// Replaces the numbers by those of now.
async function update() {
  if (document.hidden || !document.getElementById("updates").checked) {
    return;
  }
  const problem = document.getElementById("problem");
  try {
    const response = await fetch(location.href, {cache: "no-store"});
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    document.querySelector("main").replaceWith(page.querySelector("main"));
    problem.hidden = true;
  } catch {
    problem.hidden = false;
  }
}

setInterval(update, 15_000);
document.addEventListener("visibilitychange", update);
