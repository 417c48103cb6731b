// The page: pictures come in by hand, by drop, by paste or from the webcam; what was found is drawn and listed.
// A server of detr-export beside the page runs the model if there is one. Otherwise the browser does.

import { colorOf, draw, scoreText } from "./drawing.js";
import { DetrError } from "./errors.js";
import { askServer, findServer } from "./server.js";

const LOWEST = Number(byId("threshold").min); // everything above is asked for once, so that the slider needs no new run
const CAMERA_ERRORS = {
  NotAllowedError: "The browser does not let this page use the webcam. Allow it beside the address, then start it again.",
  NotFoundError: "This computer has no webcam. Connect one, or choose a picture.",
  NotReadableError: "Another program uses the webcam. Close that program, then start the webcam again.",
};

let detector = null; // {find(picture): Promise<found>, checkSize({width, height}), release()}
let waiting = null; // gives the picture that comes next; a newer one takes its place
let shown = null; // {picture: {canvas, name}, found, milliseconds}
let camera = null; // the webcam's MediaStream while it is on
let modelSource = new URLSearchParams(location.search).get("model") ?? "model.onnx"; // an address or a File
let last = Promise.resolve(); // ends when all jobs so far have ended

function byId(id) {
  return document.getElementById(id);
}

/** Runs a job when those before it have ended. The page shows its error. The answer says whether there was none. */
function inTurn(job) {
  last = last.then(job).then(() => true, complain);
  return last;
}

function complain(error) {
  if (!(error instanceof DetrError)) console.error(error);
  byId("error").textContent = error.message ?? String(error);
  byId("error").hidden = false;
  if (!shown) say("");
  return false;
}

function say(text) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

// ---- who finds the objects ------------------------------------------------------------------------------------------------

function useServer({ model, device }) {
  detector = {
    checkSize() {}, // the server does
    release() {},
    async find({ canvas, file }) {
      const blob = file ?? (await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95)));
      const { found, size } = await askServer(blob, LOWEST);
      const [height, width] = size;
      if (width !== canvas.width || height !== canvas.height) {
        const sizes = `${width} × ${height} pixels there, and ${canvas.width} × ${canvas.height} in this browser`;
        throw new DetrError(`The server read the picture in another way: ${sizes}. Save it as a PNG or JPEG file and try again.`);
      }
      return found;
    },
  };
  byId("model").textContent = `The server runs ${model ?? "its model"}${device ? ` on ${device}` : ""}.`;
  byId("privacy").textContent = "Pictures are sent to the server that sent this page.";
}

/** Opens a model in the browser. `source` is an address or a File. */
async function useBrowser(source) {
  const { openModel } = await import("./detr.js");
  const name = source.name ?? source;
  say(`Opening ${name}…`);
  const megabytes = (count) => (count / 1e6).toFixed(1);
  const onProgress = (done, total) => say(`Fetching ${name}: ${megabytes(done)}${total ? ` of ${megabytes(total)}` : ""} MB`);
  const bytes = source instanceof File ? new Uint8Array(await source.arrayBuffer()) : source;
  const model = await openModel(bytes, { backend: byId("backend").value, onProgress });
  await detector?.release(); // only now: a file that is refused leaves the model before it in use
  detector = {
    find: ({ canvas }) => model.detect(canvas, LOWEST),
    checkSize: (size) => model.checkSize(size),
    release: () => model.release(),
  };
  const names = new Set(Object.values(model.metadata.id2label).filter((label) => label !== "N/A")); // COCO's unused numbers
  byId("model").textContent = `${name} knows ${names.size} kinds of objects and runs on ${model.backend}.`;
  byId("note").textContent = model.note;
  modelSource = source;
}

function openModelInTurn(source) {
  return inTurn(async () => {
    byId("error").hidden = true;
    await useBrowser(source);
    say("Ready for a picture.");
    if (shown && !camera) await look(() => shown.picture);
  });
}

// ---- from a picture to what is shown --------------------------------------------------------------------------------------

/** Finds the objects of a picture. While another job runs it waits, and only the newest picture waits. */
function find(source) {
  waiting = source;
  return inTurn(async () => {
    if (!waiting) return; // a later call was served before
    const next = waiting;
    waiting = null;
    await look(next);
  });
}

async function look(source) {
  if (!detector) throw new DetrError("There is no model yet. Open a model first.");
  const picture = await source();
  if (!camera) say("Looking…");
  const start = performance.now();
  const found = await detector.find(picture);
  shown = { picture, found, milliseconds: performance.now() - start };
  byId("error").hidden = true;
  show();
}

