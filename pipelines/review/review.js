"use strict";
const cards = [...document.querySelectorAll(".card")], box = document.querySelector(".cards");
const KEY = "fss-review-" + box.dataset.job;
let unsaved = {};  // "id class" -> decision that is not in a file yet, for all pages
try { unsaved = JSON.parse(localStorage.getItem(KEY)) || {}; } catch { /* without storage: decisions of this page only */ }

const keyOf = card => card.dataset.id + " " + card.dataset.class;

function show(card) {
  const mine = unsaved[keyOf(card)], word = mine ? (mine.decision === "undo" ? "" : mine.decision) : card.dataset.before;
  card.dataset.decision = word;
  card.querySelectorAll("[data-word]").forEach(b => b.setAttribute("aria-pressed", b.dataset.word === word));
}

function decide(card, word) {
  if (word === "undo" && !card.dataset.before) delete unsaved[keyOf(card)];
  else unsaved[keyOf(card)] = { image_id: Number(card.dataset.id), image: card.dataset.image, class_name: card.dataset.class,
    decision: word, time: new Date().toISOString().slice(0, 19) + "+00:00" };
  store();
  show(card);
}

function store() {
  try { localStorage.setItem(KEY, JSON.stringify(unsaved)); } catch { /* as above */ }
  count();
}

function count() {
  const n = Object.keys(unsaved).length;
  document.getElementById("count").textContent = n ? n + (n > 1 ? " decisions" : " decision") + " not saved yet" : "No unsaved decisions";
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
  link.href = URL.createObjectURL(new Blob(Object.values(unsaved).map(d => JSON.stringify(d) + "\n"), { type: "application/jsonl" }));
  link.download = "decisions.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  cards.forEach(card => { card.dataset.before = card.dataset.decision; });
  unsaved = {};  // a later file does not repeat them
  store();
});
count();
if (cards[0]) cards[0].focus({ preventScroll: true });
