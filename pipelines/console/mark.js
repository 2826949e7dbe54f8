/* ---- marking the object in a photo ---- */
const HINTS = {
  outline: "Draw around the object. The inside is filled. Several outlines are added together.",
  brush: "Paint over the object.", eraser: "Erase what does not belong to the object.",
  scribble: "Draw a loose line on the object. Hold Shift to draw on what is not the object.",
  box: "Drag a box around the object.", points: "Click on the object. Hold Shift to click on what is not the object.",
};
const KEYS = " Keys: Tab selects the photo, arrows move the cursor, Space presses and releases, Ctrl+Z undoes.";
const stage = $("stage");

async function choose(file) {
  const photo = await load(file);
  if (!photo) return showMessage("learn-message", "This browser cannot show " + file.name + ".", "bad");
  showMessage("learn-message", "", "");
  showOnStage(photo, []);
}

function showOnStage(photo, marks, negative = false) {
  state.photo = photo;
  $("negative").checked = negative;
  state.marks = marks;
  state.cursor = null;
  const scale = Math.min(1, 1000 / photo.width, 520 / photo.height);
  const grow = Math.max(scale, Math.min(2, 360 / photo.height, 1000 / photo.width));  // small photos are shown larger
  stage.width = Math.round(photo.width * grow);
  stage.height = Math.round(photo.height * grow);
  $("marker").hidden = false;
  $("no-photo").hidden = true;
  showHint();
  paint();
}

/* Marks are in pixels of the photo, so that they can be drawn at any size. */
function drawMask(context, marks, scale) {
  for (const m of marks) {
    context.globalCompositeOperation = m.tool === "eraser" ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = "#fff";
    context.lineCap = context.lineJoin = "round";
    if (m.canvas) { context.drawImage(m.canvas, 0, 0, m.canvas.width * scale, m.canvas.height * scale); continue; }
    context.beginPath();
    m.path.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x * scale, y * scale));
    if (m.tool === "outline") { context.closePath(); context.fill(); continue; }
    context.lineWidth = m.size * scale;
    if (m.path.length === 1) context.lineTo(m.path[0][0] * scale + .01, m.path[0][1] * scale);
    context.stroke();
  }
}

function picture(photo, marks, width, height, canvas) {
  const scale = width / photo.width, context = canvas.getContext("2d");
  context.drawImage(photo.image, 0, 0, width, height);
  const strokes = marks.filter(m => m.kind === "mask");
  if (strokes.length) {
    const layer = new OffscreenCanvas(width, height), inner = layer.getContext("2d");
    drawMask(inner, strokes, scale);
    inner.globalCompositeOperation = "source-in";
    inner.fillStyle = `rgb(${MARK})`;
    inner.fillRect(0, 0, width, height);
    context.globalAlpha = .5;
    context.drawImage(layer, 0, 0);
    context.globalAlpha = 1;
  }
  for (const m of marks) {
    context.lineWidth = 2;
    context.strokeStyle = m.label === 0 ? "#fff" : `rgb(${MARK})`;
    if (m.box) context.strokeRect(m.box[0] * scale, m.box[1] * scale, (m.box[2] - m.box[0]) * scale, (m.box[3] - m.box[1]) * scale);
    else if (m.kind === "scribble") line(context, m.path, scale, 4);
    else if (m.point) {
      context.beginPath();
      context.arc(m.point[0] * scale, m.point[1] * scale, 6, 0, 7);
      context.fillStyle = m.label ? `rgb(${MARK})` : "#fff";
      context.strokeStyle = m.label ? "#fff" : `rgb(${MARK})`;
      context.fill();
      context.stroke();
    }
  }
}

function line(context, path, scale, width) {
  context.beginPath();
  path.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x * scale, y * scale));
  if (path.length === 1) context.lineTo(path[0][0] * scale + .01, path[0][1] * scale);
  context.lineWidth = width;
  context.lineCap = "round";
  context.stroke();
}

function paint() {
  if (!state.photo) return;
  picture(state.photo, state.marks, stage.width, stage.height, stage);
  const context = stage.getContext("2d"), scale = stage.width / state.photo.width, open = state.marks.at(-1);
  context.strokeStyle = `rgb(${MARK})`;
  if (open && open.open && open.tool === "outline") line(context, open.path, scale, 2);
  if (state.cursor) {
    const [x, y] = [state.cursor[0] * scale, state.cursor[1] * scale];
    for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(x - 12, y); context.lineTo(x + 12, y); context.moveTo(x, y - 12); context.lineTo(x, y + 12);
      context.stroke();
    }
  }
  refresh();
}

