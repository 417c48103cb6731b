// Reads golden data (`detr-export onnx --golden`) and compares detections with it. The order may differ: two queries with
// nearly equal scores can swap places. So each detection must have a partner of its own on the other side, both ways.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

const FROM = 0.5; // what has a higher score must have a partner
const TYPES = { float32: Float32Array, int64: BigInt64Array };

/** The cases: where the image lies, and the expected detections of each image of the batch. */
export function readGolden(folder) {
  const index = JSON.parse(readFileSync(new URL("index.json", folder), "utf8"));
  assert.equal(index.format_version, 1);
  assert.equal(index.kind, "end-to-end");
  const cases = index.cases.map(({ name, inputs, outputs }) => {
    const [batch, count] = outputs.scores.shape;
    const read = ({ file, dtype }) => {
      const bytes = readFileSync(new URL(file, folder));
      return new TYPES[dtype](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
    };
    const [scores, labels, boxes] = ["scores", "labels", "boxes"].map((output) => read(outputs[output]));
    const at = (place) => ({ score: scores[place], label: Number(labels[place]), box: [...boxes.subarray(4 * place, 4 * place + 4)] });
    const expected = Array.from({ length: batch }, (_, image) => Array.from({ length: count }, (_, query) => at(image * count + query)));
    return { name, image: inputs.image, expected };
  });
  return { tolerances: index.tolerances, cases };
}

/** Throws where a detection has no partner; the answer is the number of pairs and their largest differences. */
export function compare(found, expected, tolerances, where) {
  const there = pair(found, expected, tolerances, `${where}: the browser found what the checkpoint does not`);
  const back = pair(expected, found, tolerances, `${where}: the browser did not find what the checkpoint does`);
  return {
    pairs: back.pairs,
    scores: Math.max(there.scores, back.scores),
    boxes: Math.max(there.boxes, back.boxes),
  };
}

function pair(some, others, tolerances, complaint) {
  const free = new Set(others);
  const largest = { pairs: 0, scores: 0, boxes: 0 };
  for (const one of some.filter(({ score }) => score > FROM)) {
    const candidates = [...free]
      .filter(({ label }) => label === one.label)
      .map((other) => ({
        other,
        scores: Math.abs(one.score - other.score),
        boxes: Math.max(...one.box.map((value, side) => Math.abs(value - other.box[side]))),
      }))
      .sort((a, b) => a.boxes - b.boxes);
    const near = candidates.find(({ scores, boxes }) => scores <= tolerances.scores && boxes <= tolerances.boxes);
    const { scores, boxes } = candidates[0] ?? {};
    assert.ok(near, `${complaint}: ${JSON.stringify(one)}; the closest of its label differs by ${scores} in score and ${boxes} in box`);
    free.delete(near.other);
    largest.pairs += 1;
    for (const key of ["scores", "boxes"]) largest[key] = Math.max(largest[key], near[key]);
  }
  return largest;
}
