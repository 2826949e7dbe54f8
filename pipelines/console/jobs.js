/* ---- labelling jobs ---- */
const WORDS = { running: "running", done: "done", stopped: "stopped", failed: "failed", interrupted: "interrupted" };
let timer = 0;

function showRoots(roots) {
  const none = roots && !roots.length;
  $("roots").textContent = !roots ? "Any folder or bucket that the service's machine can read."
    : none ? "This service is not allowed to read any folder. Its operator can allow folders with serve.roots." : "Allowed: folders below " + roots.join(" or ") + ".";
  $("job-images").disabled = Boolean(none);
}

function showClasses() {
  $("no-class").hidden = Boolean(state.classes.length);
  $("classes").replaceChildren(...state.classes.map(c => {
    const label = make("label", { className: "field" }), box = make("input", { type: "checkbox", checked: true, value: c.id });
    box.addEventListener("change", refreshJob);
    label.append(box, c.name);
    return label;
  }));
  refreshJob();
}

const checkedClasses = () => [...$("classes").querySelectorAll("input:checked")].map(box => box.value);
function refreshJob() {
  $("overlaps-field").hidden = checkedClasses().length < 2;
  $("job-start").disabled = !($("job-images").value.trim() && checkedClasses().length);
}
$("job-images").addEventListener("input", refreshJob);

$("job-form").addEventListener("submit", async event => {
  event.preventDefault();
  if ($("job-start").disabled) return;
  $("job-start").disabled = true;
  showMessage("job-message", "Listing the photos…", "good");
  try {
    const body = { images: $("job-images").value.trim(), support_ids: checkedClasses(), threshold: Number($("threshold").value) };
    if (!$("overlaps-field").hidden) body.overlaps = $("overlaps").value;
    if ($("instances").value !== "none") body.instances = $("instances").value;
    await fetchJson("/v1/jobs", body);
    showMessage("job-message", "", "");
  } catch (error) { showMessage("job-message", error.message, "bad"); }
  refreshJob();
  watch();
});

async function watch() {
  clearTimeout(timer);
  try {
    const { jobs } = await fetchJson("/v1/jobs");
    showJobs(jobs);
    if (jobs.some(j => j.state === "running")) timer = setTimeout(watch, 1000);
  } catch (error) {
    if (error.status !== 401) showMessage("job-message", error.message, "bad");
    timer = setTimeout(watch, 5000);
  }
}

function showJobs(jobs) {
  $("no-job").hidden = Boolean(jobs.length);
  const focus = document.activeElement?.dataset?.key;
  const open = new Set([...document.querySelectorAll("#jobs details[open]")].map(d => d.dataset.job));
  $("jobs").replaceChildren(...jobs.map(job => jobCard(job, open.has(job.job_id))));
  if (focus) document.querySelector(`#jobs [data-key="${focus}"]`)?.focus();
}

function jobCard(job, open) {
  const card = make("li", { className: "job " + job.state }), top = make("div", { className: "row" });
  card.dataset.job = job.job_id;
  top.append(make("b", {}, job.title), make("span", { className: "badge " + job.state }, job.stopping ? "stopping" : WORDS[job.state]),
    ...(job.origin ? [make("span", { className: "soft" }, "labels doubtful photos again")] : []),
    make("span", { className: "soft path", title: job.images }, job.images));
  const bar = make("progress", { max: job.photos, value: job.done });
  bar.setAttribute("aria-label", "Photos labelled");
  card.append(top, bar, make("div", { className: "soft" }, pace(job)));
  if (job.error) card.append(make("div", { className: "bad" }, job.error));
  card.append(jobButtons(job), commandOf(job, open));
  return card;
}

function pace(job) {
  const parts = [job.done + " of " + plural(job.photos, "photo")];
  if (job.rate && job.state !== "interrupted") parts.push(job.rate.toFixed(1) + " photos/s");
  if (job.state === "running" && !job.rate) parts.push(job.done ? "working" : "the model is starting");
  if (job.left_s != null && job.done < job.photos) parts.push(time(job.left_s) + " left");
  if (job.failed) parts.push(plural(job.failed, "photo") + " could not be read");
  return parts.join(" · ");
}

const time = s => s < 90 ? Math.ceil(s) + " s" : s < 5400 ? Math.round(s / 60) + " min" : (s / 3600).toFixed(1) + " h";

function jobButtons(job) {
  const row = make("div", { className: "row" });
  const add = (text, action, kind = "") => {
    const element = button(text, action, { className: kind });
    element.dataset.key = text + job.job_id;
    row.append(element);
  };
  const post = what => async () => {
    try { await fetchJson("/v1/jobs/" + job.job_id + "/" + what, {}); showMessage("job-message", "", ""); }
    catch (error) { showMessage("job-message", error.message, "bad"); }
    watch();
  };
  if (job.done) add("Review labels", () => review(job), "main");
  if (job.state === "done") add("Download labels", () => download(job));
  if (job.state === "running") add("Stop", post("stop"));
  else if (job.state !== "done") add("Resume", post("resume"));
  return row;
}

function commandOf(job, open) {
  const details = make("details", { open });
  details.dataset.job = job.job_id;
  details.append(make("summary", {}, "On the command line"), make("code", {}, job.command));
  return details;
}

async function download(job) {
  showMessage("job-message", "Writing the labels with your decisions…", "good");
  try {
    const answer = await fetchOk("/v1/jobs/" + job.job_id + "/labels.json");
    saveAs(await answer.blob(), job.job_id + ".json");
    showMessage("job-message", "Saved as " + job.job_id + ".json (COCO). The labels are also in " + job.out + ".", "good");
  } catch (error) { showMessage("job-message", error.message, "bad"); }
}
