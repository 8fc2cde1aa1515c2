// One case's frames, what was found on them, and the masks drawn over them. Boxes are in pixels of the image.
import { say, texts } from "./texts.js";

const KEPT_FRAMES = 96;
const FRAMES_A_SECOND = 10;
const LARGEST_SCALE = 4;
const LOOK_MILLISECONDS = 200;
const MARGIN_PX = 2;
const STEP_PX = 4;
const SMALLEST_PX = 3;

const find = (selector) => document.querySelector(selector);
const picture = find("#picture"), canvas = find("#picture canvas"), slider = find("#frame");
const fetched = new Map();

let shown = null; // the case
let masks = [];
let frame = 0, brightest = false, timer = null;
let keeping = false, drag = null;
let settledAt = null, isDrawn = false; // since when something of this case is seen, or known not to be
let whenChanged = () => {};

export function onMasksChanged(listener) {
  whenChanged = listener;
}

export function currentMasks() {
  return masks.map((box) => ({ ...box }));
}

export function prefetch(item) {
  if (item) bitmap(item.instance, 0).catch(() => {});
}

export function open(item, boxes) {
  pause();
  shown = item;
  frame = 0;
  brightest = false;
  settledAt = null;
  isDrawn = false;
  setKeeping(false);
  canvas.width = item.width;
  canvas.height = item.height;
  slider.max = item.frames - 1;
  picture.ariaLabel = say("picture", item);
  find("#clip").hidden = item.frames === 1;
  find("#brightest").disabled = item.frames === 1;
  find("#found").replaceChildren(...item.writing.map((box) => placed("div", box)));
  setMasks(boxes);
  fit();
  draw();
  picture.focus({ preventScroll: true });
}

export function close() {
  pause();
  shown = null;
}

// Whether a person can have looked at it, so that a key pressed twice does not decide on the next image too.
export function canBeDecided(accepts) {
  return settledAt !== null && performance.now() - settledAt > LOOK_MILLISECONDS && (isDrawn || !accepts);
}

export function step(by) {
  pause();
  brightest = false;
  frame = (frame + by + shown.frames) % shown.frames;
  draw();
}

export function togglePlay() {
  if (timer !== null) return pause();
  if (shown.frames === 1) return;
  brightest = false;
  find("#play span").textContent = "❚❚";
  let ready = true;
  timer = setInterval(async () => {
    if (!ready) return; // a slow machine plays slower, and shows every frame
    ready = false;
    frame = (frame + 1) % shown.frames;
    await draw();
    ready = true;
  }, 1000 / FRAMES_A_SECOND);
}

export function toggleBrightest() {
  if (shown.frames === 1) return;
  pause();
  brightest = !brightest;
  draw();
}

export function toggleBrighten() {
  find("#brighten").ariaPressed = String(picture.classList.toggle("bright"));
}

export function toggleKeeping() {
  setKeeping(!keeping);
  return keeping;
}

export function takeFound() {
  setMasks([...masks, ...shown.writing.map(widened).filter((box) => !masks.some((mask) => contains(mask, box)))]);
}

export function addMask() {
  const { width, height } = shown;
  const box = { top: Math.floor(height * 0.45), left: Math.floor(width * 0.35), bottom: Math.ceil(height * 0.55), right: Math.ceil(width * 0.65) };
  setMasks([...masks, box]);
  find("#masks").lastChild.focus();
}

export function removeMask() {
  const selected = [...find("#masks").children].indexOf(document.activeElement);
  setMasks(masks.filter((_, at) => at !== (selected < 0 ? masks.length - 1 : selected)));
  if (selected >= 0) picture.focus({ preventScroll: true });
}

export function clearMasks() {
  setMasks([]);
}

// Writing that was found and of which a pixel is still seen.
export function uncovered() {
  const seen = (x, y) => !masks.some((box) => x >= box.left && x < box.right && y >= box.top && y < box.bottom);
  return shown.writing.filter((box) => {
    for (let y = box.top; y < box.bottom; y++) for (let x = box.left; x < box.right; x++) if (seen(x, y)) return true;
    return false;
  });
}

// Moves the selected mask, or changes its size; false if none is selected.
export function nudge(key, resize) {
  const at = [...find("#masks").children].indexOf(document.activeElement);
  if (at < 0) return false;
  const [down, across] = { ArrowUp: [-STEP_PX, 0], ArrowDown: [STEP_PX, 0], ArrowLeft: [0, -STEP_PX], ArrowRight: [0, STEP_PX] }[key];
  const box = { ...masks[at] };
  box.bottom = clamp(box.bottom + down, resize ? box.top + SMALLEST_PX : box.bottom - box.top, shown.height);
  box.right = clamp(box.right + across, resize ? box.left + SMALLEST_PX : box.right - box.left, shown.width);
  if (!resize) {
    box.top = box.bottom - (masks[at].bottom - masks[at].top);
    box.left = box.right - (masks[at].right - masks[at].left);
  }
  setMasks(masks.map((mask, place) => (place === at ? box : mask)));
  find("#masks").children[at].focus();
  return true;
}

function setMasks(boxes) {
  masks = boxes;
  find("#masks").replaceChildren(...masks.map((box) => {
    const element = placed("button", box);
    element.type = "button";
    element.ariaLabel = say("maskLabel", { width: box.right - box.left, height: box.bottom - box.top, ...box });
    return element;
  }));
  whenChanged();
}

