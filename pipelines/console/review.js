/* ---- review of a job's labels, the most doubtful first ---- */
const reviewed = { job: null, page: 0, rows: [], turn: 0 };

function review(job) {
  Object.assign(reviewed, { job, page: 0 });
  $("review").hidden = false;
  $("review").scrollIntoView();
  showLabels(true);
}

async function showLabels(focus) {
  const mine = ++reviewed.turn, base = "/v1/jobs/" + reviewed.job.job_id;
  showMessage("review-message", "Reading the labels…", "good");
  try {
    const found = await fetchJson(base + "/labels?page=" + reviewed.page + "&show=" + $("show").value);
    if (mine !== reviewed.turn) return;
    reviewed.rows = found.labels;
    $("review-title").textContent = "4. Review the labels of " + reviewed.job.title;
    $("review-about").textContent = about(found);
    $("pages").textContent = "page " + (found.page + 1) + " of " + Math.max(found.pages, 1);
    $("back").disabled = !found.page;
    $("next").disabled = found.page + 1 >= found.pages;
    $("cards").replaceChildren(...found.labels.map(labelCard));
    $("no-label").hidden = Boolean(found.labels.length);
    $("no-label").textContent = $("show").value === "undecided" && found.total ? "Every label has a decision." : "There are no labels yet.";
    showMessage("review-message", "", "");
    if (focus) $("cards").firstElementChild?.focus({ preventScroll: true });
  } catch (error) { if (mine === reviewed.turn) showMessage("review-message", error.message, "bad"); }
}

function about(found) {
  const what = found.labels.some(l => l.calibrated) ? "the probability that a label is right" : "the model's score, which is not calibrated";
  const some = found.shown < found.total && $("show").value === "all" ? "The " + found.shown + " most doubtful of " : "";
  return "The most doubtful labels come first. The number is " + what + ". " + some + plural(found.total, "label") + "; " + plural(found.decided, "decision") + ".";
}

function labelCard(row) {
  const figure = make("figure", { tabIndex: 0, className: "card" }), caption = make("figcaption");
  const holder = make("div", { className: "blank" }, "…"), sure = make("span", { className: "score" }, row.sure.toFixed(2));
  figure.dataset.decision = row.decision;
  caption.append(make("span", { className: "name", title: row.image }, row.image), sure,
    make("span", { className: "soft wide what" }));
  const buttons = make("div", { className: "row wide" });
  for (const [word, text] of [["accept", "Accept"], ["reject", "Reject"], ["correct", "Correct"]]) {
    const element = button(text, event => { event.stopPropagation(); act(figure, row, word === row.decision && word !== "correct" ? "undo" : word); });
    element.dataset.word = word;
    element.tabIndex = -1;  // the card has keys for its buttons
    buttons.append(element);
  }
  caption.append(buttons);
  figure.append(holder, caption);
  figure.setAttribute("aria-label", row.class_name + " in " + row.image + ", " + row.sure.toFixed(2));
  figure.addEventListener("keydown", event => cardKey(event, figure, row));
  figure.addEventListener("click", event => { if (event.target.tagName === "CANVAS") select(figure, row, instanceAt(event, row)); });
  pressed(figure, row);
  fill(figure, row);
  return figure;
}

async function fill(figure, row) {
  try {
    if (!row.photo) {
      const blob = await (await fetchOk("/v1/jobs/" + reviewed.job.job_id + "/photos/" + row.image_id)).blob();
      const image = new Image();
      image.src = URL.createObjectURL(blob);
      await image.decode();
      row.photo = { image, width: row.width, height: row.height, name: row.image };
    }
    const none = row.empty && row.decision !== "correct";
    const layers = row.instances && row.instances.map((one, i) => ({ segmentation: segmentationOf(row, one), colour: COLOURS[i % COLOURS.length], strong: one === row.selected }));
    figure.firstElementChild.replaceWith(overlay(row.photo, { area: none ? 0 : 1, segmentation: segmentationOf(row), layers }));
  } catch (error) { figure.firstElementChild.textContent = error.message; }
}

const segmentationOf = (row, one = row) => ({ size: [row.height, row.width], counts: one.counts });

/* The object under the pointer that a decision can be about, null if there is none. The canvas may have empty margins. */
function instanceAt(event, row) {
  const canvas = event.target, r = canvas.getBoundingClientRect(), scale = Math.min(r.width / canvas.width, r.height / canvas.height);
  const x = Math.floor((event.clientX - r.left - (r.width - canvas.width * scale) / 2) / scale * row.width / canvas.width);
  const y = Math.floor((event.clientY - r.top - (r.height - canvas.height * scale) / 2) / scale * row.height / canvas.height);
  if (x < 0 || y < 0 || x >= row.width || y >= row.height) return null;
  const hit = one => one.number != null && unpack(one.counts, row.height * row.width)[x * row.height + y];
  return (row.instances || []).findLast(hit) || null;
}

