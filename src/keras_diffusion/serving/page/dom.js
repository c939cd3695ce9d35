// Small helpers for the page's elements.

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Tells screen readers, without moving the focus.
export function announce(text) {
  $("#announcer").textContent = text;
}

// Shows a message at the top of the page; `action` is [label, function].
export function notify(text, action) {
  const notice = $("#notice");
  $("p", notice).textContent = text;
  const button = $("[data-act=action]", notice);
  button.hidden = !action;
  if (action) {
    button.textContent = action[0];
    button.onclick = () => {
      notice.hidden = true;
      action[1]();
    };
  }
  notice.hidden = false;
}

export function hideNotice() {
  $("#notice").hidden = true;
}

// Calls the function that `actions` has under the name in data-act of what is clicked.
export function onAction(root, actions) {
  root.addEventListener("click", (event) => actions[event.target.closest("[data-act]")?.dataset.act]?.(event));
}

$("#notice [data-act=close]").onclick = hideNotice;
