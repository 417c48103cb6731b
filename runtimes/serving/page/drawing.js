// Draws a picture with the boxes, names and scores of what was found in it.

const LINE = 2.5; // pixels of the page
const FONT = "600 13px system-ui, sans-serif";
const CAPTION = { height: 20, padding: 5 };
const LARGEST_SCALE = 4; // a small picture is drawn larger, but not without end

/** The colour of a label, as [red, green, blue]: the same as in the pictures that detr-export draws. */
export function colorOf(label) {
  const hue = ((label * 0.618034) % 1) * 6;
  const channel = (shift) => {
    const k = (shift + hue) % 6;
    return Math.round(255 * 0.95 * (1 - 0.75 * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}

/** Text of a score. */
export function scoreText(score) {
  return score.toFixed(2);
}

/**
 * Fits the picture into a space of the page and draws it, with the best score on top.
 * @param {HTMLCanvasElement} canvas what is drawn on
 * @param {CanvasImageSource & {width: number, height: number}} picture
 * @param {{label: number, name: string, score: number, box: number[]}[]} found best score first; boxes in the picture's pixels
 * @param {{width: number, height: number}} space pixels of the page
 */
export function draw(canvas, picture, found, space) {
  const scale = Math.min(space.width / picture.width, space.height / picture.height, LARGEST_SCALE);
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * scale)));
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const context = canvas.getContext("2d");
  context.scale(density, density);
  context.drawImage(picture, 0, 0, width, height);
  context.font = FONT;
  context.textBaseline = "middle";
  context.lineWidth = LINE;
  const scaled = found.map(({ box, ...rest }) => ({ ...rest, box: box.map((value) => value * scale) }));
  for (const { label, box: [x, y, right, bottom] } of scaled.toReversed()) {
    context.strokeStyle = `rgb(${colorOf(label).join(" ")})`;
    context.strokeRect(x, y, right - x, bottom - y);
  }
  const taken = []; // where captions are: the best score has the first choice
  for (const one of scaled) taken.push(drawCaption(context, one, { width, height }, taken));
}

/** Writes a name and score on top of a box, inside the picture, and further down where another caption is. Gives its place. */
function drawCaption(context, { label, name, score, box: [x, y] }, { width, height }, taken) {
  const text = `${name} ${scoreText(score)}`;
  const wide = context.measureText(text).width + 2 * CAPTION.padding;
  const left = Math.max(0, Math.min(x - LINE / 2, width - wide));
  const above = y - CAPTION.height;
  const inside = (top) => Math.max(0, Math.min(top, height - CAPTION.height));
  let top = inside(above >= 0 ? above : y);
  for (const other of taken.toSorted((a, b) => a.top - b.top)) {
    const apart = left >= other.left + other.wide || other.left >= left + wide || Math.abs(top - other.top) >= CAPTION.height;
    if (!apart) top = inside(other.top + CAPTION.height);
  }
  const color = colorOf(label);
  context.fillStyle = `rgb(${color.join(" ")})`;
  context.fillRect(left, top, wide, CAPTION.height);
  context.fillStyle = isLight(color) ? "black" : "white";
  context.fillText(text, left + CAPTION.padding, top + CAPTION.height / 2 + 1);
  return { left, top, wide };
}

function isLight([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 120;
}
