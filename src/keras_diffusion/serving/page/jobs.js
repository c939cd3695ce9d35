// Keeps the jobs as the server last told them, and follows those that have not ended.

import * as api from "./api.js";

const PAGE = 50;
const RETRY = 2000; // milliseconds

const jobs = new Map();
let order = []; // ids, newest first
let older; // whether the server may have more
let following = false;
const listeners = [];
let trouble = () => {};

export const promptOf = (job) => job.arguments.prompt || "No prompt";
export const isActive = (job) => job.state === "queued" || job.state === "running";
export const all = () => order.map((id) => jobs.get(id)).filter(Boolean);
export const active = () => all().filter(isActive).sort((a, b) => rank(a) - rank(b));
export const ended = () => all().filter((job) => !isActive(job));
export const hasOlder = () => older;

const rank = (job) => (job.state === "running" ? -1 : (job.place ?? 0));

// `listener(job, before)` hears of each change; without a job, of many.
export function onChange(listener) {
  listeners.push(listener);
}

// `report(error)` hears of errors while jobs are followed.
export function onTrouble(report) {
  trouble = report;
}

const tell = (job, before) => listeners.forEach((listener) => listener(job, before));

function keep(job, before = jobs.get(job.id)) {
  jobs.set(job.id, job);
  tell(job, before);
}

export async function refresh() {
  const page = (await api.get(`v1/jobs?limit=${PAGE}`)).jobs;
  const ids = page.map((job) => job.id);
  older ??= page.length === PAGE;
  const missing = active().filter((job) => !ids.includes(job.id));
  order = [...new Set([...ids, ...order])];
  page.reverse().forEach((job) => keep(job)); // what ended last is told last
  for (const job of missing) await reload(job.id);
  tell();
  follow();
}

async function reload(id) {
  try {
    keep(await api.get(`v1/jobs/${id}`));
  } catch (error) {
    if (error.status !== 404) throw error;
    forget(id);
  }
}

export async function loadOlder() {
  const page = (await api.get(`v1/jobs?limit=${PAGE}&before=${order.at(-1)}`)).jobs;
  older = page.length === PAGE;
  order = [...new Set([...order, ...page.map((job) => job.id)])];
  page.forEach((job) => keep(job));
  tell();
}

export async function submit(request) {
  const { id } = await api.post("v1/jobs", request);
  order = [id, ...order.filter((other) => other !== id)];
  keep(await api.get(`v1/jobs/${id}`), { state: "queued" });
  follow();
  return jobs.get(id);
}

export async function cancel(id) {
  keep(await api.post(`v1/jobs/${id}/cancel`));
  await refresh(); // the others move up
}

export async function remove(id) {
  await api.remove(`v1/jobs/${id}`);
  forget(id);
}

function forget(id) {
  order = order.filter((other) => other !== id);
  jobs.delete(id);
  tell();
}

// One stream at a time, that of the first in the queue: browsers open no more than six to a server.
async function follow() {
  if (following) return;
  following = true;
  try {
    for (let job; (job = active()[0]); ) {
      try {
        for await (const news of api.events(`v1/jobs/${job.id}/events`)) keep(news);
        await refresh();
      } catch (error) {
        if (error.status === 404) forget(job.id);
        else trouble(error);
      }
      if (jobs.has(job.id) && isActive(jobs.get(job.id))) await new Promise((resolve) => setTimeout(resolve, RETRY));
    }
  } finally {
    following = false;
  }
}
