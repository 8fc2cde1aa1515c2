// The overview of what waits, the decisions, and the keys.
import * as picture from "./picture.js";
import { say, texts, translate } from "./texts.js";

const find = (selector) => document.querySelector(selector);
const waiting = new Map(); // instance -> case, in the order of the overview
const cards = new Map();
const drawn = new Map(); // instance -> the masks drawn so far
const templates = new Map(); // layout -> the masks to begin with

let undoable = [];
let shown = null; // the case, null in the overview
let reason = null; // the overview shows this one alone
let fixedName = null;
let insisted = null; // the case that is to be accepted although writing is seen on it
let acts = Promise.resolve(); // one after the other, none lost

async function ask(path, content) {
  const options = content === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error(texts.unreachable);
  }
  if (answer.ok) return answer.json();
  const { code, what, remedy } = await answer.json();
  throw new Error(code === "EF-700" ? texts.lost : say("failed", { what: `${what} ${remedy} (${code})` }));
}

function tell(text, isError = false) {
  find("#said").textContent = text;
  find("#said").classList.toggle("error", isError);
}

async function load() {
  const state = await ask("cases");
  fixedName = state.who;
  undoable = state.undoable;
  for (const [layout, boxes] of Object.entries(state.masks)) templates.set(layout, boxes);
  const there = new Set(state.cases.map((item) => item.instance));
  for (const instance of [...waiting.keys()]) if (!there.has(instance)) forget(instance);
  waiting.clear();
  for (const item of state.cases) waiting.set(item.instance, item);
  showOverview();
}

function forget(instance) {
  waiting.delete(instance);
  cards.get(instance)?.remove();
  cards.delete(instance);
}

const listed = () => [...waiting.values()].filter((item) => reason === null || item.why === reason);
const whyText = (why) => texts.why[why] ?? texts.why.OTHER;

function count() {
  find("#counts").textContent = [say("waiting", { n: waiting.size }), say("done", { n: undoable.length })].join(" · ");
  find("#undo").disabled = undoable.length === 0;
}

// ---- the overview

function showOverview() {
  count();
  const numbers = new Map();
  for (const item of waiting.values()) numbers.set(item.why, (numbers.get(item.why) ?? 0) + 1);
  if (!numbers.has(reason)) reason = null;
  const choices = numbers.size > 1 ? [[null, waiting.size], ...numbers] : [];
  find("#reasons").replaceChildren(...choices.map(([why, n]) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.ariaPressed = String(why === reason);
    chip.textContent = `${why === null ? texts.all : whyText(why)} ${n}`;
    chip.addEventListener("click", () => { reason = why; showOverview(); });
    return chip;
  }));
  for (const item of waiting.values()) {
    if (!cards.has(item.instance)) cards.set(item.instance, card(item));
    find("#grid").append(cards.get(item.instance)); // in order also after an undo
    cards.get(item.instance).hidden = reason !== null && item.why !== reason;
  }
  find("#nothing").hidden = waiting.size > 0;
  setCurrent(listed()[0]?.instance);
}

function card(item) {
  const place = document.createElement("li"), button = place.appendChild(document.createElement("button"));
  button.type = "button";
  button.tabIndex = -1;
  button.dataset.instance = item.instance;
  const frame = button.appendChild(document.createElement("span"));
  frame.className = "thumbnail";
  const image = frame.appendChild(document.createElement("img"));
  Object.assign(image, { loading: "lazy", decoding: "async", alt: "", width: item.width, height: item.height });
  image.src = `picture/${item.instance}/thumbnail.png`;
  const over = frame.appendChild(document.createElement("span"));
  over.className = "over";
  over.style.aspectRatio = `${item.width} / ${item.height}`;
  over.classList.toggle("tall", item.width * 3 < item.height * 4);
  for (const box of item.writing) picture.place(over.appendChild(document.createElement("i")), box, item);
  const why = button.appendChild(document.createElement("strong"));
  why.textContent = whyText(item.why);
  const facts = button.appendChild(document.createElement("small"));
  facts.textContent = [item.device, item.frames > 1 ? say("clip", { n: item.frames }) : texts.still].filter(Boolean).join(" · ");
  button.addEventListener("click", () => openCase(item));
  return place;
}

function setCurrent(instance, focus = false) {
  for (const button of find("#grid").querySelectorAll("button[tabindex='0']")) button.tabIndex = -1;
  const button = cards.get(instance)?.firstChild;
  if (!button) return;
  button.tabIndex = 0;
  if (focus) button.focus();
}

function moveInOverview(key) {
  const items = listed().map((item) => cards.get(item.instance));
  const at = items.findIndex((place) => place.contains(document.activeElement));
  const columns = Math.max(1, items.findIndex((place) => place.offsetTop > items[0].offsetTop));
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const to = at < 0 ? 0 : at + by;
  if (items[to]) setCurrent(items[to].firstChild.dataset.instance, true);
}

async function backToOverview() {
  const from = shown.instance;
  picture.close();
  shown = null;
  find("#case").hidden = true;
  find("#overview").hidden = false;
  showOverview();
  setCurrent(waiting.has(from) ? from : listed()[0]?.instance, true);
  await load();
  setCurrent(waiting.has(from) ? from : listed()[0]?.instance, true);
}

// ---- one case