function setKeeping(on) {
  keeping = on;
  find("#keep").ariaPressed = String(on);
  picture.classList.toggle("keeping", on);
}

function pause() {
  clearInterval(timer);
  timer = null;
  find("#play span").textContent = texts.play;
}

async function draw() {
  const item = shown, what = brightest ? "brightest" : frame;
  slider.value = frame;
  find("#position").value = `${brightest ? texts.brightestShort : frame + 1} / ${item.frames}`;
  find("#brightest").ariaPressed = String(brightest);
  try {
    const image = await bitmap(item.instance, what);
    // Meanwhile another one may have been asked for.
    if (shown !== item || what !== (brightest ? "brightest" : frame)) return;
    canvas.getContext("2d").drawImage(image, 0, 0);
    settledAt ??= performance.now();
    isDrawn = true;
    canvas.dataset.shows = `${item.instance}/${what}`;
    if (what !== "brightest" && item.frames > 1) bitmap(item.instance, (frame + 1) % item.frames).catch(() => {});
  } catch {
    if (shown !== item) return;
    settledAt ??= performance.now();
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    find("#said").textContent = texts.noPicture;
  }
}

// Kept here because nothing may be kept in the browser's cache.
function bitmap(instance, what) {
  const path = `picture/${instance}/${what}.png`;
  if (!fetched.has(path)) {
    fetched.set(path, fetch(path).then(async (answer) => {
      if (!answer.ok) throw new Error(path);
      return createImageBitmap(await answer.blob());
    }));
    fetched.get(path).catch(() => fetched.delete(path));
    if (fetched.size > KEPT_FRAMES) {
      const [oldest, image] = fetched.entries().next().value;
      fetched.delete(oldest);
      image.then((old) => setTimeout(() => old.close(), 1000), () => {});
    }
  }
  return fetched.get(path);
}

function fit() {
  if (!shown) return;
  const room = find("#room");
  const scale = Math.min(room.clientWidth / shown.width, room.clientHeight / shown.height, LARGEST_SCALE);
  picture.style.width = `${Math.floor(shown.width * scale)}px`;
  picture.style.height = `${Math.floor(shown.height * scale)}px`;
}

function placed(kind, box) {
  const element = document.createElement(kind);
  place(element, box, shown);
  return element;
}

export function place(element, box, { width, height }) {
  element.style.top = `${(100 * box.top) / height}%`;
  element.style.left = `${(100 * box.left) / width}%`;
  element.style.height = `${(100 * (box.bottom - box.top)) / height}%`;
  element.style.width = `${(100 * (box.right - box.left)) / width}%`;
}

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

function widened(box) {
  return {
    top: Math.max(box.top - MARGIN_PX, 0), left: Math.max(box.left - MARGIN_PX, 0),
    bottom: Math.min(box.bottom + MARGIN_PX, shown.height), right: Math.min(box.right + MARGIN_PX, shown.width),
  };
}

const contains = (outer, box) =>
  outer.top <= box.top && outer.left <= box.left && outer.bottom >= box.bottom && outer.right >= box.right;

// All that lies around a box, as up to four boxes.
function around({ top, left, bottom, right }) {
  const { width, height } = shown;
  return [
    { top: 0, left: 0, bottom: top, right: width }, { top: bottom, left: 0, bottom: height, right: width },
    { top, left: 0, bottom, right: left }, { top, left: right, bottom, right: width },
  ].filter((box) => box.bottom > box.top && box.right > box.left);
}

function pixelAt(event) {
  const area = picture.getBoundingClientRect();
  return {
    x: clamp(((event.clientX - area.left) * shown.width) / area.width, 0, shown.width),
    y: clamp(((event.clientY - area.top) * shown.height) / area.height, 0, shown.height),
  };
}

function dragged(event) {
  const end = pixelAt(event);
  return {
    top: Math.floor(Math.min(drag.start.y, end.y)), left: Math.floor(Math.min(drag.start.x, end.x)),
    bottom: Math.ceil(Math.max(drag.start.y, end.y)), right: Math.ceil(Math.max(drag.start.x, end.x)),
  };
}

function click({ x, y }) {
  const hit = (box) => x >= box.left && x < box.right && y >= box.top && y < box.bottom;
  const mask = masks.findLastIndex(hit);
  if (mask >= 0) return find("#masks").children[mask].focus();
  const found = shown.writing.filter(hit);
  if (found.length) setMasks([...masks, ...found.map(widened)]);
}

picture.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  event.preventDefault();
  picture.focus({ preventScroll: true });
  picture.setPointerCapture(event.pointerId);
  drag = { start: pixelAt(event), outline: picture.appendChild(document.createElement("div")) };
  drag.outline.id = "outline";
});

picture.addEventListener("pointermove", (event) => {
  if (drag) place(drag.outline, dragged(event), shown);
});

picture.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const box = dragged(event), start = drag.start;
  endDrag();
  if (box.bottom - box.top < SMALLEST_PX || box.right - box.left < SMALLEST_PX) return click(start);
  setMasks([...masks, ...(keeping ? around(box) : [box])]);
  setKeeping(false);
});

picture.addEventListener("pointercancel", () => endDrag());

// True if something was being drawn, which is given up.
export function endDrag() {
  if (!drag) return false;
  drag.outline.remove();
  drag = null;
  return true;
}

slider.addEventListener("input", () => step(Number(slider.value) - frame));
new ResizeObserver(fit).observe(find("#room"));