/* A photo has one kind of mark: a mask (outline, brush, eraser), a scribble, a box, or clicks. */
const kindOf = tool => ["box", "points", "scribble"].includes(tool) ? tool : "mask";

function press(at, negative) {
  const kind = kindOf(state.tool);
  state.marks = state.marks.filter(m => m.kind === kind && kind !== "box");
  const size = $("size").value * state.photo.width / stage.getBoundingClientRect().width;
  if (kind === "points") state.marks.push({ kind, point: at, label: negative ? 0 : 1 });
  else if (kind === "box") state.marks.push({ kind, from: at, box: [...at, ...at], open: true });
  else if (kind === "scribble") state.marks.push({ kind, path: [at], label: negative ? 0 : 1, open: true });
  else state.marks.push({ kind, tool: state.tool, path: [at], open: true, size });
  paint();
}

function move([x, y]) {
  const mark = state.marks.at(-1);
  if (mark && mark.open) {
    if (mark.path) mark.path.push([x, y]);
    else mark.box = [Math.min(mark.from[0], x), Math.min(mark.from[1], y), Math.max(mark.from[0], x), Math.max(mark.from[1], y)];
  }
  paint();
}

function release() {
  const mark = state.marks.at(-1);
  if (!mark || !mark.open) return;
  mark.open = false;
  const tiny = mark.box ? mark.box[2] - mark.box[0] < 2 || mark.box[3] - mark.box[1] < 2
                        : mark.tool === "outline" && mark.path.length < 3;
  if (tiny) state.marks.pop();
  paint();
}

const within = (v, most) => Math.min(Math.max(v, 0), most);
function place(event) {
  const r = stage.getBoundingClientRect(), p = state.photo;
  return [within((event.clientX - r.left) / r.width * p.width, p.width), within((event.clientY - r.top) / r.height * p.height, p.height)];
}

stage.addEventListener("pointerdown", event => {
  if (!state.photo || event.button) return;
  stage.setPointerCapture(event.pointerId);
  state.cursor = null;
  press(place(event), event.shiftKey);
});
stage.addEventListener("pointermove", event => { if (state.marks.at(-1)?.open && !state.cursor) move(place(event)); });
for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, release);

stage.addEventListener("keydown", event => {
  if (!state.photo) return;
  const p = state.photo, step = (event.shiftKey && event.key !== " " ? .002 : .02) * Math.max(p.width, p.height);
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
  else if (way) {
    const [x, y] = state.cursor || [p.width / 2, p.height / 2];
    state.cursor = [within(x + way[0] * step, p.width), within(y + way[1] * step, p.height)];
    move(state.cursor);
  } else if (event.key === " ") {
    state.cursor = state.cursor || [p.width / 2, p.height / 2];
    if (state.marks.at(-1)?.open) release(); else press(state.cursor, event.shiftKey);
  } else return;
  event.preventDefault();
});

function undo() { state.marks.pop(); paint(); }

document.querySelectorAll("[data-tool]").forEach(b => b.addEventListener("click", () => setTool(b.dataset.tool)));
function setTool(tool) {
  state.tool = tool;
  document.querySelectorAll("[data-tool]").forEach(b => b.setAttribute("aria-pressed", b.dataset.tool === tool));
  $("size-field").hidden = !["brush", "eraser"].includes(tool);
  showHint();
}

const negativeHint = () => state.negatives === "photos" ? "Leave the photo without a mark: nothing in it is the object."
  : "Mark what is not the object, or nothing if all of the photo is not.";
function showHint() { $("hint").textContent = ($("negative").checked ? negativeHint() : HINTS[state.tool]) + KEYS; }
$("negative").addEventListener("change", () => { showHint(); refresh(); });
setTool("outline");
$("undo").addEventListener("click", undo);
$("clear").addEventListener("click", () => { state.marks = []; paint(); });
$("support-file").addEventListener("change", event => {
  addExample();
  if (event.target.files[0]) choose(event.target.files[0]);
  event.target.value = "";
});
$("keep").addEventListener("click", () => { if (addExample()) $("support-file").click(); });
$("name").addEventListener("input", refresh);

/* The photo on the stage as an example, in a list that is empty where it shows nothing yet. */
function staged() {
  const negative = $("negative").checked;
  return state.photo && (state.marks.length || negative) ? [{ photo: state.photo, marks: state.marks, negative }] : [];
}