function openCase(item) {
  shown = item;
  insisted = null;
  find("#overview").hidden = true;
  find("#case").hidden = false;
  const items = listed(), at = items.indexOf(item);
  const remembered = !drawn.has(item.instance) && templates.get(item.layout_key);
  const boxes = drawn.get(item.instance) ?? (remembered || []);
  find("#why").textContent = whyText(item.why);
  find("#device").textContent = [item.device, item.frames > 1 ? say("clip", { n: item.frames }) : texts.still].filter(Boolean).join(" · ");
  find("#place").textContent = say("place", { n: at + 1, of: items.length });
  find("#take-text").textContent = item.writing.length ? say("take", { n: item.writing.length }) : texts.takeNone;
  find("#take").disabled = item.writing.length === 0;
  find("#remember").ariaChecked = "false";
  tell(remembered ? texts.template : "");
  picture.open(item, boxes.filter((box) => box.bottom <= item.height && box.right <= item.width));
  picture.prefetch(items[at + 1]);
  count();
}

picture.onMasksChanged(() => {
  const masks = picture.currentMasks();
  drawn.set(shown.instance, masks);
  insisted = null;
  find("#mask-count").textContent = masks.length ? `· ${masks.length}` : "";
  find("#remove").disabled = find("#clear").disabled = masks.length === 0;
  if (masks.length === 0) find("#remember").ariaChecked = "false";
});

function move(by) {
  const items = listed(), to = items[items.indexOf(shown) + by];
  if (to) openCase(to);
}

function toggleRemember() {
  if (picture.currentMasks().length === 0) return tell(texts.noMask);
  const remember = find("#remember");
  remember.ariaChecked = String(remember.ariaChecked !== "true");
}

async function decide(decision) {
  const item = shown, accepts = decision === "accept";
  if (!picture.canBeDecided(accepts)) return;
  if (accepts && insisted !== item.instance && picture.uncovered().length) {
    insisted = item.instance;
    return tell(texts.uncovered);
  }
  const boxes = accepts ? picture.currentMasks() : [];
  const remember = accepts && find("#remember").ariaChecked === "true";
  await ask("decision", { instance: item.instance, decision, boxes, remember, by: fixedName ?? sessionStorage.getItem("name") });
  if (remember) templates.set(item.layout_key, boxes);
  const items = listed(), at = items.indexOf(item);
  const next = items[at + 1] ?? items[at - 1];
  undoable = [...undoable.filter((instance) => instance !== item.instance), item.instance];
  forget(item.instance);
  if (next) openCase(next);
  else await backToOverview();
  tell(accepts ? texts.accepted : texts.rejected);
}

async function undo() {
  const instance = undoable.at(-1);
  if (instance === undefined) return tell(texts.nothingToUndo);
  const item = await ask("undo", { instance });
  undoable = undoable.slice(0, -1);
  templates.delete(item.layout_key);
  await load();
  openCase(waiting.get(item.instance) ?? item);
  tell(texts.undone);
}

// ---- keys and buttons

const ACTIONS = {
  "#back": backToOverview, "#previous": () => move(-1), "#next": () => move(1), "#play": picture.togglePlay,
  "#brighten": picture.toggleBrighten, "#brightest": picture.toggleBrightest, "#take": picture.takeFound,
  "#draw": picture.addMask, "#keep": () => tell(picture.toggleKeeping() ? texts.keepHow : ""), "#remove": picture.removeMask,
  "#clear": picture.clearMasks, "#remember": toggleRemember, "#accept": () => decide("accept"), "#reject": () => decide("reject"),
};
const ANYWHERE = { "#undo": undo, "#show-legend": () => find("#legend").showModal() };
const KEYS = {
  Escape: "#back", p: "#previous", n: "#next", " ": "#play", b: "#brighten", v: "#brightest", m: "#take", d: "#draw", k: "#keep",
  Delete: "#remove", Backspace: "#remove", c: "#clear", t: "#remember", a: "#accept", r: "#reject",
};
const KEYS_ANYWHERE = { u: "#undo", "?": "#show-legend" };

function begin() {
  if (fixedName === null && !sessionStorage.getItem("name")) find("#who").showModal();
  else setCurrent(listed()[0]?.instance, true);
}

function act(selector) {
  acts = acts.then(async () => {
    if (find(selector).disabled || (selector in ACTIONS && !shown)) return;
    try {
      await (ACTIONS[selector] ?? ANYWHERE[selector])();
    } catch (error) {
      tell(error.message, true);
    }
  });
}

for (const selector of [...Object.keys(ACTIONS), ...Object.keys(ANYWHERE)]) {
  find(selector).addEventListener("click", (event) => {
    // After the mouse the keys belong to the picture again.
    if (event.detail > 0 && shown) find("#picture").focus({ preventScroll: true });
    act(selector);
  });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || find("dialog[open]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const selector = KEYS_ANYWHERE[key] ?? (shown ? KEYS[key] : undefined);
  const target = event.target, isDecision = "ar".includes(key);
  if (key.startsWith("Arrow")) {
    if (target === find("#frame")) return;
    event.preventDefault();
    if (!shown) return moveInOverview(key);
    if (!picture.nudge(key, event.shiftKey)) picture.step(key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1);
  } else if (key === " " && target.matches("button") && !target.closest("#masks")) {
    return; // the button's own key
  } else if (key === "Escape" && picture.endDrag()) {
    event.preventDefault();
  } else if (selector && !(event.repeat && isDecision)) {
    event.preventDefault();
    act(selector);
  }
});

find("#who form").addEventListener("submit", (event) => {
  const name = find("#name").value.trim();
  if (name.length < 2) return event.preventDefault();
  sessionStorage.setItem("name", name);
});
find("#who").addEventListener("close", begin); // also by Escape, which does not answer

translate(document);
try {
  await load();
  begin();
} catch (error) {
  tell(error.message, true);
}
