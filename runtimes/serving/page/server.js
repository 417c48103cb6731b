// A server of detr-export beside the page (`detr-export serve`): it runs the model, and the page sends it the pictures.

import { DetrError } from "./errors.js";

/** What the server beside the page says about itself ({model, device, ...}), or null: then a plain file server has sent the page. */
export async function findServer() {
  try {
    const answer = await fetch("health");
    const about = answer.ok ? await answer.json() : null;
    return about?.status === "ok" ? about : null;
  } catch {
    return null;
  }
}

/**
 * Finds the objects of a picture.
 * @param {Blob} blob the encoded picture
 * @param {number} threshold what has a higher score is found
 * @returns as `Model.detect` in detr.js, and the (height, width) of the picture as the server saw it
 * @throws {DetrError} with the server's own words
 */
export async function askServer(blob, threshold) {
  const body = new FormData();
  body.append("image", blob, blob.name ?? "picture");
  let answer;
  try {
    answer = await fetch(`predict?threshold=${threshold}`, { method: "POST", body });
  } catch (error) {
    throw new DetrError(`The server does not answer (${error.message}). Start it again with: detr-export serve`);
  }
  const text = await answer.text();
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    content = {};
  }
  if (!answer.ok) throw new DetrError(`The server refused the picture (${answer.status}): ${content.error ?? content.detail ?? text}`);
  return { found: content.detections.sort((one, other) => other.score - one.score), size: content.image_size };
}
