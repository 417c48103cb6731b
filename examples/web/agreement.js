// Whether a model on the GPU finds what the same model finds on the processor. Not every GPU and driver computes right.

// Of scores, and of boxes as a share of the picture's side. Sums in another order round some pixels of the resized picture in the
// other direction: 0.03 was seen where the GPU computes right, and 0.23 and more where it does not.
const TOLERANCE = 0.1;
const [WIDTH, HEIGHT] = [640, 480];

/** A picture of colourful waves, for a first run. */
export function wavyPicture() {
  const data = Uint8Array.from({ length: 3 * WIDTH * HEIGHT }, (_, at) => {
    const [x, y, channel] = [Math.floor(at / 3) % WIDTH, Math.floor(at / 3 / WIDTH), at % 3];
    return 128 + 90 * Math.sin(x / (20 + 9 * channel)) * Math.cos(y / (35 - 8 * channel));
  });
  return { data, width: WIDTH, height: HEIGHT };
}

/** How the GPU and the processor disagree about all that they found in that picture; "" if they agree. */
export function disagreement(onGpu, onProcessor) {
  // Nearly equal scores can swap places, so each kind of number is sorted.
  const kinds = [({ score }) => score, ...[WIDTH, HEIGHT, WIDTH, HEIGHT].map((size, side) => ({ box }) => box[side] / size)];
  const sorted = (found, kind) => found.map(kind).sort((one, other) => one - other);
  let worst = onGpu.length === onProcessor.length ? 0 : Infinity;
  for (const kind of kinds) {
    const expected = sorted(onProcessor, kind);
    sorted(onGpu, kind).forEach((value, at) => (worst = Math.max(worst, Math.abs(value - expected[at])))); // NaN stays NaN
  }
  return worst <= TOLERANCE ? "" : `WebGPU computes wrong here: it is off by ${worst.toFixed(3)}.`;
}
