// Drives the page in headless Chromium (see the target web-test in the Makefile): node test.mjs
// In made/ lie model.onnx, its golden data in golden/, pictures in pictures/, and in predictions/ what detr-export predicts for
// them with the checkpoint. Screenshots go to made/screenshots/. WEBGPU=1 runs the model with WebGPU where the golden data is
// compared; the processor plays the GPU, so that takes minutes.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { compare, readGolden } from "./golden.mjs";
import { readMetadata } from "./metadata.js";

const MADE = new URL("made/", import.meta.url);
const MODEL = readFileSync(new URL("model.onnx", MADE));
const PREDICTIONS = JSON.parse(readFileSync(new URL("predictions/predictions.json", MADE), "utf8"));
const FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"];
const CAMERA = ["--use-fake-device-for-media-stream"]; // a moving test picture; the page must still be allowed to see it
const GPU = process.env.WEBGPU ? ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"] : []; // a GPU played by the processor

let server, browser, address, page;
const crashes = [];

before(async () => {
  mkdirSync(new URL("screenshots/", MADE), { recursive: true });
  server = spawn(process.env.PYTHON ?? "python3", [new URL("serve.py", import.meta.url).pathname, "0"], { stdio: ["ignore", "pipe", "inherit"] });
  address = String((await once(server.stdout, "data"))[0]).split(" ")[0];
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: [...FLAGS, ...CAMERA, ...GPU] });
  page = await open();
});

after(async () => {
  await browser?.close();
  server?.kill();
});

async function open(options = {}, query = "?model=made/model.onnx") {
  const opened = await browser.newPage({ viewport: { width: 1200, height: 780 }, ...options });
  opened.setDefaultTimeout(20000);
  opened.on("pageerror", (error) => crashes.push(error));
  await opened.goto(address + query);
  return opened;
}

/** Drops files on the page, as [name, bytes]; none at all is a drop of text. */
async function drop(target, ...files) {
  const contents = files.map(([name, bytes]) => [name, Buffer.from(bytes).toString("base64")]);
  await target.evaluate((given) => {
    const dataTransfer = new DataTransfer();
    for (const [name, base64] of given) {
      dataTransfer.items.add(new File([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], name));
    }
    document.getElementById("stage").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
  }, contents);
}

const text = (target, id) => target.locator(`#${id}`).textContent();
const waitForText = (target, id, pattern) => target.locator(`#${id}`, { hasText: pattern }).and(target.locator(":visible")).waitFor();
const nameOf = (index) => PREDICTIONS[index].image.split("/").at(-1);
const picture = (index) => readFileSync(new URL(`pictures/val/${nameOf(index)}`, MADE));
const sizeOf = (index) => PREDICTIONS[index].image_size; // [height, width]

async function dropPicture(target, index) {
  await drop(target, [nameOf(index), picture(index)]);
  await target.locator(`#canvas[aria-label^="${nameOf(index)}:"]`).waitFor();
}

async function complaint(target, ...files) {
  await drop(target, ...files);
  await target.locator("#error:visible").waitFor();
  const said = await text(target, "error");
  await target.evaluate(() => (document.getElementById("error").hidden = true));
  return said;
}

// ---- the numbers ----------------------------------------------------------------------------------------------------------

test("the page opens its model", async (context) => {
  await waitForText(page, "status", "Ready");
  await screenshots(page, "empty");
  context.diagnostic(`${await text(page, "model")} ${await text(page, "note")}`);
  assert.match(await text(page, "model"), /9 kinds of objects and runs on WebAssembly, \d threads?\.$/);
});

test("the model gives the golden detections", async (context) => {
  const golden = readGolden(new URL("golden/", MADE));
  const worst = { scores: 0, boxes: 0 };
  let pairs = 0;
  for (const { name, image, expected } of golden.cases) {
    const found = await page.evaluate(async ({ file, shape, backend }) => {
      const { openModel } = await import("./detr.js");
      window.golden ??= await openModel("made/model.onnx", { backend });
      const bytes = new Uint8Array(await (await fetch(`made/golden/${file}`)).arrayBuffer());
      const [batch, height, width] = shape;
      const answers = [];
      for (let index = 0; index < batch; index++) {
        const data = bytes.subarray(index * height * width * 3, (index + 1) * height * width * 3);
        answers.push(await window.golden.detect({ data, height, width }, 0));
      }
      return answers;
    }, { ...image, backend: process.env.WEBGPU ? "webgpu" : "wasm" });
    found.forEach((detections, index) => {
      const largest = compare(detections, expected[index], golden.tolerances, `${name}, image ${index}`);
      for (const key of Object.keys(worst)) worst[key] = Math.max(worst[key], largest[key]);
      pairs += largest.pairs;
    });
  }
  context.diagnostic(`${golden.cases.length} cases, ${pairs} pairs; largest differences: ${JSON.stringify(worst)}`);
  assert.ok(pairs > 0, "the golden data has no detection to compare");
});