function show() {
  if (!shown) return;
  const { picture: { canvas: picture, name }, milliseconds } = shown;
  const threshold = byId("threshold").valueAsNumber;
  byId("threshold-value").textContent = threshold.toFixed(2);
  const found = shown.found.filter(({ score }) => score > threshold);

  const canvas = byId("canvas");
  const stage = byId("stage");
  const padding = 2 * parseFloat(getComputedStyle(stage).paddingLeft);
  draw(canvas, picture, found, { width: stage.clientWidth - padding, height: Math.max(240, window.innerHeight * 0.75) });
  canvas.hidden = false;
  byId("hint").hidden = true;

  const count = found.length === 1 ? "1 object" : `${found.length} objects`;
  const summary = found.length ? `${count} found` : `No object has a score above ${threshold.toFixed(2)}`;
  const list = found.map(({ name, score }) => `${name} ${scoreText(score)}`).join(", ");
  canvas.setAttribute("aria-label", [`${name}: ${summary}`, list].filter(Boolean).join(": "));
  say(camera ? "The webcam is on." : `${summary}.`); // a screen reader is not told every frame
  byId("found").replaceChildren(...found.map(listItem));
  const rate = camera ? ` (${(1000 / milliseconds).toFixed(1)} a second)` : "";
  byId("facts").textContent = `${picture.width} × ${picture.height} pixels · ${milliseconds.toFixed(0)} ms${rate}`;
}

function listItem({ label, name, score, box }) {
  const item = document.createElement("li");
  const part = (className, text) => {
    const element = item.appendChild(document.createElement("span"));
    element.className = className;
    element.textContent = text;
    return element;
  };
  part("swatch", "").style.background = `rgb(${colorOf(label).join(" ")})`;
  part("name", name);
  part("score", scoreText(score));
  const [left, top, right, bottom] = box.map((value) => (Math.round(value * 10) / 10 || 0).toFixed(1)); // never -0.0
  part("box", `x ${left} to ${right}, y ${top} to ${bottom}`);
  return item;
}

/** Decodes a picture file; a rotated photo is turned as its EXIF entry says. */
async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    const wrong = file.size ? "is not a picture that this browser can read" : "is empty";
    throw new DetrError(`${file.name || "The file"} ${wrong}. Choose a JPEG, PNG or WebP file.`);
  }
  detector.checkSize(bitmap);
  const picture = { canvas: copy(bitmap, bitmap.width, bitmap.height), file, name: file.name };
  bitmap.close();
  return picture;
}

function copy(source, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new DetrError(`The browser cannot hold a picture of ${width} × ${height} pixels. Resize the picture.`);
  context.fillStyle = "white"; // behind what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  return canvas;
}

function openFile(file) {
  if (!file) return complain(new DetrError("That was not a file. Drop or paste a picture file."));
  if (!file.name.endsWith(".onnx")) {
    stopWebcam();
    return find(() => decode(file));
  }
  if (byId("model-choice").hidden) return complain(new DetrError("The server of this page has its own model. Drop a picture."));
  return openModelInTurn(file);
}

// ---- webcam ---------------------------------------------------------------------------------------------------------------

async function startWebcam() {
  const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
  try {
    if (!navigator.mediaDevices) throw new DetrError("Browsers give the webcam only to pages from https or from localhost.");
    camera = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false });
    video.srcObject = camera;
    await video.play();
  } catch (error) {
    stopWebcam();
    complain(error.name in CAMERA_ERRORS ? new DetrError(CAMERA_ERRORS[error.name]) : error);
    return;
  }
  const mine = camera;
  mine.getTracks()[0].addEventListener("ended", () => mine === camera && stopWebcam());
  showWebcamState();
  while (camera === mine) {
    // The frames that pass while the model runs are dropped.
    const went = await find(() => ({ canvas: copy(video, video.videoWidth, video.videoHeight), name: "Webcam" }));
    if (!went) stopWebcam();
    await new Promise((resolve) => requestAnimationFrame(resolve));
  }
}

function stopWebcam() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  showWebcamState();
  show();
}

function showWebcamState() {
  byId("webcam").textContent = camera ? "Stop webcam" : "Start webcam";
  byId("webcam").setAttribute("aria-pressed", String(Boolean(camera)));
}

// ---- events ---------------------------------------------------------------------------------------------------------------

for (const kind of ["picture", "model"]) {
  const input = byId(`${kind}-file`);
  byId(kind === "picture" ? "choose" : "choose-model").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    if (input.files.length) openFile(input.files[0]);
    input.value = ""; // the same file can be chosen again
  });
}
byId("webcam").addEventListener("click", () => (camera ? stopWebcam() : startWebcam()));
byId("threshold").addEventListener("input", () => {
  byId("threshold-value").textContent = byId("threshold").valueAsNumber.toFixed(2);
  show();
});
byId("backend").addEventListener("change", () => openModelInTurn(modelSource));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("stage").classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? byId("stage").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault(); // or the browser would leave the page
  byId("stage").classList.remove("over");
  openFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => openFile(event.clipboardData.files[0]));
new ResizeObserver(show).observe(byId("stage"));

const server = await findServer();
if (server) {
  useServer(server);
  say("Ready for a picture.");
} else {
  byId("model-choice").hidden = false;
  byId("privacy").textContent = "The model runs in this browser. Pictures do not leave this computer.";
  openModelInTurn(modelSource);
}
