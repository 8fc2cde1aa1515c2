// The page's texts in the languages it speaks; the browser's first one that is here is used.
export const TEXTS = {
  en: {
    title: "Images to look at", waiting: "{n} waiting", done: "{n} decided", nothing: "Nothing waits. You can close this page.",
    undo: "Undo", keys: "Keys", filter: "Reason", all: "All", play: "Play", space: "Space", frame: "Frame", back: "All",
    escape: "Esc", previous: "Previous image", next: "Next image", place: "{n} of {of}", look: "Look closer",
    brighten: "Brighten", brightest: "Whole clip", brightestShort: "all", mask: "Mask", take: "Mask what was found ({n})",
    takeNone: "No writing was located", draw: "New mask", keep: "Keep only…", remove: "Remove", delete: "Del", clear: "Clear all",
    remember: "Mask this device and layout like this from now on", accept: "Accept", reject: "Reject",
    who: "Who decides?", whoWhy: "Your name is kept on this site with each decision.", name: "Your name", begin: "Begin", close: "Close",
    picture: "Image, {width} × {height} pixels", maskLabel: "Mask, {width} × {height} pixels at {left}, {top}", clip: "{n} frames", still: "Still",
    accepted: "Accepted.", rejected: "Rejected.", undone: "Undone.", nothingToUndo: "There is nothing to undo.",
    uncovered: "Writing was found here and is not masked. Press A again to accept it nevertheless.",
    template: "Masked as remembered for this device and layout.", noMask: "Draw a mask first: there is nothing to remember.",
    keepHow: "Draw around what is to be kept; all around it is masked.", failed: "Not saved: {what}",
    lost: "This page was closed by EchoFed. Run `echofed site review` again.", unreachable: "EchoFed does not answer. Is `echofed site review` still running?",
    noPicture: "This image cannot be shown. Reject it, or ingest its exam again.",
    why: { NO_REGION: "No tissue region for certain", WRITING: "Writing on the tissue", UNCERTAIN_STILL: "A still that may hold writing",
      NO_TEXT_CHECK: "Text was not checked", UNKNOWN_LAYOUT: "Unknown layout", OTHER: "To be checked" },
    legend: [["↑ ↓ ← →", "move in the overview; step through a clip"], ["Enter", "open"], ["N P", "next, previous image"],
      ["Space", "play, pause"], ["V", "all frames in one: the brightest of each pixel"], ["B", "brighten what is faint"],
      ["M", "mask all that was found"], ["mouse", "drag: new mask; click: select it, or mask what was found there"], ["D", "new mask by keyboard"],
      ["Tab", "select the next mask"], ["↑ ↓ ← →", "move the selected mask; with Shift: change its size"], ["Del", "remove the selected or last mask"],
      ["K", "draw what to keep instead"], ["C", "remove all masks"], ["T", "mask this device and layout like this from now on"],
      ["A", "accept; what is masked becomes black for good"], ["R", "reject: never used"], ["U", "undo the last decision"], ["Esc", "back to all images"], ["?", "these keys"]],
  },
  fr: {
    title: "Images à vérifier", waiting: "{n} en attente", done: "{n} traitées", nothing: "Rien n’attend. Vous pouvez fermer cette page.",
    undo: "Annuler", keys: "Touches", filter: "Motif", all: "Toutes", play: "Lire", space: "Espace", frame: "Image du clip", back: "Toutes",
    escape: "Échap", previous: "Image précédente", next: "Image suivante", place: "{n} sur {of}", look: "Regarder de près",
    brighten: "Éclaircir", brightest: "Tout le clip", brightestShort: "tout", mask: "Masquer", take: "Masquer ce qui a été trouvé ({n})",
    takeNone: "Aucun texte localisé", draw: "Nouveau", keep: "Garder seul…", remove: "Retirer", delete: "Suppr", clear: "Tout retirer",
    remember: "Masquer désormais ainsi cet appareil et cette disposition", accept: "Accepter", reject: "Rejeter",
    who: "Qui décide ?", whoWhy: "Votre nom est conservé sur ce site avec chaque décision.", name: "Votre nom", begin: "Commencer", close: "Fermer",
    picture: "Image, {width} × {height} pixels", maskLabel: "Masque, {width} × {height} pixels à {left}, {top}", clip: "{n} images", still: "Image fixe",
    accepted: "Acceptée.", rejected: "Rejetée.", undone: "Annulé.", nothingToUndo: "Il n’y a rien à annuler.",
    uncovered: "Du texte trouvé ici n’est pas masqué. Appuyez encore sur A pour accepter malgré tout.",
    template: "Masqué comme retenu pour cet appareil et cette disposition.", noMask: "Dessinez d’abord un masque : il n’y a rien à retenir.",
    keepHow: "Entourez ce qui doit rester ; tout le reste sera masqué.", failed: "Non enregistré : {what}",
    lost: "EchoFed a fermé cette page. Relancez `echofed site review`.", unreachable: "EchoFed ne répond pas. `echofed site review` tourne-t-il encore ?",
    noPicture: "Cette image ne peut être affichée. Rejetez-la, ou importez à nouveau son examen.",
    why: { NO_REGION: "Zone de tissu incertaine", WRITING: "Texte sur le tissu", UNCERTAIN_STILL: "Image fixe, texte possible",
      NO_TEXT_CHECK: "Texte non recherché", UNKNOWN_LAYOUT: "Disposition inconnue", OTHER: "À vérifier" },
    legend: [["↑ ↓ ← →", "se déplacer dans la vue d’ensemble ; avancer dans le clip"], ["Entrée", "ouvrir"], ["N P", "image suivante, précédente"],
      ["Espace", "lire, arrêter"], ["V", "tout le clip en une : le plus clair de chaque pixel"], ["B", "éclaircir ce qui est pâle"],
      ["M", "masquer tout ce qui a été trouvé"], ["souris", "tirer : nouveau masque ; cliquer : le choisir, ou masquer ce qui y a été trouvé"], ["D", "nouveau masque au clavier"],
      ["Tab", "choisir le masque suivant"], ["↑ ↓ ← →", "déplacer le masque choisi ; avec Maj : changer sa taille"], ["Suppr", "retirer le masque choisi ou le dernier"],
      ["K", "dessiner plutôt ce qu’il faut garder"], ["C", "retirer tous les masques"], ["T", "masquer désormais ainsi cet appareil et cette disposition"],
      ["A", "accepter ; ce qui est masqué devient noir pour toujours"], ["R", "rejeter : jamais utilisée"], ["U", "annuler la dernière décision"], ["Échap", "toutes les images"], ["?", "ces touches"]],
  },
};

const language = navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => tag in TEXTS) ?? "en";
export const texts = TEXTS[language];

export function say(key, values = {}) {
  return texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export function translate(root) {
  document.documentElement.lang = language;
  document.title = texts.title;
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = texts[element.dataset.text];
  for (const element of root.querySelectorAll("[data-label]")) {
    element.ariaLabel = element.title = texts[element.dataset.label];
  }
  for (const [keys, meaning] of texts.legend) {
    const row = root.querySelector("#legend dl").appendChild(document.createElement("div"));
    row.appendChild(document.createElement("dt")).textContent = keys;
    row.appendChild(document.createElement("dd")).textContent = meaning;
  }
}