test("the smallest page shows the same", async () => {
  const small = await open({}, "smallest.html?model=made/model.onnx");
  await small.getByText("kinds of objects on").waitFor();
  await small.locator("input").setInputFiles({ name: "picture.jpg", mimeType: "image/jpeg", buffer: picture(0) });
  const expected = PREDICTIONS[0].detections.filter(({ score }) => score > 0.7);
  await small.locator("li").nth(expected.length - 1).waitFor();
  const names = (await small.locator("li").allTextContents()).map((line) => line.split(" ")[0]);
  assert.deepEqual(names.sort(), expected.map(({ name }) => name).sort());
  await small.locator("input").setInputFiles({ name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("notes") });
  await small.locator("ol", { hasText: "could not be decoded" }).waitFor();
  await small.close();
});

test("a BGR file gets its colours in its own order", async () => {
  const [rgb, bgr] = ['"color": "rgb"', '"color": "bgr"'].map((part) => Buffer.from(part));
  const at = MODEL.indexOf(rgb);
  assert.ok(at > 0);
  const turned = Buffer.from(MODEL);
  bgr.copy(turned, at); // the same graph under another name: it sees swapped colours, so pictures with swapped colours look right
  const found = await page.evaluate(async ({ file, model }) => {
    const { openModel } = await import("./detr.js");
    const decode = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([decode(file)]));
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height);
    const right = await window.golden.detect(pixels);
    for (let at = 0; at < pixels.data.length; at += 4) pixels.data.subarray(at, at + 3).reverse();
    const other = await (await openModel(decode(model), { backend: "wasm" })).detect(pixels);
    return [right, other];
  }, { file: picture(0).toString("base64"), model: turned.toString("base64") });
  assert.ok(found[0].length > 0);
  assert.deepEqual(found[1], found[0]);
});

// ---- the page -------------------------------------------------------------------------------------------------------------

test("dropped pictures show what the checkpoint predicts", async (context) => {
  const worst = { scores: 0, boxes: 0 };
  for (const [index, { detections }] of PREDICTIONS.entries()) {
    await dropPicture(page, index);
    const shown = await page.locator("#found li").evaluateAll((items) => items.map((item) => {
      const [x, right, y, bottom] = item.querySelector(".box").textContent.match(/-?[\d.]+/g).map(Number);
      const [name, score] = ["name", "score"].map((part) => item.querySelector(`.${part}`).textContent);
      return { label: name, score: Number(score), box: [x, y, right, bottom] };
    }));
    const expected = detections.map(({ name, score, box }) => ({ label: name, score, box }));
    // The browser decodes JPEG a little differently from Pillow, and the page shows scores and boxes rounded.
    const largest = compare(shown, expected, { scores: 0.03, boxes: 2 }, nameOf(index));
    for (const key of Object.keys(worst)) worst[key] = Math.max(worst[key], largest[key]);
    assert.equal(shown.length, largest.pairs);
    assert.match(await page.locator("#canvas").getAttribute("aria-label"), new RegExp(shown[0].label));
  }
  context.diagnostic(`${await text(page, "facts")}; largest differences: ${JSON.stringify(worst)}`);
});

test("of pictures that come while the model runs, the last one is shown", async () => {
  for (const index of [0, 1, 3]) await drop(page, [nameOf(index), picture(index)]);
  await dropPicture(page, 2);
  await page.waitForTimeout(300); // a picture that waited in vain would come now
  assert.match(await page.locator("#canvas").getAttribute("aria-label"), new RegExp(`^${nameOf(2)}:`));
});

