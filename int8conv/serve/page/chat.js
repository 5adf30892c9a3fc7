// The chat page: one conversation, kept in this page alone; asks nothing of any other host.
"use strict";

const $ = id => document.getElementById(id);
let messages = [];
let running = null; // AbortController of the reply that is coming
let model = "";

function headers() {
  const key = $("key").value.trim();
  return {"Content-Type": "application/json", ...(key && {Authorization: `Bearer ${key}`})};
}

function show(role, text) {
  const article = document.createElement("article"), body = document.createElement("p");
  article.className = role;
  body.textContent = text;
  article.append(body);
  $("log").append(article);
  article.scrollIntoView({block: "end"});
  return article;
}

function finish(article, words) {
  const footer = document.createElement("footer"), copy = document.createElement("button");
  copy.type = "button";
  copy.textContent = "Copy";
  copy.onclick = async () => {
    try {
      await navigator.clipboard.writeText(article.querySelector("p").textContent);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Select the text to copy it";
    }
  };
  footer.append(copy, words);
  article.append(footer);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function problem(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answers with status ${response.status}`;
  }
}

function request(text) {
  const body = {model, stream: true, stream_options: {include_usage: true}};
  if ($("temperature").value) body.temperature = Number($("temperature").value);
  if ($("tokens").value) body.max_tokens = Number($("tokens").value);
  if ($("mode").value === "complete") return ["v1/completions", {...body, prompt: text}];
  const system = $("system").value.trim();
  const first = system ? [{role: "system", content: system}] : [];
  return ["v1/chat/completions", {...body, messages: [...first, ...messages, {role: "user", content: text}]}];
}

function follow(log) { // as long as the reader is at the end
  return log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}

async function answer(text) {
  show("user", text);
  const article = show("assistant", ""), paragraph = article.querySelector("p"), log = $("log");
  running = new AbortController();
  state();
  let words = "", reply = "", failed = null;
  try {
    const [path, body] = request(text);
    const response = await fetch(path, {method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal});
    if (!response.ok) throw new Error(await problem(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices) {
        const at_end = follow(log);
        reply += choice.delta?.content ?? choice.text ?? "";
        paragraph.textContent = reply;
        if (at_end) log.scrollTop = log.scrollHeight;
        if (choice.finish_reason === "length") words = "cut off: no more tokens";
      }
      if (event.usage) words = `${event.usage.completion_tokens} tokens${words && ", " + words}`;
    }
  } catch (error) {
    if (error.name === "AbortError") words = "stopped";
    else failed = error.message;
  }
  running = null;
  if (reply || !failed) {
    finish(article, words);
    if ($("mode").value === "chat") messages.push({role: "user", content: text}, {role: "assistant", content: reply});
  } else article.remove();
  if (failed) {
    show("error", failed);
    if (!reply) $("text").value = text; // nothing typed is lost
  }
  state();
  $("text").focus();
}

function state() {
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("new").disabled = running !== null;
}

function send() {
  const text = $("text").value;
  if (running || !text.trim()) return;
  $("text").value = "";
  answer(text);
}

async function start() {
  $("form").onsubmit = event => { event.preventDefault(); send(); };
  $("stop").onclick = () => running?.abort();
  $("new").onclick = () => { messages = []; $("log").replaceChildren(); $("text").focus(); };
  $("text").onkeydown = event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  };
  document.addEventListener("keydown", event => { if (event.key === "Escape") running?.abort(); });
  $("key").onchange = name;
  await name();
}

async function name() {
  try {
    const response = await fetch("v1/models", {headers: headers()});
    if (!response.ok) return show("error", await problem(response));
    model = (await response.json()).data[0].id;
    $("model").textContent = document.title = model;
  } catch (error) {
    show("error", error.message);
  }
}

start();
