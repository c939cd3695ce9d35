// Talks to the server that this page came from.

export class ApiError extends Error {
  constructor(message, status, param) {
    super(message);
    Object.assign(this, { status, param });
  }
}

export class OfflineError extends Error {}

let token = sessionStorage.getItem("token");
let asking = null;
let askToken = async () => null;

// `ask(refused)` resolves to a token, or to null where the user gives none.
export function setTokenAsker(ask) {
  askToken = ask;
}

async function send(path, options = {}) {
  const { method = "GET", json, body = json && JSON.stringify(json), type = json && "application/json" } = options;
  const headers = new Headers();
  if (type) headers.set("Content-Type", type);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  const sent = token;
  let response;
  try {
    // Relative, so that the page works behind a proxy's folder too.
    response = await fetch(path.replace(/^\//, ""), { method, headers, body, cache: "no-store" });
  } catch {
    throw new OfflineError("The server does not answer. Is “keras-diffusion serve” running?");
  }
  if (response.ok) return response;
  if (response.status === 401 && (await newToken(sent))) return send(path, options);
  throw await readError(response);
}

// Requests that are refused at the same time ask once.
async function newToken(refused) {
  if (token === refused) {
    asking ??= askToken(Boolean(refused)).finally(() => (asking = null));
    const given = await asking;
    if (given) sessionStorage.setItem("token", (token = given));
  }
  return token !== refused;
}

async function readError(response) {
  const error = await response.json().then((answer) => answer.error, () => null);
  return new ApiError(error?.message ?? `The server answered ${response.status}.`, response.status, error?.param);
}

export const get = async (path) => (await send(path)).json();
export const getBlob = async (path) => (await send(path)).blob();
export const remove = (path) => send(path, { method: "DELETE" });
export const post = async (path, json = {}) => (await send(path, { method: "POST", json })).json();
export const postFile = async (path, file) =>
  (await send(path, { method: "POST", body: file, type: file.type || "application/octet-stream" })).json();

// Yields the data of server-sent events.
export async function* events(path) {
  const reader = (await send(path)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
        if (data.length) yield JSON.parse(data.join("\n"));
      }
    }
  } catch {
    throw new OfflineError("The server's progress broke off.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
