// ONNX Runtime Web: where its files are, and how it opens a model.

import { DetrError } from "./errors.js";

const FILES = new URL("node_modules/onnxruntime-web/dist/", import.meta.url);
const PATIENCE = 60; // seconds in which a GPU must have compiled a model and run it once, unless somebody asked for the GPU

/** Opens a model with WebAssembly. The bytes are taken away. Gives what `Model` runs. */
export async function openOnProcessor(bytes) {
  const ort = await import(new URL("ort.wasm.bundle.min.mjs", FILES));
  ort.env.wasm.proxy = true; // a worker runs the model: the page stays alive
  const session = await create(ort, bytes, "wasm");
  const threads = ort.env.wasm.numThreads; // 1 unless the server sends the two headers of serve.py
  return { ort, session, backend: `WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}` };
}

/** Why WebGPU cannot be used; "" if it can. A GPU that the processor plays is slower than WebAssembly. */
export async function whyNoGpu({ software }) {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return "WebGPU does not work here: the browser offers no GPU.";
  const played = adapter.info?.isFallbackAdapter && !software;
  return played ? "WebGPU does not work here: the processor would play the GPU." : "";
}

/** Opens a model with WebGPU and runs it once, which compiles it. Gives what `Model` runs. */
export async function openOnGpu(bytes, { patient }) {
  const ort = await import(new URL("ort.webgpu.bundle.min.mjs", FILES));
  const opening = (async () => {
    const session = await create(ort, bytes, "webgpu");
    const side = 64;
    await session.run({ image: new ort.Tensor("uint8", new Uint8Array(3 * side * side), [1, side, side, 3]) });
    return { ort, session, backend: "WebGPU" };
  })();
  return patient ? opening : withinPatience(opening);
}

/** What a promise gives, or an error if it takes too long. */
function withinPatience(promise) {
  let timer;
  const end = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new DetrError(`it took more than ${PATIENCE} seconds.`)), 1000 * PATIENCE);
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
