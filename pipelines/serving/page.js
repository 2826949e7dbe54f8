"use strict";
const $ = id => document.getElementById(id);
const MARK = [224, 0, 122];
const HINTS = {
  outline: "Draw around the object; the inside is filled. Several outlines add up.",
  brush: "Paint over the object.", eraser: "Take away what was marked too much.",
  box: "Drag a box around the object.", points: "Click on the object; shift-click on what is not the object.",
};
const state = { tool: "outline", photo: null, marks: [], kept: [], supportId: null, queries: [], results: [] };

/* ---- talking to the service ---- */
async function ask(path, body) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if ($("token").value) headers["Authorization"] = "Bearer " + $("token").value.trim();
  let answer;
  try {
    answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  } catch { throw new Error("The service does not answer."); }
  let content = {};
  try { content = await answer.json(); } catch { /* no JSON: the status says it */ }
  if (!answer.ok) throw new Error(content.error || "The service answers " + answer.status + ".");
  return content;
}

async function showHealth() {
  const facts = $("facts");
  try {
    const h = await ask("/v1/health");
    facts.replaceChildren(fact("Model", h.method + " / " + h.preset), fact("Quality", quality(h)), fact("Runs on", h.device),
      fact("Bundle", h.bundle_id), ...(h.classes.length ? [fact("Trained on", h.dataset + ", " + h.classes.length + " classes")] : []));
    $("untrained").hidden = !h.untrained;
    $("token-box").hidden = !h.token;
  } catch (error) { facts.textContent = error.message; }
}

function quality(h) {
  const m = h.metrics && h.metrics.cross_validated;
  if (!m || typeof m.miou !== "number") return "not measured";
  const pct = v => (100 * v).toFixed(1);
  const span = m.interval ? " (" + pct(m.interval[0]) + "–" + pct(m.interval[1]) + ")" : "";
  return pct(m.miou) + span + " mIoU on classes it never trained on";
}

function fact(name, value) {
  const span = document.createElement("span"), bold = document.createElement("b");
  bold.textContent = value;
  span.append(name + " ", bold);
  return span;
}

function tell(id, text, kind) {
  const box = $(id);
  box.textContent = text;
  box.className = text ? kind : "";
}

/* ---- photos ---- */
async function load(file) {
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  try { await image.decode(); } catch { URL.revokeObjectURL(url); return null; }
  return { file, image, width: image.naturalWidth, height: image.naturalHeight, name: file.name };
}

function base64(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error("Cannot read " + file.name));
    reader.readAsDataURL(file);
  });
}

/* ---- marking ---- */
const stage = $("stage");

async function choose(file) {
  const photo = await load(file);
  if (!photo) return tell("learn-message", "This browser cannot show " + file.name + ".", "bad");
  tell("learn-message", "", "");
  state.photo = photo;
  state.marks = [];
  const scale = Math.min(1, 1000 / photo.width, 560 / photo.height);
  stage.width = Math.round(photo.width * scale);
  stage.height = Math.round(photo.height * scale);
  $("marker").hidden = false;
  $("no-photo").hidden = true;
  paint();
}

/* Marks are kept in pixels of the photo, so that they can be drawn at any size. */
function drawMask(context, marks, scale) {
  for (const m of marks) {
    context.globalCompositeOperation = m.tool === "eraser" ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = "#fff";
    context.lineCap = context.lineJoin = "round";
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
  const strokes = marks.filter(m => m.path);
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
    if (m.box) {
      context.strokeStyle = `rgb(${MARK})`;
      context.lineWidth = 2;
      context.strokeRect(m.box[0] * scale, m.box[1] * scale, (m.box[2] - m.box[0]) * scale, (m.box[3] - m.box[1]) * scale);
    } else if (m.point) {
      context.beginPath();
      context.arc(m.point[0] * scale, m.point[1] * scale, 6, 0, 7);
      context.fillStyle = m.label ? `rgb(${MARK})` : "#fff";
      context.strokeStyle = m.label ? "#fff" : `rgb(${MARK})`;
      context.lineWidth = 2;
      context.fill();
      context.stroke();
    }
  }
}

function paint() {
  if (!state.photo) return;
  picture(state.photo, state.marks, stage.width, stage.height, stage);
  const drawing = state.marks.at(-1);
  if (drawing && drawing.open && drawing.tool === "outline") outlineInProgress(drawing);
  refresh();
}

function outlineInProgress(mark) {
  const context = stage.getContext("2d"), scale = stage.width / state.photo.width;
  context.beginPath();
  mark.path.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x * scale, y * scale));
  context.strokeStyle = `rgb(${MARK})`;
  context.lineWidth = 2;
  context.stroke();
}