/* Moves the marked photo to the row of thumbnails. Returns false if there is none. */
function addExample() {
  const example = staged();
  if (!example.length) return false;
  state.examples.push(...example);
  emptyStage();
  showThumbs();
  return true;
}

function emptyStage() {
  state.photo = null;
  state.marks = [];
  $("negative").checked = false;
  $("marker").hidden = true;
}

function showThumbs() {
  $("no-photo").hidden = Boolean(state.examples.length || state.photo);
  $("thumbs").replaceChildren(...state.examples.map((support, i) => {
    const figure = make("figure"), canvas = make("canvas", { height: 168, width: Math.round(168 * support.photo.width / support.photo.height) });
    picture(support.photo, support.marks, canvas.width, canvas.height, canvas);
    const remove = button("Remove", () => { state.examples.splice(i, 1); showThumbs(); refresh(); });
    remove.setAttribute("aria-label", "Remove " + support.photo.name);
    figure.append(canvas, ...(support.negative ? [make("figcaption", {}, "not the object")] : []), remove);
    return figure;
  }));
}

function refresh() {
  const marked = !state.marks.at(-1)?.open && [...state.examples, ...staged()].some(e => !e.negative);
  $("learn").disabled = Boolean(state.fixing) || !(marked && $("name").value.trim());
  $("keep").disabled = !staged().length;
  $("fix-save").disabled = !state.marks.length;
}

function pngOf(photo, marks) {
  const canvas = make("canvas", { width: photo.width, height: photo.height });
  drawMask(canvas.getContext("2d"), marks, 1);
  return canvas.toDataURL("image/png");
}

async function asJson({ photo, marks, negative }) {
  const image = await base64(photo.file);
  if (!negative) return { image, ...markJson(photo, marks) };
  const { labels, ...mark } = marks.length ? markJson(photo, marks) : {};  // all points are off the object
  return { image, ...mark, negative };
}

function markJson(photo, marks) {
  const kind = marks[0].kind;
  if (kind === "box") return { box: marks[0].box };
  if (kind === "points") return { points: marks.map(m => m.point), labels: marks.map(m => m.label) };
  if (kind === "mask") return { mask: pngOf(photo, marks) };
  const thin = Math.max(1, Math.ceil(marks.reduce((n, m) => n + m.path.length, 0) / 1000));
  const spots = marks.flatMap(m => m.path.filter((_, i) => i % thin === 0).map(point => ({ point, label: m.label })));
  return { scribble: spots.map(s => s.point), labels: spots.map(s => s.label) };
}

$("learn").addEventListener("click", async () => {
  $("learn").disabled = true;
  showMessage("learn-message", "Learning…", "good");
  try {
    const supports = await Promise.all([...state.examples, ...staged()].map(asJson));
    const prompt = $("prompt").value.trim();
    const answer = await fetchJson("/v1/supports", { class_name: $("name").value.trim(), supports, ...(prompt ? { prompt } : {}) });
    learned(answer);
    showMessage("learn-message", "Learned “" + answer.class_name + "” from " + plural(supports.length, "photo") + ". The support set has the id " +
      answer.support_id + ".", "good");
  } catch (error) { showMessage("learn-message", error.message, "bad"); }
  refresh();
});

function learned(answer) {
  state.classes = [...state.classes.filter(c => c.name !== answer.class_name), { id: answer.support_id, name: answer.class_name }];
  try { sessionStorage.setItem("fss-classes", JSON.stringify(state.classes)); } catch { /* without storage a reload forgets the classes */ }
  selectClass(state.classes.at(-1));
}

function selectClass({ id, name }) {
  state.supportId = id;
  $("segment-hint").textContent = "Choose photos in which to find “" + name + "”.";
  $("query-pick").hidden = $("threshold-field").hidden = false;
  $("another").hidden = false;
  $("no-query").textContent = "No photo is chosen yet";
  showClasses();
  if (state.queries.length) segment();
}

$("another").addEventListener("click", () => {
  Object.assign(state, { examples: [], supportId: null, results: [] });
  emptyStage();
  showThumbs();
  $("name").value = $("prompt").value = "";
  showMessage("learn-message", "", "");
  refresh();
  $("name").focus();
});

function restoreClasses() {
  try { state.classes = JSON.parse(sessionStorage.getItem("fss-classes")) || []; } catch { return; }
  if (state.classes.length) selectClass(state.classes.at(-1));
}