function select(figure, row, one) {
  if (!row.instances) return;
  row.selected = one === row.selected ? null : one;
  fill(figure, row);
  pressed(figure, row);
}

/* The next object of a label, after the last one none. */
function selectNext(figure, row) {
  const known = (row.instances || []).filter(one => one.number != null);
  select(figure, row, known[known.indexOf(row.selected) + 1] || row.selected || null);
}

function pressed(figure, row) {
  figure.dataset.decision = row.decision;
  const count = row.instances && (!row.empty || row.decision === "correct") ? ": " + plural(row.instances.length, "object") : "";
  figure.querySelector(".what").textContent = (row.empty ? "no " : "") + row.class_name + count +
    (row.selected ? ", number " + row.selected.number + " selected" : "");
  figure.querySelectorAll("[data-word]").forEach(b => b.setAttribute("aria-pressed", b.dataset.word === row.decision));
}

function cardKey(event, figure, row) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "i") return selectNext(figure, row);
  const one = row.selected, word = { a: "accept", r: "reject", u: "undo", c: "correct" }[event.key], way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!word && !way) return;
  event.preventDefault();
  if (word) act(figure, row, word);
  const next = way === -1 ? figure.previousElementSibling : figure.nextElementSibling;
  if (next && (way || word === "accept" || (word === "reject" && !one))) next.focus();
}

async function act(figure, row, word) {
  if (word === "correct") return startFixing(figure, row);
  try {
    const one = word === "reject" ? row.selected : null, changed = row.instances && row.decision === "correct";
    await send(row, one ? { decision: word, instance: one.number } : { decision: word });
    row.decision = one ? "correct" : word === "undo" ? "" : word === "accept" && changed ? "correct" : word;
    if (word === "undo" && changed) return showLabels(false);  // its objects are back
    if (one) Object.assign(row, { instances: row.instances.filter(other => other !== one), selected: null });
    if (one) fill(figure, row);
    pressed(figure, row);
  } catch (error) { showMessage("review-message", error.message, "bad"); }
}

async function send(row, decision) {
  const { image_id, image, class_name } = row;
  await fetchJson("/v1/jobs/" + reviewed.job.job_id + "/decisions", { decisions: [{ image_id, image, class_name, ...decision }] });
  showMessage("review-message", "", "");
}

/* Moves the marker into a dialog; it moves back when the dialog closes. */
function startFixing(figure, row) {
  if (!row.photo) return;
  const one = row.selected, shown = one ? [one] : row.instances || [row];
  state.fixing = { figure, row, one, before: { photo: state.photo, marks: state.marks, negative: $("negative").checked, tool: state.tool } };
  $("fix-title").textContent = "Correct " + (one ? "object " + one.number + " of " : "") + row.class_name + " in " + row.image;
  $("fix-place").append($("marker"));
  $("fix").showModal();
  showOnStage(row.photo, row.empty ? [] : shown.map(part => maskMark(segmentationOf(row, part))));
  setTool(row.empty ? "outline" : "brush");
  stage.focus();
}

$("fix").addEventListener("close", () => {
  const { before, figure } = state.fixing;
  $("marker-home").append($("marker"));
  state.fixing = null;
  setTool(before.tool);
  if (before.photo) showOnStage(before.photo, before.marks, before.negative); else { emptyStage(); showThumbs(); }
  figure.focus();
});
$("fix-cancel").addEventListener("click", () => $("fix").close());
$("fix-save").addEventListener("click", async () => {
  const { row, one } = state.fixing;
  if (state.marks.some(m => m.kind !== "mask")) return showMessage("fix-message", "A correction has to be a mask: use outline, brush or eraser.", "bad");
  try {
    await send(row, { decision: "correct", mask: pngOf(state.photo, state.marks), ...(one ? { instance: one.number } : {}) });
    Object.assign(row, { decision: "correct", counts: null });
    $("fix").close();
    showMessage("fix-message", "", "");
    showLabels(false);
  } catch (error) { showMessage("fix-message", error.message, "bad"); }
});

$("show").addEventListener("change", () => { reviewed.page = 0; showLabels(false); });
$("back").addEventListener("click", () => { reviewed.page--; showLabels(true); });
$("next").addEventListener("click", () => { reviewed.page++; showLabels(true); });
$("review-download").addEventListener("click", () => download(reviewed.job));
$("again").addEventListener("click", async () => {
  try {
    await fetchJson("/v1/jobs/" + reviewed.job.job_id + "/again", $("below").value ? { below: Number($("below").value) } : {});
    showMessage("review-message", "A new job labels the doubtful photos again. It is in the list of jobs.", "good");
  } catch (error) { showMessage("review-message", error.message, "bad"); }
  watch();
});

$("token").addEventListener("change", () => { showHealth(); watch(); });
showHealth();
showClasses();
restoreClasses();
watch();
