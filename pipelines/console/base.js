"use strict";
const $ = id => document.getElementById(id);
const MARK = [224, 0, 122];
/* Colours of the objects of a class, in turn. */
const COLOURS = [MARK, [0, 122, 224], [0, 150, 80], [230, 120, 0], [120, 60, 200], [0, 160, 170], [190, 160, 0], [140, 80, 40]];
const state = { tool: "outline", photo: null, marks: [], examples: [], supportId: null, queries: [], results: [], classes: [],
  fixing: null, cursor: null, negatives: "none" };

/* ---- requests to the service ---- */
async function fetchOk(path, options = {}) {
  const headers = { ...options.headers };
  if ($("token").value) headers["Authorization"] = "Bearer " + $("token").value.trim();
  let answer;
  try { answer = await fetch(path, { ...options, headers }); } catch { throw new Error("The service does not answer."); }
  if (answer.ok) return answer;
  let content = {};
  try { content = await answer.json(); } catch { /* not JSON: the status is shown */ }
  const error = new Error(content.error || "The service answers " + answer.status + ".");
  error.status = answer.status;
  throw error;
}

async function fetchJson(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await fetchOk(path, body ? post : {})).json();
}

async function showHealth() {
  const facts = $("facts");
  try {
    const h = await fetchJson("/v1/health");
    facts.replaceChildren(fact("Model", h.method + " / " + h.preset), fact("Quality", quality(h)), fact("Runs on", h.device),
      fact("Bundle", h.bundle_id), ...(h.classes.length ? [fact("Trained on", h.dataset + ", " + h.classes.length + " classes")] : []));
    $("untrained").hidden = !h.untrained;
    $("token-box").hidden = !h.token;
    $("prompt-field").hidden = !h.reads_names;
    $("negative-field").hidden = h.negatives === "none";
    state.negatives = h.negatives;
    showRoots(h.roots);
  } catch (error) { facts.textContent = error.message; }
}

function quality(h) {
  const m = h.metrics && h.metrics.cross_validated;
  if (!m || typeof m.miou !== "number") return "not measured";
  const pct = v => (100 * v).toFixed(1);
  const span = m.interval ? " (" + pct(m.interval[0]) + "–" + pct(m.interval[1]) + ")" : "";
  return pct(m.miou) + span + " mIoU on classes that it was not trained on";
}

function fact(name, value) {
  const span = make("span", {}, name + " ");
  span.append(make("b", {}, value));
  return span;
}

/* ---- elements and messages ---- */
function make(tag, properties = {}, text = "") {
  const element = Object.assign(document.createElement(tag), properties);
  if (text) element.textContent = text;
  return element;
}

function button(text, action, properties = {}) {
  const element = make("button", { type: "button", ...properties }, text);
  element.addEventListener("click", action);
  return element;
}

function showMessage(id, text, kind) {
  const box = $(id);
  box.textContent = text;
  box.className = text ? kind : "";
}

const plural = (n, one, many = one + "s") => n + " " + (n === 1 ? one : many);

function saveAs(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/* ---- photos and masks ---- */
async function load(file) {
  const url = URL.createObjectURL(file), image = new Image();
  image.src = url;
  try { await image.decode(); } catch { URL.revokeObjectURL(url); return null; }
  return { file, image, width: image.naturalWidth, height: image.naturalHeight, name: file.name };
}

function base64(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error("The browser cannot read " + file.name + "."));
    reader.readAsDataURL(file);
  });
}

/* Decodes COCO's compressed run lengths to one byte a pixel, column by column. */
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

/* A canvas of the photo with its mask tinted and outlined. Without a mask (`area` 0) it shows the photo alone.
   `layers` are several masks, each with a colour; the opacity of a `strong` one is higher. */
function overlay(photo, result) {
  const canvas = make("canvas"), scale = Math.min(1, 640 / photo.width, 640 / photo.height);
  const w = canvas.width = Math.max(1, Math.round(photo.width * scale)), h = canvas.height = Math.max(1, Math.round(photo.height * scale));
  const context = canvas.getContext("2d");
  context.drawImage(photo.image, 0, 0, w, h);
  if (result.error || !result.area) return canvas;
  for (const layer of result.layers || [{ segmentation: result.segmentation, colour: MARK }]) tint(context, w, h, layer);
  return canvas;
}

function tint(context, w, h, { segmentation, colour, strong }) {
  const [H, W] = segmentation.size, mask = unpack(segmentation.counts, H * W);
  const line = Math.max(2, Math.round(w / 160));  // as wide as two pixels where the picture is shown small
  const pixels = context.getImageData(0, 0, w, h), inside = (x, y) => x >= 0 && y >= 0 && x < w && y < h &&
    mask[Math.min(W - 1, Math.floor((x + .5) * W / w)) * H + Math.min(H - 1, Math.floor((y + .5) * H / h))];
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    if (!inside(x, y)) continue;
    const edge = !(inside(x - line, y) && inside(x + line, y) && inside(x, y - line) && inside(x, y + line)), part = edge ? 1 : strong ? .7 : .35;
    for (let c = 0, i = 4 * (y * w + x); c < 3; c++) pixels.data[i + c] = pixels.data[i + c] * (1 - part) + colour[c] * part;
  }
  context.putImageData(pixels, 0, 0);
}

/* A mark made from a mask, to be corrected: a canvas of the photo's size, white where the object is. */
function maskMark(segmentation) {
  const [H, W] = segmentation.size, mask = unpack(segmentation.counts, H * W), canvas = make("canvas", { width: W, height: H });
  const context = canvas.getContext("2d"), pixels = context.createImageData(W, H);
  for (let x = 0; x < W; x++) for (let y = 0; y < H; y++) if (mask[x * H + y]) pixels.data.fill(255, 4 * (y * W + x), 4 * (y * W + x) + 4);
  context.putImageData(pixels, 0, 0);
  return { kind: "mask", tool: "given", canvas, path: [] };
}
