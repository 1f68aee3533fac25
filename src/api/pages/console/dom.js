/* Building the document: data reaches it through text only, never as markup. */

import { t } from './text.js';

export const $ = (id) => document.getElementById(id);

/** Makes an element: properties, then children (nodes, texts, or nothing). */
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) node[name] = value;
    else if (name === 'value') node.value = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function setText(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

export const card = (...children) => h('section', { class: 'card' }, ...children);
export const pill = (text, tone = '') => h('span', { class: `pill ${tone}` }, text);

/** Pairs of a name and a value; those without a value are left out. */
export const details = (pairs) =>
  h('dl', { class: 'details' }, pairs.filter(([, value]) => value !== null && value !== undefined && value !== '')
    .flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));

/** A table. A column is `[title, make a cell's content from an item, class]`. */
export function table(caption, columns, items, nothing) {
  if (!items.length) return h('p', { class: 'empty' }, nothing);
  const one = (content) => (Array.isArray(content) ? h('div', {}, content) : content ?? '–');
  const cell = (item) => ([title, content, style]) => h('td', { 'data-label': title, class: style }, one(content(item)));
  return h('table', {},
    caption && h('caption', {}, caption),
    h('thead', {}, h('tr', {}, columns.map(([title, , style]) => h('th', { scope: 'col', class: style }, title)))),
    h('tbody', {}, items.map((item) => h('tr', {}, columns.map(cell(item))))));
}

/** What went wrong, in a box; nothing without a problem. */
export function problemBox(problem) {
  if (!problem) return '';
  const { title, detail, errors = [], status, code, requestId } = problem;
  const places = errors.map(({ pointer, parameter, detail: why }) => `${pointer?.replace('#/', '') ?? parameter}: ${why}`);
  return h('div', { class: 'problem', role: 'alert' },
    h('b', {}, title), h('div', {}, detail ?? ''), places.map((place) => h('div', {}, place)),
    h('div', { class: 'meta' }, [status, code, requestId].filter(Boolean).join(' · ')));
}

/**
 * Asks before something is changed: shows what will happen, and takes the reason that is recorded.
 * `fields` stand above the reason; `check` says what is wrong with them, or nothing. Resolves to the reason, or null.
 */
export function confirmed({ title, text, fields = [], check = () => null, danger = false }) {
  const [dialog, reason, note, ok] = [$('dialog'), $('dialog-reason'), $('dialog-note'), $('dialog-ok')];
  setText($('dialog-title'), title);
  setText($('dialog-text'), text);
  $('dialog-fields').replaceChildren(...fields);
  setText(ok, title);
  ok.className = danger ? 'danger' : 'primary';
  setText(note, '');
  reason.value = '';
  reason.removeAttribute('aria-invalid');
  return new Promise((resolve) => {
    dialog.querySelector('form').onsubmit = (event) => {
      event.preventDefault();
      const missing = !reason.value.trim();
      reason.setAttribute('aria-invalid', String(missing));
      const wrong = check() ?? (missing ? t('reasonMissing') : null);
      setText(note, wrong ?? '');
      if (!wrong) dialog.close('ok');
    };
    $('dialog-cancel').onclick = () => dialog.close('');
    dialog.onclose = () => resolve(dialog.returnValue === 'ok' ? reason.value.trim() : null);
    dialog.returnValue = '';
    dialog.showModal();
    (fields[0]?.querySelector('input') ?? reason).focus();
  });
}