test("the threshold hides boxes without another run", async () => {
  const facts = await text(page, "facts");
  const count = await page.locator("#found li").count();
  await page.locator("#threshold").fill("0.05");
  assert.ok((await page.locator("#found li").count()) >= count);
  await page.locator("#threshold").press("End");
  assert.equal(await text(page, "threshold-value"), "0.95");
  for (const score of await page.locator("#found .score").allTextContents()) assert.ok(Number(score) >= 0.95);
  await page.locator("#threshold").fill("0.5");
  assert.equal(await page.locator("#found li").count(), count);
  assert.equal(await text(page, "facts"), facts);
});

test("a rotated photo is turned as its EXIF entry says", async () => {
  const tiff = Buffer.from("49492a0008000000" + "0100" + "1201" + "0300" + "01000000" + "06000000" + "00000000", "hex"); // orientation 6
  const body = Buffer.concat([Buffer.from("Exif\0\0"), tiff]);
  const head = Buffer.from([0xff, 0xe1, 0, body.length + 2]);
  const photo = picture(0);
  const [height, width] = sizeOf(0);
  await drop(page, ["rotated.jpg", Buffer.concat([photo.subarray(0, 2), head, body, photo.subarray(2)])]);
  await waitForText(page, "facts", `${height} × ${width}`);
});

test("files that are no pictures are refused, and the page goes on", async () => {
  assert.match(await complaint(page, ["notes.txt", "no picture"]), /notes\.txt is not a picture .* Choose a JPEG/);
  assert.match(await complaint(page, ["empty.png", ""]), /empty\.png is empty/);
  assert.match(await complaint(page), /not a file/);
  const wide = await page.evaluate(async () => {
    const blob = await new OffscreenCanvas(16385, 1).getContext("2d").canvas.convertToBlob();
    return Array.from(new Uint8Array(await blob.arrayBuffer()));
  }).catch((error) => assert.fail(error));
  assert.match(await complaint(page, ["wide.png", wide]), /16385 × 1 pixels.* width from 1 to 16384\. Resize/);
  const nothing = await page.evaluate(() => window.golden.detect({ data: [], width: 0, height: 0 }).catch(({ message }) => message));
  assert.match(nothing, /0 × 0 pixels/);
  await dropPicture(page, 1);
  assert.equal(await page.locator("#error:visible").count(), 0);
});

test("files that are no end-to-end models are refused, and the model before them stays", async () => {
  assert.match(await complaint(page, ["bare.onnx", [8, 9]]), /no metadata of detr-export\. Make one with: detr-export onnx/);
  assert.match(await complaint(page, ["half.onnx", MODEL.subarray(0, 1000)]), /cut short/);
  assert.match(await complaint(page, ["notes.onnx", "no model"]), /not an ONNX file/);
  assert.match(await complaint(page, ["tensors.onnx", model({ format_version: 1, input: "float", id2label: {} })]), /input: float/);
  assert.match(await complaint(page, ["new.onnx", model({ format_version: 2, input: "image" })]), /format 2, this page reads 1/);
  const graphless = model({ format_version: 1, input: "image", id2label: {}, end_to_end: { color: "rgb" } });
  assert.match(await complaint(page, ["empty.onnx", graphless]), /ONNX Runtime cannot open the model/);
  await dropPicture(page, 0);
});

test("a missing model is reported, and another can be opened", async () => {
  const other = await open({}, "?model=made/none.onnx");
  await waitForText(other, "error", "There is no model at made/none.onnx (404)");
  assert.match(await complaint(other, ["a.jpg", picture(0)]), /no model yet/);
  await drop(other, ["demo.onnx", MODEL]);
  await waitForText(other, "model", "demo.onnx");
  await dropPicture(other, 0);
  if (!process.env.WEBGPU) {
    await other.locator("#backend").selectOption("webgpu");
    await waitForText(other, "error", "WebGPU does not work here");
  }
  await dropPicture(other, 1);
  await other.close();
});

test("the webcam runs, stops, and can be refused", async (context) => {
  await page.locator("#webcam").click();
  await waitForText(page, "error", "does not let this page use the webcam");
  await page.context().grantPermissions(["camera"]);
  await page.evaluate(() => {
    const devices = navigator.mediaDevices;
    const real = devices.getUserMedia.bind(devices);
    devices.getUserMedia = async (wish) => (window.stream = await real(wish));
  });
  await page.locator("#webcam").click();
  await waitForText(page, "facts", "a second");
  context.diagnostic(await text(page, "facts"));
  assert.equal(await text(page, "webcam"), "Stop webcam");
  await page.locator("#webcam").click();
  await waitForText(page, "webcam", "Start webcam");
  assert.deepEqual(await page.evaluate(() => window.stream.getTracks().map((track) => track.readyState)), ["ended"]);
  await dropPicture(page, 0);
});

