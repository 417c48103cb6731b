// Runs an end-to-end file of detr-export in the browser:
//
//   const model = await openModel("model.onnx");
//   for (const { name, score, box } of await model.detect(canvas)) console.log(name, score, box);

import { disagreement, wavyPicture } from "./agreement.js";
import { download } from "./download.js";
import { DetrError } from "./errors.js";
import { readMetadata } from "./metadata.js";
import { openOnGpu, openOnProcessor, whyNoGpu } from "./runtime.js";

export { DetrError };

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
  let problem = backend === "wasm" ? "" : await whyNoGpu({ software: backend === "webgpu" });
  if (backend === "webgpu" && problem) throw new DetrError(`${problem} Choose WebAssembly.`);
  const model = new Model(metadata, await openOnProcessor(bytes.slice())); // a copy: the runtime keeps what it gets
  if (backend === "wasm") return model;
  if (!problem) {
    try {
      const onGpu = new Model(metadata, await openOnGpu(bytes, { patient: backend === "webgpu" }));
      problem = disagreement(await onGpu.detect(wavyPicture(), 0), await model.detect(wavyPicture(), 0));
      await (problem ? onGpu : model).release();
      if (!problem) return onGpu;
    } catch (error) {
      problem = `WebGPU does not work here: ${error.message}`;
    }
  }
  if (backend === "auto") return Object.assign(model, { note: problem });
  await model.release();
  throw new DetrError(`${problem} Choose WebAssembly.`);
}

/** An open model. Wait for one call before the next. */
export class Model {
  #ort;
  #session;

  constructor(metadata, { ort, session, backend }) {
    Object.assign(this, { metadata, backend, note: "" }); // note: why it does not run on the GPU
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
