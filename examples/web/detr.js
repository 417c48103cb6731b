// Runs an end-to-end file of detr-export in the browser:
//
//   const model = await openModel("model.onnx");
//   for (const { name, score, box } of await model.detect(canvas)) console.log(name, score, box);

import { DetrError } from "./errors.js";
import { readMetadata } from "./metadata.js";

export { DetrError };

const RUNTIME = new URL("node_modules/onnxruntime-web/dist/", import.meta.url);
const GPU_PATIENCE = 60; // seconds in which a GPU must have compiled the model and run it once

/**
 * Opens an end-to-end file.
 * @param {string|URL|Uint8Array} source its address, or its bytes, which then belong to the model
 * @param {"auto"|"webgpu"|"wasm"} backend auto: WebGPU if it works here, else WebAssembly; `model.note` then says why
 * @param {function(number, number)} onProgress is called with the bytes that have come, and all there are (0 = unknown)
 * @throws {DetrError} the file is missing or not an end-to-end file, or the backend does not work
 */
export async function openModel(source, { backend = "auto", onProgress } = {}) {
  const bytes = source instanceof Uint8Array ? source : await download(source, onProgress);
  const metadata = readMetadata(bytes);
  let note = "";
  try {
    if (backend === "auto") return await withinPatience(openOnGpu(bytes, metadata, { software: false }));
    if (backend === "webgpu") return await openOnGpu(bytes, metadata, { software: true });
  } catch (error) {
    note = `WebGPU does not work here: ${error.message}`;
    if (backend === "webgpu") throw new DetrError(`${note} Choose WebAssembly.`);
  }
  const ort = await import(new URL("ort.wasm.bundle.min.mjs", RUNTIME));
  ort.env.wasm.proxy = true; // a worker runs the model: the page stays alive
  const session = await create(ort, bytes, "wasm");
  const threads = ort.env.wasm.numThreads; // 1 unless the server sends the two headers of serve.py
  return new Model(metadata, ort, session, `WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}`, note);
}

/** An open model. Wait for one call before the next. */
export class Model {
  #ort;
  #session;

  constructor(metadata, ort, session, backend, note = "") {
    Object.assign(this, { metadata, backend, note });
    this.#ort = ort;
    this.#session = session;
  }

  /**
   * Finds the objects of a picture.
   * @param picture a canvas, an ImageData, or {data: RGB or RGBA bytes, row by row, width, height}
   * @param {number} threshold what has a higher score is found
   * @returns {Promise<{label: number, name: string, score: number, box: number[]}[]>} best score first;
   *   box: x_min, y_min, x_max, y_max in pixels of the picture, which may lie outside of it
   * @throws {DetrError} the picture has a size that the model does not take, or the model cannot run
   */
  async detect(picture, threshold = 0.5) {
    this.checkSize(picture);
    const { width, height, data } = picture.getContext?.("2d").getImageData(0, 0, picture.width, picture.height) ?? picture;
    const image = new this.#ort.Tensor("uint8", this.#pixels(data, width * height), [1, height, width, 3]);
    let outputs;
    try {
      outputs = await this.#session.run({ image }, ["scores", "labels", "boxes"]);
    } catch (error) {
      throw new DetrError(`The model could not run on this picture: ${error.message ?? error}. A smaller picture may help.`);
    }
    const [scores, labels, boxes] = [outputs.scores.data, outputs.labels.data, outputs.boxes.data];
    return Array.from(scores, (score, index) => {
      const label = Number(labels[index]);
      const name = this.metadata.id2label[label] ?? `class ${label}`;
      return { label, name, score, box: Array.from(boxes.subarray(4 * index, 4 * index + 4)) };
    }).filter(({ score }) => score > threshold);
  }

  /** Throws a DetrError if the model does not take pictures of a size. */
  checkSize({ width, height }) {
    for (const [side, size] of Object.entries({ height, width })) {
      const [low, high] = this.metadata.ranges[side] ?? [1, null];
      if (size >= low && size <= (high ?? Infinity)) continue;
      const range = high === null ? `of at least ${low}` : `from ${low} to ${high}`;
      throw new DetrError(`The picture is ${width} × ${height} pixels, and the model takes a ${side} ${range}. Resize the picture.`);
    }
  }

  /** Frees the memory. */
  release() {
    return this.#session.release();
  }

  #pixels(data, count) {
    const channels = data.length / count;
    if (channels !== 3 && channels !== 4) {
      throw new DetrError(`The picture has ${data.length} bytes for ${count} pixels; RGB has 3 a pixel, RGBA has 4.`);
    }
    const [first, last] = this.metadata.end_to_end.color === "bgr" ? [2, 0] : [0, 2];
    const pixels = new Uint8Array(3 * count);
    for (let from = 0, to = 0; to < pixels.length; from += channels, to += 3) {
      pixels[to] = data[from + first];
      pixels[to + 1] = data[from + 1];
      pixels[to + 2] = data[from + last];
    }
    return pixels;
  }
}

async function openOnGpu(bytes, metadata, { software }) {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) throw new DetrError("the browser offers no GPU.");
  if (adapter.info?.isFallbackAdapter && !software) throw new DetrError("the browser offers a GPU that is played by the processor.");
  const ort = await import(new URL("ort.webgpu.bundle.min.mjs", RUNTIME));
  const model = new Model(metadata, ort, await create(ort, bytes, "webgpu"), "WebGPU");
  const side = 64; // a run shows what opening does not: an operator that fails on this GPU
  await model.detect({ data: new Uint8Array(3 * side * side), width: side, height: side });
  return model;
}

/** What a promise gives, or an error if it takes too long. */
function withinPatience(promise) {
  let timer;
  const end = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new DetrError(`it took more than ${GPU_PATIENCE} seconds.`)), 1000 * GPU_PATIENCE);
  });
  return Promise.race([promise, end]).finally(() => clearTimeout(timer));
}

async function create(ort, bytes, provider) {
  ort.env.logLevel = "error";
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: [provider], logSeverityLevel: 3 });
  } catch (error) {
    throw new DetrError(`ONNX Runtime cannot open the model: ${error.message ?? error}`);
  }
}

/** The bytes at an address of the page's own server. */
async function download(address, onProgress) {
  let answer;
  try {
    answer = await fetch(address, { mode: "same-origin" });
  } catch (error) {
    throw new DetrError(`${address} cannot be fetched: ${error.message}. Serve it beside the page.`);
  }
  if (!answer.ok) {
    const remedy = "Make one with detr-export onnx CHECKPOINT --end-to-end -o model.onnx, or open a file here.";
    throw new DetrError(`There is no model at ${address} (${answer.status}). ${remedy}`);
  }
  const total = Number(answer.headers.get("Content-Length"));
  const parts = [];
  let done = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { value, done: ended } = await reader.read();
    if (ended) break;
    parts.push(value);
    onProgress?.((done += value.length), total);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
