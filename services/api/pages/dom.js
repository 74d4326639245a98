// Small tools for the page: elements, lists that are kept rather than made anew, words for numbers.
// Text enters by textContent alone: names and reasons come from machines that may be strange.

export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function say(target, text) {
  const words = String(text);
  if (target.textContent !== words) target.textContent = words;
}

/** Make `list`'s children those of `items`: each is made once and then updated, so that focus,
 *  selection and open details stay where they are. */
export function keep(list, items, keyOf, make, update) {
  const there = new Map([...list.children].map((child) => [child.dataset.key, child]));
  let before = list.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = there.get(key);
    if (child) there.delete(key);
    else {
      child = make(item);
      child.dataset.key = key;
    }
    update(child, item);
    if (child === before) before = before.nextElementSibling;
    else list.insertBefore(child, before);
  }
  for (const gone of there.values()) gone.remove();
}

const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const WHOLE = new Intl.NumberFormat("en");

export const short = (value) => (value == null ? "–" : SHORT.format(value));
export const whole = (value) => (value == null ? "–" : WHOLE.format(value));
export const percent = (part) => `${(100 * part).toFixed(part < 0.1 && part > 0 ? 1 : 0)} %`;

export function span(ms) {
  if (ms == null) return "never";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  if (ms < 3_600_000) return `${Math.round(ms / 60_000)} min`;
  return `${(ms / 3_600_000).toFixed(1)} h`;
}

/** How a state is shown: its kind of colour, beside the word itself. */
export function kind(state) {
  if (state === "up") return "is-up";
  if (["suspect", "draining", "probation"].includes(state)) return "is-warn";
  return "is-bad";
}
