// What an ONNX file of detr-export says about itself. ONNX Runtime Web has no call for it, so it is read out of the file's bytes.

import { DetrError } from "./errors.js";

const KEY = "detr_export"; // key of the entry in ONNX's metadata_props
const FORMAT_VERSION = 1; // the newest format that this code reads
const METADATA_PROPS = 14; // number of that field in ONNX's ModelProto; an entry has its key in field 1, its value in field 2
const EXPORT = "Make one with: detr-export onnx CHECKPOINT --end-to-end -o model.onnx";

/**
 * Reads the document of an end-to-end file, and refuses every other file.
 * @param {Uint8Array} bytes the whole ONNX file
 * @returns {{id2label: Object<string, string>, ranges: Object<string, [number, ?number]>, end_to_end: {color: string}}}
 */
export function readMetadata(bytes) {
  const text = readEntry(bytes);
  if (text === undefined) throw new DetrError(`The file has no metadata of detr-export. ${EXPORT}`);
  let metadata;
  try {
    metadata = JSON.parse(text);
  } catch {
    throw new DetrError(`The file's metadata is damaged: it is not JSON. ${EXPORT}`);
  }
  const { format_version: version, input, end_to_end: form, id2label } = metadata;
  if (version > FORMAT_VERSION) {
    throw new DetrError(`The file's metadata has format ${version}, this page reads ${FORMAT_VERSION}. Take the page of a newer detr-export.`);
  }
  if (input !== "image") {
    throw new DetrError(`The file takes prepared arrays (input: ${input}), this page gives whole pictures. ${EXPORT}`);
  }
  if (!["rgb", "bgr"].includes(form?.color) || typeof id2label !== "object") {
    throw new DetrError(`The file's metadata is damaged: it lacks the order of the colours or the names. ${EXPORT}`);
  }
  return { ...metadata, ranges: metadata.ranges ?? {} };
}

function readEntry(bytes) {
  const decoder = new TextDecoder();
  for (const [number, content] of fields(bytes)) {
    if (number !== METADATA_PROPS) continue;
    const { 1: key, 2: value } = Object.fromEntries(fields(content));
    if (decoder.decode(key) === KEY) return decoder.decode(value);
  }
}

/** The fields of a protobuf message that have a length, as [number, bytes]. A content is not looked at: a large graph costs nothing. */
function* fields(message) {
  let at = 0;
  const damaged = () => new DetrError(`The file is not an ONNX file, or it is cut short. ${EXPORT}`);
  const readVarint = () => {
    let value = 0;
    for (let unit = 1; unit < 2 ** 64; unit *= 128) { // no bit operators: they work on 32 bits, and files can be larger
      const byte = message[at++];
      if (byte === undefined) break;
      value += (byte & 127) * unit;
      if (byte < 128) return value;
    }
    throw damaged();
  };
  while (at < message.length) {
    const tag = readVarint();
    const [number, wireType] = [Math.floor(tag / 8), tag % 8];
    if (wireType === 0) readVarint();
    else if (wireType === 1) at += 8;
    else if (wireType === 5) at += 4;
    else if (wireType === 2) {
      const end = readVarint() + at; // readVarint moves `at`, so it comes first
      if (end > message.length) throw damaged();
      yield [number, message.subarray(at, end)];
      at = end;
    } else throw damaged();
  }
  if (at > message.length) throw damaged();
}
