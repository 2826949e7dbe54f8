"use strict";
const cards = [...document.querySelectorAll(".card")], box = document.querySelector(".cards");
const KEY = "fss-review-" + box.dataset.job;
let made = {};  // "id class" -> decision of this browser that no file has yet, over all pages
try { made = JSON.parse(localStorage.getItem(KEY)) || {}; } catch { /* no storage: this page alone */ }

const keyOf = card => card.dataset.id + " " + card.dataset.class;

function show(card) {
  const mine = made[keyOf(card)], word = mine ? (mine.decision === "undo" ? "" : mine.decision) : card.dataset.before;
  card.dataset.decision = word;
  card.querySelectorAll("[data-word]").forEach(b => b.setAttribute("aria-pressed", b.dataset.word === word));
}

function decide(card, word) {
  if (word === "undo" && !card.dataset.before) delete made[keyOf(card)];
  else made[keyOf(card)] = { image_id: Number(card.dataset.id), image: card.dataset.image, class_name: card.dataset.class,
    decision: word, time: new Date().toISOString().slice(0, 19) + "+00:00" };
  keep();
  show(card);
}

function keep() {
  try { localStorage.setItem(KEY, JSON.stringify(made)); } catch { /* as above */ }
  count();
}

function count() {
  const n = Object.keys(made).length;
  document.getElementById("count").textContent = n ? n + (n > 1 ? " decisions" : " decision") + " not saved yet" : "Nothing to save";
  document.getElementById("save").disabled = !n;
}

cards.forEach((card, i) => {
  show(card);
  card.addEventListener("click", event => {
    const word = event.target.dataset.word;
    if (word) decide(card, word === card.dataset.decision ? "undo" : word);
  });
  card.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const word = { a: "accept", r: "reject", u: "undo" }[event.key];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key] || (word ? 1 : 0);
    if (!step) return;
    if (word) decide(card, word);
    event.preventDefault();
    (cards[i + (word === "undo" ? 0 : step)] || card).focus();
  });
});

document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(Object.values(made).map(d => JSON.stringify(d) + "\n"), { type: "application/jsonl" }));
  link.download = "decisions.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  cards.forEach(card => { card.dataset.before = card.dataset.decision; });
  made = {};  // a later file does not say them again
  keep();
});
count();
if (cards[0]) cards[0].focus({ preventScroll: true });
