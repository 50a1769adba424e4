// The one way this page makes elements: text stays text, whatever it contains.

/**
 * @param {string} tag
 * @param {{text?: string, class?: string, [attribute: string]: string | undefined}} [attributes]
 * @param {...(Node | string)} children strings become text nodes, never markup
 * @returns {HTMLElement}
 */
export function element(tag, { text, class: className, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The element with this id; throws when the page has none, because then page and script differ. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element #${id}`);
  return found;
}

const SVG = "http://www.w3.org/2000/svg";

/** A flame, drawn from the page's symbol. */
export function flame() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 30");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", "#flame");
  svg.append(use);
  return svg;
}
