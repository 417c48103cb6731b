import { DetrError } from "./errors.js";

/** The bytes at an address of the page's own server. */
export async function download(address, onProgress) {
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