function place(event) {
  const r = stage.getBoundingClientRect(), p = state.photo;
  const inside = (v, most) => Math.min(Math.max(v, 0), most);
  return [inside((event.clientX - r.left) / r.width * p.width, p.width),
          inside((event.clientY - r.top) / r.height * p.height, p.height)];
}

/* A photo has one kind of mark: a mask (outline, brush, eraser), a box, or clicks. */
const kindOf = tool => tool === "box" || tool === "points" ? tool : "mask";

stage.addEventListener("pointerdown", event => {
  if (!state.photo || event.button) return;
  stage.setPointerCapture(event.pointerId);
  const at = place(event), kind = kindOf(state.tool);
  state.marks = state.marks.filter(m => m.kind === kind && kind !== "box");
  if (kind === "points") state.marks.push({ kind, point: at, label: event.shiftKey ? 0 : 1 });
  else if (kind === "box") state.marks.push({ kind, from: at, box: [...at, ...at], open: true });
  else state.marks.push({ kind, tool: state.tool, path: [at], open: true,
    size: $("size").value * state.photo.width / stage.getBoundingClientRect().width });
  paint();
});
stage.addEventListener("pointermove", event => {
  const mark = state.marks.at(-1);
  if (!mark || !mark.open) return;
  const [x, y] = place(event);
  if (mark.path) mark.path.push([x, y]);
  else mark.box = [Math.min(mark.from[0], x), Math.min(mark.from[1], y), Math.max(mark.from[0], x), Math.max(mark.from[1], y)];
  paint();
});
for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => {
  const mark = state.marks.at(-1);
  if (!mark || !mark.open) return;
  mark.open = false;
  const tiny = mark.box ? mark.box[2] - mark.box[0] < 2 || mark.box[3] - mark.box[1] < 2
                        : mark.tool === "outline" && mark.path.length < 3;
  if (tiny) state.marks.pop();
  paint();
});

document.querySelectorAll("[data-tool]").forEach(button => button.addEventListener("click", () => {
  state.tool = button.dataset.tool;
  document.querySelectorAll("[data-tool]").forEach(b => b.setAttribute("aria-pressed", b === button));
  $("size-field").hidden = !["brush", "eraser"].includes(state.tool);
  $("hint").textContent = HINTS[state.tool];
}));
$("hint").textContent = HINTS.outline;
$("undo").addEventListener("click", () => { state.marks.pop(); paint(); });
$("clear").addEventListener("click", () => { state.marks = []; paint(); });
$("support-file").addEventListener("change", event => {
  keepCurrent();
  if (event.target.files[0]) choose(event.target.files[0]);
  event.target.value = "";
});
$("keep").addEventListener("click", () => { if (keepCurrent()) $("support-file").click(); });
$("name").addEventListener("input", refresh);

/* A marked photo moves to the row of thumbnails. */
function keepCurrent() {
  if (!state.photo || !state.marks.length) return false;
  state.kept.push({ photo: state.photo, marks: state.marks });
  state.photo = null;
  state.marks = [];
  $("marker").hidden = true;
  showThumbs();
  return true;
}

function showThumbs() {
  $("no-photo").hidden = Boolean(state.kept.length || state.photo);
  $("thumbs").replaceChildren(...state.kept.map((support, i) => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas"), remove = document.createElement("button");
    canvas.height = 168;
    canvas.width = Math.round(168 * support.photo.width / support.photo.height);
    picture(support.photo, support.marks, canvas.width, canvas.height, canvas);
    remove.textContent = "Remove";
    remove.setAttribute("aria-label", "Remove " + support.photo.name);
    remove.onclick = () => { state.kept.splice(i, 1); showThumbs(); refresh(); };
    figure.append(canvas, remove);
    return figure;
  }));
}

function refresh() {
  const marked = state.kept.length || (state.photo && state.marks.length && !state.marks.at(-1).open);
  $("learn").disabled = !(marked && $("name").value.trim());
  $("keep").disabled = !state.marks.length;
}

async function asJson({ photo, marks }) {
  const image = await base64(photo.file), kind = marks[0].kind;
  if (kind === "box") return { image, box: marks[0].box };
  if (kind === "points") return { image, points: marks.map(m => m.point), labels: marks.map(m => m.label) };
  const canvas = document.createElement("canvas");
  canvas.width = photo.width;
  canvas.height = photo.height;
  drawMask(canvas.getContext("2d"), marks, 1);
  return { image, mask: canvas.toDataURL("image/png") };
}

