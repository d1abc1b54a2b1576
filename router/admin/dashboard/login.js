"use strict";
document.getElementById("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const said = document.getElementById("error");
  said.textContent = "";
  try {
    const body = JSON.stringify({ key: document.getElementById("key").value });
    const answer = await fetch("/login", { method: "POST", headers: { "content-type": "application/json" }, body });
    if (answer.ok) location.replace("/dashboard");
    else said.textContent = (await answer.json()).error.message;
  } catch {
    said.textContent = "The router does not answer.";
  }
});
