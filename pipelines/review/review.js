"use strict";
const cards = [...document.querySelectorAll(".card")], box = document.querySelector(".cards");
const KEY = "fss-review-" + box.dataset.job;
let unsaved = {};  // "id class" -> decision that is not in a file yet, for all pages
try { unsaved = JSON.parse(localStorage.getItem(KEY)) || {}; } catch { /* without storage: decisions of this page only */ }

const keyOf = card => card.dataset.id + " " + card.dataset.class;
const objectKey = (card, path) => keyOf(card) + " #" + path.dataset.number;
const objectsOf = card => [...card.querySelectorAll("path[data-number]")];
const selected = card => card.querySelector("path.selected");

function show(card) {
  const mine = unsaved[keyOf(card)], word = mine ? (mine.decision === "undo" ? "" : mine.decision) : card.dataset.before;
  objectsOf(card).forEach(path => path.classList.toggle("gone", objectKey(card, path) in unsaved));
  card.dataset.decision = word || (card.querySelector("path.gone") ? "correct" : "");
  card.querySelectorAll("[data-word]").forEach(b => b.setAttribute("aria-pressed", b.dataset.word === word));
}

/* A decision about the label, or about the object that is selected: it is rejected, or no longer. */
function decide(card, word) {
  const path = word === "accept" ? null : selected(card), key = path ? objectKey(card, path) : keyOf(card);
  if (!path && word !== "accept") objectsOf(card).forEach(other => delete unsaved[objectKey(card, other)]);
  delete unsaved[key];  // a later decision comes after the others
  if (word !== "undo" || (!path && card.dataset.before)) {
    unsaved[key] = { image_id: Number(card.dataset.id), image: card.dataset.image, class_name: card.dataset.class,
      decision: word, ...(path ? { instance: Number(path.dataset.number) } : {}), time: new Date().toISOString().slice(0, 19) + "+00:00" };
  }
  if (path) path.classList.remove("selected");
  store();
  show(card);
}

function select(card, path) {
  const before = selected(card);
  if (before) before.classList.remove("selected");
  if (path && path !== before) path.classList.add("selected");
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
    if (event.target.dataset.number) select(card, event.target);
    if (word) decide(card, word === card.dataset.decision ? "undo" : word);
  });
  card.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const objects = objectsOf(card);
    if (event.key === "i") select(card, objects[objects.indexOf(selected(card)) + 1] || null);
    const word = { a: "accept", r: "reject", u: "undo" }[event.key], one = word !== "accept" && selected(card);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key] || (word ? 1 : 0);
    if (!step) return;
    if (word) decide(card, word);
    event.preventDefault();
    (cards[i + (word === "undo" || one ? 0 : step)] || card).focus();
  });
});

document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(Object.values(unsaved).map(d => JSON.stringify(d) + "\n"), { type: "application/jsonl" }));
  link.download = "decisions.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  cards.forEach(card => {
    card.dataset.before = card.dataset.decision;
    card.querySelectorAll("path.gone").forEach(path => path.removeAttribute("data-number"));  // decided
  });
  unsaved = {};  // a later file does not repeat them
  store();
});
count();
if (cards[0]) cards[0].focus({ preventScroll: true });