test("with a server beside the page, the server runs the model", async () => {
  const other = await browser.newPage();
  const asked = [];
  let answer = { status: 200, json: { image_size: sizeOf(0), detections: [] } };
  answer.json.detections.push({ label: 4, name: "star", score: 0.75, box: [1, 2, 30, 40] });
  answer.json.detections.push({ label: 1, name: "disc", score: 0.875, box: [9, 9, 50, 60] }); // a server may send them in any order
  await other.route("**/health", (route) => route.fulfill({ json: { status: "ok", model: "detr.engine", device: "cuda:0" } }));
  await other.route("**/predict*", (route) => {
    asked.push({ address: route.request().url(), body: route.request().postDataBuffer()?.toString("latin1") });
    return route.fulfill(answer);
  });
  other.on("request", (request) => assert.doesNotMatch(request.url(), /onnx|detr\.js/));
  await other.goto(address);
  await waitForText(other, "model", "The server runs detr.engine on cuda:0.");
  await dropPicture(other, 0);
  assert.deepEqual(await other.locator("#found .name").allTextContents(), ["disc", "star"]);
  assert.match(asked[0].address, /\/predict\?threshold=0\.05$/);
  assert.match(asked[0].body ?? "", /name="image"; filename="\d+\.jpg"/);
  answer = { status: 200, json: { image_size: [1, 2], detections: [] } };
  assert.match(await complaint(other, ["a.jpg", picture(0)]), /2 × 1 pixels there/);
  answer = { status: 413, json: { error: "too large" } };
  assert.match(await complaint(other, ["a.jpg", picture(0)]), /\(413\): too large/);
  assert.match(await complaint(other, ["a.onnx", [8, 9]]), /its own model/);
  await other.close();
});

test("the page fits a wide and a narrow window, in light and dark", async () => {
  await dropPicture(page, 0);
  await screenshots(page, "found");
  await drop(page, ["notes.txt", "no picture"]);
  await waitForText(page, "error", "notes.txt");
  await screenshots(page, "error");
});

async function screenshots(target, state) {
  for (const [kind, viewport] of Object.entries({ wide: { width: 1200, height: 780 }, phone: { width: 390, height: 844 } })) {
    await target.setViewportSize(viewport);
    for (const colorScheme of ["light", "dark"]) {
      await target.emulateMedia({ colorScheme });
      await target.screenshot({ path: new URL(`screenshots/${state}-${kind}-${colorScheme}.png`, MADE).pathname, fullPage: true });
    }
    assert.ok(await target.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "the page is wider than the window");
  }
}

test("nothing went wrong in silence", () => assert.deepEqual(crashes, []));

// ---- the reader of metadata -----------------------------------------------------------------------------------------------

test("metadata is found between other fields of the file", () => {
  assert.equal(readMetadata(MODEL).end_to_end.color, "rgb");
  const document = { format_version: 1, input: "image", id2label: { 0: "größe" }, end_to_end: { color: "bgr" }, ranges: { width: [1, 5] } };
  assert.deepEqual(readMetadata(model(document)), document);
});

/** A field that has a length, in protobuf's form. */
function field(number, content) {
  const bytes = Buffer.from(content);
  const varint = (value) => (value < 128 ? [value] : [128 + (value % 128), ...varint(Math.floor(value / 128))]);
  return Buffer.concat([Buffer.from([...varint(number * 8 + 2), ...varint(bytes.length)]), bytes]);
}

/** A ModelProto with metadata, and around it fields of every kind: a negative number, 4 and 8 bytes, an entry of another tool. */
function model(document) {
  const entry = (key, value) => field(14, Buffer.concat([field(1, key), field(2, value)]));
  const negative = [8, ...Array(9).fill(0xff), 1];
  const fixed = [0x65, 1, 2, 3, 4, 0x69, 1, 2, 3, 4, 5, 6, 7, 8]; // fields 12 and 13
  return Buffer.concat([
    Buffer.from(negative), field(2, "x".repeat(70000)), entry("other", "detr_export"), Buffer.from(fixed),
    entry("detr_export", JSON.stringify(document)), field(2, ""),
  ]);
}