$("learn").addEventListener("click", async () => {
  const current = state.photo && state.marks.length ? [{ photo: state.photo, marks: state.marks }] : [];
  $("learn").disabled = true;
  tell("learn-message", "Learning…", "good");
  try {
    const supports = await Promise.all([...state.kept, ...current].map(asJson));
    const answer = await ask("/v1/supports", { class_name: $("name").value.trim(), supports });
    state.supportId = answer.support_id;
    tell("learn-message", "Learned “" + answer.class_name + "” from " + supports.length +
      (supports.length > 1 ? " photos" : " photo") + ". Its id is " + answer.support_id + ".", "good");
    $("segment-hint").textContent = "Photos in which “" + answer.class_name + "” is looked for.";
    $("query-pick").hidden = $("threshold-field").hidden = false;
    if (state.queries.length) segment();
  } catch (error) { tell("learn-message", error.message, "bad"); }
  refresh();
});

/* ---- segmenting ---- */
$("query-files").addEventListener("change", async event => {
  const files = [...event.target.files];
  event.target.value = "";
  if (!files.length) return;
  state.queries = await Promise.all(files.map(async file => (await load(file)) || { file, name: file.name, image: null }));
  segment();
});
$("threshold").addEventListener("input", () => { $("threshold-value").value = Number($("threshold").value).toFixed(2); });
$("threshold").addEventListener("change", () => state.queries.length && segment());

let turn = 0;
async function segment() {
  const mine = ++turn;
  state.results = [];
  $("results").replaceChildren();
  $("save").hidden = true;
  try {
    for (let i = 0; i < state.queries.length; i += 8) {
      tell("segment-message", "Looking: " + i + " of " + state.queries.length + " photos done…", "good");
      const group = state.queries.slice(i, i + 8);
      const images = await Promise.all(group.map(q => base64(q.file)));
      const answer = await ask("/v1/segment", { support_id: state.supportId, images, threshold: Number($("threshold").value) });
      if (mine !== turn) return;
      answer.results.forEach((result, k) => show(group[k], result));
    }
    tell("segment-message", "", "");
    $("save").hidden = false;
  } catch (error) { if (mine === turn) tell("segment-message", error.message, "bad"); }
}

function show(query, result) {
  state.results.push({ file_name: query.name, ...result });
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  const name = document.createElement("span"), score = document.createElement("span");
  name.className = "name";
  name.textContent = name.title = query.name;
  score.className = "score" + (result.error ? " failed" : "");
  score.textContent = result.error || (result.area ? "score " + result.score.toFixed(2) : "not found");
  caption.append(name, score);
  figure.append(query.image ? overlay(query, result) : nothingToShow());
  figure.append(caption);
  $("results").append(figure);
}

function nothingToShow() {
  const box = document.createElement("div");
  box.className = "blank";
  box.textContent = "No picture";
  return box;
}

function overlay(query, result) {
  const canvas = document.createElement("canvas"), scale = Math.min(1, 640 / query.width, 640 / query.height);
  const w = canvas.width = Math.max(1, Math.round(query.width * scale)), h = canvas.height = Math.max(1, Math.round(query.height * scale));
  const context = canvas.getContext("2d");
  context.drawImage(query.image, 0, 0, w, h);
  if (result.error || !result.area) return canvas;
  const [H, W] = result.segmentation.size, mask = unpack(result.segmentation.counts, H * W);
  const line = Math.max(2, Math.round(w / 160));  // as wide as two pixels where the picture is shown small
  const pixels = context.getImageData(0, 0, w, h), inside = (x, y) => x >= 0 && y >= 0 && x < w && y < h &&
    mask[Math.min(W - 1, Math.floor((x + .5) * W / w)) * H + Math.min(H - 1, Math.floor((y + .5) * H / h))];
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    if (!inside(x, y)) continue;
    const edge = !(inside(x - line, y) && inside(x + line, y) && inside(x, y - line) && inside(x, y + line)), part = edge ? 1 : .45;
    for (let c = 0, i = 4 * (y * w + x); c < 3; c++) pixels.data[i + c] = pixels.data[i + c] * (1 - part) + MARK[c] * part;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/* COCO's compressed run lengths -> one byte a pixel, column by column. */
function unpack(text, pixels) {
  const mask = new Uint8Array(pixels), runs = [];
  for (let p = 0, at = 0, value; p < text.length;) {
    let x = 0, k = 0, more = true;
    while (more) {
      const c = text.charCodeAt(p++) - 48;
      x |= (c & 31) << 5 * k++;
      more = Boolean(c & 32);
      if (!more && c & 16) x |= -1 << 5 * k;
    }
    value = runs.length > 2 ? x + runs[runs.length - 2] : x;
    if (runs.length % 2) mask.fill(1, at, at + value);
    runs.push(value);
    at += value;
  }
  return mask;
}

$("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ class_name: $("name").value.trim(), support_id: state.supportId,
    results: state.results }, null, 1)], { type: "application/json" }));
  link.download = "labels.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

showHealth();
