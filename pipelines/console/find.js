/* ---- finding the object in other photos ---- */
$("query-files").addEventListener("change", async event => {
  const files = [...event.target.files];
  event.target.value = "";
  if (!files.length) return;
  state.queries = await Promise.all(files.map(async file => (await load(file)) || { file, name: file.name, image: null }));
  $("no-query").hidden = true;
  segment();
});
$("threshold").addEventListener("input", () => { $("threshold-value").value = Number($("threshold").value).toFixed(2); });
$("threshold").addEventListener("change", () => state.queries.length && segment());

let turn = 0;
async function segment() {
  const mine = ++turn, began = performance.now();
  state.results = [];
  $("results").replaceChildren();
  $("save").hidden = true;
  try {
    for (let i = 0; i < state.queries.length; i += 8) {
      showMessage("segment-message", "Searching: " + i + " of " + state.queries.length + " photos done…", "good");
      const group = state.queries.slice(i, i + 8);
      const images = await Promise.all(group.map(q => base64(q.file)));
      const answer = await fetchJson("/v1/segment", { support_id: state.supportId, images, threshold: Number($("threshold").value) });
      if (mine !== turn) return;
      answer.results.forEach((result, k) => show(group[k], result));
    }
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    showMessage("segment-message", plural(state.queries.length, "photo") + " in " + seconds + " s. If a mask is wrong, correct it: the photo becomes one more example.", "good");
    $("save").hidden = false;
  } catch (error) { if (mine === turn) showMessage("segment-message", error.message, "bad"); }
}

function show(query, result) {
  state.results.push({ file_name: query.name, ...result });
  const figure = make("figure"), caption = make("figcaption");
  const score = make("span", { className: "score" + (result.error ? " failed" : "") }, result.error || resultText(result));
  caption.append(make("span", { className: "name", title: query.name }, query.name), score);
  figure.append(query.image ? overlay(query, result) : make("div", { className: "blank" }, "This browser cannot show the photo."), caption);
  if (query.image && !result.error) caption.append(button("Correct", () => useAsSupport(query, result), { className: "small" }));
  $("results").append(figure);
}

function resultText(result) {
  if (!result.area) return "not found";
  return result.quality == null ? "score " + result.score.toFixed(2) : "good mask: " + Math.round(100 * result.quality) + " %";
}

/* Shows the mask that was found on the stage, to be corrected and used as an example. */
function useAsSupport(query, result) {
  addExample();
  showOnStage(query, result.area ? [maskMark(result.segmentation)] : []);
  setTool(result.area ? "brush" : "outline");
  $("stage").scrollIntoView({ block: "center" });
  $("stage").focus({ preventScroll: true });
}

$("save").addEventListener("click", () => saveAs(new Blob([JSON.stringify({ class_name: $("name").value.trim(),
  support_id: state.supportId, results: state.results }, null, 1)], { type: "application/json" }), "labels.json"));
